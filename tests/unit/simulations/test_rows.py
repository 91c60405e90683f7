"""Rows of the simulated sites."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from wardround.core.errors import DataError
from wardround.core.plan import TaskSpec
from wardround.simulations.config import RunConfig
from wardround.simulations.rows import gather, repeated_ids
from wardround.training.examples import Example
from wardround.training.tasks import TASKS


def config(**data: Any) -> RunConfig:
    """A configuration whose model is never looked at."""
    return RunConfig.parse(
        {
            "name": "rows", "model": {"path": "none"}, "task": {"name": "sequence_classification"},
            "data": {"columns": {"text": "note", "label": "kind"}, **data},
            "local": {"epochs": 1}, "rounds": {"rounds": 1},
        }
    )  # fmt: skip


def gathered(made: RunConfig) -> Any:
    """The rows of a configuration."""
    return gather(made, TASKS.get(made.task.name), TaskSpec(name=made.task.name, metrics="classification"))


def test_without_a_source_the_message_asks_for_one() -> None:
    """Not for a label's column."""
    with pytest.raises(DataError, match=r"(?s)no training rows are configured.*data\.source"):
        gathered(config())


def test_a_site_without_rows_is_left_out_by_name(tmp_path: Path) -> None:
    """The others train; a notice says who is missing."""
    (tmp_path / "a.jsonl").write_text('{"note": "x", "kind": "0"}\n{"note": "y", "kind": "1"}\n')
    (tmp_path / "b.jsonl").write_text("")
    rows = gathered(config(sites={name: {"path": str(tmp_path / f"{name}.jsonl")} for name in "ab"}))
    assert list(rows.sites) == ["a"]
    assert rows.notices == ["left out, no usable rows: b"]


def test_repeated_ids_are_told(tmp_path: Path) -> None:
    """Rows that share the name which should tell them apart are used, and counted."""
    assert repeated_ids([Example(1, {}, id="a"), Example(2, {}, id="b")], "the source") == []
    (tmp_path / "a.jsonl").write_text(
        '{"note": "x", "kind": "0", "id": 1}\n{"note": "y", "kind": "1", "id": 1}\n'
    )
    rows = gathered(config(sites={"a": {"path": str(tmp_path / "a.jsonl")}}, id_column="id"))
    assert rows.notices == ["site a: 1 of 2 rows repeat the id of another row"]
