"""What privacy costs in score: macro-F1 by ε, noise in the sum beside noise at each site.

    python benchmarks/private_utility.py run SET [--noise distributed local] [--epsilons 8] [--base FOLDER]
    python benchmarks/private_utility.py tune SET NOISE EPSILON [--base FOLDER] [KEY=VALUE ...]
    python benchmarks/private_utility.py table

`run` adds what is missing to benchmarks/results/private_utility.jsonl, a line a run, scored on the test
rows; `tune` scores a tenth of the patients, held out of the training rows, and writes nothing. The sets are
public, so that tuning on them is declared and not paid for: **each ε excludes tuning**. Patients are what is
protected (δ = 1e-4), all of them: nobody is held back, and the last round is the one that counts.

`heart` trains the head of MiniLM as it is, `pqa_sections` (whole abstracts at ten sites) that of FOLDER,
which `public_pretraining.py` makes. The peer is the non-private federation of `quality.py` on the same set
and seed, whole adapter and all, from MiniLM as it is.
Results stand in docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from pathlib import Path
from typing import Any

import quality
from _quality_figures import figure_of, ratio, ratio_of_means
from public_pretraining import TEXTS
from rich.console import Console
from rich.table import Table

from wardround.runtime.events import Event, EventStream, PrivacySpent
from wardround.simulations.config import RunConfig
from wardround.simulations.rows import gather
from wardround.training.plan_making import task_of

RESULTS = Path(__file__).parent / "results" / "private_utility.jsonl"
SETS: dict[str, list[str]] = {
    "heart": ["experiment=heart_head", "machine.threads=1"],
    "pqa_sections": [
        *quality.SETS["pqa_sections_unit"], "model.dtype=float32", "adapter.options.targets=none",
        "data.validation_fraction=0", "local.epochs=null", "local.steps=1", "local.batch_size=62",
        "local.optimiser=sgd", "local.learning_rate=4.0", "local.schedule.warmup=0.0", "rounds.rounds=40",
        "strategy=fedavgm", "strategy.options.momentum=0.8", "strategy.weighting=uniform",
        "secure.threshold=9",  # of ten sites: shares of the noise are sized for it
        "++privacy.sample_rate=1.0", "++privacy.clip_norm=1.0", "machine.threads=1",
        "machine.microbatch_size=256",
    ],
}  # fmt: skip
PEERS = {"pqa_sections": "pqa_sections_unit"}
"""Where the non-private federation stands in `quality.py` under another name."""
NOISES: dict[str, list[str]] = {
    "distributed": ["privacy=distributed"],
    "local": ["privacy=patient", "encoding.bits=32"],
}
NO_NOISE = 1e-3


def config_of(
    name: str, noise: str, epsilon: float, seed: int, extra: list[str], base: Path | None = None
) -> RunConfig:
    """The checked configuration; ε = ∞ is the same run with next to no noise."""
    target = (
        [f"privacy.epsilon={epsilon:g}"]
        if math.isfinite(epsilon)
        else ["privacy.epsilon=null", f"privacy.sigma={NO_NOISE}"]
    )
    sets = [text.format(seed=seed) for text in SETS[name]]
    config = quality.parsed([*sets, *NOISES[noise], *target, "++privacy.delta=1e-4", f"seed={seed}", *extra])
    if base is None:
        return config
    texts = json.loads((base / TEXTS).read_text(encoding="utf-8"))
    options = {**config.adapter.options, "public_texts": texts}
    return config.model_copy(
        update={
            "model": config.model.model_copy(update={"path": str(base)}),
            "adapter": config.adapter.model_copy(update={"options": options}),
        }
    )


class Spent:
    """Keeps the largest ε that was told."""

    def __init__(self) -> None:
        self.epsilon = 0.0

    def emit(self, event: Event) -> None:
        """Look at what was spent."""
        if isinstance(event, PrivacySpent):
            self.epsilon = max(self.epsilon, *event.sites.values())

    def close(self) -> None:
        """Nothing is held."""


def score(config: RunConfig, *, held_out: bool) -> dict[str, Any]:
    """Train the federation and score its last adapter."""
    rows = None
    if held_out:
        task, spec = task_of(config)
        rows = quality.without_a_tenth(gather(config, task, spec))
    bench = quality.Bench.open(config, rows, EventStream())
    spent, started = Spent(), time.monotonic()
    _, adapter = bench.train(bench.federated, EventStream((spent,)))
    return {
        "plan": bench.prepared.plan.digest,
        "coordinates": bench.prepared.plan.adapter.layout.size,
        "spent": round(spent.epsilon, 4),
        "wall_s": round(time.monotonic() - started, 1),
        **bench.answers(adapter),
    }


def run(
    name: str, noises: list[str], epsilons: list[float], seeds: list[int], base: Path | None = None
) -> None:
    """Train and score what is missing."""
    known = {(r["set"], r["noise"], r["epsilon"], r["seed"]) for r in read()}
    for seed in seeds:
        for epsilon in epsilons:
            for noise in noises:
                if (name, noise, str(epsilon), seed) in known:
                    continue
                found = score(config_of(name, noise, epsilon, seed, [], base), held_out=False)
                line = {"set": name, "noise": noise, "epsilon": str(epsilon), "seed": seed, **found}
                with RESULTS.open("a", encoding="utf-8") as file:
                    file.write(quality.compact(line) + "\n")
                print(name, noise, epsilon, seed, found["values"]["macro_f1"], flush=True)


def table() -> None:
    """Means over seeds, and their share of the non-private federation's with its interval over test rows."""
    plain = {(r["set"], r["seed"]): r for r in quality.read("quality") if r["arm"] == "federated"}
    shown = Table("set", "noise", "ε", "seeds", "macro-F1", "of the non-private federation", "mean [95 %]")
    groups: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for record in read():
        groups.setdefault((record["set"], record["noise"], record["epsilon"]), []).append(record)
    truths: dict[str, Any] = {}
    for (name, noise, epsilon), records in sorted(groups.items()):
        peer = PEERS.get(name, name)
        if peer not in truths:
            truths[peer] = quality.Present.of(peer, 0).truth
        records.sort(key=lambda record: int(record["seed"]))
        pairs = [(record, plain[peer, record["seed"]]) for record in records]
        mean, low, high = ratio_of_means(pairs, truths[peer])
        scores = [figure_of(record, truths[peer]) for record in records]
        shares = [ratio(*pair, truths[peer])[0] for pair in pairs]
        shown.add_row(
            name, noise, epsilon, ", ".join(str(record["seed"]) for record in records),
            ", ".join(f"{score:.3f}" for score in scores), ", ".join(f"{share:.3f}" for share in shares),
            f"{mean:.3f} [{low:.3f}, {high:.3f}]",
        )  # fmt: skip
    Console(width=160).print(shown)


def read() -> list[dict[str, Any]]:
    """What was measured so far."""
    if not RESULTS.exists():
        return []
    return [json.loads(line) for line in RESULTS.read_text(encoding="utf-8").splitlines()]


def main(arguments: list[str]) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    running = commands.add_parser("run")
    running.add_argument("set", choices=SETS)
    running.add_argument("--noise", nargs="+", choices=NOISES, default=list(NOISES))
    running.add_argument("--epsilons", nargs="+", type=float, default=[1.0, 3.0, 8.0, math.inf])
    running.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    running.add_argument("--base", type=Path)
    tuning = commands.add_parser("tune")
    tuning.add_argument("set", choices=SETS)
    tuning.add_argument("noise", choices=NOISES)
    tuning.add_argument("epsilon", type=float)
    tuning.add_argument("--base", type=Path)
    tuning.add_argument("overrides", nargs="*")
    commands.add_parser("table")
    given = parser.parse_args(arguments)
    match given.command:
        case "run":
            run(given.set, given.noise, given.epsilons, given.seeds, given.base)
        case "tune":
            config = config_of(given.set, given.noise, given.epsilon, 0, given.overrides, given.base)
            found = score(config, held_out=True)
            kept = {name: found[name] for name in ("coordinates", "spent", "wall_s", "values")}
            print(given.overrides, json.dumps(kept))
        case "table":
            table()


if __name__ == "__main__":
    main(sys.argv[1:])
