"""Folders that `datasets` saved with `save_to_disk`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, cast

from pydantic import BaseModel, ConfigDict

from wardround.core.checked import parse_options
from wardround.core.errors import DataError, unknown_name
from wardround.training.sources._arrow import BATCH_ROWS, arrow_rows
from wardround.training.sources.contract import BrokenRow, Row


class Options(BaseModel):
    """`split`: which one of a saved DatasetDict; may be left out where it has one only."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    split: str | None = None


class SavedDataset:
    """Streams batches of the memory-mapped folder; images and audio stay bytes, labels stay numbers."""

    suffixes = ("/",)

    def read(self, path: Path, options: dict[str, Any]) -> Iterator[Row | BrokenRow]:
        """Yield rows in order, numbered from 1; one batch is in memory. Broken rows: `not_utf8`.

        Raises:
            DataError: Missing, not a saved folder, damaged, or several splits and none named.
        """
        settings = cast("Options", parse_options(Options, options, "options of the datasets source"))
        if not path.is_dir():
            raise DataError(
                f"there is no folder {path}" if not path.exists() else f"{path} is a file",
                expected="a folder that `save_to_disk` wrote",
                remedy="correct the source's path" if not path.exists() else "name the source's kind",
            )
        import pyarrow as pa

        try:
            folder = _split_folder(path, settings.split)
            batches = _batches(folder)
        except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
            raise DataError(
                f"{path} is not a folder that `save_to_disk` wrote",
                found=type(error).__name__,
                expected="state.json beside Arrow files, or dataset_dict.json beside a folder a split",
                remedy="save it again with Dataset.save_to_disk; name a single file directly",
            ) from error
        try:
            yield from arrow_rows(batches)
        except (pa.ArrowException, OSError) as error:
            raise DataError(
                f"{path} is damaged", found=type(error).__name__, remedy="save it again"
            ) from error


def _split_folder(path: Path, name: str | None) -> Path:
    """The folder of one split: a DatasetDict is saved as one folder each."""
    index = path / "dataset_dict.json"
    if not index.is_file():
        if name is not None:
            raise DataError(f"{path} has no splits", remedy="drop the source's option `split`")
        return path
    splits: list[str] = json.loads(index.read_bytes())["splits"]
    if name is None and len(splits) == 1:
        return path / splits[0]
    if name is None:
        raise DataError(
            f"{path} holds several splits",
            found=", ".join(splits),
            remedy="choose one with the source's option `split`, or name its folder",
        )
    if name not in splits:
        raise unknown_name("split", name, splits, DataError)
    return path / name


def _batches(folder: Path) -> Iterable[Any]:
    import datasets

    try:
        saved = datasets.load_from_disk(str(folder))
    except IndexError:
        # datasets 5.2 cannot load what it saved without a row.
        if json.loads((folder / "state.json").read_bytes())["_data_files"]:
            raise KeyError(str(folder)) from None
        return ()
    batches: Iterable[Any] = saved.with_format("arrow").iter(batch_size=BATCH_ROWS)
    return batches


SOURCE = SavedDataset()
