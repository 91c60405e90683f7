"""One JSON document: a list of objects, or an object that holds such a list; plain or gzipped."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

from pydantic import BaseModel, ConfigDict

from wardround.core.checked import parse_options
from wardround.core.errors import DataError
from wardround.training.sources._files import is_text, open_text, present
from wardround.training.sources.contract import BrokenRow, Row


class Options(BaseModel):
    """`encoding`: of the text; `key`: where the list stands in an object."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    encoding: str = "utf-8"
    key: str = "data"


class JsonDocument:
    """Reads the whole document: the format has no rows to stream. Rows are numbered from 1."""

    suffixes = (".json", ".json.gz")

    def read(self, path: Path, options: dict[str, Any]) -> Iterator[Row | BrokenRow]:
        """Yield rows in order. Broken rows: `not_an_object`, `not_utf8`.

        Raises:
            DataError: Missing, unreadable, not JSON (says the line), or without a list of rows.
        """
        settings = cast("Options", parse_options(Options, options, "options of the json source"))
        with open_text(path, settings.encoding, newline="\n") as file:
            text = file.read()
        rows = _rows(path, text, settings)
        doubtful = "\\u" in text or not is_text(text)  # half a surrogate pair, or bytes outside the encoding
        for number, value in enumerate(rows, start=1):
            if not isinstance(value, dict):
                yield BrokenRow(number, "not_an_object")
            elif doubtful and not is_text(json.dumps(value, ensure_ascii=False)):
                yield BrokenRow(number, "not_utf8")
            else:
                yield Row(number, {name: present(cell) for name, cell in value.items()})


def _rows(path: Path, text: str, settings: Options) -> list[Any]:
    try:
        document = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path} is not a JSON document",
            found=f"{error.msg} in line {error.lineno}",
            expected="one list of objects",
            remedy="set kind: jsonl if every line is an object of its own"
            if error.msg == "Extra data"
            else "correct the file: a JSON document has no row that could be left out alone",
        ) from error
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{path} is not a JSON document", found="a number too long or brackets too deep to be read"
        ) from error
    rows = document.get(settings.key) if isinstance(document, dict) else document
    if not isinstance(rows, list):
        raise DataError(
            f"{path} holds no list of rows",
            found=f"{_kind(document)} without a list under {settings.key!r}"
            if isinstance(document, dict)
            else _kind(document),
            expected=f'a list of objects, or {{"{settings.key}": [...]}}',
            remedy="name the key of the list with the source's option `key`",
        )
    return rows


def _kind(value: object) -> str:
    return {dict: "an object", str: "a string", bool: "a truth value", type(None): "null"}.get(
        type(value), "a number"
    )


SOURCE = JsonDocument()
