"""Wardround's simulator beside the peers': the same work first, then the time.

    python benchmarks/simulators.py run [--models minilm med_llama] [--batches 1 4 16] [--lengths ragged 64]
                                        [--sites 100] [--rounds 2] [--repeats 1] [--contenders NAME ...]
    python benchmarks/simulators.py table
    python benchmarks/simulators.py environments [--folder PATH] [--shared]

The work (`_simulators_case.py`): LoRA r 8 on query and value, ten AdamW steps a site and round, no dropout,
no masks, the mean of the sites' adapters; MiniLM on pqa_sections, the small Llama on medquad (needs
WARDROUND_DATA), rows as long as they are up to the set's own `max_length`, or of 64 tokens each. Our code
reads the rows and draws the minibatches once; every contender has the same file of tokens, the same order of
minibatches and the same initial adapter, and runs in processes of its own, a peer in an environment of its
own that this script makes (`_simulators_environments.py`).

The contenders: a bare loop in plain PyTorch and PEFT (`_simulators_plain.py`) with all cores' threads, with a
process a core, and both with bfloat16 weights under autocast; Flower's Ray engine; pfl-research; NVFlare's
simulator; `wardround simulate` as it comes (a process a core, sites together where that is the default), and
with one thing or another changed: bfloat16 products, one site at a time, padded, in one process, on Ray.

First all that compute in float32 have to end the first round with one adapter: TOLERANCE of the update's
length; who does not is no contender, and the script says so and ends with 1. Who rounds to bfloat16 has
another adapter: the loss of 200 rows that nobody trains on has to be within NEAR, or its line is marked.

Timed: rounds after the first (who loads in its first round is not charged for it), all of the run with the
start of its processes; memory as the sum over all processes of the pages that are theirs and their part of
shared ones. The share of the machine's peak counts products over real tokens (`_simulators_flops.py`).

A line a run goes to benchmarks/results/simulators.jsonl. Results stand in docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import sys
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _network import append, end_in_order, machine
from _simulators_case import MODELS, Case, held_out_loss, initial_of
from _simulators_environments import CACHE, PACKAGES, python_of
from _simulators_flops import of_round, peak
from _simulators_plain import Work
from _simulators_running import CONTENDERS, Environments, Ran, run
from _simulators_table import table
from safetensors.numpy import load_file

NAME = "simulators"
RESULTS = Path(__file__).parent / "results" / f"{NAME}.jsonl"
TOLERANCE = 1e-3
"""‖a − b‖ / ‖b − initial‖ after the first round. Sums in another order; Adam divides small gradients
by their own size."""
NEAR = 0.01
"""Of the reference's held-out loss: so much more, at most, with rounded products."""
LENGTHS = ("ragged", "64")
VERSIONS = ("torch", "transformers", "peft", "flwr", "ray")


def flat(tensors: dict[str, Any]) -> Any:
    """One vector, in the order of the names."""
    return np.concatenate([np.asarray(tensors[name], np.float64).ravel() for name in sorted(tensors)])


def adapter_of(path: Path, initial: dict[str, Any]) -> dict[str, Any]:
    """The adapter of a round: by PEFT's names, or as the flat vector of a journal."""
    found = load_file(path)
    if "adapter" in found:
        vector, parts, start = found["adapter"], {}, 0
        for name, tensor in initial.items():
            parts[name] = vector[start : start + tensor.size].reshape(tensor.shape)
            start += tensor.size
        assert start == vector.size
        return parts
    assert found.keys() == initial.keys()
    return found


class Comparison:
    """The contenders of one case; the first float32 one is what the others are held against."""

    def __init__(self, case: Case, work: Work) -> None:
        self.case, self.work = case, work
        self.initial = initial_of(work)
        self.reference: dict[int, Any] = {}
        self.loss: float | None = None
        self.flops = [of_round(work, round) for round in range(1, case.rounds + 1)]

    def line(self, key: str, ran: Ran) -> dict[str, Any]:
        """What a run says; `same` is False where it is no contender."""
        rounded = CONTENDERS[key].rounded
        adapters = {round: adapter_of(path, self.initial) for round, path in ran.adapters.items()}
        if not rounded and not self.reference:
            self.reference = {round: flat(adapter) for round, adapter in adapters.items()}
        loss = held_out_loss(self.work, adapters[self.case.rounds])
        if not rounded and self.loss is None:
            self.loss = loss
        apart = [self._apart(round, flat(adapters[round])) for round in sorted(adapters)]
        same = bool(loss <= self.loss * (1 + NEAR)) if rounded and self.loss is not None else True
        if not rounded:
            same = 1 in adapters and apart[0] <= TOLERANCE
        later = ran.rounds_s[1:] or ran.rounds_s
        return {
            "case": self.case.record, "contender": key, "name": CONTENDERS[key].name, "same": same,
            "apart": [float(f"{value:.3g}") for value in apart], "held_out_loss": round(loss, 5),
            "pace": self.case.sites / statistics.median(later),
            "pace_whole": self.case.sites * self.case.rounds / ran.whole_s,
            "whole_s": round(ran.whole_s, 2), "start_s": round(ran.start_s, 2),
            "rounds_s": [round(value, 2) for value in ran.rounds_s],
            "peak_mib": ran.peak_bytes >> 20, "flops": statistics.mean(self.flops),
        }  # fmt: skip

    def _apart(self, round: int, found: Any) -> float:
        if round not in self.reference:
            return float("nan")
        start = flat(self.initial)
        return float(
            np.linalg.norm(found - self.reference[round]) / np.linalg.norm(self.reference[round] - start)
        )


def of_machine() -> dict[str, Any]:
    """What the figures were seen on; the peaks are measured."""
    model = next(
        row.split(":")[1].strip()
        for row in Path("/proc/cpuinfo").read_text().splitlines()
        if row.startswith("model name")
    )
    versions = {package: metadata.version(package) for package in VERSIONS}
    peaks = {str(kind).removeprefix("torch."): peak(kind) / 1e9 for kind in (torch.float32, torch.bfloat16)}
    return {"processor": model, "versions": versions | PACKAGES, "peak_gflops": peaks}


def compare(case: Case, args: argparse.Namespace, about: dict[str, Any]) -> bool:
    """All contenders on one case, in turn; whether all of them did the same work."""
    environments = Environments(args.folder, shared=args.shared)
    everybody = True
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "work"
        comparison = Comparison(case, case.write(place))
        for repeat, key in itertools.product(range(args.repeats), args.contenders):
            out = Path(folder) / f"{key}-{repeat}"
            load = machine()
            try:
                ran = run(CONTENDERS[key], case, place, out, environments, args.most_minutes * 60)
                line = comparison.line(key, ran)
            except RuntimeError as error:
                print(f"{CONTENDERS[key].name}: {error}", file=sys.stderr, flush=True)
                everybody = False
                continue
            everybody &= line["same"] or CONTENDERS[key].rounded
            record = {**line, "repeat": repeat, **about, **load}
            if not args.dry:
                append(NAME, record)
            print(
                f"{case.model} {case.batch:2} {case.lengths:6} {line['name']:52} {line['pace']:6.2f} "
                f"site-rounds/s ({line['pace_whole']:.2f} with start, {line['whole_s']:.1f} s), "
                f"{line['peak_mib']} MiB, apart {line['apart']}, loss {line['held_out_loss']}"
                + ("" if line["same"] else "  NOT THE SAME WORK"),
                flush=True,
            )
    return everybody


def lines(path: Path) -> list[dict[str, Any]]:
    """What was measured."""
    return [json.loads(row) for row in path.read_text("utf-8").splitlines()] if path.exists() else []


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = made.add_subparsers(dest="command", required=True)
    runs = commands.add_parser("run")
    runs.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    runs.add_argument("--batches", nargs="+", type=int, default=[1, 4, 16])
    runs.add_argument("--lengths", nargs="+", choices=LENGTHS, default=list(LENGTHS))
    runs.add_argument("--sites", type=int, default=100)
    runs.add_argument("--rounds", type=int, default=2)
    runs.add_argument("--repeats", type=int, default=1)
    runs.add_argument("--contenders", nargs="+", choices=list(CONTENDERS), default=list(CONTENDERS))
    runs.add_argument("--most-minutes", type=float, default=60, help="for one run")
    runs.add_argument("--dry", action="store_true", help="print, and write no line")
    for command in (runs, commands.add_parser("environments")):
        command.add_argument("--folder", type=Path, default=CACHE, help="of the peers' environments")
        command.add_argument(
            "--shared", action="store_true", help="let them see our packages behind their own: quicker made"
        )
    commands.add_parser("table").add_argument("--results", type=Path, default=RESULTS)
    return made


def main() -> None:
    """Run what was asked for."""
    args = parser().parse_args()
    match args.command:
        case "table":
            print(table(lines(args.results)))
        case "environments":
            for name in PACKAGES:
                print(python_of(name, args.folder, shared=args.shared))
        case _:
            end_in_order()
            os.environ.setdefault("HF_HUB_OFFLINE", "1")
            about = of_machine()
            cases = itertools.product(args.models, args.lengths, args.batches)
            done = [
                compare(Case(model, batch, kind, args.sites, args.rounds), args, about)
                for model, kind, batch in cases
            ]
            if not all(done):
                raise SystemExit("not all of them did the work: see above")


if __name__ == "__main__":
    main()
