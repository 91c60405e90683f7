"""Binds what a plan reads to what a site has: which of its columns the plan's are, and what is in them.

A column's name may be shown, a row's value never: labels of the plan's own list, counts, lengths and row
numbers are all that is told of the rows.
"""

from __future__ import annotations

import itertools
import re
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from wardround.client.local_data import read_rows
from wardround.client.site_settings import ModelPlace, SiteSettings
from wardround.core.errors import ConfigError, DataError, ModelError, UnreadyError, nearest
from wardround.core.plan import TrainingPlan
from wardround.training.column_mapping import PROBED_ROWS, TEXT
from wardround.training.commands import format_reader, tokenizer_lengths
from wardround.training.data_check import EncodeLengths, ReadRow, check_source
from wardround.training.data_report import DataReport
from wardround.training.source_spec import SourceSpec, code, open_source
from wardround.training.sources.contract import Row
from wardround.training.tasks import TASKS
from wardround.training.template import columns_of

_NAME: Final = re.compile(r"[^\W\d][\w .()/%§#:+-]{0,59}")
"""A column's name that may be shown. A table without a line of names has a row's values in its place."""


@dataclass(frozen=True)
class Binding:
    """What a site would write into its `site.yaml`.

    Attributes:
        source: Where the rows lie.
        columns: Column as a plan calls it → the source's own name, where the two differ; of other plans too.
        roles: What the plan reads → its name of the column, for people.
    """

    source: SourceSpec
    columns: dict[str, str]
    roles: dict[str, str]


@dataclass(frozen=True)
class Findings:
    """What is in the bound rows.

    Attributes:
        report: As `wardround data check` has it, without a value of a row.
        measured: Whether lengths were counted in tokens.
        verdict: Whether the rows would do for the plan, in a sentence.
        fit: Whether they would.
    """

    report: DataReport
    measured: bool
    verdict: str
    fit: bool


def plan_columns(plan: TrainingPlan) -> dict[str, str]:
    """What the plan reads → its name of the column: roles, the template's fields, id and unit."""
    data, task = plan.data, TASKS.get(plan.task.name)
    built = data.template is not None
    roles = task.required_roles(plan.task)
    found = {
        f"role {role}": data.columns[role]
        for role in roles
        if role in data.columns and not (built and role == TEXT)
    }
    if data.template is not None:
        found |= {f"template field {name}": name for name in sorted(columns_of(data.template))}
    if data.id_column is not None:
        found["row id"] = data.id_column
    if data.unit_column is not None:
        found["unit (whom privacy protects)"] = data.unit_column
    return found


def bind(
    plan: TrainingPlan, source: SourceSpec, given: Mapping[str, str], known: Mapping[str, str]
) -> Binding:
    """Find the plan's columns in a source: by names that a person gave, by known ones, by their own.

    Args:
        plan: What is to be trained.
        source: Where the rows lie.
        given: Column as the plan calls it → the source's name for it, as a person wrote it.
        known: The same from `site.yaml`, perhaps of another plan or source: kept where the column is there.

    Raises:
        ConfigError: A name is given for a column that the plan does not read.
        DataError: Nothing readable there, or columns are missing: the plan's roles, the source's columns and
            what has to be named.
    """
    wanted = plan_columns(plan)
    strange = sorted(set(given) - set(wanted.values()))
    if strange:
        guess = nearest(strange[0], wanted.values())
        raise ConfigError(
            "a --column is not one that the plan reads", found=", ".join(strange),
            expected=", ".join(dict.fromkeys(wanted.values())),
            remedy=f"did you mean {guess!r}?" if guess else "write PLAN=LOCAL, the plan's name first",
        )  # fmt: skip
    present = present_columns(source)
    kept = {own: local for own, local in known.items() if local in present}
    columns = {own: local for own, local in (kept | dict(given)).items() if own != local}
    missing = {what: name for what, name in wanted.items() if columns.get(name, name) not in present}
    if missing:
        raise _missing(source, wanted, columns, present, missing)
    return Binding(source, columns, wanted)


def look_into(plan: TrainingPlan, settings: SiteSettings, binding: Binding, site: str) -> Findings:
    """Read the bound rows once as `wardround data check` does, and once as the plan will.

    Raises:
        DataError: Nothing readable there.
    """
    task, read_row, lengths = TASKS.get(plan.task.name), None, None
    tokenizer = _tokenizer(settings, plan)
    text_format = plan.task.options.get("format") if plan.task.metrics == "language" else None
    if text_format is not None:
        read_row = _or_none(lambda: format_reader(str(text_format), tokenizer, plan.task.options))
    elif tokenizer is not None:
        lengths = _or_none(lambda: tokenizer_lengths(str(tokenizer)))
    report = _checked(plan, binding, task.required_roles(plan.task), lengths, read_row)
    bound = settings.model_copy(update={"source": binding.source, "columns": binding.columns})
    try:
        rows = read_rows(bound, plan, site)
    except UnreadyError as error:
        return Findings(report, report.tokens is not None, _sentence(error), fit=False)
    verdict = "the rows fill a batch of the plan"
    if rows.estimate != "enough":
        verdict = "the rows are fewer than a batch of the plan, which is allowed; the site would take part"
    return Findings(report, report.tokens is not None, verdict, fit=True)


def without_values(report: DataReport, labels: tuple[str, ...]) -> DataReport:
    """The report with the plan's own labels alone; others are counted, and columns named as they may be."""
    listed = set(map(code, labels))
    columns = {
        shown_name(name, place): column for place, (name, column) in enumerate(report.columns.items(), 1)
    }
    return report.model_copy(
        update={
            "labels": {label: rows for label, rows in report.labels.items() if label in listed},
            "columns": columns,
        }
    )


def shown_name(name: str, place: int) -> str:
    """A column's name where it looks like one; a table without a line of names has values there."""
    return name if _NAME.fullmatch(name) else f"[column {place}: its name looks like a value]"


def present_columns(source: SourceSpec) -> list[str]:
    """Columns of the first rows, in order.

    Raises:
        DataError: Nothing readable there.
    """
    rows = itertools.islice(open_source(source), PROBED_ROWS)
    names = list(dict.fromkeys(name for row in rows if isinstance(row, Row) for name in row.values))
    if not names:
        raise DataError(
            f"{source.path} has no readable row", expected="rows of the plan",
            remedy="look at --kind and --where; `wardround data check` says what is broken",
        )  # fmt: skip
    return names


def _missing(
    source: SourceSpec,
    wanted: Mapping[str, str],
    columns: Mapping[str, str],
    present: list[str],
    missing: Mapping[str, str],
) -> DataError:
    free = [name for name in present if name not in columns.values() and name not in wanted.values()]
    shown = [shown_name(name, place) for place, name in enumerate(present, 1)]
    told: list[str] = []
    for name in dict.fromkeys(missing.values()):
        guess = nearest(name, [own for own in free if _NAME.fullmatch(own)])
        pair = f"{name}={guess or 'LOCAL'}"
        told.append(f"--column {shlex.quote(pair)}" + (" (a guess)" if guess else ""))
    return DataError(
        f"{source.path} lacks columns that the plan reads",
        found="columns " + ", ".join(shown),
        expected=", ".join(
            f"{what}: {name}" + (" (missing)" if what in missing else "") for what, name in wanted.items()
        ),
        remedy="name them: " + " ".join(told),
        code="columns",
    )


def _checked(
    plan: TrainingPlan,
    binding: Binding,
    roles: Mapping[str, bool],
    lengths: EncodeLengths | None,
    read_row: ReadRow | None,
) -> DataReport:
    report = check_source(
        binding.source, plan.data, roles, lengths, read_row, renamed=binding.columns
    )  # fmt: skip
    return without_values(report, plan.data.labels)


def _tokenizer(settings: SiteSettings, plan: TrainingPlan) -> str | None:
    """The folder of the plan's base model, where `site.yaml` names one of its digest."""
    places: list[ModelPlace] = [place for place in settings.models if place.digest == plan.base.digest]
    return places[0].path if places else None


def _or_none(make: Callable[[], Any]) -> Any:
    """What is made, or None where the tokenizer is not there: lengths are then told in characters."""
    try:
        return make()
    except ModelError:
        return None


def _sentence(error: UnreadyError) -> str:
    parts = [f"the site would refuse the plan ({error.code}): {error.what}"]
    if error.found:
        parts.append(f"found: {error.found}")
    if error.remedy:
        parts.append(error.remedy)
    return "; ".join(parts)
