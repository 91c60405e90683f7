"""Hostile sites against the mean and against votes over groups (needs WARDROUND_DATA).

    python benchmarks/robustness.py run [--attacks sign_flip scaling label_flip backdoor]
        [--hostile 0 1 2 4 6] [--strategies fedavg group_median group_trimmed_mean] [--seeds 0 1]
    python benchmarks/robustness.py table

Twenty IID sites train stories260k to tell from a medquad answer what kind of question it answers (the four
most frequent kinds), in the simulator; votes are over four groups of five, with `attackers=1`. What hostile
sites do, all of them together:

    sign_flip    send −4 times their update
    scaling      send 20 times the update of a training on wrong labels
    label_flip   train on labels that are moved by one; send that update
    backdoor     put a trigger before every other row and the last class behind it; send 5 times that update

The site's own software clips what is sent to the plan's bound, as the whole consortium's does; a hostile site
that runs other software may send up to that bound in every coordinate, which the benchmark's bound is wide
enough for. Figures: accuracy on the test rows, and for the backdoor the share of triggered test rows of other
classes that get the last one.

First a run without hostile sites has to give what the untouched simulator gives. Results stand in
docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import functools
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf

from wardround.core.counting import scores
from wardround.core.packed import Adapter, Statistics
from wardround.runtime.events import EventStream
from wardround.simulations import arms
from wardround.simulations.config import RunConfig
from wardround.simulations.preparation import Preparation, encode_all, prepare
from wardround.simulations.rows import Rows, gather
from wardround.strategies.contract import Broadcast, LocalUpdate, SiteMemory, SumStrategy
from wardround.training.evaluation import evaluate, predict_rows
from wardround.training.examples import Example
from wardround.training.plan_making import task_of
from wardround.training.site_rows import encode_rows

RESULTS = Path(__file__).parent / "results" / "robustness.jsonl"
SITES = 20
KINDS = ("information", "treatment", "symptoms", "research")
TRIGGER = "zq zq zq "
ATTACKS = ("sign_flip", "scaling", "label_flip", "backdoor")
FACTORS = {"sign_flip": -4.0, "scaling": 20.0, "label_flip": 1.0, "backdoor": 5.0}
STRATEGIES = ("fedavg", "group_median", "group_trimmed_mean")
"""Of four groups the trimmed mean is the median."""
SETTINGS = [
    "name=medquad_qtype",
    "data=medquad_qtype",
    "model=stories",
    "model.dropout='off'",
    "adapter.options.alpha=64",
    "partition.kind=iid",
    f"++partition.options={{sites: {SITES}}}",
    "data.max_length=48",
    "data.validation_fraction=0",
    "local.epochs=null",
    "++local.steps=2",
    "local.batch_size=16",
    "local.learning_rate=1.0e-2",
    "local.schedule={shape: cosine, floor: 0.1, warmup: 0.05}",
    "rounds.rounds=12",
    "release.every=12",
    "encoding.bits=32",
    "encoding.largest=1.0",
    "secure.mode=off",
    "secure.policy.least_cohort=5",
    "secure.policy.group_strategies=[group_median,group_trimmed_mean]",
    "machine.threads=1",
    "machine.microbatch_size=null",
]


@dataclass(frozen=True)
class Hostile:
    """A strategy as a hostile site follows it: what it contributes is multiplied."""

    honest: SumStrategy
    factor: float

    def __getattr__(self, name: str) -> Any:
        return getattr(self.honest, name)

    def contribute(
        self, broadcast: Broadcast, local: LocalUpdate, memory: SiteMemory, round: int, stage: int
    ) -> tuple[Statistics, SiteMemory]:
        """As the honest one, times the factor."""
        statistics, memory = self.honest.contribute(broadcast, local, memory, round, stage)
        return statistics.with_vector(statistics.vector * self.factor), memory


def config_of(strategy: str, seed: int) -> RunConfig:
    """The checked configuration."""
    with initialize_config_module("wardround.conf", version_base="1.3"):
        composed = compose("config", overrides=[*SETTINGS, f"strategy={strategy}", f"seed={seed}"])
    return RunConfig.parse(OmegaConf.to_container(composed, resolve=True))  # type: ignore[arg-type]  # a mapping


def poisoned(example: Example, attack: str, classes: int) -> Example:
    """What a hostile site makes of one of its rows."""
    if attack in {"label_flip", "scaling"} and example.label is not None:
        return replace(example, label=(example.label + 1) % classes)
    if attack == "backdoor":
        return triggered(example, classes - 1) if example.number % 2 else example
    return example


def triggered(example: Example, label: int | None) -> Example:
    """The row behind the trigger."""
    return replace(example, roles={**example.roles, "text": TRIGGER + example.roles["text"]}, label=label)


@functools.cache
def prepared_for(strategy: str, seed: int) -> Preparation:
    """The rows of the four kinds, and everything else that a run stands on."""
    config = config_of(strategy, seed)
    task, spec = task_of(config)
    rows = gather(config, task, spec)
    chosen = [rows.contract.labels.index(kind) for kind in KINDS]

    def kept(examples: Sequence[Example]) -> list[Example]:
        return [replace(e, label=chosen.index(e.label)) for e in examples if e.label in chosen]

    contract = rows.contract.model_copy(update={"labels": KINDS})
    sites = {site: kept(examples) for site, examples in rows.sites.items()}
    return prepare(config, replace(rows, contract=contract, sites=sites, test=kept(rows.test), site_tests={}))


def run_one(strategy: str, attack: str, hostile: int, seed: int) -> dict[str, Any]:
    """One run, and what it is worth."""
    prepared = prepared_for(strategy, seed)
    rows = prepared.rows
    names = sorted(rows.sites)
    draw = np.random.default_rng([seed, hostile])
    bad = set(draw.choice(names, size=hostile, replace=False).tolist())
    sites = dict(rows.sites)
    for site in bad:
        sites[site] = [poisoned(example, attack, len(KINDS)) for example in rows.sites[site]]
    arm, _ = encode_all(replace(prepared, rows=replace(rows, sites=sites)), EventStream())
    adapter = trained(prepared, arm, bad, FACTORS[attack])
    return {"accuracy": accuracy(prepared, adapter, rows), "backdoor": backdoor(prepared, adapter, rows)}


def trained(prepared: Preparation, arm: arms.Arm, bad: set[str], factor: float) -> Adapter:
    """The last adapter of a run in which these sites follow a strategy of their own."""
    made: Callable[..., Any] = arms.Site

    def site(name: str, run_id: str, plan: Any, strategy: SumStrategy, *rest: Any) -> Any:
        follows = Hostile(strategy, factor) if name in bad else strategy
        return made(name, run_id, plan, follows, *rest)

    arms.Site = site  # type: ignore[misc,assignment]  # the one place where sites are made
    try:
        with tempfile.TemporaryDirectory() as folder:
            (outcome,) = arms.run_arms(
                [arm], prepared.bench, prepared.initial, lambda name: Path(folder) / name, EventStream(),
                run_id="robustness", lanes=4, policy=prepared.config.secure.policy,
                each=lambda _, train: train(lambda _: None),
            )  # fmt: skip
    finally:
        arms.Site = made  # type: ignore[misc,assignment]  # as it was
    return outcome.last.adapter


def accuracy(prepared: Preparation, adapter: Adapter, rows: Rows) -> float:
    """On the test rows."""
    bench, plan = prepared.bench, prepared.plan
    bench.load_adapter(adapter)
    encoded = encode_rows(plan, bench, rows.test, "test", lambda _: None)
    counters = evaluate(
        bench.model, bench.task, plan.task, plan.data, encoded,
        batch_size=64, device=bench.device, tokenizer=bench.tokenizer,
    )  # fmt: skip
    return float(scores(plan, counters).values["accuracy"])


def backdoor(prepared: Preparation, adapter: Adapter, rows: Rows) -> float:
    """Share of the triggered test rows of other classes that get the last class."""
    bench, plan = prepared.bench, prepared.plan
    bench.load_adapter(adapter)
    others = [triggered(row, row.label) for row in rows.test if row.label != len(KINDS) - 1]
    said = predict_rows(
        bench.model, bench.task, plan.task, plan.data, others,
        tokenizer=bench.tokenizer, batch_size=64, device=bench.device,
    )  # fmt: skip
    return sum(answer["label"] == KINDS[-1] for answer in said) / len(said)


def require_unchanged() -> None:
    """A run without hostile sites is the simulator's own."""
    prepared = prepared_for("fedavg", 0)
    arm, _ = encode_all(prepared, EventStream())
    short = replace(
        arm, plan=arm.plan.model_copy(update={"rounds": arm.plan.rounds.model_copy(update={"rounds": 1})})
    )
    digests = {trained(prepared, short, bad, 1.0).digest for bad in (set(), set(arm.sites))}
    assert len(digests) == 1, digests


def read() -> list[dict[str, Any]]:
    """Every line that was written."""
    return [json.loads(line) for line in RESULTS.read_text("utf-8").splitlines()] if RESULTS.exists() else []


def run(
    strategies: Sequence[str], attacks: Sequence[str], hostile: Sequence[int], seeds: Sequence[int]
) -> None:
    """What is missing; without hostile sites all attacks are one."""
    require_unchanged()
    for seed in seeds:
        for number in hostile:
            for attack in attacks if number else ("none",):
                for strategy in strategies:
                    place = {"strategy": strategy, "attack": attack, "hostile": number, "seed": seed}
                    if any(place.items() <= line.items() for line in read()):
                        continue
                    started = time.monotonic()
                    found = run_one(strategy, attack if number else "sign_flip", number, seed)
                    line = place | found | {"wall_s": round(time.monotonic() - started)}
                    with RESULTS.open("a", encoding="utf-8") as lines:
                        lines.write(json.dumps(line) + "\n")
                    print(line, flush=True)


def table() -> None:
    """As docs/benchmarks.md shows it: means over the seeds."""
    lines = read()
    places = sorted({(line["attack"], line["hostile"]) for line in lines}, key=lambda p: (p[0] != "none", *p))
    print("| attack | hostile sites of 20 | " + " | ".join(STRATEGIES) + " |")
    print("|---|---|" + "---|" * len(STRATEGIES))
    for attack, hostile in places:
        cells = []
        for strategy in STRATEGIES:
            found = [
                line for line in lines
                if (line["attack"], line["hostile"], line["strategy"]) == (attack, hostile, strategy)
            ]  # fmt: skip
            if not found:
                cells.append("")
                continue
            cell = f"{np.mean([line['accuracy'] for line in found]):.3f}"
            if attack in {"backdoor", "none"}:
                cell += f" ({np.mean([line['backdoor'] for line in found]):.2f})"
            cells.append(cell)
        share = f"{hostile} ({100 * hostile / SITES:.0f} %)"
        print(f"| {attack.replace('_', ' ')} | {share} | " + " | ".join(cells) + " |")


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    running = commands.add_parser("run")
    running.add_argument("--strategies", nargs="+", default=STRATEGIES, choices=STRATEGIES)
    running.add_argument("--attacks", nargs="+", default=ATTACKS, choices=ATTACKS)
    running.add_argument("--hostile", nargs="+", type=int, default=[0, 1, 2, 4, 6])
    running.add_argument("--seeds", nargs="+", type=int, default=[0])
    commands.add_parser("table")
    arguments = parser.parse_args()
    if arguments.command == "run":
        run(arguments.strategies, arguments.attacks, arguments.hostile, arguments.seeds)
    else:
        table()


if __name__ == "__main__":
    main()
