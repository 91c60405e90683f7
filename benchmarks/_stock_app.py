"""A stock Flower app that does the work of Wardround's sites; stock_flower.py puts this file into its bundle.

The server is Flower's own FedAvg. The client opens model and rows, trains and scores by the very functions
that Wardround's site calls, so that what differs is the deployment alone. As in every stock deployment each
message has a process of its own, which begins with nothing loaded.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

client = ClientApp()
server = ServerApp()
ROUNDS, LAST, SCORES = "rounds.jsonl", "last.npz", "scores.json"


@server.main()
def main(grid: Grid, context: Context) -> None:
    """FedAvg over all nodes; notes when each round has ended, and what came out."""
    folder = Path(str(context.run_config["folder"]))
    with np.load(folder / "initial.npz") as file:
        initial = {name: file[name] for name in file.files}

    def note(round: int, arrays: ArrayRecord) -> None:  # noqa: ARG001 - Flower's signature
        with (folder / ROUNDS).open("a") as file:
            file.write(json.dumps({"round": round, "time_s": time.time()}) + "\n")

    result = FedAvg().start(
        grid, recorded(initial), num_rounds=int(context.run_config["rounds"]), evaluate_fn=note
    )
    np.savez(folder / LAST, **{name: array.numpy() for name, array in result.arrays.items()})
    losses = {round: found["loss"] for round, found in result.evaluate_metrics_clientapp.items()}
    (folder / "scores.part").write_text(json.dumps(losses))
    (folder / "scores.part").rename(folder / SCORES)


@client.train()
def train(message: Message, context: Context) -> Message:
    """One local round."""
    from wardround.strategies.contract import LocalRules
    from wardround.training.local_round import LocalJob, train_locally

    plan, site, local = opened(context)
    result = train_locally(
        local.bench,
        LocalJob(
            local.rows.training,
            received(message, local.bench.layout),
            plan.local,
            LocalRules(),
            round=int(message.content.config_records["config"]["server-round"]),
            rounds=plan.rounds.rounds,
            seed_root=plan.seed,
            site=site,
        ),
    )
    metrics = MetricRecord({"num-examples": result.examples, "train_loss": result.loss_sum / result.targets})
    records = RecordDict({"arrays": recorded(result.adapter.tensors()), "metrics": metrics})
    return Message(records, reply_to=message)


@client.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Score the rows that the site holds back."""
    from wardround.core.counting import metric_counters, scores
    from wardround.training.evaluation import evaluate as evaluated

    plan, _, local = opened(context)
    bench = local.bench
    bench.load_adapter(received(message, bench.layout))
    counters = evaluated(
        bench.model, bench.task, plan.task, plan.data, local.rows.validation,
        batch_size=bench.machine.evaluation_batch_size, device=bench.device, tokenizer=bench.tokenizer,
    )  # fmt: skip
    loss = scores(plan, metric_counters(plan, counters.tensors())).values["loss"]
    metrics = MetricRecord({"num-examples": len(local.rows.validation), "loss": loss})
    return Message(RecordDict({"metrics": metrics}), reply_to=message)


def opened(context: Context) -> tuple[Any, str, Any]:
    """Plan, name of the site, its model and rows."""
    from wardround.client.local_data import ready
    from wardround.client.site_settings import read_site_settings
    from wardround.core.plan import TrainingPlan

    plan = TrainingPlan.parse(Path(str(context.node_config["plan"])).read_bytes())
    site = str(context.node_config["site"])
    return plan, site, ready(read_site_settings(Path(str(context.node_config["settings"]))), plan, site)


def received(message: Message, layout: Any) -> Any:
    """The adapter of a message."""
    from wardround.core.packed import pack

    arrays = message.content.array_records["arrays"]
    return pack(layout, {name: array.numpy() for name, array in arrays.items()})


def recorded(tensors: Mapping[str, Any]) -> ArrayRecord:
    """One array a tensor, as Flower's examples send a model."""
    return ArrayRecord({name: Array(np.ascontiguousarray(tensor)) for name, tensor in tensors.items()})
