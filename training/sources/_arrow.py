"""Rows out of Arrow batches, for the sources that read them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from wardround.core.errors import DataError
from wardround.training.sources._files import present
from wardround.training.sources.contract import BrokenRow, Row

BATCH_ROWS = 256
"""Rows in memory at a time; a row may hold an image."""


def arrow_rows(batches: Iterable[Any]) -> Iterator[Row | BrokenRow]:
    """Rows of record batches or tables, numbered from 1.

    Arrow checks text only when it is read: a row with bytes that are no UTF-8 is broken alone.
    """
    number = 0
    for batch in batches:
        try:
            rows: list[dict[str, Any] | None] = batch.to_pylist()
        except UnicodeDecodeError:
            rows = [_alone(batch, place) for place in range(batch.num_rows)]
        for row in rows:
            number += 1
            if row is None:
                yield BrokenRow(number, "not_utf8")
            else:
                yield Row(number, {name: present(cell) for name, cell in row.items()})


def check_columns(path: Path, names: Sequence[str]) -> None:
    """Refuse a table that names a column twice.

    Raises:
        DataError: It does.
    """
    twice = [name for name, times in Counter(names).items() if times > 1]
    if twice:
        raise DataError(f"{path} names a column twice", found=", ".join(twice), remedy="rename one of them")


def _alone(batch: Any, place: int) -> dict[str, Any] | None:
    try:
        rows: list[dict[str, Any]] = batch.slice(place, 1).to_pylist()
    except UnicodeDecodeError:
        return None
    return rows[0]
