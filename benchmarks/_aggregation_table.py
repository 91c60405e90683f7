"""What `aggregation.py` prints of its results: screens, full runs, and one method against another."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

from _quality_figures import ratio, ratio_of_means
from numpy.typing import NDArray

Records: TypeAlias = Sequence[dict[str, Any]]


def best_rates(records: Records, kind: str = "screen") -> dict[tuple[str, str], tuple[float, float]]:
    """Case and method → the best rate of its screen, and the loss there."""
    best: dict[tuple[str, str], tuple[float, float]] = {}
    for line in records:
        if line["kind"] == kind and "values" in line:
            found = loss_of(line), line["rate"]
            key = line["set"], line["arm"]
            if key not in best or found < (best[key][1], best[key][0]):
                best[key] = (found[1], found[0])
    return best


def loss_of(line: dict[str, Any]) -> float:
    """Bits a byte of a causal LM, nats a row of a classifier."""
    values = line["values"]
    return float(values.get("bits_per_byte", values["loss"]))


def table(records: Records, cases: Sequence[str], methods: Sequence[str]) -> None:
    """The screen, case by case: each method at the best of its rates; then the full runs."""
    best = best_rates(records)
    screened = {
        (line["set"], line["arm"], line["rate"]): line for line in records if line["kind"] == "screen"
    }
    for case in cases:
        known = [method for method in methods if (case, method) in best]
        if not known:
            continue
        lines = {method: screened[case, method, best[case, method][0]] for method in known}
        whole = lines["FedIT"]["bytes_up"] if "FedIT" in lines else 0
        print(f"\n| {case} | rate | loss | macro-F1 | bytes up, of FedIT's |\n|---|---|---|---|---|")
        for method in sorted(known, key=lambda name: best[case, name][1]):
            (rate, loss), line = best[case, method], lines[method]
            share = f"{line['bytes_up'] / whole:.2f}" if whole and line["bytes_up"] else ""
            print(f"| {method} | {rate:g} | {loss:.4f} | {f1_of(line)} | {share} |")
    for case in cases:
        full = [
            line for line in records if (line["kind"], line["set"]) == ("full", case) and "values" in line
        ]
        if not full:
            continue
        print(
            f"\n| {case}, test rows | rate | loss: mean (seeds) | macro-F1: mean (seeds) |\n|---|---|---|---|"
        )
        for method, rate in sorted({(line["arm"], line["rate"]) for line in full}):
            own = [line for line in full if (line["arm"], line["rate"]) == (method, rate)]
            own.sort(key=lambda line: line["seed"])
            f1 = [line["values"].get("macro_f1", math.nan) for line in own]
            print(f"| {method} | {rate:g} | {shown([*map(loss_of, own)], 4)} | {shown(f1, 3)} |")


def f1_of(line: dict[str, Any]) -> str:
    """Where there are labels."""
    found = line["values"].get("macro_f1")
    return "" if found is None else f"{found:.3f}"


def shown(values: list[float], digits: int) -> str:
    """Mean and each."""
    return f"{statistics.fmean(values):.{digits}f} ({', '.join(f'{v:.{digits}f}' for v in values)})"


def compared(records: Records, case: str, against: str, truth: NDArray[Any]) -> Iterator[str]:
    """A line for each method and rate that has the seeds of the other: the ratio of the mean test figures.

    Above 1 the method is better (macro-F1 over macro-F1; bits a byte of the other over its own). Each draw of
    the bootstrap takes the same test rows for both and for every seed: what seeds differ by is not in the
    interval, and stands beside it.
    """
    full = [r for r in records if (r["kind"], r["set"]) == ("full", case) and "values" in r]
    runs: dict[tuple[str, float], dict[int, dict[str, Any]]] = {}
    for record in full:
        runs.setdefault((record["arm"], record["rate"]), {})[record["seed"]] = record
    others = [key for key in runs if key[0] == against]
    for theirs in others:
        for ours in sorted(set(runs) - set(others)):
            seeds = sorted(runs[ours].keys() & runs[theirs].keys())
            if seeds:
                pairs = [(runs[ours][seed], runs[theirs][seed]) for seed in seeds]
                what = f"{ours[0]}, {ours[1]:g} / {theirs[0]}, {theirs[1]:g}"
                yield f"| {case} | {what} | {interval(pairs, truth)} |"


def interval(pairs: Sequence[tuple[dict[str, Any], dict[str, Any]]], truth: NDArray[Any]) -> str:
    """Ratio of the means over seeds, its 95 % interval, and the ratio of each seed."""
    value, low, high = ratio_of_means(pairs, truth)
    each = ", ".join(f"{ratio(*pair, truth)[0]:.3f}" for pair in pairs)
    return f"{value:.3f} [{low:.3f}, {high:.3f}] | {each}"
