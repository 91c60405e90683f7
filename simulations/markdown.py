"""Markdown of the model card: tables that stay rectangular, whatever a cell says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

MOST_LISTED: Final = 8
"""Of an option's values, such as the names of target modules."""


def one_line(text: str) -> str:
    """The text with every run of white space as one space."""
    return " ".join(text.split())


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table, without a newline at its end."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(
        "| " + " | ".join(one_line(cell).replace("|", "\\|") for cell in line) + " |" for line in lines
    )


def options_text(options: Mapping[str, Any]) -> str:
    """Options with their values; a list of many as their number: the plan beside the card has them all."""
    return ", ".join(f"{key} {_short(value)}" for key, value in options.items()) or "no options"


def _short(value: Any) -> Any:
    return (
        f"({len(value)} of them)" if isinstance(value, list | tuple) and len(value) > MOST_LISTED else value
    )
