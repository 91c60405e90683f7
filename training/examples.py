"""Rows become examples: the column mapping, the template, the label list; broken rows are quarantined.

No torch here: a wrong mapping is an error before any model is loaded.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from wardround.core.errors import DataError, nearest
from wardround.core.plan import DataContract
from wardround.core.seeds import Purpose, seed_for
from wardround.training.source_spec import SourceSpec, open_source, plain
from wardround.training.sources.contract import BrokenRow, Row
from wardround.training.template import UnknownCodeError, check_template, render

PROBED_ROWS = 1000
MOST_BROKEN = 0.5
SHOWN = 5


@dataclass(frozen=True)
class Example:
    """A row after the column mapping, with the roles that the task asked for.

    Attributes:
        number: Row number in its source.
        roles: Role → value: strings, or whatever the format needs (a list of messages).
        label: Index into the contract's label list, or None where the task has no labels.
        id: Row id as text, or the row number where the contract names no id column.
        unit: Unit to protect; the row's id where the contract names no unit column.
        site: Value of the partition's key column, where one is used.
    """

    number: int
    roles: dict[str, Any]
    label: int | None = None
    id: str = ""
    unit: str = ""
    site: str = ""


@dataclass(frozen=True)
class ExampleSet:
    """What one source gave.

    Attributes:
        examples: Usable rows, in order.
        quarantined: Rows left out, each with its reason.
        rows_read: Rows that the source and its filter let through.
    """

    examples: tuple[Example, ...]
    quarantined: tuple[BrokenRow, ...] = field(default=())
    rows_read: int = 0

    def quarantine_counts(self) -> dict[str, int]:
        """Reason → rows."""
        return dict(Counter(row.reason for row in self.quarantined))


def read_examples(
    spec: SourceSpec,
    data: DataContract,
    roles: Mapping[str, bool],
    *,
    site_column: str | None = None,
    fault: Callable[[Example], str | None] = lambda example: None,
) -> ExampleSet:
    """Read a source through the data contract.

    Args:
        spec: Source.
        data: Column mapping, template, label list, id and unit columns.
        roles: Role → whether the task needs it (True) or only takes it (False).
        site_column: Column that says where a row lies, or None.
        fault: The task's own check of a row: a code for what it cannot read, or None.

    Raises:
        DataError: A column that is not there (the nearest one is named), a label outside the list (named,
            with how many rows hold it), or more than half of the rows unusable.
    """
    rows = list(open_source(spec))
    check_mapping(rows, spec, data, roles, site_column)
    examples: list[Example] = []
    quarantined: list[BrokenRow] = []
    foreign: Counter[str] = Counter()
    first_line: dict[str, int] = {}
    labels = {label: index for index, label in enumerate(data.labels)}
    for row in rows:
        if isinstance(row, BrokenRow):
            quarantined.append(row)
            continue
        label = plain(row.values.get(data.columns["label"])) if _labelled(roles, data) else None
        if label is not None and label not in labels and label != "":
            foreign[label] += 1
            first_line.setdefault(label, row.number)
            continue
        made = _example(row, data, roles, site_column, None if label is None else labels.get(label))
        if isinstance(made, Example) and (code := fault(made)) is not None:
            made = BrokenRow(row.number, code)
        if isinstance(made, BrokenRow):
            quarantined.append(made)
        else:
            examples.append(made)
    if foreign:
        raise _foreign_labels(spec, data, foreign, first_line)
    if rows and len(quarantined) > MOST_BROKEN * len(rows):
        reasons = Counter(row.reason for row in quarantined).most_common(SHOWN)
        raise DataError(
            f"most rows of {spec.path} cannot be used",
            found=f"{len(quarantined)} of {len(rows)}: " + ", ".join(f"{n} × {reason}" for reason, n in reasons),
            remedy="run `wardround data check` on it, and look at the column mapping",
        )
    return ExampleSet(tuple(examples), tuple(quarantined), len(rows))


def check_mapping(
    rows: Sequence[Row | BrokenRow],
    spec: SourceSpec,
    data: DataContract,
    roles: Mapping[str, bool],
    site_column: str | None,
) -> None:
    """Hold the mapping against the columns that are really there.

    Raises:
        DataError: A role without a column, a role that the task does not know, or a missing column.
    """
    unknown = sorted(set(data.columns) - set(roles))
    made_by_template = {"text"} if data.template is not None else set()
    missing = sorted(
        role for role, needed in roles.items() if needed and role not in data.columns and role not in made_by_template
    )
    if (unknown and not set(unknown) <= {"label"}) or missing:
        raise DataError(
            "the column mapping does not fit the task",
            found=f"not mapped: {', '.join(missing) or 'none'}; not known: {', '.join(unknown) or 'none'}",
            expected="roles " + ", ".join(f"{role}{'' if needed else ' (optional)'}" for role, needed in roles.items()),
            remedy="set data.columns.ROLE to the column's name",
        )
    present = {name for row in rows[:PROBED_ROWS] if isinstance(row, Row) for name in row.values}
    if not present:
        return  # nothing readable: the caller counts what is broken
    named = {f"data.columns.{role}": column for role, column in data.columns.items() if role in roles}
    named |= {
        key: column
        for key, column in (
            ("data.id_column", data.id_column),
            ("data.unit_column", data.unit_column),
            ("data.site_column", site_column),
        )
        if column is not None
    }
    for key, column in named.items():
        if column not in present:
            guess = nearest(column, present)
            raise DataError(
                f"{spec.path} has no column {column!r}, which {key} names",
                found="columns " + ", ".join(sorted(present)),
                remedy=f"did you mean {guess!r}?" if guess else f"set {key} to one of them",
            )
    if data.template is not None:
        check_template(data.template, present)


def collect_labels(specs: Iterable[SourceSpec], data: DataContract) -> tuple[str, ...]:
    """Sorted labels of all rows of all sources; a plan is made with them, no site ever does this.

    Raises:
        DataError: No label anywhere.
    """
    column = data.columns.get("label")
    if column is None:
        raise DataError("labels: auto needs the label's column", remedy="set data.columns.label")
    found = {
        plain(row.values.get(column)) for spec in specs for row in open_source(spec) if isinstance(row, Row)
    } - {""}
    if not found:
        raise DataError(f"no row has a label in column {column!r}", remedy="correct data.columns.label")
    return tuple(sorted(found))


def split_validation(
    examples: Sequence[Example], fraction: float, seed: int, site: str
) -> tuple[list[int], list[int]]:
    """Indices to train on and to hold back: whole units, whatever the order of the rows.

    Units are ordered by a keyed hash, and the first `fraction` of them (rounded) is held back; at least
    one unit stays to train on.
    """
    key = seed_for(seed, Purpose.VALIDATION, site=site).to_bytes(8, "little")
    units = sorted(
        {example.unit for example in examples},
        key=lambda unit: hashlib.blake2b(unit.encode(), key=key, digest_size=16).digest(),
    )
    held = set(units[: min(int(fraction * len(units) + 0.5), len(units) - 1)]) if units else set()
    training = [index for index, example in enumerate(examples) if example.unit not in held]
    return training, [index for index, example in enumerate(examples) if example.unit in held]


def _labelled(roles: Mapping[str, bool], data: DataContract) -> bool:
    return "label" in roles and "label" in data.columns


def _example(
    row: Row, data: DataContract, roles: Mapping[str, bool], site_column: str | None, label: int | None
) -> Example | BrokenRow:
    values: dict[str, Any] = {}
    for role, needed in roles.items():
        if role == "label":
            if needed and label is None:
                return BrokenRow(row.number, "empty:label")
            continue
        if role == "text" and data.template is not None:
            try:
                values[role] = render(data.template, row.values)
            except UnknownCodeError as error:
                return BrokenRow(row.number, f"unknown_code:{error}")
        else:
            column = data.columns.get(role)
            value = row.values.get(column) if column is not None else None
            values[role] = value if isinstance(value, list | dict) else _text(value)
        if needed and not values[role]:
            return BrokenRow(row.number, f"empty:{role}")
    row_id = plain(row.values.get(data.id_column)) if data.id_column else ""
    row_id = row_id or str(row.number)
    unit = plain(row.values.get(data.unit_column)) if data.unit_column else row_id
    if not unit:
        return BrokenRow(row.number, "empty:unit")
    site = plain(row.values.get(site_column)) if site_column else ""
    if site_column and not site:
        return BrokenRow(row.number, "empty:site")
    return Example(row.number, {k: v for k, v in values.items() if v}, label, row_id, unit, site)


def _text(value: Any) -> str:
    return "" if value is None else (value if isinstance(value, str) else plain(value)).strip()


def _foreign_labels(
    spec: SourceSpec, data: DataContract, foreign: Counter[str], first_line: Mapping[str, int]
) -> DataError:
    named = [
        f"{label!r} in {count} rows, first in row {first_line[label]}" for label, count in foreign.most_common(SHOWN)
    ]
    more = len(foreign) - len(named)
    return DataError(
        f"{spec.path} holds labels that are not in the plan's list",
        found="; ".join(named) + (f"; and {more} more" if more > 0 else ""),
        expected="one of " + ", ".join(data.labels),
        remedy="correct these rows, or make a plan whose data.labels names them",
    )
