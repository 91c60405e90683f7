"""What the number of sites costs the server: time, CPU seconds and memory of a round with 2 to 50 of them.

    python benchmarks/many_sites.py [--sites 2 10 25 50] [--rounds 6] [--mode off|real]

For each number a consortium of its own, made by the steps of a real one, and the real server in a fresh
process: its round loop over the network, TLS, node authentication, a journal on disk. The sites are one
process (`_replaying_sites.py`) that holds so many keys and connections, speaks Flower's fleet protocol
through Flower's own client, and replays recorded updates of an adapter of 250,000 parameters (1 MB in
float32) without torch: fifty nodes, workers and supervisors would measure this machine and not the server.
The updates are drawn once from a normal distribution; nothing of a round depends on what they say.

First the adapter after the last round has to be the initial one plus so many times the mean of the updates,
to within what the ring rounds away. Then: the server's peak resident memory for each number over that of the
smallest (goal: 1.10 at most), the median seconds of a round and the server's CPU seconds of one, both of the
rounds after the first.

Results stand in docs/benchmarks.md; each run adds a line a number to benchmarks/results/many_sites.jsonl.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import sys
import tempfile
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))

from _network import (
    Watch,
    append,
    end_in_order,
    machine,
    process,
    status_kib,
    tail,
    takes_commands,
    wait_for,
    wardround,
)
from toy_plans import toy_plan

from wardround.core.enrolment import EnrolmentRules, SignedPlan
from wardround.core.packed import Layout, Packed, TensorSpec
from wardround.core.plan import (
    AdapterSpec,
    DataContract,
    Encoding,
    RoundRules,
    SecureRules,
    StrategySpec,
    TaskSpec,
)
from wardround.runtime.files import load_tensors
from wardround.runtime.plan_folder import write_plan_folder
from wardround.server.operator_client import connected, submit
from wardround.server.run_record import RunFolder
from wardround.server.run_states import RunStatus
from wardround.simulations.practice.making import Practice, free_port, make_practice
from wardround.training.adapters import ADAPTERS
from wardround.training.plan_commands import sign_folder
from wardround.training.tasks import TASKS

LAYOUT = Layout(tensors=(TensorSpec(name="x", shape=(250_000,)),))
RECORDED, LARGEST = 8, 0.02
PATIENCE_S = 900.0
GOAL = 1.10


def recorded() -> Any:
    """Updates that sites take in turn, float32, within the plan's bound."""
    drawn = np.random.default_rng(0).normal(0, 2e-3, (RECORDED, LAYOUT.size))
    return np.clip(drawn, -LARGEST, LARGEST).astype(np.float32)


def consortium(folder: Path, sites: int) -> Practice:
    """Its folders; what a site's settings say is read by nobody here."""
    settings = {"models": [{"path": "none"}], "source": {"path": "none.jsonl"}}
    names = [f"site{number:02d}" for number in range(sites)]
    address = f"127.0.0.1:{free_port()}"
    return make_practice(folder, address, dict.fromkeys(names, settings), datetime.now(UTC))


def plan_folder(practice: Practice, rounds: int, mode: str) -> Path:
    """A signed plan over all sites."""
    initial = Packed(LAYOUT, np.zeros(LAYOUT.size, dtype=np.float32))
    task, method = "sequence_classification", "lora"
    plan = toy_plan(
        task=TaskSpec(name=task, metrics="classification", options=TASKS.get(task).Options().model_dump()),
        data=DataContract(columns={"text": "t", "label": "l"}, labels=("a", "b")),
        adapter=AdapterSpec(
            layout=LAYOUT, initial_digest=initial.digest, method=method,
            options=ADAPTERS.get(method).Options().model_dump(mode="json"),
        ),
        strategy=StrategySpec(weighting="uniform"),
        encoding=Encoding(bits=16, largest=LARGEST, most_weight=1),
        secure=SecureRules(mode=mode),
        rounds=RoundRules(rounds=rounds, deadline_s=PATIENCE_S),
    )  # fmt: skip
    folder = practice.folder / "plan"
    rules = EnrolmentRules(least_sites=len(practice.sites), grace_s=PATIENCE_S)
    write_plan_folder(folder, SignedPlan(plan=plan, enrolment=rules), initial)
    sign_folder(folder, practice.operator)
    return folder


def own_cpu_s(pid: int) -> float:
    """CPU seconds of one process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK")


def measure(sites: int, rounds: int, mode: str, folder: Path) -> dict[str, Any]:
    """One run with so many sites, in fresh processes."""
    practice = consortium(folder / "practice", sites)
    plan, updates = plan_folder(practice, rounds, mode), recorded()
    np.save(folder / "recorded.npy", updates)
    logs = [folder / "server.log", folder / "sites.log"]
    before = machine()
    with ExitStack() as stack:
        start = wardround("server", "start", str(practice.server))
        server = stack.enter_context(process(start, logs[0]))
        wait_for(lambda: takes_commands(practice.server), 120, [server])
        idle = status_kib(server.pid, "VmRSS")
        script = str(Path(__file__).with_name("_replaying_sites.py"))
        replay = [sys.executable, script, str(folder / "practice" / "sites"), str(folder / "recorded.npy")]
        replayers = stack.enter_context(process(replay, logs[1]))
        watch = stack.enter_context(Watch(lambda: own_cpu_s(server.pid)))
        with connected(practice.server) as client:
            run = practice.server / "runs" / submit(client, plan, "benchmark").run_id
        try:
            wait_for(
                lambda: RunFolder(run, run.name).load().status.ended, PATIENCE_S * 2, [server, replayers]
            )
        except RuntimeError as error:
            raise RuntimeError("\n".join(map(tail, logs))) from error
        peak = status_kib(server.pid, "VmHWM")
    record = RunFolder(run, run.name).load()
    assert record.status is RunStatus.FINISHED, record.reason
    folded = [
        event
        for event in map(json.loads, (run / "events.jsonl").read_text().splitlines())
        if event["event"] == "RoundFolded"
    ]
    assert [len(event["survivors"]) for event in folded] == [sites] * rounds
    mean = np.mean([updates[number % RECORDED].astype(np.float64) for number in range(sites)], axis=0)
    apart = np.abs(load_tensors(run / "result" / "last.safetensors")[0]["x"] - rounds * mean).max()
    assert apart <= 1e-6 + sum(event["rounding"] for event in folded), "the sum is not that of the updates"
    ends = [event["time_s"] for event in folded]
    times = [after - begun for begun, after in itertools.pairwise(ends)]
    return {
        "sites": sites, "mode": mode, **before, "rounds": rounds, "parameters": LAYOUT.size,
        "idle_mib": round(idle / 1024, 1), "peak_mib": round(peak / 1024, 1),
        "first_s": round(folded[0]["wall_s"], 3), "round_s": round(statistics.median(times), 3),
        "rounds_s": [round(value, 3) for value in times],
        "server_cpu_s": round(watch.between(ends[0], ends[-1]) / (rounds - 1), 3),
        "bytes_up": folded[-1]["bytes_up"],
    }  # fmt: skip


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="time, CPU and memory of the server by the number of sites")
    parser.add_argument("--sites", type=int, nargs="+", default=[2, 10, 25, 50])
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--mode", choices=["off", "real"], default="off")
    options = parser.parse_args()
    end_in_order()
    peaks = {}
    for sites in options.sites:
        with tempfile.TemporaryDirectory() as folder:
            found = measure(sites, options.rounds, options.mode, Path(folder))
        peaks[sites] = found["peak_mib"]
        ratio = peaks[sites] / peaks[options.sites[0]]
        print(
            f"{sites:3} sites, {options.mode}: round {found['round_s']:.2f} s, "
            f"first {found['first_s']:.2f}, server CPU {found['server_cpu_s']:.2f} s a round, "
            f"peak {found['peak_mib']:.0f} MiB (idle {found['idle_mib']:.0f}), ratio {ratio:.3f}, "
            f"load {found['load']}"
        )
        append("many_sites", found)
    flat = max(peaks.values()) / min(peaks.values())
    print(f"largest peak over smallest {flat:.3f}: {'within' if flat <= GOAL else 'above'} {GOAL}")


if __name__ == "__main__":
    main()
