"""Federated against centralised and against each site alone, on the real sets (needs WARDROUND_DATA).

    python benchmarks/quality.py run SET [--seeds 0 1 2] [--arms federated centralised local base]
    python benchmarks/quality.py tune SET --arm ARM [--override KEY=VALUE ...]
    python benchmarks/quality.py table

SET is one of SETS. `run` trains what is missing and adds one line a trained arm and seed to
benchmarks/results/quality.jsonl, so that it can be stopped anywhere and started again, also twice beside
itself for different arms. The settings are those of conf/experiment; `tune` found them: it takes a tenth of
the units out of the training rows, trains on the rest and scores that tenth, never a test row (a centralised
rate is set by bounds.centralised_learning_rate). Of the lines in
tuning.jsonl those of arm `pooled` are of the federation's plan with all rows at one site, and those with
`rows: validation` are scored on the sites' validation parts.

The figure is macro-F1 over the classes with at least 30 test rows (for the causal LM bits per byte), its
ratio federated over centralised (centralised over federated), with a paired bootstrap over the test rows.
`table` marks what was trained under other settings than today's, and compares nothing across that line.

Results stand in docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from _quality_figures import figure_of, ratio
from hydra import compose, initialize_config_module
from numpy.typing import NDArray
from omegaconf import OmegaConf
from rich.console import Console

from wardround.core.counting import scores
from wardround.core.metrics.contract import LOSS_UNIT
from wardround.core.packed import Adapter
from wardround.runtime.events import EventStream
from wardround.runtime.sinks import RichSink
from wardround.simulations.arm_names import CENTRALISED, FEDERATED
from wardround.simulations.arms import Arm, run_arms
from wardround.simulations.bound_arms import centralised_arm, local_arm
from wardround.simulations.comparison import LOCAL
from wardround.simulations.config import RunConfig
from wardround.simulations.preparation import Preparation, encode_all, prepare
from wardround.simulations.rows import Rows, gather
from wardround.simulations.scoring import TestRows
from wardround.training.evaluation import evaluate, predict_rows
from wardround.training.examples import Example, split_validation
from wardround.training.plan_making import task_of

FOLDER = Path(__file__).parent / "results"
SPLIT = "partition.options.path=data://data/splits/pqa_sections.dir{alpha}.n10.seed{seed}.json.gz"
SETS: dict[str, list[str]] = {
    "pqa_sections_0.5": ["experiment=pqa_sections", SPLIT.replace("{alpha}", "0.5")],
    "pqa_sections_0.5.steps": ["experiment=pqa_sections_skewed", SPLIT.replace("{alpha}", "0.5")],
    "pqa_sections_0.1": ["experiment=pqa_sections_skewed", SPLIT.replace("{alpha}", "0.1")],
    "pqa_sections_unit": ["experiment=pqa_sections", SPLIT.replace("dir{alpha}", "unit")],
    "heart": ["experiment=demo"],
    "medquad_qtype": ["experiment=medquad_qtype"],
    "medquad_qa": ["experiment=medquad_qa"],
}
# For speed: a bfloat16 base is up to twice as fast where the processor has the units.
MACHINE = ["machine.threads=1", "machine.microbatch_size=8", "model.dtype=bfloat16", "model.attention=eager"]
FLOAT32 = ["machine.threads=1", "machine.microbatch_size=8"]
PLAIN = {"heart": ["machine.threads=1"], "pqa_sections_0.5.steps": FLOAT32}
TUNING_SHARE = 0.1
TUNING_SEED = 1000
OLDER, BORROWED = "†", "*"
FOOT_LINES = {
    OLDER: "of another plan than conf/experiment makes today: settings, or the plan itself, changed since.",
    BORROWED: "centralised on the same rows and seed under the other split, whose settings may be others.",
}


@dataclass(frozen=True)
class Bench:
    """One set and seed, ready to train any arm."""

    prepared: Preparation
    federated: Arm
    test: TestRows

    @staticmethod
    def open(config: RunConfig, rows: Rows | None, events: EventStream) -> Bench:
        """Load and encode."""
        prepared = prepare(config, rows)
        federated, test = encode_all(prepared, events)
        return Bench(prepared, federated, test)

    def arms(self, name: str) -> Iterator[Arm]:
        """The arms of a word of the command line."""
        bounds = self.prepared.config.bounds
        match name:
            case "federated":
                yield self.federated
            case "centralised":
                yield centralised_arm(self.federated, bounds.centralised_learning_rate, bounds.optimiser)
            case "local":
                for site in self.federated.sites:
                    yield local_arm(self.federated, site, bounds.local_learning_rate, bounds.optimiser)

    def train(self, arm: Arm, events: EventStream) -> tuple[int, Adapter]:
        """Released round and adapter."""
        with tempfile.TemporaryDirectory() as folder:
            outcome = run_arms(
                [arm], self.prepared.bench, self.prepared.initial, lambda name: Path(folder) / name,
                events, run_id="quality", lanes=8, policy=self.prepared.config.secure.policy,
                each=lambda _, train: train(lambda _: None),
                ranks=self.prepared.config.simulation.ranks,
                together=self.prepared.config.simulation.together,
                outage=self.prepared.config.simulation.outage,
            )[0]  # fmt: skip
        return outcome.released_round, outcome.for_everybody

    def answers(self, adapter: Adapter) -> dict[str, Any]:
        """Metrics on the test rows, and for the bootstrap a guess a row, or nats and bytes."""
        bench, plan = self.prepared.bench, self.prepared.plan
        bench.load_adapter(adapter)
        rows = self.test.everybody

        def score(part: list[Any], batch_size: int) -> tuple[Any, dict[str, float]]:
            counters = evaluate(
                bench.model, bench.task, plan.task, plan.data, part,
                batch_size=batch_size, device=bench.device, tokenizer=bench.tokenizer,
            )  # fmt: skip
            return counters, scores(plan, counters).values

        record: dict[str, Any] = {"values": score(rows, 32)[1]}
        record["by_site"] = {site: score(own, 32)[1] for site, own in self.test.sites.items()}
        if plan.data.labels:
            said = predict_rows(
                bench.model, bench.task, plan.task, plan.data, self.prepared.rows.test,
                tokenizer=bench.tokenizer, batch_size=32, device=bench.device,
            )  # fmt: skip
            record["guesses"] = [plan.data.labels.index(answer["label"]) for answer in said]
        else:
            alone = [score([row], 1)[0] for row in rows]
            record["nats"] = [round(float(counters["loss"]) * LOSS_UNIT, 4) for counters in alone]
            record["bytes"] = [int(counters["bytes"]) for counters in alone]
        return record


def config_of(name: str, seed: int, extra: list[str]) -> RunConfig:
    """The checked configuration of a set and seed."""
    overrides = [text.format(seed=seed) for text in SETS[name]] + PLAIN.get(name, MACHINE)
    return parsed([*overrides, f"seed={seed}", *extra])


def parsed(overrides: list[str]) -> RunConfig:
    """The checked configuration of these overrides, over what the figures on record were made with.

    Where neither a strategy nor an experiment is named that is FedAvg; sites train one at a time.
    """
    named = any(text.startswith(("strategy=", "experiment=")) for text in overrides)
    overrides = ["simulation.together=1", *([] if named else ["strategy=fedavg"]), *overrides]
    with initialize_config_module("wardround.conf", version_base="1.3"):
        composed = compose("config", overrides=overrides)
    return RunConfig.parse(OmegaConf.to_container(composed, resolve=True))  # type: ignore[arg-type]  # a mapping


def without_a_tenth(rows: Rows) -> Rows:
    """A tenth of all units, whatever their site, takes the place of the test rows."""
    everything = [example for site in rows.sites.values() for example in site]
    _, held = split_validation(everything, TUNING_SHARE, TUNING_SEED, "tuning", apart=False)
    units = {everything[index].unit for index in held}

    def rest(examples: list[Example]) -> list[Example]:
        return [example for example in examples if example.unit not in units]

    sites = {site: rest(examples) for site, examples in rows.sites.items()}
    return replace(
        rows,
        sites={site: examples for site, examples in sites.items() if examples},
        test=[everything[index] for index in held],
        site_tests={},
    )


def run(name: str, seeds: list[int], words: list[str]) -> None:
    """Train and score what is missing; a changed setting makes another plan, and so another line."""
    known = {(record["set"], record["seed"], record["arm"], record["plan"]) for record in read("quality")}
    events = EventStream((RichSink(Console()),))
    for seed in seeds:
        bench = Bench.open(config_of(name, seed, []), None, EventStream())
        base = bench.prepared.plan.digest
        if "base" in words and (name, seed, "base", base) not in known:
            append("quality", name, seed, "base", {"plan": base, **bench.answers(bench.prepared.initial)})
        for arm in (arm for word in words for arm in bench.arms(word)):
            if (name, seed, arm.name, arm.plan.digest) not in known:
                started = time.monotonic()
                released, adapter = bench.train(arm, events)
                head = {"plan": arm.plan.digest, "released": released, "wall_s": _seconds(started)}
                append("quality", name, seed, arm.name, {**head, **bench.answers(adapter)})
    events.close()


def tune(name: str, word: str, extra: list[str]) -> None:
    """Train one arm on nine tenths of the units and score it on the last tenth."""
    config = config_of(name, 0, extra)
    task, spec = task_of(config)
    events = EventStream((RichSink(Console()),))
    bench = Bench.open(config, without_a_tenth(gather(config, task, spec)), EventStream())
    for arm in bench.arms(word):
        started = time.monotonic()
        released, adapter = bench.train(arm, events)
        record = {"released": released, "wall_s": _seconds(started), "overrides": extra}
        record["values"] = bench.answers(adapter)["values"]
        append("tuning", name, 0, arm.name, record)
        print(name, arm.name, extra, record["values"])
    events.close()


def read(file: str) -> list[dict[str, Any]]:
    """Every line that was written."""
    path = FOLDER / f"{file}.jsonl"
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()] if path.exists() else []


def append(file: str, name: str, seed: int, arm: str, record: dict[str, Any]) -> None:
    """One line, whole, though another process may write as well."""
    FOLDER.mkdir(exist_ok=True)
    with (FOLDER / f"{file}.jsonl").open("a", encoding="utf-8") as lines:
        fcntl.flock(lines, fcntl.LOCK_EX)
        lines.write(compact({"set": name, "seed": seed, "arm": arm, **record}) + "\n")


def compact(record: dict[str, Any]) -> str:
    """JSON without spaces: a line holds an answer for each test row."""
    return json.dumps(record, separators=(",", ":"))


def _seconds(started: float) -> int:
    return round(time.monotonic() - started)


@dataclass(frozen=True)
class Present:
    """What the settings of conf/experiment make of a set and seed today.

    Attributes:
        plans: Arm → digest of its plan; `base` has the federation's.
        truth: Labels of the test rows, −1 where there are none.
    """

    plans: dict[str, str]
    truth: NDArray[Any]

    @staticmethod
    def of(name: str, seed: int) -> Present:
        """Load and encode, as `run` does, and train nothing."""
        bench = Bench.open(config_of(name, seed, []), None, EventStream())
        arms = [arm for word in ("federated", "centralised", "local") for arm in bench.arms(word)]
        labels = [-1 if row.label is None else row.label for row in bench.prepared.rows.test]
        plans = {"base": bench.prepared.plan.digest} | {arm.name: arm.plan.digest for arm in arms}
        return Present(plans, np.array(labels))


@dataclass(frozen=True)
class Line:
    """The line of an arm that the table shows, and whether its plan is the one of the present settings."""

    record: dict[str, Any]
    present: bool
    borrowed: bool = False

    @property
    def mark(self) -> str:
        """Signs of the table's foot lines."""
        return ("" if self.present else OLDER) + (BORROWED if self.borrowed else "")


def lines_of(records: list[dict[str, Any]], name: str, seed: int, plans: dict[str, str]) -> dict[str, Line]:
    """Arm → its last line of the present plan, or else its last line of any."""
    found: dict[str, Line] = {}
    for record in records:
        if (record["set"], record["seed"]) != (name, seed):
            continue
        arm = record["arm"]
        present = bool(record["plan"]) and record["plan"] == plans.get(arm)
        if present or arm not in found or not found[arm].present:
            found[arm] = Line(record, present)
    return found


def row_of(name: str, seed: int, lines: dict[str, Line], truth: NDArray[Any]) -> str:
    """One row of the table; a ratio stands only where both lines are of the present settings, or neither."""
    figures = {arm: figure_of(line.record, truth) for arm, line in lines.items()}
    local = [arm for arm in figures if arm.startswith(LOCAL)]
    best = min if "nats" in next(iter(lines.values())).record else max
    cells = [
        f"{figures[arm]:.3f}{lines[arm].mark}" if arm in figures else "" for arm in ("federated", CENTRALISED)
    ]
    values = [figures[arm] for arm in local]
    mark = "" if all(lines[arm].present for arm in local) else OLDER
    cells.append(f"{statistics.mean(values):.3f} ({best(values):.3f}){mark}" if local else "")
    cells.append(f"{figures['base']:.3f}{lines['base'].mark}" if "base" in figures else "")
    ours, other = lines.get(FEDERATED), lines.get(CENTRALISED)
    if ours and other and ours.present == other.present:
        value, low, high = ratio(ours.record, other.record, truth)
        cells.append(f"{value:.3f} [{low:.3f}, {high:.3f}]{other.mark}")
    else:
        cells.append("")
    return f"| {name} | {seed} | " + " | ".join(cells) + " |"


def table() -> None:
    """Everything that has been run, as the table of docs/benchmarks.md.

    A centralised line that is missing is borrowed from the same rows under another split.
    """
    records = read("quality")
    ran = sorted({(record["set"], record["seed"]) for record in records if record["set"] in SETS})
    present = {key: Present.of(*key) for key in ran}
    lines = {key: lines_of(records, *key, present[key].plans) for key in ran}
    rows = []
    for name, seed in sorted(ran, key=lambda key: (list(SETS).index(key[0]), key[1])):
        shown = dict(lines[name, seed])
        for other, same_seed in ran:
            same_rows = other != name and _rows_of(other) == _rows_of(name) and same_seed == seed
            if same_rows and CENTRALISED not in shown and CENTRALISED in lines[other, seed]:
                shown[CENTRALISED] = replace(lines[other, seed][CENTRALISED], borrowed=True)
        rows.append(row_of(name, seed, shown, present[name, seed].truth))
    print(
        "| set | seed | federated | centralised | mean local (best) | base | federated / centralised [95 %] |"
    )
    print("|---|---|---|---|---|---|---|")
    print("\n".join(rows))
    for mark, text in FOOT_LINES.items():
        if any(mark in row for row in rows):
            print(f"\n{mark} {text}")


def _rows_of(name: str) -> str:
    """A set's name without the alpha of its split."""
    return name.split("_0.", maxsplit=1)[0]


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    running = commands.add_parser("run")
    running.add_argument("set", choices=sorted(SETS))
    running.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    running.add_argument("--arms", nargs="+", default=["federated", "centralised", "local", "base"])
    tuning = commands.add_parser("tune")
    tuning.add_argument("set", choices=sorted(SETS))
    tuning.add_argument("--arm", choices=["federated", "centralised"], required=True)
    tuning.add_argument("--override", nargs="*", default=[])
    commands.add_parser("table")
    arguments = parser.parse_args()
    match arguments.command:
        case "run":
            run(arguments.set, arguments.seeds, arguments.arms)
        case "tune":
            tune(arguments.set, arguments.arm, arguments.override)
        case "table":
            table()


if __name__ == "__main__":
    main()
