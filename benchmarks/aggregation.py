"""Every aggregation method on real rows: quality at equal rounds and equal bytes, and the server's cost.

    python benchmarks/aggregation.py screen [--cases NAME …] [--methods NAME …] [--minutes 60] [--part 0/2]
    python benchmarks/aggregation.py full [--cases NAME …] [--methods NAME …] [--seeds 0 1 2] [--minutes 600]
    python benchmarks/aggregation.py table
    python benchmarks/aggregation.py versus METHOD [--cases NAME …]
    python benchmarks/aggregation.py server

`screen` trains each method with each rate of a small grid on nine tenths of a subset's units, and scores the
last tenth: no test row is used. `full` trains each method at the best rate of its screen, or at `--rates`, on
all rows of the subset, and scores the test rows, seed by seed. Both skip what stands in
benchmarks/results/aggregation.jsonl, so that they can be stopped anywhere and started again; `--part 1/2`
takes every second run, for two processes beside each other. `versus` puts a 95 % interval around the ratio of
each method's test figure to that of one method, by a paired bootstrap over the test rows, all seeds in each
draw.

The figures are the loss on the scored rows (nats a row, or bits a byte of a causal LM), macro-F1 where there
are labels, and the bytes of all replies. `server` folds on the layout of a 7 B model, for N contributions
that are summed and then folded: only the sum is kept, so that neither time nor memory may grow with N.

Results stand in docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import itertools
import resource
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import quality
from _aggregation_table import best_rates, compared, table
from quality import Bench, compact, parsed, read, without_a_tenth

from wardround.core.checked import parse_options
from wardround.core.errors import PeerError, QuorumError, TrainingError
from wardround.core.packed import Array, Layout, Packed, TensorSpec, zeros
from wardround.runtime.events import EventStream, RoundFolded, SiteReplied
from wardround.runtime.sinks import RecorderSink
from wardround.simulations.preparation import prepare
from wardround.simulations.rows import gather
from wardround.strategies import STRATEGIES
from wardround.strategies.contract import LocalUpdate, SiteMemory
from wardround.training.plan_making import task_of

FILE = "aggregation"
ANSWERED = ("guesses", "nats", "bytes")
"""A value for each test row."""
COMMON = [
    "machine.threads=1", "machine.microbatch_size=16", "model.dtype=bfloat16", "model.attention=eager",
    "model.dropout='off'", "secure.mode='off'", "adapter.options.alpha=32",
    "adapter.options.targets=[query,value]", "local.epochs=null", "++local.steps=10", "local.batch_size=8",
    "local.optimiser=adamw", "local.schedule={shape: cosine, floor: 0.1, warmup: 0.05}",
    "data.validation_fraction=0.02", "strategy.weighting=uniform",
]  # fmt: skip
ALL_SECTIONS = [
    *COMMON, "model=minilm", "data=pqa_sections", "rounds.rounds=16", "release.every=16",
]  # fmt: skip
SECTIONS = [*ALL_SECTIONS, "data.limit=3000"]
ANSWERS = [
    *COMMON, "model=med_llama", "data=medquad_qa", "adapter.options.targets=[q_proj,v_proj]",
    "data.max_length=96", "data.limit=2000", "rounds.rounds=12", "release.every=12",
    "release.metric=bits_per_byte", "release.direction=min",
]  # fmt: skip


def skewed(sites: int, alpha: float) -> list[str]:
    """Overrides for a Dirichlet split by unit."""
    options = f"+partition.options={{sites: {sites}, alpha: {alpha}, by: unit}}"
    return ["partition.kind=dirichlet", "~partition.options", options]


CASES: dict[str, list[str]] = {
    "all sections, 10 sites, 0.1": [*ALL_SECTIONS, *skewed(10, 0.1)],
    "all sections, 10 sites, 0.5": [*ALL_SECTIONS, *skewed(10, 0.5)],
    "all sections, 50 sites, 0.5, 0.3 take part": [
        *ALL_SECTIONS, *skewed(50, 0.5), "rounds.participation=0.3",
    ],
    "sections, 10 sites, 0.1": [*SECTIONS, *skewed(10, 0.1)],
    "sections, 10 sites, 0.5": [*SECTIONS, *skewed(10, 0.5)],
    "sections, 10 sites, 0.1, mixed ranks": [
        *SECTIONS, *skewed(10, 0.1), "adapter.options.r=32", "adapter.options.alpha=128",
        "simulation.ranks=[4,8,16,32]",
    ],
    "sections, 50 sites, 0.5, 0.3 take part": [
        *SECTIONS, *skewed(50, 0.5), "rounds.participation=0.3",
    ],
    "answers, natural": ANSWERS,
}  # fmt: skip
"""Rows, split and local work; 160 and 120 local steps a site."""
CORES = ["adapter.options.r=64", "adapter.options.alpha=1024", "adapter.options.targets=[query,value]"]
"""A core's numbers are as far from the weight as its s says: tuned coarsely."""
KEPT = ["local.optimiser_state=keep"]


def ranked(r: int) -> list[str]:
    """Overrides for an adapter of rank r, at the scale of all."""
    return [f"adapter.options.r={r}", f"adapter.options.alpha={4 * r}"]


def rounds_of(count: int, steps: int) -> list[str]:
    """Overrides for so many rounds of so many local steps: of a case of 16 rounds, about the same work."""
    return [f"rounds.rounds={count}", f"release.every={count}", f"++local.steps={steps}"]


FEW = rounds_of(4, 40)
HALF = rounds_of(8, 20)
RING_8 = ["encoding.bits=8"]
FLOAT32 = ["model.dtype=float32", "model.attention=sdpa"]
"""Where the others have a base in bfloat16."""
METHODS: dict[str, list[str]] = {
    "FedIT": ["strategy=fedavg"],
    "FedProx 0.1": ["strategy=fedavg", "strategy.options.proximal=0.1"],
    "FedIT, momentum 0.5": [
        "strategy=fedavg", "strategy.options.server={optimiser: momentum, momentum: 0.5}",
    ],
    "tangent": ["strategy=tangent"],
    "tangent, rows": ["strategy=tangent", "strategy.options.split=rows"],
    "tangent, momentum 0.5": [
        "strategy=tangent", "strategy.options.server={optimiser: momentum, momentum: 0.5}",
    ],
    "FFA": ["strategy=ffa_lora"],
    "RoLoRA": ["strategy=rolora"],
    "RoLoRA, twice the rounds": ["strategy=rolora", "rounds.rounds={twice}", "release.every={twice}"],
    "two passes": ["strategy=two_pass"],
    "FlexLoRA (sees individuals)": ["strategy=flexlora"],
    "SCAFFOLD": ["strategy=scaffold"],
    "SCAFFOLD, tangent": ["strategy=tangent_scaffold"],
    "one pass": ["strategy=one_pass"],
    "FedSVD": ["strategy=fedsvd"],
    "FLoRA (sees individuals)": ["strategy=flora"],
    "FedEx-LoRA (sees individuals)": ["strategy=fedex"],
    "FedIT, 32 bits": ["strategy=fedavg", "encoding.bits=32"],
    "FedIT, 4 rounds of 40 steps": ["strategy=fedavg", *FEW],
    "FedIT, 4 rounds of 40 steps, moments kept": ["strategy=fedavg", *FEW, *KEPT],
    "tangent, 4 rounds of 40 steps, moments kept": ["strategy=tangent", *FEW, *KEPT],
    "tangent, r 2": ["strategy=tangent", *ranked(2)],
    "RoLoRA, moments kept": ["strategy=rolora", *KEPT],
    "RoLoRA, r 4": ["strategy=rolora", *ranked(4)],
    "Fed-SB, r 64": ["strategy=fedavg", "adapter=lora_sb", *CORES],
    "FedIT, moments kept": ["strategy=fedavg", *KEPT],
    "tangent, moments kept": ["strategy=tangent", *KEPT],
    "tangent, moments kept, float32": ["strategy=tangent", *KEPT, *FLOAT32],
    "tangent, moments kept, float32, bfloat16 products": [
        "strategy=tangent", *KEPT, *FLOAT32, "machine.precision=bf16",
    ],
    "tangent, int4, moments kept": ["strategy=tangent", *KEPT, "+compression=int4"],
    "tangent, r 4, int4, moments kept": [
        "strategy=tangent", *KEPT, "+compression=int4", *ranked(4),
    ],
    "tangent, 8 rounds of 20 steps, int4, moments kept": [
        "strategy=tangent", *KEPT, "+compression=int4", *HALF,
    ],
    "tangent, r 4, 8 rounds of 20 steps, moments kept": [
        "strategy=tangent", *KEPT, *ranked(4), *HALF,
    ],
    "FedIT, ring of 8 bits": ["strategy=fedavg", *RING_8],
    "tangent, ring of 8 bits, moments kept": ["strategy=tangent", *KEPT, *RING_8],
    "tangent, 8 rounds of 20 steps, ring of 8 bits, moments kept": [
        "strategy=tangent", *KEPT, *RING_8, *HALF,
    ],
    "tangent, r 3, ring of 8 bits, moments kept": [
        "strategy=tangent", *KEPT, *RING_8, *ranked(3),
    ],
    "tangent, 7 rounds of 23 steps, ring of 8 bits, moments kept": [
        "strategy=tangent", *KEPT, *RING_8, *rounds_of(7, 23),
    ],
    "tangent, r 6, 9 rounds of 18 steps, ring of 8 bits, moments kept": [
        "strategy=tangent", *KEPT, *RING_8, *ranked(6), *rounds_of(9, 18),
    ],
    "tangent, r 6, 8 rounds of 20 steps, ring of 8 bits, moments kept": [
        "strategy=tangent", *KEPT, *RING_8, *ranked(6), *HALF,
    ],
    "tangent, r 5, 10 rounds of 16 steps, ring of 8 bits, moments kept": [
        "strategy=tangent", *KEPT, *RING_8, *ranked(5), *rounds_of(10, 16),
    ],
    "tangent, r 4, 8 rounds of 20 steps, ring of 12 bits, moments kept": [
        "strategy=tangent", *KEPT, "encoding.bits=12", *ranked(4), *HALF,
    ],
    "FedIT, int8": ["strategy=fedavg", "+compression=int8"],
    "FedIT, int4": ["strategy=fedavg", "+compression=int4"],
    "FedIT, top 1 %": ["strategy=fedavg", "+compression=top_k"],
    "FedIT, top 10 %": ["strategy=fedavg", "+compression=top_k", "encoding.compression.share=0.1"],
}  # fmt: skip
BOUNDS = ("centralised", "local")
RATES = (2e-3, 4e-3, 8e-3)


@dataclass(frozen=True)
class Trial:
    """One run: a case, a method, a rate, a seed."""

    case: str
    method: str
    rate: float
    seed: int

    @property
    def key(self) -> tuple[str, str, float, int]:
        """By which it is known."""
        return self.case, self.method, self.rate, self.seed

    def overrides(self) -> list[str]:
        """Of Hydra."""
        base = [*CASES[self.case], f"seed={self.seed}", f"local.learning_rate={self.rate}"]
        rounds = next(int(text.split("=")[1]) for text in base if text.startswith("rounds.rounds="))
        chosen = [text.replace("{twice}", str(2 * rounds)) for text in METHODS.get(self.method, [])]
        return [*base, *chosen]  # the later of two values counts


def trials(
    cases: Sequence[str], methods: Sequence[str], rates: Sequence[float], seed: int
) -> Iterator[Trial]:
    """Rate by rate inside a method: what is stopped has whole comparisons of the first cases."""
    for case, method, rate in itertools.product(cases, methods, rates):
        yield Trial(case, method, rate, seed)


def train(trial: Trial, *, held_out: bool) -> dict[str, Any]:
    """One run, and what it is worth."""
    config = parsed(trial.overrides())
    task, spec = task_of(config)
    rows = gather(config, task, spec)
    rows = without_a_tenth(rows) if held_out else rows
    bench = Bench.open(config, rows, EventStream())
    word = trial.method if trial.method in BOUNDS else "federated"
    started, folded, clipped, values = time.monotonic(), [], [], []
    for arm in bench.arms(word):
        recorder = RecorderSink()
        _, adapter = bench.train(arm, EventStream((recorder,)))
        folded += [event for event in recorder.events if isinstance(event, RoundFolded)]
        clipped += [
            e.local["clipped"] for e in recorder.events if isinstance(e, SiteReplied) and "clipped" in e.local
        ]
        record = bench.answers(adapter)
        values.append(record["values"])
    averaged = {name: statistics.fmean(value[name] for value in values) for name in values[0]}
    discarded = [event.discarded_energy for event in folded if event.discarded_energy is not None]
    found = {
        "values": averaged,
        "bytes_up": sum(event.bytes_up for event in folded) if word == "federated" else 0,
        "sites": len(bench.federated.sites),
        "discarded": max(discarded, default=None),
        "clipped": statistics.fmean(clipped) / bench.prepared.plan.adapter.layout.size if clipped else 0.0,
        "wall_s": round(time.monotonic() - started),
    }
    if not held_out and len(values) == 1:
        found |= {name: record[name] for name in ANSWERED if name in record}
    return found


def run(kind: str, wanted: Iterator[Trial], minutes: float, part: str) -> None:
    """Whatever is missing, until the time is up."""
    until, (own, parts) = time.monotonic() + 60 * minutes, map(int, part.split("/"))
    for number, trial in enumerate(wanted):
        known = {
            (line["set"], line["arm"], line["rate"], line["seed"])
            for line in read(FILE)
            if line["kind"] == kind
        }
        if number % parts != own or trial.key in known:
            continue
        if time.monotonic() > until:
            return
        try:
            record = train(trial, held_out=kind == "screen")
        except (PeerError, QuorumError, TrainingError) as error:  # that a method cannot go on is a result
            record = {"failed": f"{type(error).__name__}: {error}".splitlines()[0]}
        line = {"kind": kind, "rate": trial.rate, **record}
        quality.append(FILE, trial.case, trial.seed, trial.method, line)
        told = {name: line[name] for name in line if name not in ANSWERED}
        print(compact({"set": trial.case, "arm": trial.method, **told}), flush=True)


def truth_of(case: str) -> Array:
    """Labels of the test rows, −1 where there are none; a case has the same ones with every seed."""
    config = parsed(Trial(case, "FedIT", 1e-3, 0).overrides())
    test = prepare(config, gather(config, *task_of(config))).rows.test
    return np.array([-1 if row.label is None else row.label for row in test])


def layout_7b(rank: int) -> Layout:
    """Query, key, value and output of 32 layers of 4,096: a 7 B Llama's attention."""
    specs = []
    for layer, name in itertools.product(range(32), ("q_proj", "k_proj", "v_proj", "o_proj")):
        module = f"model.layers.{layer}.self_attn.{name}"
        specs += [
            TensorSpec(
                name=f"{module}.lora_A.weight", shape=(rank, 4096), role="lora_a", module=module, scaling=2.0
            ),
            TensorSpec(
                name=f"{module}.lora_B.weight", shape=(4096, rank), role="lora_b", module=module, scaling=2.0
            ),
        ]
    return Layout(tensors=tuple(specs))


HEAD = "| rank | sites | coordinates | a site's contribution, s | adding it up, s | fold, s | peak, MiB |"


def server(ranks: Sequence[int], sites: Sequence[int]) -> None:
    """Seconds and MiB of one round's folds, as the number of sites and the rank grow."""
    print(HEAD + "\n|---|---|---|---|---|---|---|")
    for rank in ranks:
        layout, rng = layout_7b(rank), np.random.default_rng(0)
        tangent = STRATEGIES.get("tangent")
        strategy = tangent(parse_options(tangent.Options, {}, "tangent"), layout)
        start = Packed(layout, 0.02 * rng.standard_normal(layout.size, dtype=np.float32))
        state = strategy.begin(start)
        after = start.with_vector(start.vector + 1e-3 * rng.standard_normal(layout.size, dtype=np.float32))
        began = time.perf_counter()
        sent, _ = strategy.contribute(start, LocalUpdate(start, after), SiteMemory(), 1, 0)
        site_s = time.perf_counter() - began
        for count in sites:
            total, began = zeros(sent.layout, np.float64), time.perf_counter()
            for _ in range(count):
                total.vector[...] += sent.vector
            adding, began = (time.perf_counter() - began) / count, time.perf_counter()
            strategy.fold(state, total, float(count), 0)
            fold_s = time.perf_counter() - began
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            figures = f"{layout.size:,} | {site_s:.2f} | {adding:.3f} | {fold_s:.2f} | {peak:.0f}"
            print(f"| {rank} | {count} | {figures} |", flush=True)


def main() -> None:
    """The command line of the module's docstring."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=("screen", "full", "table", "versus", "server"))
    parser.add_argument("method", nargs="?", default="FedIT", choices=list(METHODS), help="of `versus`")
    parser.add_argument("--cases", nargs="*", default=list(CASES), choices=list(CASES))
    parser.add_argument("--methods", nargs="*", default=[*METHODS, *BOUNDS], choices=[*METHODS, *BOUNDS])
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--rates", nargs="*", type=float, default=[])
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--part", default="0/1")
    parser.add_argument("--ranks", nargs="*", type=int, default=[4, 16, 64])
    parser.add_argument("--sites", nargs="*", type=int, default=[2, 50, 1000])
    args = parser.parse_args()
    match args.command:
        case "screen":
            rates = args.rates or RATES
            run("screen", trials(args.cases, args.methods, rates, 0), args.minutes, args.part)
        case "full":
            best = best_rates(read(FILE))
            wanted = (
                Trial(case, method, rate, seed)
                for case, seed, method in itertools.product(args.cases, args.seeds, args.methods)
                for rate in args.rates or [rate for rate, _ in [best.get((case, method), (None, 0))] if rate]
            )
            run("full", wanted, args.minutes, args.part)
        case "table":
            table(read(FILE), list(CASES), [*METHODS, *BOUNDS])
        case "versus":
            for case in args.cases:
                for line in compared(read(FILE), case, args.method, truth_of(case)):
                    print(line, flush=True)
        case "server":
            server(args.ranks, args.sites)


if __name__ == "__main__":
    main()
