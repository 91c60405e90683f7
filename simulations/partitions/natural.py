"""The sites that the data itself names: a hospital's column."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict, Field

from wardround.core.errors import DataError
from wardround.training.examples import Example


class _Options(BaseModel):
    """Options. Sites with fewer rows than `least_rows` are an error, never dropped in silence."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    least_rows: int = Field(default=1, ge=1)


class Natural:
    """Rows go to the site that `data.site_column` names."""

    Options = _Options

    def split(self, examples: Sequence[Example], options: _Options, *, seed: int) -> dict[str, list[int]]:
        """Site → its rows; the seed plays no part."""
        del seed
        sites: dict[str, list[int]] = {}
        for index, example in enumerate(examples):
            if not example.site:
                raise DataError(
                    "the natural partition needs every row's site",
                    remedy="set data.site_column, or choose another partition",
                )
            sites.setdefault(example.site, []).append(index)
        small = sorted(name for name, rows in sites.items() if len(rows) < options.least_rows)
        if small:
            raise DataError(
                "some sites have too few rows", found=", ".join(small[:5]), expected=f"at least {options.least_rows}"
            )
        return dict(sorted(sites.items()))


PARTITION = Natural()
