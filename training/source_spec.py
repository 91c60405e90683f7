"""Where rows are read from: a path, a kind, options, and an equality filter."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, field_validator

from wardround.core.errors import DataError, nearest
from wardround.runtime.locations import locate
from wardround.training.sources import SOURCES
from wardround.training.sources.contract import BrokenRow, Row, Source

_WHOLE_NUMBER = re.compile(r"([+-]?\d+)\.0+")
"""How pandas writes the codes of a column with holes: 1.0."""


class SourceSpec(BaseModel):
    """One source of rows.

    Attributes:
        path: File or folder; `package://` and `data://` locations as well. Where `kind` names a source that
            reads no files, whatever that one takes: a connection, an address.
        kind: Source kind; None chooses it by the ending of the path.
        options: Passed to the source.
        where: Column → value (or values); only rows that equal it, compared as `code` writes it, are read.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: str = Field(min_length=1)
    kind: str | None = None
    options: dict[str, Any] = Field(default_factory=dict)
    where: dict[str, str | list[str]] = Field(default_factory=dict)

    @field_validator("where", mode="before")
    @classmethod
    def _as_text(cls, where: Any) -> Any:
        """YAML reads `where: {fold: 1}` as a number; it is compared as text."""
        if not isinstance(where, dict):
            return where
        return {
            column: [code(value) for value in values] if isinstance(values, list | tuple) else code(values)
            for column, values in where.items()
        }


def named_source(path: str, kind: str | None = None) -> SourceSpec:
    """The source that a person names on the command line.

    Raises:
        DataError: Nothing is named.
    """
    if not path.strip():
        raise DataError("no source is named", found="an empty path", expected="a file or folder")
    return SourceSpec(path=path, kind=kind)


def open_source(spec: SourceSpec, *, allow_dotted: bool = False) -> Iterator[Row | BrokenRow]:
    """Rows of a source in order, after its filter; broken rows pass it.

    Args:
        spec: Which source.
        allow_dotted: Whether `kind` may be module:attribute: a simulation's own code, never a site's.

    Raises:
        DataError: Nothing there, no source of that ending, not a file of its kind at all, or the filter
            names a column that no row has.
    """
    source = SOURCES.get(spec.kind, allow_dotted=allow_dotted) if spec.kind else source_of(locate(spec.path))
    # A source without endings reads no files: what its place means is its own affair.
    rows = source.read(locate(spec.path) if source.suffixes else spec.path, spec.options)
    return _filtered(spec, rows) if spec.where else rows


def source_of(path: Path) -> Source:
    """The source whose ending the path has; the longest ending wins.

    Raises:
        DataError: Nothing is there (the nearest name in the folder is proposed), or no ending fits.
    """
    if not path.exists():
        beside = [other.name for other in path.parent.iterdir()] if path.parent.is_dir() else []
        guess = nearest(path.name, beside)
        raise DataError(
            f"{path} does not exist",
            expected="a source of rows",
            remedy=f"did you mean {guess!r} in the same folder?" if guess else "correct the source's path",
        )
    by_suffix = {suffix: name for name in SOURCES.names() for suffix in SOURCES.get(name).suffixes}
    ending = path.name.lower() + ("/" if path.is_dir() else "")
    for suffix in sorted(by_suffix, key=len, reverse=True):
        if ending.endswith(suffix):
            return SOURCES.get(by_suffix[suffix])
    raise DataError(
        f"no data source reads {path.name!r}",
        expected="an ending of " + ", ".join(sorted(by_suffix)),
        remedy="name it with `kind`",
    )


def plain(value: Any) -> str:
    """A value as text, whatever the format made of it: 1, 1.0 and true are "1"; None and NaN are empty."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, bool):
        return str(int(value))
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value).strip()


def code(value: Any) -> str:
    """A label or code as text: like `plain`, and "1.0" is "1" also where a table holds it as text."""
    text = plain(value)
    whole = _WHOLE_NUMBER.fullmatch(text)
    return whole.group(1) if whole else text


def _filtered(spec: SourceSpec, rows: Iterator[Row | BrokenRow]) -> Iterator[Row | BrokenRow]:
    wanted = {
        column: {values} if isinstance(values, str) else set(values) for column, values in spec.where.items()
    }
    columns: dict[str, None] = {}
    for row in rows:
        if isinstance(row, BrokenRow):
            yield row
            continue
        columns.update(dict.fromkeys(row.values))
        if all(code(row.values.get(column)) in values for column, values in wanted.items()):
            yield row
    absent = next((column for column in wanted if columns and column not in columns), None)
    if absent is not None:
        guess = nearest(absent, columns)
        raise DataError(
            f"{spec.path} has no column {absent!r}, which its filter `where` names",
            found="columns " + ", ".join(columns),
            remedy=f"did you mean {guess!r}?" if guess else "correct `where`",
        )
