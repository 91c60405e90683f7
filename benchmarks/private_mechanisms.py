"""Two mechanisms at equal ε: steps that are sampled (DP-SGD), and blocks in turn with correlated noise.

    python benchmarks/private_mechanisms.py sums
    python benchmarks/private_mechanisms.py heart [--epsilons 1 8] [--seeds 0 1 2] [--rates 1]
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


def noise_on_sums(units: int, batch: int, passes: int, epsilon: float, spend: Any) -> dict[str, float]:
    """Mechanism → root mean square of the noise on prefix sums, in clip norms."""
    bands = max(1, math.floor(units / batch + 0.5))
    steps = bands * passes
    noise = partial(least_noise, epsilon, DELTA, units=units, spend=spend, tolerance=1e-2)
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


def config_of(mechanism: str, epsilon: float, seed: int, rate: float) -> RunConfig:
    """`heart_head` in batches of 16, ten passes over each hospital, one a round."""
    return quality.parsed(
        [
            "experiment=heart_head", f"privacy={'patient' if mechanism == 'poisson' else 'banded'}",
            f"privacy.epsilon={epsilon:g}", "++privacy.delta=1e-4", "privacy.sample_rate=null",
            "local.steps=null", "local.epochs=1", "local.batch_size=16", f"local.learning_rate={rate:g}",
            "rounds.rounds=10", "encoding.bits=32", "machine.threads=1", f"seed={seed}",
        ]
    )  # fmt: skip


def heart(epsilons: list[float], seeds: list[int], rates: list[float]) -> None:
    """Train and score what is missing."""
    known = {(r["mechanism"], r["epsilon"], r["seed"], r["rate"]) for r in read()}
    for seed in seeds:
        for epsilon in epsilons:
            for rate in rates:
                for mechanism in MECHANISMS:
                    if (mechanism, epsilon, seed, rate) in known:
                        continue
                    found = score(config_of(mechanism, epsilon, seed, rate), held_out=False)
                    line = {"mechanism": mechanism, "epsilon": epsilon, "seed": seed, "rate": rate, **found}
                    with RESULTS.open("a", encoding="utf-8") as file:
                        file.write(quality.compact(line) + "\n")
                    print(mechanism, epsilon, seed, rate, found["values"], found["wall_s"], flush=True)


def read() -> list[dict[str, Any]]:
    """What was measured."""
    if not RESULTS.exists():
        return []
    return [json.loads(line) for line in RESULTS.read_text(encoding="utf-8").splitlines()]


def table() -> None:
    """Macro-F1 and loss on the test rows, by mechanism, ε and learning rate."""
    shown = Table("mechanism", "ε", "rate", "seeds", "macro-F1", "mean", "loss")
    groups: dict[tuple[str, float, float], list[dict[str, Any]]] = {}
    for record in read():
        groups.setdefault((record["mechanism"], record["epsilon"], record["rate"]), []).append(record)
    for (mechanism, epsilon, rate), records in sorted(groups.items(), key=lambda item: item[0][1:]):
        scores = [record["values"]["macro_f1"] for record in records]
        losses = [record["values"]["loss"] for record in records]
        shown.add_row(
            mechanism, f"{epsilon:g}", f"{rate:g}", ", ".join(str(record["seed"]) for record in records),
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
    of_heart.add_argument("--rates", type=float, nargs="+", default=[1.0])
    commands.add_parser("table")
    asked = parser.parse_args()
    if asked.command == "sums":
        sums(asked.spend)
    elif asked.command == "heart":
        heart(asked.epsilons, asked.seeds, asked.rates)
    else:
        table()


if __name__ == "__main__":
    main()
