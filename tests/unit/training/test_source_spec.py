"""A source is found by its ending, filtered by equality, and refused with a remedy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from wardround.core.errors import ConfigError, DataError
from wardround.training.source_spec import SourceSpec, code, named_source, open_source, plain, source_of
from wardround.training.sources.contract import BrokenRow, Row


def written(path: Path, rows: list[Any]) -> str:
    """Write JSON lines and give the path."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, ""), (float("nan"), ""), ("", ""), ("  ", ""), (0, "0"), (1, "1"), (1.0, "1"), (True, "1"),
        ("1", "1"), (" a b ", "a b"), (1.5, "1.5"), (-2.0, "-2"), ("007", "007"),
    ],
)  # fmt: skip
def test_equal_values_are_equal_texts(value: Any, text: str) -> None:
    """Whatever a format makes of a value, its text is the same; what is missing is empty."""
    assert plain(value) == text
    assert code(value) == text


def test_a_code_written_by_a_table_with_holes_is_the_code() -> None:
    """Pandas writes 1.0 where a column of whole numbers has holes; an id stays as it stands."""
    assert (code("1.0"), code("-3.00"), code("1.05"), code("v1.0")) == ("1", "-3", "1.05", "v1.0")
    assert plain("1.0") == "1.0"


def test_the_filter_compares_as_text_and_lets_broken_rows_pass(tmp_path: Path) -> None:
    """Numbers from YAML and from rows meet; several values are alternatives; columns add up."""
    path = tmp_path / "rows.jsonl"
    written(path, [{"fold": 1, "site": "a"}, {"fold": "1.0", "site": "b"}, {"fold": 2, "site": "a"}])
    with path.open("a", encoding="utf-8") as file:
        file.write("no json\n")

    def numbers(**where: Any) -> list[int]:
        return [row.number for row in open_source(SourceSpec(path=str(path), where=where))]

    assert numbers(fold=1) == numbers(fold="1") == numbers(fold=[1.0]) == [1, 2, 4]
    assert numbers(fold=[1, 2], site="a") == [1, 3, 4]
    assert numbers(fold=3) == [4]
    kinds = [type(row) for row in open_source(SourceSpec(path=str(path)))]
    assert kinds == [Row, Row, Row, BrokenRow]


def test_a_filter_on_a_column_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    """It would read no row at all, without a word."""
    path = written(tmp_path / "rows.jsonl", [{"split": "train"}])
    with pytest.raises(DataError, match=r"(?s)'spilt'.*where.*did you mean 'split'"):
        list(open_source(SourceSpec(path=path, where={"spilt": "train"})))


def test_a_missing_file_names_the_nearest(tmp_path: Path) -> None:
    """Before any ending is looked at."""
    written(tmp_path / "rows.jsonl", [])
    with pytest.raises(DataError, match=r"(?s)rows\.jsonk does not exist.*did you mean 'rows\.jsonl'"):
        open_source(SourceSpec(path=str(tmp_path / "rows.jsonk")))
    with pytest.raises(DataError, match="correct the source's path"):
        open_source(SourceSpec(path=str(tmp_path / "nowhere" / "rows.jsonl")))


def test_the_ending_chooses_and_kind_overrules(tmp_path: Path) -> None:
    """The longest ending, in any case of letters; an unknown one asks for `kind`; a folder is `datasets`'."""
    path = tmp_path / "ROWS.JSONL"
    written(path, [{"a": 1}])
    assert type(source_of(path)).__module__ == "wardround.training.sources.jsonl"
    assert type(source_of(tmp_path)).__module__ == "wardround.training.sources.datasets"
    odd = tmp_path / "rows.txt"
    written(odd, [{"a": 1}])
    with pytest.raises(DataError, match=r"(?s)no data source reads 'rows\.txt'.*kind"):
        open_source(SourceSpec(path=str(odd)))
    assert [row.number for row in open_source(SourceSpec(path=str(odd), kind="jsonl"))] == [1]
    with pytest.raises(ConfigError, match=r"(?s)unknown data source 'jsonll'.*'jsonl'"):
        open_source(SourceSpec(path=str(odd), kind="jsonll"))


def test_a_spec_is_frozen_and_knows_its_keys() -> None:
    """A misspelt key is no silent default."""
    with pytest.raises(ValidationError):
        SourceSpec.model_validate({"path": "x", "were": {}})
    with pytest.raises(ValidationError):
        SourceSpec.model_validate({"path": ""})
    with pytest.raises(ValidationError):
        SourceSpec.model_validate({"path": "x", "where": ["split"]})
    spec = SourceSpec(path="x")
    with pytest.raises(ValidationError):
        spec.path = "y"  # type: ignore[misc] # what is tested


def test_an_empty_path_on_the_command_line_is_an_error_of_ours() -> None:
    """Not one of the validation library, which would show a traceback."""
    with pytest.raises(DataError, match="no source is named"):
        named_source(" ")
    assert named_source("a.csv", "csv") == SourceSpec(path="a.csv", kind="csv")
