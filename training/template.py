"""A sentence from the columns of a row; a segment whose column is empty is left out."""

from __future__ import annotations

import re
import string
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from wardround.core.errors import ConfigError, nearest
from wardround.core.plan import TextTemplate
from wardround.training.source_spec import code

_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?")
"""What a table's text has to look like to be formatted as a number; `inf`, `nan` and 1_000 do not."""

_WIDTH = re.compile(r"\d{3,}")
"""A width or precision of three digits and more: a plan could fill a site's memory with one."""


class UnknownCodeError(ValueError):
    """A column holds a code that the template has no word for. Its text is the column's name alone."""


class UnfitValueError(ValueError):
    """A column holds a value that its format refuses. Its text is the column's name alone."""


@dataclass(frozen=True)
class Field:
    """A place in a segment that a column fills."""

    column: str
    spec: str


def check_template(template: TextTemplate, columns: Iterable[str]) -> None:
    """Refuse fields that are no plain columns of the source.

    Raises:
        ConfigError: Attribute or index access, a positional field, a nested or huge format, or an unknown
            column (the nearest one is named).
    """
    known = set(columns)
    used = [field.column for segment in template.segments for field in fields(segment)]
    for column in [*used, *template.values]:
        if column not in known:
            guess = nearest(column, known)
            raise ConfigError(
                f"the template names a column {column!r} that the source lacks",
                expected="one of " + ", ".join(sorted(known)),
                remedy=f"did you mean {guess!r}?" if guess else None,
            )


@lru_cache(maxsize=4096)
def fields(segment: str) -> tuple[Field, ...]:
    """Columns that a segment uses, with their formats.

    Raises:
        ConfigError: Not a format string of plain column names.
    """
    try:
        parsed = [part[1:] for part in string.Formatter().parse(segment) if part[1] is not None]
    except ValueError as error:
        raise ConfigError(
            f"the template segment {segment!r} is not a format string",
            found=str(error),
            remedy="write a literal brace as {{ or }}",
        ) from error
    for name, spec, conversion in parsed:
        nested = "{" in (spec or "") or _WIDTH.search(spec or "")
        if not name or name.isdecimal() or set(name) & set(".[]") or conversion or nested:
            raise ConfigError(
                f"the template segment {segment!r} uses {{{name}}} in a way that is not allowed",
                expected="plain column names, with a format such as {age:.0f} at most",
                remedy="rename a column whose name holds a dot, a bracket or digits alone",
            )
    return tuple(Field(name or "", spec or "") for name, spec, _ in parsed)


def render(template: TextTemplate, values: Mapping[str, Any]) -> str:
    """The text of one row: segments without an empty column, in order; those of literals alone always stay.

    Raises:
        UnknownCodeError: A mapped column holds a code without a word.
        UnfitValueError: A value that its format refuses, or a list or object.
    """
    parts = []
    for segment in template.segments:
        shown = {field.column: _shown(template, field, values.get(field.column)) for field in fields(segment)}
        if None not in shown.values():
            parts.append(_formatted(segment, shown))
    return "".join(parts).strip()


def says_something(template: TextTemplate, values: Mapping[str, Any]) -> bool:
    """Whether the row fills any column of the template: one that fills none is empty, whatever the literals."""
    used = [field for segment in template.segments for field in fields(segment)]
    return not used or any(_shown(template, field, values.get(field.column)) is not None for field in used)


def _shown(template: TextTemplate, field: Field, value: Any) -> str | int | float | None:
    """What stands in the field, or None where the column is empty or its code means "not known"."""
    text = code(value)
    if text == "":
        return None
    if isinstance(value, list | dict):
        raise UnfitValueError(field.column)
    words = template.values.get(field.column)
    if words is not None:
        if text not in words:
            raise UnknownCodeError(field.column)
        return words[text] or None
    if not field.spec:
        return text
    if isinstance(value, str) and _NUMBER.fullmatch(text) is None:
        return text
    number = float(text)
    return int(number) if number.is_integer() else number


def _formatted(segment: str, shown: Mapping[str, Any]) -> str:
    for field in fields(segment):
        try:
            format(shown[field.column], field.spec)
        except (ValueError, TypeError, OverflowError):
            raise UnfitValueError(field.column) from None
    return segment.format_map(shown)
