"""The sites that the data itself names: a hospital's column."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

from pydantic import Field

from wardround.core.checked import Frozen
from wardround.core.errors import DataError
from wardround.training.examples import Example

SHOWN = 5


@final
class Natural:
    """Rows go to the site that `data.site_column` names; the seed plays no part."""

    class Options(Frozen):
        """A site with fewer rows than `least_rows` is an error, never dropped in silence."""

        least_rows: int = Field(default=1, ge=1)

    def split(self, examples: Sequence[Example], options: Options, *, seed: int) -> dict[str, list[int]]:
        """Site → its rows.

        Raises:
            DataError: A row without a site, or a site with fewer than `least_rows`.
        """
        del seed
        sites: dict[str, list[int]] = {}
        for index, example in enumerate(examples):
            if not example.site:
                raise DataError(
                    "the natural partition needs every row's site",
                    remedy="set data.site_column, or choose another partition.kind",
                )
            sites.setdefault(example.site, []).append(index)
        small = [name for name, rows in sorted(sites.items()) if len(rows) < options.least_rows]
        if small:
            raise DataError(
                f"{len(small)} of {len(sites)} sites have too few rows",
                found=", ".join(f"{name} {len(sites[name])}" for name in small[:SHOWN])
                + (", …" if len(small) > SHOWN else ""),
                expected=f"at least {options.least_rows} each",
                remedy="lower least_rows, or read only the other sites with the source's filter `where`",
            )
        return dict(sorted(sites.items()))


PARTITION = Natural()
