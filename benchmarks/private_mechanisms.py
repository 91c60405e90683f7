"""Two mechanisms at equal ε: steps that are sampled (DP-SGD), and blocks in turn with correlated noise.

    python benchmarks/private_mechanisms.py sums
    python benchmarks/private_mechanisms.py heart [--batch 16 --passes 10 --rate 1] [--epsilons 1 8]
    python benchmarks/private_mechanisms.py table

`sums` trains nothing: root mean square, over the steps of a run, of the noise on the prefix sums of clipped
sums, in clip norms, by the accountant that reserves (Rényi DP) and by the closed form of what losses say. A
model that takes plain steps of one rate is moved by those prefix sums. `heart` trains the head of
`experiment=heart_head` in small batches, at each of four hospitals with noise of its own, and adds what is
missing to benchmarks/results/private_mechanisms.jsonl; `table` shows that. δ = 1e-4, every ε excludes tuning.
Results stand in docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, Literal

import quality
from private_utility import score
from rich.console import Console
from rich.table import Table

from wardround.privacy.accounting.banded import error_of_sums, sensitivity
from wardround.privacy.accounting.calibrate import least_noise
from wardround.simulations.config import RunConfig

RESULTS = Path(__file__).parent / "results" / "private_mechanisms.jsonl"
DELTA = 1e-4
SITES = (
    (200, 16, 1), (200, 16, 3), (200, 16, 10), (200, 16, 40), (200, 64, 10), (1000, 16, 3), (1000, 16, 10),
    (1000, 64, 10), (5000, 16, 1), (5000, 64, 3), (5000, 64, 20),
)  # fmt: skip
"""Patients, batch, passes."""
EPSILONS = (1.0, 3.0, 8.0)
MECHANISMS = ("poisson", "banded")
NAMES = ("mechanism", "batch", "passes", "epsilon", "seed", "rate")


def noise_on_sums(units: int, batch: int, passes: int, epsilon: float, spend: Any) -> dict[str, float]:
    """Mechanism → root mean square of the noise on prefix sums, in clip norms."""
    bands = max(1, math.floor(units / batch + 0.5))
    steps = bands * passes
    noise = partial(least_noise, epsilon, DELTA, units=units, spend=spend, tolerance=1e-3)
    return {
        "poisson": noise(sample_rate=1 / bands, steps=steps) * error_of_sums(1, steps),
        "banded": noise(sample_rate=1.0, steps=1) * sensitivity(bands, steps) * error_of_sums(bands, steps),
    }


def sums(spend: Literal["reserve", "report"]) -> None:
    """The table of ratios."""
    shown = Table("patients", "batch", "b", "passes", "steps", *(f"ε = {each:g}" for each in EPSILONS))
    for units, batch, passes in SITES:
        cells = []
        for epsilon in EPSILONS:
            found = noise_on_sums(units, batch, passes, epsilon, spend)
            poisson, banded = found["poisson"], found["banded"]
            cells.append(f"{poisson:.1f}, {banded:.1f} ({banded / poisson:.2f})")
        bands = max(1, math.floor(units / batch + 0.5))
        shown.add_row(str(units), str(batch), str(bands), str(passes), str(bands * passes), *cells)
    Console(width=200).print(shown)


def config_of(mechanism: str, batch: int, passes: int, epsilon: float, seed: int, rate: float) -> RunConfig:
    """`heart_head` in small batches, one pass over each hospital a round."""
    return quality.parsed(
        [
            "experiment=heart_head", f"privacy={'patient' if mechanism == 'poisson' else 'banded'}",
            f"privacy.epsilon={epsilon:g}", "++privacy.delta=1e-4", "privacy.sample_rate=null",
            "local.steps=null", "local.epochs=1", f"local.batch_size={batch}",
            f"local.learning_rate={rate:g}", f"rounds.rounds={passes}", "encoding.bits=32",
            "machine.threads=1", f"seed={seed}",
        ]
    )  # fmt: skip


def heart(batch: int, passes: int, epsilons: list[float], seeds: list[int], rate: float) -> None:
    """Train and score what is missing."""
    known = [tuple(record[name] for name in NAMES) for record in read()]
    for seed, epsilon, mechanism in product(seeds, epsilons, MECHANISMS):
        what = (mechanism, batch, passes, epsilon, seed, rate)
        if what in known:
            continue
        found = score(config_of(*what), held_out=False)
        with RESULTS.open("a", encoding="utf-8") as file:
            file.write(quality.compact(dict(zip(NAMES, what, strict=True)) | found) + "\n")
        print(*what, found["values"]["macro_f1"], found["wall_s"], flush=True)


def read() -> list[dict[str, Any]]:
    """What was measured."""
    if not RESULTS.exists():
        return []
    return [json.loads(line) for line in RESULTS.read_text(encoding="utf-8").splitlines()]


def table() -> None:
    """Macro-F1 and loss on the test rows, by mechanism, ε and learning rate."""
    shown = Table("batch", "passes", "rate", "ε", "mechanism", "seeds", "macro-F1", "mean", "loss")
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for record in read():
        place = tuple(record[name] for name in ("batch", "passes", "rate", "epsilon", "mechanism"))
        groups.setdefault(place, []).append(record)
    for place, records in sorted(groups.items()):
        scores = [record["values"]["macro_f1"] for record in records]
        losses = [record["values"]["loss"] for record in records]
        shown.add_row(
            *map(str, place), ", ".join(str(record["seed"]) for record in records),
            ", ".join(f"{score:.3f}" for score in scores), f"{statistics.mean(scores):.3f}",
            f"{statistics.mean(losses):.3f}",
        )  # fmt: skip
    Console(width=160).print(shown)


def main() -> None:
    """Read the command."""
    parser = argparse.ArgumentParser()
    commands = parser.add_subparsers(dest="command", required=True)
    of_sums = commands.add_parser("sums")
    of_sums.add_argument("--spend", choices=("reserve", "report"), default="reserve")
    of_heart = commands.add_parser("heart")
    of_heart.add_argument("--epsilons", type=float, nargs="+", default=[1.0, 8.0])
    of_heart.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    of_heart.add_argument("--batch", type=int, default=16)
    of_heart.add_argument("--passes", type=int, default=10)
    of_heart.add_argument("--rate", type=float, default=1.0)
    commands.add_parser("table")
    asked = parser.parse_args()
    if asked.command == "sums":
        sums(asked.spend)
    elif asked.command == "heart":
        heart(asked.batch, asked.passes, asked.epsilons, asked.seeds, asked.rate)
    else:
        table()


if __name__ == "__main__":
    main()
