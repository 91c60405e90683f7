"""Site-rounds a second of a simulation on this machine, by who trains.

    python benchmarks/workers.py [--models minilm med_llama] [--batches 1 4 16] [--sites 24] [--rounds 3]

Ten local steps a site and round, rows of real lengths (pqa_sections, medquad_qa; needs WARDROUND_DATA), LoRA
r 8 on query and value, the base's dropout off, no masks. Each contender is a whole `wardround simulate` in a
process of its own, and all that train in float32 one site at a time with one thread have to end with the
adapter of the first one, bit for bit; the others' loss has to be within 2 % of its. Reported: site-rounds a
second over the rounds after the first (all of them: exchange, sums, journal), and over `inline, 1 thread`.

What was seen stands in docs/benchmarks.md; it wants a machine that nobody else uses.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

CORES = os.cpu_count() or 1
SAME = ("machine.threads=1",)
CONTENDERS: dict[str, tuple[str, ...]] = {
    "inline, 1 thread": SAME,
    f"inline, {CORES} threads": (f"machine.threads={CORES}",),
    f"ray, {CORES} workers": (*SAME, "simulation.backend=ray"),
    "inline, 1 thread, together, bf16": (*SAME, "simulation.together=auto", "machine.precision=bf16"),
    f"ray, {CORES} workers, together, bf16": (
        *SAME, "simulation.backend=ray", "simulation.together=auto", "machine.precision=bf16",
    ),
}  # fmt: skip
MODELS = {
    "minilm": [
        "model=minilm", "data=pqa_sections", "adapter.options.targets=[query,value]", "data.max_length=128",
    ],
    "med_llama": [
        "model=med_llama", "data=medquad_qa", "adapter.options.targets=[q_proj,v_proj]", "data.max_length=96",
        "release.metric=bits_per_byte", "release.direction=min",
    ],
}  # fmt: skip
COMMON = [
    "data.limit=1500", "partition.kind=iid", "~partition.options", "model.dropout='off'", "secure.mode=off",
    "data.validation_fraction=0", "data.test=null", "local.epochs=null", "++local.steps=10",
    "bounds.centralised=false", "bounds.local_only=false", "evaluation.every=null",
]  # fmt: skip
NEAR = 0.02


def inside(settings: list[str]) -> None:
    """Run one contender, and print its digest, its loss and the seconds of its rounds."""
    from quality import parsed

    from wardround.runtime.event_log import read_events
    from wardround.runtime.events import RoundFolded
    from wardround.simulations.simulate import run_simulation

    with tempfile.TemporaryDirectory() as place:
        result = run_simulation(parsed([*settings, f"output={place}/run"]))
        rounds = [e for e in read_events(Path(place) / "run/metrics.jsonl") if isinstance(e, RoundFolded)]
    print(
        json.dumps(
            {
                "digest": result.federated.outcome.last.adapter.digest,
                "loss": rounds[-1].train_loss,
                "seconds": [event.wall_s for event in rounds],
            }
        )
    )


def measured(settings: list[str]) -> dict[str, Any]:
    """What a contender said."""
    command = [sys.executable, __file__, "--inside", *settings]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def compare(model: str, batch: int, sites: int, rounds: int) -> None:
    """All contenders on the same work, in turn."""
    common = [
        *MODELS[model], *COMMON, f"+partition.options={{sites: {sites}, by: row}}",
        f"local.batch_size={batch}", f"rounds.rounds={rounds}", f"release.every={rounds}",
    ]  # fmt: skip
    first: dict[str, Any] = {}
    for name, own in CONTENDERS.items():
        found = measured([*common, *own])
        first = first or found
        if "bf16" in name or "threads" in name:
            assert abs(found["loss"] - first["loss"]) <= NEAR * first["loss"], (name, found["loss"])
        else:
            assert found["digest"] == first["digest"], name
        pace, base = (sites / statistics.median(run["seconds"][1:]) for run in (found, first))
        loss = found["loss"]
        print(
            f"{model} {batch:3} {name:38} {pace:6.2f} site-rounds/s {pace / base:5.2f} loss {loss:.4f}",
            flush=True,
        )


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 4, 16])
    parser.add_argument("--sites", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--inside", nargs="+", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.inside:
        inside(given.inside)
        return
    for model in given.models:
        for batch in given.batches:
            compare(model, batch, given.sites, given.rounds)


if __name__ == "__main__":
    main()
