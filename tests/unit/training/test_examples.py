"""Rows become examples, or are quarantined and counted; what is wrong as a whole is refused at once."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from wardround.core.errors import ConfigError, DataError
from wardround.core.plan import DataContract, TextTemplate
from wardround.training.examples import (
    Example,
    ExampleSet,
    collect_labels,
    read_examples,
    role_value,
    split_validation,
)
from wardround.training.source_spec import SourceSpec
from wardround.training.sources.contract import BrokenRow, Row

CLASSES = {"text": True, "text_pair": False, "label": True}
ANSWERS = {"prompt": True, "completion": True}


def contract(**options: Any) -> DataContract:
    """Two columns and two labels, changed as asked."""
    return DataContract(**({"columns": {"text": "note", "label": "grade"}, "labels": ("0", "1")} | options))


@pytest.fixture
def source(tmp_path: Path) -> Any:
    """Writes rows (or raw lines) and gives the source."""

    def write(*rows: Any) -> SourceSpec:
        path = tmp_path / "rows.jsonl"
        lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
        path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
        return SourceSpec(path=str(path))

    return write


def good(count: int = 3) -> list[dict[str, Any]]:
    """Rows without a fault."""
    return [{"note": f"note {i}", "grade": i % 2, "id": f"p{i}", "clinic": "a"} for i in range(count)]


def test_a_row_becomes_an_example(source: Any) -> None:
    """Roles, label index, id, unit and site come from the columns that the contract names."""
    spec = source({"note": " cough \n", "grade": 1.0, "id": 7, "patient": "x", "clinic": "a", "more": None})
    data = contract(labels=("0", "1"), id_column="id", unit_column="patient")
    found = read_examples(spec, data, CLASSES, site_column="clinic")
    assert found == ExampleSet(
        (Example(1, {"text": " cough \n"}, label=1, id="7", unit="x", site="a"),), (), 1
    )


def test_without_columns_the_line_names_the_row_and_the_row_is_the_unit(source: Any) -> None:
    """No id column: the line number; no unit column: the id."""
    (first, second) = read_examples(source(*good(2)), contract(), CLASSES).examples
    assert (first.id, first.unit, second.id, second.unit, second.site) == ("1", "1", "2", "2", "")


@pytest.mark.parametrize("written", [1, 1.0, "1", "1.0", True, " 1 "])
def test_labels_are_compared_as_text(source: Any, written: Any) -> None:
    """However a format writes it, and however the list does."""
    spec = source({"note": "a", "grade": written})
    assert read_examples(spec, contract(), CLASSES).examples[0].label == 1
    assert read_examples(spec, contract(labels=("0.0", "1.0")), CLASSES).examples[0].label == 1


def test_one_bad_row_is_quarantined_and_counted(source: Any) -> None:
    """Each with its line and its reason; the others are used."""
    spec = source(
        *good(8), "no json", {"note": "  ", "grade": 1}, {"note": "a"}, {"note": "a", "grade": 0, "id": ""}
    )
    found = read_examples(spec, contract(id_column="id", unit_column="id"), CLASSES, site_column="clinic")
    assert found.quarantined == (
        BrokenRow(9, "not_json"), BrokenRow(10, "empty:text"), BrokenRow(11, "empty:label"),
        BrokenRow(12, "empty:unit"),
    )  # fmt: skip
    assert len(found.examples) == 8
    assert found.rows_read == 12
    assert found.quarantine_counts() == {
        "not_json": 1, "empty:text": 1, "empty:label": 1, "empty:unit": 1,
    }  # fmt: skip


def test_a_row_without_a_site_is_quarantined_where_sites_matter(source: Any) -> None:
    """And only there."""
    spec = source(*good(), {"note": "a", "grade": 0})
    assert read_examples(spec, contract(), CLASSES, site_column="clinic").quarantined == (
        BrokenRow(4, "empty:site"),
    )
    assert not read_examples(spec, contract(), CLASSES).quarantined


def test_what_the_task_cannot_read_is_quarantined(source: Any) -> None:
    """By the task's own code."""

    def fault(example: Example) -> str | None:
        return "not_text:text" if example.roles["text"] == "note 1" else None

    found = read_examples(source(*good()), contract(), CLASSES, fault=fault)
    assert found.quarantined == (BrokenRow(2, "not_text:text"),)
    assert [example.number for example in found.examples] == [1, 3]


def test_lists_and_objects_stay_what_they_are(source: Any) -> None:
    """Messages are a list; an empty one is empty."""
    messages = [{"role": "user", "content": "hi"}]
    spec = source({"turns": messages}, {"turns": messages}, {"turns": []})
    found = read_examples(spec, DataContract(columns={"messages": "turns"}), {"messages": True})
    assert found.examples[0].roles == {"messages": messages}
    assert found.quarantine_counts() == {"empty:messages": 1}


def test_optional_roles_may_be_empty(source: Any) -> None:
    """They are left out of the example."""
    spec = source({"note": "a", "more": "b", "grade": 0}, {"note": "a", "more": "", "grade": 0})
    data = contract(columns={"text": "note", "text_pair": "more", "label": "grade"})
    first, second = read_examples(spec, data, CLASSES).examples
    assert first.roles == {"text": "a", "text_pair": "b"}
    assert second.roles == {"text": "a"}


def test_the_template_builds_the_text(source: Any) -> None:
    """Unknown codes and rows that fill nothing are quarantined; no text column is needed."""
    template = TextTemplate(segments=("Patient", ", {sex}", ", {age:.0f}"), values={"sex": {"1": "man"}})
    data = contract(columns={"label": "grade"}, template=template)
    rows = [{"sex": 1, "age": "61.2", "grade": 0}] * 4
    spec = source(*rows, {"sex": 5, "grade": 0}, {"age": "old", "grade": 0}, {"sex": None, "grade": 1})
    found = read_examples(spec, data, CLASSES)
    assert {example.roles["text"] for example in found.examples} == {"Patient, man, 61"}
    assert [row.reason for row in found.quarantined] == ["unknown_code:sex", "unknown_code:age", "empty:text"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"columns": {"text": "nots", "label": "grade"}}, r"'nots', which data\.columns\.text.*'note'"),
        ({"columns": {"text": "note", "label": "gade"}}, r"'gade', which data\.columns\.label.*'grade'"),
        ({"columns": {"text": "note", "label": "grade", "text_pair": "zzz"}}, r"'zzz'.*set data\.columns"),
        ({"id_column": "idd"}, r"'idd', which data\.id_column.*'id'"),
        ({"unit_column": "patient"}, r"'patient', which data\.unit_column"),
        ({"columns": {"text": "note"}}, r"does not fit the task.*not mapped: label"),
        ({"columns": {"txt": "note", "label": "grade"}}, r"not mapped: text; not known: txt.*'text' instead"),
        ({"template": TextTemplate(segments=("{nots}",))}, r"template names a column 'nots'.*'note'"),
        ({"labels": ()}, "no label list"),
        ({"labels": ("1", "1.0")}, "names a label twice"),
    ],
)
def test_a_wrong_mapping_is_an_error(source: Any, change: dict[str, Any], words: str) -> None:
    """It says which key names what, and the nearest column."""
    with pytest.raises(ConfigError, match=f"(?s){words}"):
        read_examples(source(*good()), contract(**change), CLASSES)


def test_a_wrong_site_column_is_an_error(source: Any) -> None:
    """As any other."""
    with pytest.raises(DataError, match=r"(?s)'clinik', which data\.site_column.*'clinic'"):
        read_examples(source(*good()), contract(), CLASSES, site_column="clinik")


def test_a_column_may_start_late(source: Any) -> None:
    """Within the first 1,000 rows: JSON lines leave out what is empty."""
    rows = [{"note": "a", "grade": 0}] * 999
    data = contract(columns={"text": "note", "text_pair": "more", "label": "grade"})
    late = {"note": "a", "grade": 0, "more": "b"}
    assert len(read_examples(source(*rows, late), data, CLASSES).examples) == 1000
    with pytest.raises(DataError, match="'more'"):
        read_examples(source(*rows, rows[0], late), data, CLASSES)


def test_a_label_outside_the_list_is_refused_by_name(source: Any) -> None:
    """All of them at once, with how many rows hold each and where the first is; the row is not dropped."""
    spec = source(*good(8), {"note": "a", "grade": "severe"}, {"note": "a", "grade": "severe"},
                  {"note": "a", "grade": 2})  # fmt: skip
    with pytest.raises(DataError) as caught:
        read_examples(spec, contract(), CLASSES)
    assert "'severe' in 2 rows, first in row 9; '2' in 1 rows, first in row 11" in str(caught.value)
    assert "one of 0, 1" in str(caught.value)


def test_texts_never_stand_in_the_message(source: Any) -> None:
    """A label column that holds notes shows their lengths; at most five labels are named."""
    note = "The patient, Ms Example of Long Lane, was seen on Monday with a cough."
    rows = [{"note": "a", "grade": note}, *({"note": "a", "grade": f"g{i}"} for i in range(7))]
    with pytest.raises(DataError) as caught:
        read_examples(source(*rows), contract(), CLASSES)
    assert "Example" not in str(caught.value)
    assert "a text of 70 characters" in str(caught.value)
    assert "and 3 more" in str(caught.value)


def test_a_site_that_lacks_a_class_reads_normally(source: Any) -> None:
    """The index is that of the plan's list, never of the site's own rows."""
    spec = source({"note": "a", "grade": "b"}, {"note": "a", "grade": "c"})
    found = read_examples(spec, contract(labels=("a", "b", "c")), CLASSES)
    assert [example.label for example in found.examples] == [1, 2]


def test_mostly_broken_rows_are_an_error(source: Any) -> None:
    """Half is still quarantine; blank lines are no rows and count on neither side."""
    assert len(read_examples(source(*good(2), "x", "x"), contract(), CLASSES).quarantined) == 2
    assert len(read_examples(source(good()[0], *[""] * 5, good()[1]), contract(), CLASSES).examples) == 2
    with pytest.raises(DataError, match=r"(?s)most rows.*3 of 5: 2 × not_json, 1 × empty:text.*data check"):
        read_examples(source(*good(2), "x", "x", {"note": "", "grade": 0}), contract(), CLASSES)


def test_an_empty_source_gives_no_examples(source: Any) -> None:
    """Whether that matters is for the caller to say: a site without rows is left out."""
    assert read_examples(source(), contract(), CLASSES) == ExampleSet((), (), 0)


def test_a_prediction_needs_no_label_and_no_answer(source: Any) -> None:
    """Columns of what is to be predicted may be absent, foreign or empty; those that are read may not."""
    spec = source({"note": "a", "grade": "never seen"}, {"note": "b"})
    roles = {**CLASSES, "label": False}
    found = read_examples(spec, contract(), roles, predict=True)
    assert [(example.roles, example.label) for example in found.examples] == [
        ({"text": "a"}, None), ({"text": "b"}, None),
    ]  # fmt: skip
    data = DataContract(columns={"prompt": "note", "completion": "answer"})
    found = read_examples(spec, data, {"prompt": True, "completion": False}, predict=True)
    assert [example.roles for example in found.examples] == [{"prompt": "a"}, {"prompt": "b"}]
    with pytest.raises(DataError, match="'answer'"):
        read_examples(spec, data, ANSWERS)
    with pytest.raises(DataError, match="'nots'"):
        read_examples(spec, contract(columns={"text": "nots"}), {"text": True, "label": False}, predict=True)


def test_rows_that_are_only_scored_need_no_unit(source: Any) -> None:
    """To train on, a row without a unit is quarantined; to score, it is a unit of its own."""
    spec = source({"note": "a", "grade": 0, "id": "x", "patient": "p"}, {"note": "b", "grade": 1, "id": "y"})
    data = contract(id_column="id", unit_column="patient")
    assert read_examples(spec, data, CLASSES).quarantined == (BrokenRow(2, "empty:unit"),)
    assert [row.unit for row in read_examples(spec, data, CLASSES, units=False).examples] == ["p", "y"]
    bare = source({"note": "a", "grade": 0, "id": "x"})
    with pytest.raises(DataError, match="'patient'"):
        read_examples(bare, data, CLASSES)
    assert read_examples(bare, data, CLASSES, units=False).examples[0].unit == "x"
    asked = read_examples(source({"note": "a"}), data, CLASSES | {"label": False}, predict=True)
    assert (asked.examples[0].id, asked.examples[0].unit) == ("1", "1")


def test_labels_are_collected_once_over_all_sources(tmp_path: Path) -> None:
    """Sorted; numbers by value; what is empty is none."""
    paths = []
    for name, labels in (("a", [10, 2, None]), ("b", ["1", 2.0, ""])):
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(json.dumps({"grade": g}) + "\n" for g in labels), encoding="utf-8")
        paths.append(SourceSpec(path=str(path)))
    assert collect_labels(paths, contract()) == ("1", "2", "10")


def test_labels_that_are_none_are_an_error(source: Any) -> None:
    """No such column, no label in it, or texts in it."""
    with pytest.raises(DataError, match=r"(?s)'gradee'.*did you mean 'grade'"):
        collect_labels([source(*good())], contract(columns={"label": "gradee"}))
    with pytest.raises(DataError, match=r"set data\.columns\.label"):
        collect_labels([source(*good())], contract(columns={"text": "note"}))
    with pytest.raises(DataError, match=r"(?s)does not look like a label.*1001 different"):
        collect_labels([source(*good(1001))], contract(columns={"label": "note"}))


@pytest.mark.parametrize(("lines", "found"), [([], "no row"), (["no json", "[1]"], "1 × not_json")])
def test_a_source_without_a_readable_row_is_named(source: Any, lines: list[str], found: str) -> None:
    """The label's column is not to blame."""
    with pytest.raises(DataError, match=rf"(?s)no row can be read from .*rows\.jsonl.*{found}"):
        collect_labels([source(*lines)], contract())


def test_validation_parts_differ_by_site_and_seed() -> None:
    """Two sites with the same units do not hold back the same ones, and neither do two seeds."""
    examples = [Example(i, {}, unit=f"p{i}") for i in range(100)]
    for apart in (False, True):
        held = {
            tuple(split_validation(examples, 0.2, seed, site, apart=apart)[1])
            for seed in (0, 1)
            for site in "ab"
        }
        assert len(held) == 4
        assert all(len(part) == 20 or (apart and 10 < len(part) < 30) for part in held)


def test_the_data_side_needs_no_torch() -> None:
    """A wrong mapping is an error before torch is even imported."""
    code = (
        "import sys\n"
        "import wardround.training.examples, wardround.training.data_check\n"
        "import wardround.simulations.partitions\n"
        "print([name for name in ('torch', 'transformers', 'pyarrow', 'datasets') if name in sys.modules])\n"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown == "[]\n"


def test_bytes_reach_the_task_as_they_are() -> None:
    """An image of a table's column is no text: it is not written out as one."""
    data = DataContract(columns={"image": "scan"})
    assert role_value("image", Row(1, {"scan": b"\x89PNG"}), data) == b"\x89PNG"
    assert role_value("image", Row(1, {"scan": b""}), data) is None
