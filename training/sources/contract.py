"""What a data source is: something that yields numbered rows and says which of them are broken."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol


@dataclass(frozen=True)
class Row:
    """One row as it stands in the source.

    Attributes:
        number: Line number in a text file (from 1, the header counts), row number (from 1) elsewhere.
        values: Column → value. None and a missing key mean the same.
    """

    number: int
    values: dict[str, Any]


@dataclass(frozen=True)
class BrokenRow:
    """A row that could not be read. The reason is a code and never holds the row's text."""

    number: int
    reason: str


class Source(Protocol):
    """Reads one kind of file or folder."""

    suffixes: tuple[str, ...]
    """Endings that choose this source where the config names none, such as `.jsonl.gz`; `/` is a folder's."""

    def read(self, path: Path, options: dict[str, Any]) -> Iterator[Row | BrokenRow]:
        """Yield rows in order, in bounded memory.

        Raises:
            DataError: The path is missing or is not of this kind at all.
        """
