"""What a data source is: something that yields numbered rows and says which of them are broken."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
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
    """Reads one kind of file or folder, or of whatever else gives rows: a database, a server."""

    suffixes: tuple[str, ...]
    """Endings that choose this source where the config names none, such as `.jsonl.gz`; `/` is a folder's.

    A source without any is chosen by its `kind` alone, and its place is no path: it gets the text itself.
    """

    def read(self, path: Any, options: dict[str, Any]) -> Iterator[Row | BrokenRow]:
        """Yield rows in order, in bounded memory.

        Args:
            path: A `Path`, its location resolved; where the source has no endings, the text that stands in
                the configuration, such as `postgresql://host/ward` (`runtime/locations.py` resolves ours).
            options: The source's own, to be checked by it.

        Raises:
            DataError: The path is missing or is not of this kind at all.
        """
