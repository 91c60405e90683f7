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
    """A column holds a code without a word, or a value that its format refuses.

    Its text is the column's name alone.
    """


@dataclass(frozen=True)
class Piece:
    """A stretch of a segment: literal text, then the column that follows it, if any."""

    literal: str
    column: str | None
    spec: str


def columns_of(template: TextTemplate) -> set[str]:
    """Every column that the template names.

    Raises:
        ConfigError: As `check_template` of a field that is no plain column.
    """
    return {piece.column for piece in _columns(template) if piece.column is not None} | set(template.values)


def check_template(template: TextTemplate, columns: Iterable[str]) -> None:
    """Refuse fields that are no plain columns of the source.

    Raises:
        ConfigError: Attribute or index access, a positional field, a nested or huge format, or an unknown
            column (the nearest one is named).
    """
    known = set(columns)
    used = [piece.column for piece in _columns(template) if piece.column is not None]
    for column in [*used, *template.values]:
        if column not in known:
            guess = nearest(column, known)
            raise ConfigError(
                f"the template names a column {column!r} that the source lacks",
                expected="one of " + ", ".join(sorted(known)),
                remedy=f"did you mean {guess!r}?" if guess else None,
            )
    for column, words in template.values.items():
        unmatched = [key for key in words if code(key) != key]
        if unmatched:
            raise ConfigError(
                f"the template has a word for a code of {column!r} that no row can have",
                found=", ".join(unmatched),
                expected="codes as text: 1 instead of 1.0",
            )


@lru_cache(maxsize=4096)
def pieces(segment: str) -> tuple[Piece, ...]:
    """A segment, taken apart.

    Raises:
        ConfigError: Not a format string of plain column names.
    """
    try:
        parsed = list(string.Formatter().parse(segment))
    except ValueError as error:
        raise ConfigError(
            f"the template segment {segment!r} is not a format string",
            found=str(error),
            remedy="write a literal brace as {{ or }}",
        ) from error
    for _, name, spec, conversion in parsed:
        if name is None:
            continue
        formatted = "{" in (spec or "") or _WIDTH.search(spec or "")
        if not name or name.isdecimal() or set(name) & set(".[]") or conversion or formatted:
            raise ConfigError(
                f"the template segment {segment!r} uses {{{name}}} in a way that is not allowed",
                expected="plain column names, with a format such as {age:.0f} at most",
                remedy="rename a column whose name holds a dot, a bracket or digits alone",
            )
    return tuple(Piece(literal, name, spec or "") for literal, name, spec, _ in parsed)


def render(template: TextTemplate, values: Mapping[str, Any]) -> str:
    """The text of one row: segments without an empty column, in order; those of literals alone always stay.

    Raises:
        UnknownCodeError: A mapped column holds a code without a word, or a value that its format refuses.
    """
    parts = []
    for segment in template.segments:
        shown = [_shown(template, piece, values) for piece in pieces(segment)]
        if None not in shown:
            parts += [text for text in shown if text is not None]
    return "".join(parts).strip()


def says_something(template: TextTemplate, values: Mapping[str, Any]) -> bool:
    """Whether the row fills any column that the template uses; literals alone say nothing about a row."""
    used = _columns(template)
    return not used or any(_shown(template, piece, values) is not None for piece in used)


def _columns(template: TextTemplate) -> list[Piece]:
    return [piece for segment in template.segments for piece in pieces(segment) if piece.column is not None]


def _shown(template: TextTemplate, piece: Piece, values: Mapping[str, Any]) -> str | None:
    """The piece's text, or None where its column is empty or holds a code that means "not known"."""
    if piece.column is None:
        return piece.literal
    value = values.get(piece.column)
    text = code(value)
    if text == "":
        return None
    if isinstance(value, list | dict):
        raise UnknownCodeError(piece.column)
    words = template.values.get(piece.column)
    if words is not None:
        if text not in words:
            raise UnknownCodeError(piece.column)
        if words[text] == "":
            return None
        value = text = words[text]
    return piece.literal + (_formatted(piece, value, text) if piece.spec else text)


def _formatted(piece: Piece, value: Any, text: str) -> str:
    if isinstance(value, int | float) or _NUMBER.fullmatch(text):
        number = float(text)
        value = int(number) if number.is_integer() else number
    for candidate in (value, text):  # a number that is to be padded as text, such as {ward:0>4s}
        try:
            return format(candidate, piece.spec)
        except (ValueError, TypeError, OverflowError):
            continue
    raise UnknownCodeError(str(piece.column))
