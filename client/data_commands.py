"""`wardround site data add`: a plan's columns bound to the site's rows, shown, written to `site.yaml`."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from wardround.client.accepted import RUNS, RunFolders
from wardround.client.data_binding import Binding, Findings, bind, look_into, shown_name
from wardround.client.fetching import RESULT
from wardround.client.membership.site_folder import SiteFolder, open_site_folder
from wardround.client.offered_plans import named_plan
from wardround.client.settings_edit import change_settings
from wardround.client.site_settings import FILE, read_site_settings
from wardround.core.errors import UnreadyError
from wardround.training.data_report import print_report
from wardround.training.source_spec import SourceSpec
from wardround.training.sources import SOURCES


def add_data(
    folder: Path,
    plan: str,
    *,
    path: str | None,
    kind: str | None,
    options: Mapping[str, str],
    columns: Mapping[str, str],
    where: Sequence[tuple[str, str]],
    ask: Callable[[str], bool] | None,
    as_json: bool,
) -> None:
    """Bind a plan's columns to a source, show what is in it, and write `source` and `columns`.

    Args:
        folder: Of the site.
        plan: As of `named_plan`.
        path: Of the rows; None: the source that `site.yaml` names, with whatever of it is not named here.
        kind: Of the source; None: by the ending of the path.
        options: Of the source.
        columns: Column as the plan calls it → as the rows call it.
        where: Column and value; several of one column are alternatives.
        ask: Puts a question to the person; None: what fits is written.
        as_json: Print what was found, and write nothing.

    Raises:
        DataError: Nothing readable there, or columns are missing.
        UnreadyError: The rows would not do, and nobody is asked.
        WardroundError: As `named_plan`, `read_site_settings` and `change_settings`.
    """
    site = open_site_folder(folder)
    site.require_present()
    signed, settings = named_plan(site, plan), read_site_settings(site.path / FILE)
    source = _source(settings.source, path, kind, options, where)
    binding = bind(signed.plan, source, columns, settings.columns)
    found = look_into(signed.plan, settings, binding, site.name)
    if as_json:
        sys.stdout.write(json.dumps(_plain(binding, found), indent=2) + "\n")
        return
    _say(f"plan {signed.plan.name} ({signed.digest[:12]}) reads:")
    Console().print(_table(binding))
    print_report(found.report, Console())
    if not found.measured:
        _say("Lengths in tokens need the plan's base model: wardround site model import, with --plan.")
    _say(found.verdict)
    if not found.fit and ask is None:
        raise UnreadyError("rows", "the rows would not do for this plan", remedy="nothing was written")
    for run in going(site):
        _say(f"run {run} was accepted with the source as it was; it goes on with the new one")
    changes = {"source": _written(site.path, source), "columns": binding.columns}
    changed = change_settings(site.path / FILE, changes, ask=ask, show=_say)
    _say(f"{FILE} names these rows now" if changed else f"{FILE} says so already")


def going(site: SiteFolder) -> list[str]:
    """Runs that were accepted, and of which there is no result here yet."""
    runs = RunFolders(site.path / RUNS)
    accepted = [run for run in runs.runs() if runs.accepted(run) is not None]
    return [run for run in accepted if not (runs.of(run) / RESULT).exists()]


def _source(
    known: SourceSpec,
    path: str | None,
    kind: str | None,
    options: Mapping[str, str],
    where: Sequence[tuple[str, str]],
) -> SourceSpec:
    """The source that is named; without a path the known one, with what is named instead."""
    chosen: dict[str, list[str]] = {}
    for column, value in where:
        chosen.setdefault(column, []).append(value)
    named: dict[str, Any] = {
        "kind": kind, "options": dict(options),
        "where": {column: values[0] if len(values) == 1 else values for column, values in chosen.items()},
    }  # fmt: skip
    if path is not None:
        return SourceSpec(path=_full(path, kind), **named)
    return SourceSpec.model_validate(
        known.model_dump() | {key: value for key, value in named.items() if value}
    )


def _full(path: str, kind: str | None) -> str:
    """A path in full, since the site starts from elsewhere; what is no path (a connection) as it is."""
    if "://" in path or (kind is not None and not SOURCES.get(kind).suffixes):
        return path
    return str(Path(path).expanduser().absolute())


def _written(folder: Path, source: SourceSpec) -> dict[str, Any]:
    """As `site.yaml` has it: a path in the site's folder from there on."""
    inside = Path(source.path)
    if inside.is_absolute() and inside.is_relative_to(folder.resolve()):
        source = source.model_copy(update={"path": str(inside.relative_to(folder.resolve()))})
    return source.model_dump(mode="json")


def _table(binding: Binding) -> Table:
    table = Table("what the plan reads", "its name for it", "column here")
    for what, name in binding.roles.items():
        local = binding.columns.get(name, name)
        table.add_row(escape(what), escape(name), escape(shown_name(local, 0)))
    return table


def _plain(binding: Binding, found: Findings) -> dict[str, Any]:
    return {
        "reads": binding.roles,
        "columns": binding.columns,
        "source": binding.source.model_dump(mode="json"),
        "report": found.report.model_dump(mode="json"),
        "fit": found.fit,
        "verdict": found.verdict,
    }


def _say(text: str) -> None:
    Console().print(text, markup=False, highlight=False, soft_wrap=True)
