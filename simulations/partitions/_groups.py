"""What partitions share: rows grouped by unit, sites named and filled."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Literal

from pydantic import Field

from wardround.core.checked import Frozen
from wardround.core.errors import DataError
from wardround.training.examples import Example

DRAWS = 1000
"""Draws after which a partition gives up on `least_rows`."""


class DrawnOptions(Frozen):
    """Options of every partition that draws; each adds its own.

    Attributes:
        sites: Number of sites.
        by: `unit` keeps all rows of a unit (a patient) at one site; `row` scatters them.
        least_rows: No site gets fewer.
    """

    sites: int = Field(default=10, gt=0)
    by: Literal["unit", "row"] = "unit"
    least_rows: int = Field(default=1, ge=1)


def groups(examples: Sequence[Example], by: Literal["unit", "row"]) -> list[list[int]]:
    """Indices that stay together, in order of the unit's name (of the row where `by` is row).

    An example without a unit is a unit of its own.
    """
    if by == "row":
        return [[index] for index in range(len(examples))]
    table: dict[tuple[str, int], list[int]] = {}
    for index, example in enumerate(examples):
        table.setdefault((example.unit, -1 if example.unit else index), []).append(index)
    return [table[unit] for unit in sorted(table)]


def majority_label(examples: Sequence[Example], group: Iterable[int]) -> int:
    """Most frequent label of a group, the smallest where several tie.

    Raises:
        DataError: An example has no label.
    """
    counts: Counter[int] = Counter()
    for index in group:
        label = examples[index].label
        if label is None:
            raise DataError(
                "a partition by label skew needs every row's label",
                remedy="map data.columns.label, or choose partition.kind: quantity or iid",
            )
        counts[label] += 1
    most = max(counts.values())
    return min(label for label, count in counts.items() if count == most)


def named(sites: Sequence[Sequence[int]]) -> dict[str, list[int]]:
    """`site_00`, `site_01`, …: indices ascending."""
    width = max(2, len(str(len(sites) - 1)))
    return {f"site_{number:0{width}d}": sorted(indices) for number, indices in enumerate(sites)}


def require_enough(examples: Sequence[Example], units: int, options: DrawnOptions) -> None:
    """Refuse what can never come out.

    Raises:
        DataError: Fewer units than sites, or fewer rows than the sites need.
    """
    if units < options.sites or len(examples) < options.sites * options.least_rows:
        raise DataError(
            f"the rows do not suffice for {options.sites} sites",
            found=f"{len(examples)} rows of {units} units",
            expected=f"at least {options.sites} units and {options.sites * options.least_rows} rows",
            remedy="ask for fewer sites or a smaller least_rows"
            + (", or for by: row" if options.by == "unit" and len(examples) >= options.sites else ""),
        )


def no_draw(what: str, options: DrawnOptions) -> DataError:
    """The error after the last draw."""
    return DataError(
        f"no draw of {what} gave every site {options.least_rows} rows",
        found=f"{DRAWS} draws",
        remedy="raise alpha, or lower sites or least_rows",
    )
