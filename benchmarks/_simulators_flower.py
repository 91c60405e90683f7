"""Flower's own simulation for simulators.py: Ray engine, stock apps, its FedAvg; nothing of it is changed.

    python _simulators_flower.py WORK OUT ACTORS

Each actor has one core and one thread, and loads the model when its first message comes: Flower gives an
actor nothing that it could keep otherwise. The sites' weights are equal, as in all of the work.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

os.environ |= {
    "FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1", "RAY_USAGE_STATS_ENABLED": "0",
    "OMP_NUM_THREADS": "1",
}  # fmt: skip

import numpy as np
import torch
from _simulators_plain import BEGAN, Work, keep, load_model, mark, put, tensors_of, train_site, trained
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

LOADED: dict[str, tuple[Work, torch.nn.Module]] = {}
"""Of this process: an actor loads once."""


def recorded(tensors: dict[str, torch.Tensor]) -> ArrayRecord:
    """One array a tensor, as Flower's examples send a model."""
    return ArrayRecord({name: Array(np.ascontiguousarray(tensor)) for name, tensor in tensors.items()})


def received(arrays: ArrayRecord) -> dict[str, torch.Tensor]:
    """The adapter of a message."""
    return {name: torch.from_numpy(np.array(array.numpy())) for name, array in arrays.items()}


def client_of(folder: str) -> ClientApp:
    """Trains the site that the node's `partition-id` names."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        if folder not in LOADED:
            torch.set_num_threads(1)
            work = Work.read(Path(folder))
            LOADED[folder] = work, load_model(work)
        work, model = LOADED[folder]
        put(model, received(message.content.array_records["arrays"]))
        round = int(str(message.content.config_records["config"]["server-round"]))
        loss = train_site(model, work, round, int(str(context.node_config["partition-id"])))
        tensors = {name: parameter.detach() for name, parameter in trained(model).items()}
        metrics = MetricRecord({"num-examples": 1, "train_loss": loss})
        return Message(RecordDict({"arrays": recorded(tensors), "metrics": metrics}), reply_to=message)

    return app


def server_of(work: Work, out: Path) -> ServerApp:
    """FedAvg over all nodes."""
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:  # noqa: ARG001 - Flower's signature
        initial = tensors_of(load_model(work))

        def note(round: int, arrays: ArrayRecord) -> None:
            if round:
                keep(out, round, received(arrays))

        mark(out, BEGAN)
        strategy = FedAvg(fraction_evaluate=0.0, min_available_nodes=work.count, min_train_nodes=work.count)
        strategy.start(grid, recorded(initial), num_rounds=work.rounds, evaluate_fn=note)

    return app


def main(folder: str, out: str, actors: int) -> None:
    """Run it in this process, which spares Flower its deployment's own start."""
    from flwr.simulation import run_simulation

    work = Work.read(Path(folder))
    resources: Any = {
        "client_resources": {"num_cpus": 1.0, "num_gpus": 0.0},
        "init_args": {"num_cpus": actors, "include_dashboard": False},
    }
    run_simulation(
        server_of(work, Path(out)), client_of(folder), num_supernodes=work.count, backend_config=resources
    )


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
