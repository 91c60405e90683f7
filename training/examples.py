"""Rows become examples: the column mapping, the template, the label list; broken rows are quarantined.

No torch here: a wrong mapping is an error before any model is loaded.
"""

from __future__ import annotations

import hashlib
import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from wardround.core.errors import DataError, nearest
from wardround.core.plan import DataContract, TrainingPlan
from wardround.core.seeds import Purpose, seed_for
from wardround.training.column_mapping import (
    LABEL,
    PROBED_ROWS,
    TEXT,
    check_mapping,
    check_renaming,
    renamed_row,
)
from wardround.training.source_spec import SourceSpec, code, open_source, plain
from wardround.training.sources.contract import BrokenRow, Row
from wardround.training.template import UnknownCodeError, render, says_something

MOST_BROKEN = 0.5
"""Share of unusable rows above which a source is refused: the mapping is wrong then, not the rows."""

SHOWN = 5
LONGEST_LABEL = 40
"""Characters of a class name that a message shows; a longer one is a text, and texts stay where they are."""

MOST_LABELS = 1000


@dataclass(frozen=True)
class Example:
    """A row after the column mapping, with the roles that the task asked for.

    Attributes:
        number: Row number in its source.
        roles: Role → value: strings, or whatever the task needs (a list of messages, the bytes of an image).
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
    fault: Callable[[Example], str | None] | None = None,
    predict: bool = False,
    units: bool = True,
    renamed: Mapping[str, str] | None = None,
    name_labels: bool = True,
    allow_dotted: bool = False,
) -> ExampleSet:
    """Read a source through the data contract.

    Args:
        spec: Source.
        data: Column mapping, template, label list, id and unit columns.
        roles: Role → whether the task needs it (True) or only takes it (False).
        site_column: Column that says where a row lies, or None.
        fault: The task's own check of a row: a code for what it cannot read, or None.
        predict: Nothing is learnt or scored: labels are not read, and the columns of optional roles, of ids
            and of units may be absent.
        units: Quarantine rows that do not say whose they are. False for rows that are only scored or asked:
            there is nobody to protect from the model, and each counts as a unit of its own.
        renamed: Column as the contract calls it → the source's own name of it, where the two differ.
        name_labels: Whether an error names labels outside the list. False at a site, whose errors go to its
            log: what stands in a label's column there may be anything, and is a row's value.
        allow_dotted: Whether `kind` of the source may be module:attribute: a simulation's own code.

    Raises:
        DataError: A column that is not there (the nearest one is named), a label outside the list (named,
            with how many rows hold it), or more than half of the rows unusable.
    """
    rows = iter(open_source(spec, allow_dotted=allow_dotted))
    probe = list(itertools.islice(rows, PROBED_ROWS))
    if renamed:
        check_renaming(probe, spec, renamed)
        probe = [renamed_row(row, renamed) for row in probe]
        rows = (renamed_row(row, renamed) for row in rows)
    units = units and not predict
    demanded = {
        "unit_column": data.unit_column if units else None,
        "id_column": None if predict else data.id_column,
    }
    check_mapping(probe, spec, data.model_copy(update=demanded), roles, site_column, predict=predict)
    labels = label_indices(data, roles) if LABEL in roles and LABEL in data.columns and not predict else None
    examples: list[Example] = []
    quarantined: list[BrokenRow] = []
    foreign: dict[str, list[int]] = {}
    read = 0
    for row in itertools.chain(probe, rows):
        read += 1
        made = (
            row
            if isinstance(row, BrokenRow)
            else _example(
                row, data, roles, site_column=site_column, units=units, labels=labels, foreign=foreign
            )
        )
        if fault is not None and isinstance(made, Example) and (reason := fault(made)) is not None:
            made = BrokenRow(row.number, reason)
        if isinstance(made, Example):
            examples.append(made)
        else:
            quarantined.append(made)
    if foreign:
        raise _foreign_labels(spec, data, foreign, named=name_labels)
    _refuse_mostly_broken(spec, quarantined, read)
    return ExampleSet(tuple(examples), tuple(quarantined), read)


def collect_labels(
    specs: Iterable[SourceSpec], data: DataContract, *, allow_dotted: bool = False
) -> tuple[str, ...]:
    """Sorted labels of all rows of all sources; a plan is made with them, no site ever does this.

    Raises:
        DataError: No row can be read; the label's column is not mapped or not there, is empty, or holds texts
            instead of labels.
    """
    column = data.columns.get(LABEL)
    if column is None:
        raise DataError("labels: auto needs the label's column", remedy="set data.columns.label")
    found: set[str] = set()
    columns: dict[str, None] = {}
    broken: Counter[str] = Counter()
    paths: list[str] = []
    for spec in specs:
        paths.append(spec.path)
        for row in open_source(spec, allow_dotted=allow_dotted):
            if isinstance(row, Row):
                columns.update(dict.fromkeys(row.values))
                found.add(code(row.values.get(column)))
            else:
                broken[row.reason] += 1
    found -= {""}
    if not columns:
        raise DataError(
            f"no row can be read from {', '.join(paths[:SHOWN])}",
            found=", ".join(f"{count} × {reason}" for reason, count in broken.most_common(SHOWN)) or "no row",
            expected="rows with a label",
            remedy="correct the source's path or its filter `where`; `wardround data check` reads it",
        )
    if not found:
        guess = nearest(column, columns) if column not in columns else None
        raise DataError(
            f"no row has a label in column {column!r}",
            found="columns " + ", ".join(columns),
            remedy=f"did you mean {guess!r}?" if guess else "correct data.columns.label",
        )
    if len(found) > MOST_LABELS:
        raise DataError(
            f"column {column!r} does not look like a label",
            found=f"{len(found)} different values",
            expected=f"at most {MOST_LABELS}",
            remedy="correct data.columns.label, or list the labels in data.labels",
        )
    if all(label.isdecimal() for label in found):
        return tuple(sorted(found, key=lambda label: (int(label), label)))
    return tuple(sorted(found))


def split_validation(
    examples: Sequence[Example], fraction: float, seed: int, site: str, *, apart: bool, named: bool = True
) -> tuple[list[int], list[int]]:
    """Indices to train on and to hold back: whole units, whatever the order of the rows.

    Units are ordered by a keyed hash, and the first `fraction` of them (rounded) is held back; at least
    one unit stays to train on. A site with so few units that none is held back has no validation part.

    Args:
        examples: Of one site.
        fraction: Of its units.
        seed: Root of the seed tree.
        site: Its name.
        apart: Each unit's own hash decides about it alone, so that the part holds `fraction` of them only
            in the mean: who takes one patient away moves no other one into the training rows, which is what
            a privacy claim of one patient counts on.
        named: Whether a column names the units. Where rows go by their number each is known by what it says:
            a row that leaves gives all those after it another number.
    """
    key = seed_for(seed, Purpose.VALIDATION, site=site).to_bytes(8, "little")
    known = {example.unit: example.unit if named else _said(example) for example in examples}
    places = {
        unit: hashlib.blake2b(name.encode(), key=key, digest_size=16).digest() for unit, name in known.items()
    }
    if apart:
        bound = int(fraction * 2**128)
        held = {unit for unit, place in places.items() if int.from_bytes(place, "big") < bound}
    else:
        units = sorted(places, key=places.__getitem__)
        held = set(units[: max(0, min(int(fraction * len(units) + 0.5), len(units) - 1))])
    training = [index for index, example in enumerate(examples) if example.unit not in held]
    return training, [index for index, example in enumerate(examples) if example.unit in held]


def parts_of(plan: TrainingPlan, site: str, examples: Sequence[Example]) -> tuple[list[int], list[int]]:
    """Indices to train on and to hold back under a plan; see `split_validation`."""
    private = plan.privacy is not None and plan.privacy.trains_privately
    return split_validation(
        examples, plan.data.validation_fraction, plan.seed, site, apart=private,
        named=not private or names_units(plan.data),
    )  # fmt: skip


def names_units(data: DataContract) -> bool:
    """Whether units have a name that stays theirs, whatever stands beside them in a file."""
    return data.unit_column is not None or data.id_column is not None


def _said(example: Example) -> str:
    return repr((example.label, sorted(example.roles.items())))


def label_indices(data: DataContract, roles: Mapping[str, bool]) -> dict[str, int] | None:
    """Label as text → its place in the list; None where the plan has no list and the task needs none.

    Raises:
        DataError: A label stands twice, or there is no list.
    """
    indices = {code(label): index for index, label in enumerate(data.labels)}
    if len(indices) < len(data.labels):
        raise DataError(
            "the label list names a label twice",
            found=", ".join(data.labels),
            expected="labels that differ as text, where 1 and 1.0 are one",
        )
    if not indices and roles[LABEL]:
        raise DataError("the plan has no label list", remedy="set data.labels, to auto or to a list")
    return indices or None


def _example(
    row: Row,
    data: DataContract,
    roles: Mapping[str, bool],
    *,
    site_column: str | None,
    units: bool,
    labels: Mapping[str, int] | None,
    foreign: dict[str, list[int]],
) -> Example | BrokenRow:
    label = None
    if labels is not None:
        text = code(row.values.get(data.columns[LABEL]))
        if text not in labels and text != "":
            foreign.setdefault(text, []).append(row.number)
            return BrokenRow(row.number, "foreign_label")
        label = labels.get(text)
    if roles.get(LABEL) and label is None:
        return BrokenRow(row.number, "empty:label")
    values: dict[str, Any] = {}
    for role, needed in roles.items():
        if role == LABEL:
            continue
        try:
            value = role_value(role, row, data)
        except UnknownCodeError as error:
            return BrokenRow(row.number, f"unknown_code:{error}")
        if value is not None:
            values[role] = value
        elif needed:
            return BrokenRow(row.number, f"empty:{role}")
    row_id = (plain(row.values.get(data.id_column)) if data.id_column else "") or str(row.number)
    unit = plain(row.values.get(data.unit_column)) if data.unit_column else row_id
    site = plain(row.values.get(site_column)) if site_column else ""
    if not unit and units:
        return BrokenRow(row.number, "empty:unit")
    if site_column and not site:
        return BrokenRow(row.number, "empty:site")
    return Example(row.number, values, label, row_id, unit or row_id, site)


def role_value(role: str, row: Row, data: DataContract) -> Any:
    """What a row gives for a role: its text as it stands, a list, object or bytes, or None where it is empty.

    Raises:
        UnknownCodeError: A code for which the template has no word, or a value that its format refuses.
    """
    if role == TEXT and data.template is not None:
        return (says_something(data.template, row.values) and render(data.template, row.values)) or None
    value = row.values.get(data.columns.get(role, ""))
    if isinstance(value, list | dict | bytes):
        return value or None
    text = value if isinstance(value, str) else plain(value)
    return text if text.strip() else None


def _refuse_mostly_broken(spec: SourceSpec, quarantined: Sequence[BrokenRow], read: int) -> None:
    blank = sum(row.reason == "empty_line" for row in quarantined)
    unusable, rows = len(quarantined) - blank, read - blank
    if unusable <= MOST_BROKEN * rows:
        return
    reasons = Counter(row.reason for row in quarantined).most_common(SHOWN)
    raise DataError(
        f"most rows of {spec.path} cannot be used",
        found=f"{unusable} of {rows}: " + ", ".join(f"{count} × {reason}" for reason, count in reasons),
        remedy="run `wardround data check` on it, and look at the column mapping",
        code="broken_rows",
    )


def _foreign_labels(
    spec: SourceSpec, data: DataContract, foreign: Mapping[str, list[int]], *, named: bool
) -> DataError:
    most = sorted(foreign, key=lambda label: (-len(foreign[label]), label))[:SHOWN]
    short = LONGEST_LABEL if named else 0
    told = [
        (repr(label) if len(label) <= short else f"a text of {len(label)} characters")
        + f" in {len(foreign[label])} rows, first in row {foreign[label][0]}"
        for label in most
    ]
    more = len(foreign) - len(told)
    return DataError(
        f"{spec.path} holds labels that are not in the plan's list",
        found="; ".join(told) + (f"; and {more} more" if more > 0 else ""),
        expected="one of " + ", ".join(data.labels),
        remedy="correct these rows or data.columns.label, or make a plan whose data.labels names them",
        code="labels",
    )
