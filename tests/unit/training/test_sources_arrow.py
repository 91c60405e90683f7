"""Parquet files and saved `datasets` folders: broken cells, splits, damage."""

from __future__ import annotations

from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from wardround.core.errors import DataError
from wardround.training.source_spec import SourceSpec, open_source
from wardround.training.sources.contract import BrokenRow, Row

datasets.disable_progress_bars()


def test_bytes_that_are_no_text_break_one_row(tmp_path: Path) -> None:
    """Arrow's text is unchecked: the row with the bad bytes is broken, its neighbours are not."""
    raw = pa.array([b"good", b"\xff\xfe", b"also good"], pa.binary())
    text = pa.Array.from_buffers(pa.string(), 3, raw.buffers())
    pq.write_table(pa.table({"text": text}), tmp_path / "rows.parquet")
    assert list(open_source(SourceSpec(path=str(tmp_path / "rows.parquet")))) == [
        Row(1, {"text": "good"}),
        BrokenRow(2, "not_utf8"),
        Row(3, {"text": "also good"}),
    ]


def test_a_damaged_parquet_file_is_an_error(tmp_path: Path) -> None:
    """Cut or not Parquet at all."""
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"a": list(range(10_000))}), path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match="not a whole Parquet file"):
        list(open_source(SourceSpec(path=str(path))))


def test_nan_and_bytes_keep_their_meaning(tmp_path: Path) -> None:
    """NaN is missing; images stay bytes."""
    pq.write_table(pa.table({"a": [1.5, float("nan")], "image": [b"\x89PNG", None]}), tmp_path / "r.parquet")
    rows = list(open_source(SourceSpec(path=str(tmp_path / "r.parquet"))))
    assert rows == [Row(1, {"a": 1.5, "image": b"\x89PNG"}), Row(2, {"a": None, "image": None})]


@pytest.fixture
def splits(tmp_path: Path) -> Path:
    """A saved DatasetDict."""
    train = datasets.Dataset.from_dict({"text": ["a", "b", "c"], "label": [0, 1, 0]})
    datasets.DatasetDict(train=train.select([2, 0]), test=train.select([1])).save_to_disk(tmp_path / "both")
    return tmp_path / "both"


def texts(path: Path, **options: str) -> list[str]:
    """The column `text`."""
    rows = open_source(SourceSpec(path=str(path), options=options))
    return [row.values["text"] for row in rows if isinstance(row, Row)]


def test_a_split_is_chosen_by_option_or_by_folder(splits: Path) -> None:
    """In the order that was saved."""
    assert texts(splits, split="train") == ["c", "a"]
    assert texts(splits / "test") == ["b"]


def test_several_splits_and_no_choice_is_an_error(splits: Path) -> None:
    """That names them; a wrong name gets the nearest; a single data set has no splits."""
    with pytest.raises(DataError, match="train, test"):
        texts(splits)
    with pytest.raises(DataError, match="did you mean 'train'"):
        texts(splits, split="trian")
    with pytest.raises(DataError, match="no splits"):
        texts(splits / "test", split="train")


def test_one_split_needs_no_choice(tmp_path: Path) -> None:
    """It is the one."""
    datasets.DatasetDict(only=datasets.Dataset.from_dict({"text": ["a"]})).save_to_disk(tmp_path / "one")
    assert texts(tmp_path / "one") == ["a"]


def test_a_format_that_was_saved_along_does_not_matter(tmp_path: Path) -> None:
    """Rows hold Python values of every column, whatever the owner looked at last."""
    saved = datasets.Dataset.from_dict({"text": ["a"], "n": [3]}).with_format("numpy", columns=["n"])
    saved.save_to_disk(tmp_path / "formatted")
    assert list(open_source(SourceSpec(path=str(tmp_path / "formatted")))) == [Row(1, {"text": "a", "n": 3})]


def test_damaged_and_foreign_folders_are_errors(splits: Path, tmp_path: Path) -> None:
    """Lost Arrow files, a folder of something else."""
    for file in (splits / "train").glob("*.arrow"):
        file.write_bytes(file.read_bytes()[:50])
    with pytest.raises(DataError):
        texts(splits, split="train")
    for file in (splits / "train").glob("*.arrow"):
        file.unlink()
    with pytest.raises(DataError):
        texts(splits, split="train")
    with pytest.raises(DataError, match="save_to_disk"):
        list(open_source(SourceSpec(path=str(tmp_path))))
