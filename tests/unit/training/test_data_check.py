"""A look at a source: every count is right on a table small enough to count by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from wardround.core.errors import DataError
from wardround.core.plan import DataContract, TextTemplate
from wardround.training.data_check import check_source
from wardround.training.data_report import print_report
from wardround.training.source_spec import SourceSpec

ROWS = [
    {"note": "cough and fever", "grade": 1, "patient": "a", "id": "1"},
    {"note": "cough and fever", "grade": 1, "patient": "a", "id": "1"},
    {"note": "cough and fever", "grade": 0, "patient": "b", "id": "2"},
    {"note": "a", "grade": "1.0", "patient": None, "id": "3"},
    {"note": "  ", "grade": 7, "patient": "b", "id": "4"},
    {"note": None, "grade": None, "patient": None, "id": None},
    "no json",
]
DATA = DataContract(
    columns={"text": "note", "label": "grade"},
    labels=("0", "1"),
    id_column="id",
    unit_column="patient",
    max_length=2,
)


@pytest.fixture
def source(tmp_path: Path) -> SourceSpec:
    """The table as JSON lines."""
    path = tmp_path / "rows.jsonl"
    lines = [row if isinstance(row, str) else json.dumps(row) for row in ROWS]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return SourceSpec(path=str(path))


def words(texts: Any) -> list[int]:
    """A tokenizer of words."""
    return [len(text.split()) for text in texts]


def test_every_count(source: SourceSpec) -> None:
    """Rows, columns, labels, lengths, doubles, units and faults with their lines."""
    report = check_source(source, DATA, None, words)
    assert (report.rows, report.readable) == (7, 6)
    assert {name: column.filled for name, column in report.columns.items()} == {
        "note": 4, "grade": 5, "patient": 4, "id": 5,
    }  # fmt: skip
    assert report.labels == {"1": 3, "0": 1, "7": 1}
    assert report.labels_outside == 1
    assert (report.duplicate_rows, report.duplicate_texts, report.conflicting_texts) == (1, 2, 1)
    assert report.duplicate_ids == 1
    assert report.units is not None
    assert report.units.units == 2
    assert report.tokens is not None
    assert report.tokens.cut == 3
    assert {reason: fault.first for reason, fault in report.faults.items()} == {
        "empty:unit": (4,), "empty:text": (5,), "label_not_listed": (5,), "empty_row": (6,), "not_json": (7,),
    }  # fmt: skip


def test_a_path_alone_is_enough(source: SourceSpec) -> None:
    """Columns, double rows and faults need no mapping; labels, texts and units are not guessed."""
    report = check_source(source)
    assert (report.rows, report.duplicate_rows, report.labels, report.characters) == (7, 1, {}, None)
    assert set(report.faults) == {"empty_row", "not_json"}


def test_a_wrong_column_is_an_error(source: SourceSpec) -> None:
    """As where examples are read."""
    with pytest.raises(DataError, match=r"(?s)'nots'.*did you mean 'note'"):
        check_source(source, DataContract(columns={"text": "nots"}))


def test_a_template_is_measured_as_it_is_read(tmp_path: Path) -> None:
    """Codes without a word, and rows that fill no column, are faults here as well."""
    path = tmp_path / "rows.csv"
    path.write_text("sex,age\n1,60\n2,\n5,60\n,\n", encoding="utf-8")
    template = TextTemplate(segments=("Patient", " {sex}"), values={"sex": {"1": "man", "2": ""}})
    report = check_source(SourceSpec(path=str(path)), DataContract(columns={}, template=template))
    assert {reason: fault.first for reason, fault in report.faults.items()} == {
        "empty:text": (3,), "unknown_code:sex": (4,), "empty_row": (5,),
    }  # fmt: skip
    assert report.characters is not None
    assert report.characters.most == len("Patient man")


def test_the_tables_show_counts_and_never_a_text(source: SourceSpec) -> None:
    """A report may be shown to people who may not see the rows."""
    console = Console(width=200)
    with console.capture() as capture:
        print_report(check_source(source, DATA, None, words), console)
    shown = capture.get()
    for part in ("note", "grade", "label_not_listed", "not_json", "3 above 2"):
        assert part in shown
    assert "cough" not in shown
