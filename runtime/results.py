"""The small files of a run that people open: the per-site table and the summary."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from wardround.runtime.files import write_atomic, write_json


def write_site_table(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write one CSV line a site.

    Columns are the keys in order of their first appearance; what a row lacks, or what is None or not a
    number, stays empty. A text cell that a spreadsheet would take for a formula gets a leading quote.

    Raises:
        StorageError: The file could not be written.
    """
    columns = list(dict.fromkeys(key for row in rows for key in row))
    text = io.StringIO(newline="")
    table = csv.writer(text, lineterminator="\n")
    table.writerow(columns)
    table.writerows([_cell(row.get(column)) for column in columns] for row in rows)
    write_atomic(path, text.getvalue().encode())


def write_summary(path: Path, summary: Mapping[str, Any]) -> None:
    """Write `summary.json`: indented, strict JSON.

    Raises:
        StorageError: The file could not be written.
    """
    write_json(path, summary)


def _cell(value: Any) -> str:
    if value is None or value != value:  # noqa: PLR0124 - NaN alone differs from itself
        return ""
    if isinstance(value, float):
        return format(value, ".6g")
    text = str(value)
    return "'" + text if isinstance(value, str) and text[:1] in tuple("=+-@\t\r") else text
