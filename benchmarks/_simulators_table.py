"""What simulators.py has measured, as tables in Markdown: one a model and kind of lengths."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Line = Mapping[str, Any]
BASE = "bare"
"""Whose pace others are shown as a multiple of: the faster of its two float32 forms."""
UNLIKE = "†"
COLUMNS = (
    "batch, sites", "who", "site-rounds a second", "over the best bare fp32 loop", "with its start",
    "whole run, s", "memory, MiB", "of the fp32 peak", "of the bf16 peak", "held-out loss",
)  # fmt: skip
HEAD = f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}"


def table(lines: Iterable[Line]) -> str:
    """All of it; of several runs of one thing the medians."""
    parts: dict[tuple[str, str], dict[tuple[int, int], dict[str, list[Line]]]] = {}
    for line in lines:
        case = line["case"]
        sizes = parts.setdefault((case["model"], case["lengths"]), {})
        own = sizes.setdefault((case["batch"], case["sites"]), {})
        own.setdefault(line["contender"], []).append(line)
    return "\n\n".join(
        f"**{model}, {title(kind)}**\n\n{HEAD}\n" + "\n".join(rows(sizes))
        for (model, kind), sizes in sorted(parts.items())
    )


def title(kind: str) -> str:
    """Of a table."""
    return "rows as long as they are" if kind == "ragged" else f"rows of {kind} tokens"


def rows(sizes: Mapping[tuple[int, int], Mapping[str, Sequence[Line]]]) -> Iterable[str]:
    """A row a contender."""
    for (batch, sites), contenders in sorted(sizes.items()):
        bare = [
            median(found, "pace") for key, found in contenders.items() if key in {BASE, f"{BASE}_processes"}
        ]
        for found in contenders.values():
            last, pace = found[-1], median(found, "pace")
            a_site = last["flops"] / last["case"]["sites"]
            shares = (
                f"{100 * pace * a_site / 1e9 / last['peak_gflops'][kind]:.0f} %"
                for kind in ("float32", "bfloat16")
            )
            mark = "" if all(line["same"] for line in found) else UNLIKE
            cells = (
                f"{batch}, {sites}",
                last["name"],
                f"{pace:.2f}",
                f"{pace / max(bare):.2f}" if bare else "",
                f"{median(found, 'pace_whole'):.2f}",
                f"{median(found, 'whole_s'):.1f}",
                f"{median(found, 'peak_mib'):.0f}",
                *shares,
                f"{median(found, 'held_out_loss'):.4f}{mark}",
            )
            yield f"| {' | '.join(cells)} |"


def median(lines: Sequence[Line], name: str) -> float:
    """Of a figure."""
    return float(statistics.median(line[name] for line in lines))
