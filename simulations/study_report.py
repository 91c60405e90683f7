"""A study's files: one table for programs, one picture, and one page that needs no other file."""

from __future__ import annotations

import base64
import csv
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from rich.table import Table

from wardround.runtime.files import write_atomic
from wardround.runtime.sizes import seconds_text
from wardround.simulations.arm_names import FEDERATED
from wardround.simulations.study import Interval, Value, Variant, mean_curve, metrics_of, rows_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CSV: Final = "runs.csv"
PARQUET: Final = "runs.parquet"
PICTURE: Final = "curves.png"
PAGE: Final = "report.html"
COLOURS: Final = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8c8c8c")
"""Okabe and Ito's, which colour-blind readers tell apart."""
LINES: Final = ("-", "--", "-.", ":")
MOST_METRICS: Final = 3
"""Columns of scores on a page; the table for programs has all of them."""


def write_report(variants: Sequence[Variant], out: Path, metric: str) -> list[Path]:
    """Write every file of a study.

    Args:
        variants: At least one.
        out: Folder; made where it is new.
        metric: That the picture shows.

    Returns:
        What was written.

    Raises:
        StorageError: Something cannot be written.
    """
    out.mkdir(parents=True, exist_ok=True)
    rows = rows_of(variants)
    files = {CSV: csv_bytes(rows), PARQUET: parquet_bytes(rows)}
    files[PICTURE] = picture(variants, metric)
    files[PAGE] = page(variants, metric, files[PICTURE]).encode("utf-8")
    for name, content in files.items():
        write_atomic(out / name, content)
    return [out / name for name in files]


def _columns(rows: Sequence[Mapping[str, Value]]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row))


def csv_bytes(rows: Sequence[Mapping[str, Value]]) -> bytes:
    """A table as CSV, with every column that a row has."""
    text = io.StringIO()
    writer = csv.DictWriter(text, _columns(rows), restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode("utf-8")


def parquet_bytes(rows: Sequence[Mapping[str, Value]]) -> bytes:
    """The same as Parquet."""
    import pyarrow as pa
    from pyarrow import parquet

    sink, columns = io.BytesIO(), _columns(rows)
    parquet.write_table(
        pa.Table.from_pylist([{name: row.get(name) for name in columns} for row in rows]), sink
    )
    return sink.getvalue()


def terminal_table(variants: Sequence[Variant], metric: str) -> Table:
    """What a person sees first."""
    count = sum(len(variant.runs) for variant in variants)
    title = f"{count} runs, scored on {scored_on(variants)}; means with 95 % intervals"
    table = Table(title=title)
    table.add_column("variant", overflow="fold")
    timed = ["virtual time"] if _timed(variants) else []
    for name in ("arm", "seeds", *_shown(variants, metric), "KiB up a round", *timed):
        table.add_column(name, justify="left" if name == "arm" else "right")
    for variant in variants:
        for arm in variant.arms():
            cells = [shown(variant.interval(arm, name)) for name in _shown(variants, metric)]
            last = [_bytes_up(variant, arm), _virtual(variant, arm)][: 1 + len(timed)]
            table.add_row(variant.label, arm, str(len(variant.runs)), *cells, *last)
    return table


def scored_on(variants: Sequence[Variant]) -> str:
    """On which rows, for people."""
    parts = {run.scored_on for variant in variants for run in variant.runs}
    named = {"test": "everybody's test rows", "validation": "the sites' validation parts"}
    return " or ".join(named.get(part, part) for part in sorted(parts))


def shown(interval: Interval | None) -> str:
    """Mean and half the interval's width."""
    if interval is None:
        return "–"
    if math.isnan(interval.low):
        return f"{interval.mean:.4f}"
    return f"{interval.mean:.4f} ± {interval.high - interval.mean:.4f}"


def picture(variants: Sequence[Variant], metric: str) -> bytes:
    """The federation's score by round on the validation parts: means, and the range over seeds, as a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure: Figure = Figure(figsize=(9, 5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for index, variant in enumerate(variants):
        curve = mean_curve(variant, metric)
        if not curve:
            continue
        colour, line = COLOURS[index % len(COLOURS)], LINES[index // len(COLOURS) % len(LINES)]
        rounds = list(curve)
        axes.plot(rounds, [curve[r].mean for r in rounds], color=colour, linestyle=line, label=variant.label)
        if len(variant.runs) > 1:
            low = [min(curve[r].values) for r in rounds]
            high = [max(curve[r].values) for r in rounds]
            axes.fill_between(rounds, low, high, color=colour, alpha=0.15, linewidth=0)
    axes.set_xlabel("round")
    axes.set_ylabel(f"{metric}, validation")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize="small")
    else:
        axes.text(0.5, 0.5, "no round was scored on validation parts", ha="center", transform=axes.transAxes)
    sink = io.BytesIO()
    figure.savefig(sink, format="png", dpi=120, metadata={"Software": None})
    return sink.getvalue()


def page(variants: Sequence[Variant], metric: str, png: bytes) -> str:
    """The study as one HTML file; names and values are escaped."""
    from jinja2 import Environment

    names = _shown(variants, metric)
    lines = [
        {
            "variant": variant.label,
            "arm": arm,
            "seeds": ", ".join(str(run.seed) for run in variant.runs),
            "cells": [shown(variant.interval(arm, name)) for name in names],
            "bytes": _bytes_up(variant, arm),
            "virtual": _virtual(variant, arm),
        }
        for variant in variants
        for arm in variant.arms()
    ]
    runs = [
        {"variant": variant.label, "seed": run.seed, "folder": str(run.folder)}
        for variant in variants
        for run in variant.runs
    ]
    return (
        Environment(autoescape=True)
        .from_string(PAGE_TEMPLATE)
        .render(
            scored_on=scored_on(variants),
            metric=metric,
            names=names,
            lines=lines,
            timed=_timed(variants),
            runs=runs,
            picture=base64.b64encode(png).decode("ascii"),
        )
    )


def _shown(variants: Sequence[Variant], metric: str) -> list[str]:
    return list(dict.fromkeys([metric, *metrics_of(variants)]))[:MOST_METRICS]


def _bytes_up(variant: Variant, arm: str) -> str:
    counted = [run.bytes_up for run in variant.runs if run.bytes_up is not None]
    return f"{sum(counted) / len(counted) / 1024:.1f}" if arm == FEDERATED and counted else ""


def _timed(variants: Sequence[Variant]) -> bool:
    return any(run.virtual_s is not None for variant in variants for run in variant.runs)


def _virtual(variant: Variant, arm: str) -> str:
    """Mean virtual time of the federation, where a run has any."""
    found = [run.virtual_s for run in variant.runs if run.virtual_s is not None]
    return seconds_text(sum(found) / len(found)) if arm == FEDERATED and found else ""


PAGE_TEMPLATE: Final = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>Comparison of {{ runs|length }} runs</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
body { font: 15px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem }
table { border-collapse: collapse; margin: 1rem 0; width: 100% }
th, td { text-align: left; padding: .3rem .7rem; border-bottom: 1px solid #ddd; vertical-align: top }
.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap }
.folder { font-family: ui-monospace, monospace; font-size: 12px; overflow-wrap: anywhere }
img { max-width: 100% }
</style></head><body>
<h1>Comparison of {{ runs|length }} runs</h1>
<p>Scores of released adapters on {{ scored_on }}: means over seeds, with Student's 95 % interval of the mean
where there is more than one.</p>
<table><thead><tr><th>variant</th><th>arm</th><th>seeds</th>
{% for name in names %}<th class="number">{{ name }}</th>{% endfor %}
<th class="number">KiB up, a site and round</th>
{% if timed %}<th class="number">virtual time</th>{% endif %}</tr></thead><tbody>
{% for line in lines %}<tr><td>{{ line.variant }}</td><td>{{ line.arm }}</td><td>{{ line.seeds }}</td>
{% for cell in line.cells %}<td class="number">{{ cell }}</td>{% endfor %}
<td class="number">{{ line.bytes }}</td>
{% if timed %}<td class="number">{{ line.virtual }}</td>{% endif %}</tr>
{% endfor %}</tbody></table>
<h2>{{ metric }} by round</h2>
<p>Of the federation, on the sites' validation parts: means, and the range over seeds.</p>
<img alt="{{ metric }} by round" src="data:image/png;base64,{{ picture }}">
<h2>Runs</h2>
<table><thead><tr><th>variant</th><th>seed</th><th>folder</th></tr></thead><tbody>
{% for run in runs %}<tr><td>{{ run.variant }}</td><td>{{ run.seed }}</td>
<td class="folder">{{ run.folder }}</td></tr>
{% endfor %}</tbody></table>
</body></html>
"""
