"""Rows of the simulated sites."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from wardround.core.errors import DataError
from wardround.core.plan import DataContract, TaskSpec
from wardround.simulations.config import RunConfig
from wardround.simulations.rows import Rows, _limited, gather, repeated_ids, scattered_units
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


@pytest.mark.parametrize(
    ("rows_a_unit", "limit", "left"), [(1, 100, 100), (1, 1, 1), (4, 100, 100), (4, 99, 96)]
)
def test_the_limit_cuts_no_unit_and_no_row_too_many(rows_a_unit: int, limit: int, left: int) -> None:
    """As many whole units as fit: a limit that falls between two units is reached."""
    examples = [Example(n, {}, id=f"r{n}", unit=f"u{n // rows_a_unit}") for n in range(240)]
    kept = _limited(examples, limit, seed=5)
    assert len(kept) == left
    assert {kept.count(row) for row in kept} == {1}
    units = [row.unit for row in kept]
    assert {units.count(unit) for unit in units} == {rows_a_unit}
    assert _limited(examples, 240, seed=5) == examples


def test_a_unit_larger_than_the_limit_is_cut() -> None:
    """Rather than nothing at all."""
    assert len(_limited([Example(n, {}, unit="p") for n in range(9)], 4, seed=0)) == 4


@pytest.mark.parametrize(
    ("first", "second"), [("Ward", "ward"), ("Zürich", "ZÜRICH"), ("stra\u00dfe", "STRASSE")]
)
def test_sites_that_differ_by_case_alone_are_refused(tmp_path: Path, first: str, second: str) -> None:
    """On a disk without case they would share a folder, and each other's optimiser and journal."""
    path = tmp_path / "a.jsonl"
    path.write_text('{"note": "x", "kind": "0"}\n{"note": "y", "kind": "1"}\n')
    sites = {name: {"path": str(path)} for name in (first, second, "other")}
    with pytest.raises(DataError, match=r"(?s)differ by case alone.*lower case") as caught:
        gathered(config(sites=sites))
    assert first in str(caught.value)
    assert "other" not in str(caught.value)


def test_units_at_two_sites_are_told(tmp_path: Path) -> None:
    """A patient in two wards' rows: the natural partition leaves them there, and a notice says so."""
    path = tmp_path / "rows.jsonl"
    path.write_text(
        "".join(
            f'{{"note": "x{n}", "kind": "{n % 2}", "ward": "w{n % 2}", "who": "p{min(n, 3)}"}}\n'
            for n in range(6)
        )
    )
    mapped = config(source={"path": str(path)}, site_column="ward", unit_column="who")
    (notice,) = gathered(mapped).notices
    assert notice.startswith("1 of 4 units have rows at more than one site")
    assert gathered(config(source={"path": str(path)}, site_column="ward")).notices == []
    assert scattered_units({"a": [Example(1, {}, unit="p")], "b": [Example(2, {}, unit="q")]}) == []


def test_the_digest_of_rows_tells_contents_order_and_place_apart() -> None:
    """Any change to what is trained or tested on gives another one; nothing of a row can be read from it."""
    one, two = Example(1, {"text": "SECRET"}, 0, "a", "p"), Example(2, {"text": "y"}, 1, "b", "q")
    edited = Example(1, {"text": "SECRETS"}, 0, "a", "p")

    def digest(sites: dict[str, list[Example]], test: list[Example], own: dict[str, list[Example]]) -> str:
        return Rows(DataContract(columns={}), sites, test, own).digest()

    first = digest({"x": [one, two]}, [two], {"x": [two]})
    assert first == digest({"x": [one, two]}, [two], {"x": [two]})
    others = [
        digest({"x": [edited, two]}, [two], {"x": [two]}),
        digest({"x": [two, one]}, [two], {"x": [two]}),
        digest({"y": [one, two]}, [two], {"x": [two]}),
        digest({"x": [one], "y": [two]}, [two], {"x": [two]}),
        digest({"x": [one, two]}, [one], {"x": [two]}),
        digest({"x": [one, two]}, [two], {"x": [one]}),
        digest({"x": [one, two]}, [two], {}),
    ]
    assert len({first, *others}) == 1 + len(others)
