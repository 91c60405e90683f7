"""A published split: a JSON file {"site": [row ids]}, plain or gzipped."""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict

from wardround.core.errors import DataError
from wardround.runtime.locations import locate
from wardround.training.examples import Example
from wardround.training.source_spec import plain


class _Options(BaseModel):
    """Options; `path` may be a `data://` location. Rows that the file does not list are an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: str


class Listed:
    """Rows go where the file says."""

    Options = _Options

    def split(self, examples: Sequence[Example], options: _Options, *, seed: int) -> dict[str, list[int]]:
        """Site → its rows; the seed plays no part. Ids that the file lists and no row has (a limited or
        quarantined row) are passed over.

        Raises:
            DataError: The file cannot be read, lists a row twice, or leaves a row out.
        """
        del seed
        site_of: dict[str, str] = {}
        for site, ids in _read(options.path).items():
            for row_id in map(plain, ids):
                if site_of.setdefault(row_id, site) != site:
                    raise DataError(f"{options.path} lists a row at two sites", found=f"{site_of[row_id]} and {site}")
        sites: dict[str, list[int]] = {}
        left_out = 0
        for index, example in enumerate(examples):
            where = site_of.get(example.id)
            if where is None:
                left_out += 1
            else:
                sites.setdefault(where, []).append(index)
        if left_out:
            raise DataError(
                f"{options.path} does not list every row",
                found=f"{left_out} of {len(examples)} rows are not in it",
                remedy="set data.id_column to the column whose values the file lists",
            )
        return dict(sorted(sites.items()))


def _read(location: str) -> dict[str, list[Any]]:
    path = locate(location)
    try:
        raw = path.read_bytes()
        content = json.loads(gzip.decompress(raw) if path.suffix == ".gz" else raw)
    except (OSError, EOFError, ValueError) as error:
        raise DataError(
            f"the split {path} cannot be read", found=type(error).__name__, expected='JSON {"site": [row ids]}'
        ) from error
    if not isinstance(content, dict) or not all(isinstance(ids, list) for ids in content.values()):
        raise DataError(f"the split {path} is no split", expected='JSON {"site": [row ids]}')
    return content


PARTITION = Listed()
