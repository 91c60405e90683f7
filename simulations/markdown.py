"""Markdown of the model card: tables that stay rectangular, whatever a cell says."""

from __future__ import annotations

from collections.abc import Sequence


def one_line(text: str) -> str:
    """The text with every run of white space as one space."""
    return " ".join(text.split())


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table, without a newline at its end."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(
        "| " + " | ".join(one_line(cell).replace("|", "\\|") for cell in line) + " |" for line in lines
    )
