"""What `wardround data check` reports: the values, and their tables for a terminal."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from pydantic import BaseModel, ConfigDict, Field
from rich.console import Console
from rich.markup import escape
from rich.table import Table

MOST_LABELS = 50
COLUMNS_SHOWN = 60
NAME_WIDTH = 60


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Spread(_Frozen):
    """Least, middle, 95th percentile and most of some whole numbers; each is one of them."""

    least: int
    median: int
    p95: int
    most: int


class ColumnReport(_Frozen):
    """One column: rows that fill it, and what kinds of value fill them."""

    filled: int
    kinds: dict[str, int]


class Fault(_Frozen):
    """Rows with one fault, and the first lines (or row numbers) that have it."""

    rows: int
    first: tuple[int, ...]


class TokenReport(_Frozen):
    """Lengths in tokens, and how many rows are longer than the model will read."""

    lengths: Spread
    max_length: int
    cut: int


class UnitReport(_Frozen):
    """Units to protect (patients, as a rule), and rows a unit."""

    units: int
    rows: Spread


class DataReport(_Frozen):
    """What `wardround data check` says. Label names are the only values of the data in it.

    Attributes:
        source: The path as it was given.
        rows: Rows that the source and its filter let through, broken ones as well.
        readable: Rows without the ones that the source could not read.
        columns: Name → report, in order of appearance.
        labels: Label → rows, the most frequent first; at most MOST_LABELS of them.
        labelled: Rows with a label.
        distinct_labels: How many labels there are, unnamed ones as well.
        labels_outside: Rows whose label the contract does not list; 0 where it lists none.
        characters: Lengths of the text, None without one.
        tokens: The same in tokens, None without a tokenizer.
        duplicate_rows: Readable rows that equal an earlier one in every column.
        duplicate_texts: Texts that equal an earlier one.
        conflicting_texts: Distinct texts that stand with more than one label.
        duplicate_ids: Ids that an earlier row has.
        units: None without a unit column.
        faults: Reason code → rows; a row may have several.
    """

    source: str
    rows: int
    readable: int
    columns: dict[str, ColumnReport]
    labels: dict[str, int] = Field(default_factory=dict)
    labelled: int = 0
    distinct_labels: int = 0
    labels_outside: int = 0
    characters: Spread | None = None
    tokens: TokenReport | None = None
    duplicate_rows: int = 0
    duplicate_texts: int = 0
    conflicting_texts: int = 0
    duplicate_ids: int = 0
    units: UnitReport | None = None
    faults: dict[str, Fault] = Field(default_factory=dict)


def spread(numbers: Sequence[int]) -> Spread | None:
    """Order statistics, or None of nothing; a percentile is the least number that reaches it."""
    if not numbers:
        return None
    points = np.percentile(np.asarray(numbers), (0, 50, 95, 100), method="inverted_cdf")
    least, median, p95, most = (int(point) for point in points)
    return Spread(least=least, median=median, p95=p95, most=most)


def print_report(report: DataReport, console: Console) -> None:
    """Print every part of the report that has something to say."""
    console.print(report.source, markup=False, highlight=False, soft_wrap=True)
    console.print(_overview(report))
    console.print(_columns(report))
    if report.labels:
        console.print(_labels(report))
    if report.characters is not None:
        console.print(_lengths(report, report.characters))
    if report.faults:
        console.print(_faults(report))
    else:
        console.print("No broken or empty rows.")


def _overview(report: DataReport) -> Table:
    table = Table("", "rows")
    table.columns[1].justify = "right"
    table.add_row("read", str(report.rows))
    table.add_row("readable", str(report.readable))
    table.add_row("equal to an earlier row", str(report.duplicate_rows))
    if report.characters is not None:
        table.add_row("with the text of an earlier row", str(report.duplicate_texts))
    if report.labels and report.characters is not None:
        table.add_row("distinct texts with several labels", str(report.conflicting_texts))
    if report.duplicate_ids:
        table.add_row("with the id of an earlier row", str(report.duplicate_ids))
    if report.units is not None:
        table.add_row("units", str(report.units.units))
        spread = report.units.rows
        table.add_row(
            "rows a unit: least, median, p95, most",
            f"{spread.least}, {spread.median}, {spread.p95}, {spread.most}",
        )
    return table


def _columns(report: DataReport) -> Table:
    table = Table("column", "filled", "empty", "kinds of value")
    for place in (1, 2):
        table.columns[place].justify = "right"
    for name, column in list(report.columns.items())[:COLUMNS_SHOWN]:
        kinds = ", ".join(
            kind if rows == column.filled else f"{kind} ({rows})" for kind, rows in column.kinds.items()
        )
        table.add_row(_name(name), str(column.filled), str(report.readable - column.filled), kinds)
    if len(report.columns) > COLUMNS_SHOWN:
        table.add_row(f"and {len(report.columns) - COLUMNS_SHOWN} more", "", "", "")
    return table


def _labels(report: DataReport) -> Table:
    table = Table("label", "rows", "share")
    for place in (1, 2):
        table.columns[place].justify = "right"
    for label, rows in report.labels.items():
        table.add_row(_name(label), str(rows), f"{100 * rows / report.labelled:.1f} %")
    if report.distinct_labels > len(report.labels):
        table.add_row(f"and {report.distinct_labels - len(report.labels)} more labels", "", "")
    return table


def _lengths(report: DataReport, characters: Spread) -> Table:
    table = Table("length of the text", "least", "median", "p95", "most", "would be cut")
    for place in range(1, 6):
        table.columns[place].justify = "right"
    table.add_row("characters", *_numbers(characters), "")
    if report.tokens is not None:
        cut = f"{report.tokens.cut} above {report.tokens.max_length}"
        table.add_row("tokens", *_numbers(report.tokens.lengths), cut)
    return table


def _faults(report: DataReport) -> Table:
    table = Table("fault", "rows", "first lines")
    table.columns[1].justify = "right"
    for reason, fault in report.faults.items():
        more = " …" if fault.rows > len(fault.first) else ""
        table.add_row(escape(reason), str(fault.rows), ", ".join(str(line) for line in fault.first) + more)
    return table


def _numbers(spread: Spread) -> tuple[str, str, str, str]:
    return str(spread.least), str(spread.median), str(spread.p95), str(spread.most)


def _name(name: str) -> str:
    return escape(name if len(name) <= NAME_WIDTH else name[: NAME_WIDTH - 1] + "…")
