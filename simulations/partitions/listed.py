"""A published split: a JSON file {"site": [row ids]}, plain or gzipped."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Sequence
from typing import Any, final

from pydantic import Field

from wardround.core.checked import Frozen
from wardround.core.errors import DataError
from wardround.runtime.locations import locate
from wardround.training.examples import Example
from wardround.training.source_spec import plain

_GZIP_MAGIC = b"\x1f\x8b"


@final
class Listed:
    """Rows go where the file says; the seed plays no part, and units are whole only if they are so in it."""

    class Options(Frozen):
        """`path` may be a `data://` location."""

        path: str = Field(min_length=1)

    def split(self, examples: Sequence[Example], options: Options, *, seed: int) -> dict[str, list[int]]:
        """Site → its rows.

        Ids that the file lists and no row has are passed over: rows may have been limited or quarantined. A
        site of which nothing is left stays, without rows.

        Raises:
            DataError: The file cannot be read, lists a row at two sites, or leaves a row out.
        """
        del seed
        listed = _read(options.path)
        site_of: dict[str, str] = {}
        for site, ids in listed.items():
            for row_id in map(plain, ids):
                if site_of.setdefault(row_id, site) != site:
                    raise DataError(
                        f"{options.path} lists a row at two sites",
                        found=f"{site_of[row_id]} and {site}",
                        remedy="correct the file: every row lies at exactly one site",
                    )
        left_out = sum(example.id not in site_of for example in examples)
        if left_out:
            raise DataError(
                f"{options.path} does not list every row",
                found=f"{left_out} of {len(examples)} rows are not in it",
                expected=f"the ids of all rows; the file lists {len(site_of)}",
                remedy="set data.id_column to the column whose values the file lists"
                if left_out == len(examples)
                else "add the rows to the file, or leave them out with the source's filter `where`",
            )
        sites: dict[str, list[int]] = {site: [] for site in sorted(listed)}
        for index, example in enumerate(examples):
            sites[site_of[example.id]].append(index)
        return sites


def _read(location: str) -> dict[str, list[Any]]:
    path = locate(location)
    expected = 'JSON {"site": [row ids]}, plain or gzipped'
    try:
        raw = path.read_bytes()
        content = json.loads(gzip.decompress(raw) if raw.startswith(_GZIP_MAGIC) else raw)
    except FileNotFoundError as error:
        raise DataError(
            f"the split {path} does not exist", remedy="correct partition.options.path"
        ) from error
    except (OSError, EOFError, ValueError, RecursionError, zlib.error) as error:
        raise DataError(
            f"the split {path} cannot be read", found=type(error).__name__, expected=expected
        ) from error
    if not isinstance(content, dict) or not all(
        isinstance(ids, list) and all(isinstance(row_id, str | int) for row_id in ids)
        for ids in content.values()
    ):
        raise DataError(f"{path} is not a split", expected=expected)
    return content


PARTITION = Listed()
