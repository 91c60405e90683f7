"""JSON lines: one object a line, plain or gzipped."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

from pydantic import BaseModel, ConfigDict

from wardround.core.checked import parse_options
from wardround.training.sources._files import is_text, open_text, present
from wardround.training.sources.contract import BrokenRow, Row


class Options(BaseModel):
    """`encoding`: of the text."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    encoding: str = "utf-8"


class JsonLines:
    """Streams a file line by line. Empty lines are broken rows, except those that end the file."""

    suffixes = (".jsonl", ".jsonl.gz", ".ndjson", ".ndjson.gz")

    def read(self, path: Path, options: dict[str, Any]) -> Iterator[Row | BrokenRow]:
        """Yield rows in order; at most one line is in memory.

        Broken rows: `empty_line`, `not_utf8`, `not_json`, `not_an_object`.

        Raises:
            DataError: Missing, unreadable, or a file of another kind.
        """
        settings = cast("Options", parse_options(Options, options, "options of the jsonl source"))
        with open_text(path, settings.encoding, newline="\n") as lines:
            read = 0  # lines up to the last one that was not empty
            for number, line in enumerate(lines, start=1):
                if not line.strip():
                    continue
                for empty in range(read + 1, number):
                    yield BrokenRow(empty, "empty_line")
                read = number
                yield _row(number, line)


def _row(number: int, line: str) -> Row | BrokenRow:
    if not is_text(line):
        return BrokenRow(number, "not_utf8")
    try:
        value = json.loads(line)
        # An escaped half of a surrogate pair is JSON, but no text.
        whole = "\\u" not in line or is_text(json.dumps(value, ensure_ascii=False))
    except (ValueError, RecursionError):
        return BrokenRow(number, "not_json")
    if not isinstance(value, dict):
        return BrokenRow(number, "not_an_object")
    if not whole:
        return BrokenRow(number, "not_utf8")
    return Row(number, {name: present(cell) for name, cell in value.items()})


SOURCE = JsonLines()
