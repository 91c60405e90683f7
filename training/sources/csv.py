"""Tables of text: comma, semicolon or tab between the fields, a header; plain or gzipped."""

from __future__ import annotations

import csv
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, cast

from pydantic import BaseModel, ConfigDict, Field

from wardround.core.checked import parse_options
from wardround.core.errors import DataError
from wardround.training.sources._files import is_text, open_text
from wardround.training.sources.contract import BrokenRow, Row

LONGEST_FIELD = 1 << 20
"""Characters; also bounds how far an unclosed quote is followed."""

_DELIMITERS = (",", ";", "\t", "|")


class Options(BaseModel):
    """How the table is written.

    Attributes:
        delimiter: Between fields; None takes that of comma, semicolon, tab and bar which parts the first
            line into the most fields.
        quote: Around fields that hold a delimiter or a line break; doubled inside; None: nothing quotes.
        encoding: Of the text.
        columns: Names, where the file has no header.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    delimiter: str | None = Field(default=None, min_length=1, max_length=1, pattern=r'[^\r\n"]')
    quote: str | None = Field(default='"', min_length=1, max_length=1, pattern=r"[^\r\n]")
    encoding: str = "utf-8"
    columns: tuple[str, ...] | None = None


class Table:
    """Streams records. Values stay text; an empty field is None; a row's number is its first line."""

    suffixes = (".csv", ".csv.gz", ".tsv", ".tsv.gz")

    def read(self, path: Path, options: dict[str, Any]) -> Iterator[Row | BrokenRow]:
        """Yield rows in order; at most one record is in memory.

        Broken rows: `empty_line`, `not_utf8`, `bad_quotes` (only the line where the quote opens is lost),
        `field_too_long`, `wrong_number_of_fields`.

        Raises:
            DataError: Missing, unreadable, without a header, or a header that names a column twice.
        """
        settings = cast("Options", parse_options(Options, options, "options of the csv source"))
        csv.field_size_limit(max(csv.field_size_limit(), LONGEST_FIELD))
        with open_text(path, settings.encoding, newline="") as lines:
            first = next(lines, "")
            delimiter = settings.delimiter or _delimiter(first, settings.quote)
            records = _records(_chain(first, lines), delimiter, settings.quote)
            if settings.columns is None:
                columns = _header(path, next(records, (1, None)))
            else:
                columns = _distinct(path, settings.columns)
            empty_since: int | None = None  # empty lines are broken rows, unless they end the file
            for number, fields in records:
                if fields == []:
                    empty_since = empty_since or number
                    continue
                if empty_since is not None:
                    yield from (BrokenRow(empty, "empty_line") for empty in range(empty_since, number))
                    empty_since = None
                yield _row(number, fields, columns)


def _row(number: int, fields: list[str] | str, columns: tuple[str, ...]) -> Row | BrokenRow:
    if isinstance(fields, str):
        return BrokenRow(number, fields)
    if not is_text("".join(fields)):
        return BrokenRow(number, "not_utf8")
    if len(fields) != len(columns):
        return BrokenRow(number, "wrong_number_of_fields")
    return Row(number, {name: field or None for name, field in zip(columns, fields, strict=True)})


def _chain(first: str, lines: Iterator[str]) -> Iterator[str]:
    if first:
        yield first
    yield from lines


def _records(
    lines: Iterator[str], delimiter: str, quote: str | None
) -> Iterator[tuple[int, list[str] | str]]:
    """(First line, fields) of each record, or (line, reason) where its quotes cannot be followed.

    A quote that is never closed would swallow the rows behind it, so after a fault reading goes on with
    the very next line.
    """
    again: deque[str] = deque()
    taken: list[str] = []

    def feed() -> Iterator[str]:
        while True:
            line = again.popleft() if again else next(lines, None)
            if line is None:
                return
            taken.append(line)
            yield line

    number = 1
    while True:
        try:
            for fields in _reader(feed(), delimiter, quote, strict=True):
                yield number, fields
                number += len(taken)
                taken.clear()
        except csv.Error as error:
            yield number, "field_too_long" if "field limit" in str(error) else "bad_quotes"
            again.extendleft(reversed(taken[1:]))
            taken.clear()
            number += 1
        else:
            return


def _reader(lines: Iterable[str], delimiter: str, quote: str | None, *, strict: bool) -> Iterator[list[str]]:
    if quote is None:
        return csv.reader(lines, delimiter=delimiter, quoting=csv.QUOTE_NONE, strict=strict)
    return csv.reader(lines, delimiter=delimiter, quotechar=quote, strict=strict)


def _delimiter(line: str, quote: str | None) -> str:
    """The candidate that parts the line into the most fields; the first of them where none does better."""

    def fields(delimiter: str) -> int:
        return len(next(_reader([line[:LONGEST_FIELD]], delimiter, quote, strict=False), []))

    return max(_DELIMITERS, key=fields)


def _header(path: Path, record: tuple[int, list[str] | str | None]) -> tuple[str, ...]:
    fields = record[1]
    if not isinstance(fields, list) or not any(field.strip() for field in fields):
        raise DataError(
            f"{path} has no header",
            found="no readable first line",
            expected="the columns' names in the first line",
            remedy="add a header, or name the columns with the source's option `columns`",
        )
    if not is_text("".join(fields)):
        raise DataError(
            f"the header of {path} is not in the text encoding",
            remedy="set the source's option `encoding`, such as cp1252",
        )
    return _distinct(
        path, tuple(field.strip() or f"column_{place}" for place, field in enumerate(fields, start=1))
    )


def _distinct(path: Path, columns: tuple[str, ...]) -> tuple[str, ...]:
    twice = [name for name, times in Counter(columns).items() if times > 1]
    if twice:
        raise DataError(
            f"{path} names a column twice",
            found=", ".join(twice),
            remedy="rename one of them",
        )
    return columns


SOURCE = Table()
