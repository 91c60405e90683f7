"""What partitions share: rows grouped by unit, sites named and filled."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from wardround.core.errors import DataError
from wardround.training.examples import Example


class DrawnOptions(BaseModel):
    """Options of every partition that draws.

    Attributes:
        sites: Number of sites.
        by: `unit` keeps all rows of a unit (a patient) at one site; `row` scatters them.
        least_rows: No site gets fewer.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    sites: int = Field(default=10, gt=0)
    by: Literal["unit", "row"] = "unit"
    least_rows: int = Field(default=1, ge=1)


def groups(examples: Sequence[Example], by: Literal["unit", "row"]) -> list[list[int]]:
    """Indices that stay together, in order of the unit's name (of the row where `by` is row)."""
    if by == "row":
        return [[index] for index in range(len(examples))]
    table: dict[str, list[int]] = {}
    for index, example in enumerate(examples):
        table.setdefault(example.unit, []).append(index)
    return [table[unit] for unit in sorted(table)]


def majority_label(examples: Sequence[Example], group: Iterable[int]) -> int:
    """Most frequent label of a group, the smallest where several tie; −1 without labels."""
    counts = Counter(-1 if examples[i].label is None else int(examples[i].label or 0) for i in group)
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
            remedy="ask for fewer sites, a smaller least_rows, or by: row",
        )
