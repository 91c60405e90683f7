"""Folders that `datasets` saved with `save_to_disk`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

from pydantic import BaseModel, ConfigDict

from wardround.core.errors import DataError, unknown_name
from wardround.core.plan import parse_options
from wardround.training.sources._arrow import BATCH_ROWS, arrow_rows
from wardround.training.sources.contract import BrokenRow, Row


class Options(BaseModel):
    """`split`: which one of a saved DatasetDict; may be left out where it has one only."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    split: str | None = None


class SavedDataset:
    """Streams batches of the memory-mapped folder; images and audio stay bytes, labels stay numbers."""

    suffixes = ()

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
        import datasets
        import pyarrow as pa

        try:
            saved = datasets.load_from_disk(str(path))
        except (OSError, ValueError, KeyError, pa.ArrowException) as error:
            raise DataError(
                f"{path} is not a folder that `save_to_disk` wrote",
                found=type(error).__name__,
                expected="state.json beside Arrow files, or dataset_dict.json beside a folder a split",
                remedy="save it again with Dataset.save_to_disk; name a single file directly",
            ) from error
        dataset = _split(path, saved, settings.split) if isinstance(saved, datasets.DatasetDict) else saved
        try:
            yield from arrow_rows(dataset.with_format("arrow").iter(batch_size=BATCH_ROWS))
        except (pa.ArrowException, OSError) as error:
            raise DataError(
                f"{path} is damaged", found=type(error).__name__, remedy="save it again"
            ) from error


def _split(path: Path, saved: Any, name: str | None) -> Any:
    if name is None and len(saved) == 1:
        return next(iter(saved.values()))
    if name is None:
        raise DataError(
            f"{path} holds several splits",
            found=", ".join(saved),
            remedy="choose one with the source's option `split`",
        )
    if name not in saved:
        raise unknown_name("split", name, saved, DataError)
    return saved[name]


SOURCE = SavedDataset()
