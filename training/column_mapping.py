"""Holds a column mapping against the columns that a source really has, before anything heavy happens."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from wardround.core.errors import DataError, nearest
from wardround.core.plan import DataContract
from wardround.training.source_spec import SourceSpec
from wardround.training.sources.contract import BrokenRow, Row
from wardround.training.template import check_template

PROBED_ROWS = 1000
"""A column that none of the first rows has is not there: sources may leave out what is empty."""

TEXT = "text"
LABEL = "label"


def check_mapping(
    probe: Iterable[Row | BrokenRow],
    spec: SourceSpec,
    data: DataContract,
    roles: Mapping[str, bool],
    site_column: str | None = None,
    *,
    predict: bool = False,
) -> None:
    """Refuse a mapping that does not fit the task, or names columns that are not there.

    Args:
        probe: First rows of the source.
        spec: Source, for messages.
        data: Mapping, template, id and unit columns.
        roles: Role → whether the task needs it.
        site_column: Column that says where a row lies, or None.
        predict: Columns of roles that the task does without may be absent.

    Raises:
        DataError: A role without a column, a role that the task does not know, or a missing column.
        ConfigError: The template is none, or names a missing column.
    """
    _check_roles(data, roles)
    present = {name: None for row in probe if isinstance(row, Row) for name in row.values}
    if not present:
        return  # nothing readable: the reader counts what is broken
    named = {f"data.columns.{role}": column for role, column in _mapped(data, roles, predict=predict).items()}
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
                found="columns " + ", ".join(present),
                remedy=f"did you mean {guess!r}?" if guess else f"set {key} to one of them",
                code="columns",
            )
    if data.template is not None and TEXT in roles:
        check_template(data.template, present)


def check_renaming(probe: Iterable[Row | BrokenRow], spec: SourceSpec, renamed: Mapping[str, str]) -> None:
    """Refuse a renaming that names columns which are not there.

    Raises:
        DataError: Names the column and the nearest one that is.
    """
    present = {name: None for row in probe if isinstance(row, Row) for name in row.values}
    for wanted, own in renamed.items():
        if present and own not in present:
            guess = nearest(own, present)
            raise DataError(
                f"{spec.path} has no column {own!r}, which columns.{wanted} names",
                found="columns " + ", ".join(present),
                remedy=f"did you mean {guess!r}?" if guess else f"set columns.{wanted} to one of them",
                code="columns",
            )


def renamed_row(row: Row | BrokenRow, renamed: Mapping[str, str]) -> Row | BrokenRow:
    """A row whose columns are called as the plan calls them; what is not renamed keeps its name."""
    if isinstance(row, BrokenRow):
        return row
    values = {name: value for name, value in row.values.items() if name not in renamed}
    values |= {wanted: row.values[own] for wanted, own in renamed.items() if own in row.values}
    return replace(row, values=values)


def _mapped(data: DataContract, roles: Mapping[str, bool], *, predict: bool) -> dict[str, str]:
    return {
        role: column
        for role, column in data.columns.items()
        if role in roles and (roles[role] or not predict) and not (role == TEXT and data.template is not None)
    }


def _check_roles(data: DataContract, roles: Mapping[str, bool]) -> None:
    # A prediction asks for no label, and the plan's mapping names it all the same.
    unknown = sorted(set(data.columns) - set(roles) - {LABEL})
    built = {TEXT} if data.template is not None else set()
    missing = sorted(
        role for role, needed in roles.items() if needed and role not in built | set(data.columns)
    )
    if not unknown and not missing:
        return
    guess = nearest(unknown[0], roles) if unknown else None
    raise DataError(
        "the column mapping does not fit the task",
        found="; ".join(
            f"{what}: {', '.join(names)}"
            for what, names in (("not mapped", missing), ("not known", unknown))
            if names
        ),
        expected="roles "
        + ", ".join(role if needed else f"{role} (optional)" for role, needed in roles.items()),
        remedy=f"did you mean {guess!r} instead of {unknown[0]!r}?"
        if guess
        else "set data.columns.ROLE to the name of its column",
        code="columns",
    )
