"""What is told of the rows before anything is trained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from wardround.runtime.events import Event, EventStream, Notice
from wardround.simulations.config import RunConfig
from wardround.simulations.preparation import encode_all, prepare


class Notices:
    """Keeps what a person is told."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def emit(self, event: Event) -> None:
        """Only notices."""
        if isinstance(event, Notice):
            self.texts.append(event.text)

    def close(self) -> None:
        """Nothing to flush."""


@pytest.mark.parametrize(("packing", "said"), [(False, "2 of 5"), (True, "some of 5")])
def test_truncation_is_told_in_rows_of_the_source(
    packing: bool, said: str, tiny_llama: Path, tmp_path: Path
) -> None:
    """Two of five notes are too long: told as such, and under packing without counting shared sequences."""
    notes = ["short"] * 3 + ["a note that goes on and on " * 8] * 2
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"note": note}) + "\n" for note in notes))
    values: dict[str, Any] = {
        "name": "notes",
        "model": {"path": str(tiny_llama)},
        "task": {"name": "causal_lm", "options": {"format": "text"}},
        "data": {
            "sites": {"ward": {"path": str(tmp_path / "rows.jsonl")}}, "columns": {"text": "note"},
            "max_length": 32, "validation_fraction": 0, "packing": packing,
        },
        "local": {"steps": 1},
        "rounds": {"rounds": 1},
        "machine": {"device": "cpu"},
        "secure": {"mode": "off"},
    }  # fmt: skip
    notices = Notices()
    federated, _ = encode_all(prepare(RunConfig.parse(values)), EventStream((notices,)))
    assert len(federated.sites["ward"].training) == (3 if packing else 5)
    assert [text for text in notices.texts if f"ward: {said} rows were longer than 32 tokens" in text]
