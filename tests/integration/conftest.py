"""Settings of small runs over made-up notes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from wardround.simulations.config import RunConfig


@pytest.fixture
def notes(tmp_path: Path, tiny_bert: Path) -> Callable[..., Callable[..., RunConfig]]:
    """Write so many rows of so many wards `w0`, `w1`, …; gives what makes configurations of them by name.

    Further keyword arguments replace keys of `data`; those of what it gives replace keys of sections.
    """

    def write(rows: int, wards: int, rounds: int, **data: Any) -> Callable[..., RunConfig]:
        with (tmp_path / "rows.jsonl").open("w") as file:
            for number in range(rows):
                note = f"{'slow' if number % 2 else 'sharp'} {number}"
                ward = f"w{number % (2 * wards) // 2}"
                row = {
                    "note": note,
                    "kind": str(number % 2),
                    "ward": ward,
                    "patient": f"p{number // 2}",
                }
                file.write(json.dumps(row) + "\n")

        def make(name: str, **sections: Any) -> RunConfig:
            base: dict[str, Any] = {
                "name": "notes", "output": str(tmp_path / name), "model": {"path": str(tiny_bert)},
                "task": {"name": "sequence_classification"},
                "data": {
                    "source": {"path": str(tmp_path / "rows.jsonl")},
                    "columns": {"text": "note", "label": "kind"}, "site_column": "ward", "max_length": 32,
                    "validation_fraction": 0.3, **data,
                },
                "adapter": {"options": {"r": 2, "alpha": 4}},
                "local": {"steps": 2, "batch_size": 4, "learning_rate": 1e-2}, "rounds": {"rounds": rounds},
                "machine": {"device": "cpu", "threads": 1}, "secure": {"mode": "off"},
            }  # fmt: skip
            for key, value in sections.items():
                base[key] = {**base.get(key, {}), **value}
            return RunConfig.parse(base)

        return make

    return write
