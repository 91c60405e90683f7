"""`wardround ledger`: what the site's own people see and do."""

from __future__ import annotations

import json
import math
import sys
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from wardround.client.ledger.book import Book
from wardround.client.ledger.heads import head_of
from wardround.client.ledger.ledger import Ledger
from wardround.client.ledger.policy import BudgetPolicy
from wardround.client.ledger.reading import exported, look, verify
from wardround.client.ledger.repair import mend, replay, write_off
from wardround.client.ledger.sources import source_at
from wardround.client.ledger.store import make_mirror
from wardround.client.ledger.summary import ReservationLine, RunLine, Summary, reservations, summarise
from wardround.core.checked import invalid
from wardround.core.errors import ConfigError, unknown_name
from wardround.privacy.accounting.account import Epsilon
from wardround.privacy.accounting.mechanisms import Mechanism
from wardround.runtime.files import write_atomic


def create_ledger(
    folder: Path,
    policy: dict[str, Any],
    units: int,
    mirror: Path | None,
    first: Callable[[Ledger], None] | None = None,
) -> None:
    """Make a site's ledger.

    Args:
        folder: To make.
        policy: Fields of a `BudgetPolicy`.
        units: How many patients the site has.
        mirror: Its second place, if there is one.
        first: Writes what happened before there was a ledger; without it no ledger is there.

    Raises:
        ConfigError: The policy is none, or its cap has no room.
        PolicyError: δ ≥ 1/units.
        StorageError: The folder holds something, or cannot be written.
    """
    with Ledger.create(folder, _policy(policy), units=units, mirror=mirror, first=first) as ledger:
        key = ledger.book.opened.key
    _say(f"{folder} is the site's privacy ledger; its key is {key}")
    _say("Back the folder up as a whole: the key as well. Without it the ledger cannot be opened.")


def add_mirror(folder: Path, mirror: Path) -> None:
    """Make a ledger's mirror, where it has none or lost it.

    Raises:
        RolledBackError: Peers have seen rows that are missing.
        StorageError: There is a mirror, or the ledger cannot be opened.
    """
    rows = make_mirror(folder, mirror)
    _say(
        f"{mirror} mirrors the {rows} rows of {folder}. That these are all of them nothing shows: compare the"
    )
    _say("head that wardround ledger verify prints with what others have seen")
    _say(f"Name it in site.yaml of each site that has this ledger (ledger_mirror: {mirror.absolute()})")


def show_ledger(folder: Path, *, last: int, as_json: bool) -> None:
    """Print what a ledger comes to.

    Args:
        folder: Of the ledger.
        last: So many of its reservations, from the end.
        as_json: Everything as JSON, with all reservations.

    Raises:
        StorageError: It is not there, or was altered.
    """
    book, torn = look(folder)
    if torn:
        sys.stderr.write("a torn line at the end is left out: see wardround ledger verify\n")
    summary = summarise(book)
    lines = reservations(book)
    if as_json:
        shown = {**_plain(asdict(summary)), "reservations": [_plain(_fields(line)) for line in lines]}
        sys.stdout.write(json.dumps(shown, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    else:
        _print(book, summary, list(deque(lines, maxlen=last)), Console())


def verify_ledger(path: Path, *, key: str | None, mirror: Path | None) -> None:
    """Check a ledger or an export, and say what that proves.

    Raises:
        StorageError: Something is not as it was written.
        ConfigError: A mirror is named of an export.
    """
    found = verify(path, key=key, mirror=mirror)
    _say(f"{found.rows} rows, each bound to those before it and signed by the key {found.key}")
    if path.is_dir():
        _say(f"{found.lists} lists of units are as their rows say")
    if found.mirror is not None:
        _say("the mirror is level" if not found.mirror else f"the mirror is {found.mirror} rows behind")
    _say(f"head {found.head.digest}, epoch {found.head.epoch}")
    if found.strangers:
        when = datetime.fromtimestamp(found.strangers_at, UTC)
        _say(
            f"{found.strangers} peers gave back another ledger's head on {when:%Y-%m-%d}: see docs/ledger.md"
        )
    _say("Not shown by this: rows that are missing at the end. Compare the head with what others have seen.")


def export_ledger(folder: Path, file: Path) -> None:
    """Write the rows to a file for whoever is to check them; no unit's hash is in it.

    Raises:
        ConfigError: The file is there already.
        StorageError: The ledger was altered, or the file cannot be written.
    """
    if file.exists():
        raise ConfigError(f"{file} is there already", remedy="name a new file")
    rows, chain = exported(folder)
    write_atomic(file, rows, private=True)
    _say(f"{len(chain)} rows, head {head_of(chain, 0).digest}; to check them: wardround ledger verify {file}")


def amend_policy(folder: Path, policy: dict[str, Any], who: str, why: str, mirror: Path | None) -> None:
    """Change the policy of a ledger; what is not named stays.

    Raises:
        ConfigError: The policy is none, or nobody signs.
        PolicyError: δ ≥ 1/units.
        StorageError: It cannot be recorded.
    """
    with Ledger.open(folder, mirror=mirror) as ledger:
        before = ledger.book.policy.model_dump()
        named = {name: value for name, value in policy.items() if value is not None}
        ledger.amend(_policy(before | named), who=who, why=why)
    _say("the policy is changed, and the change is on record")


def declare_source(folder: Path, name: str, who: str, why: str, mirror: Path | None) -> None:
    """Record that what a source brought are patients whom the ledger did not know.

    Raises:
        ConfigError: There is no such source, it brought nobody, or nobody signs.
        StorageError: It cannot be recorded.
    """
    with Ledger.open(folder, mirror=mirror) as ledger:
        names = [source.name for source in ledger.book.sources]
        if name not in names:
            raise unknown_name("source of the ledger", name, names)
        # Lists grow under one name: the latest is what was asked about.
        number = len(names) - 1 - names[::-1].index(name)
        ledger.declare_disjoint(source_at(ledger.book, number, name), who=who, why=why)
    _say("the declaration is on record")


def replay_rows(folder: Path, source: Path, mirror: Path | None = None) -> None:
    """Take the rows that another copy has and the ledger lacks.

    Raises:
        StorageError: They are another ledger's, or there are none.
    """
    found = replay(folder, source, mirror=mirror)
    _say(f"{found.rows} rows were appended")
    if found.own:
        _say(f"the ledger had gone another way: its own {found.own} rows are counted after them")
    if found.behind:
        _say(
            "peers have seen rows beyond these: the ledger stays closed until they are replayed as well, or "
            "the cap is written off"
        )


def mend_ledger(folder: Path, who: str, why: str, mirror: Path | None) -> None:
    """Cut off a torn last line.

    Raises:
        ConfigError: None is torn, or nobody signs.
        StorageError: The mirror has the row; or it cannot be written.
    """
    mend(folder, who=who, why=why, mirror=mirror)
    _say("the torn line is cut off, and that is on record")


def write_cap_off(
    folder: Path,
    who: str,
    why: str,
    runs: Sequence[str],
    mirror: Path | None,
    *,
    went_on: bool = False,
    epsilon: float | None = None,
) -> None:
    """Charge the whole cap for rows that are lost.

    Raises:
        ConfigError: Nobody signs.
        StorageError: A line is torn, or it cannot be written.
    """
    write_off(folder, who=who, why=why, runs=runs, mirror=mirror, went_on=went_on, epsilon=epsilon)
    _say("the cap counts as spent, and the site joins no earlier run again")


def _policy(fields: dict[str, Any]) -> BudgetPolicy:
    try:
        return BudgetPolicy.model_validate(fields)
    except ValidationError as error:
        raise invalid("budget policy", error) from error


def _print(book: Book, summary: Summary, lines: Sequence[ReservationLine], console: Console) -> None:
    table = _table(f"last {len(lines)} reservations", "row", "run", "round", "source", "what", "ε alone")
    for line in lines:
        place = str(line.round) if not line.stage else f"{line.round}, stage {line.stage}"
        table.add_row(
            str(line.row), escape(line.run), place, escape(line.source), _short(line.mechanism, line.steps),
            _figure(line.epsilon),
        )  # fmt: skip
    console.print(table)
    table = _table(
        "runs",
        "run",
        "stages",
        "sealed",
        "extra draws",
        "refused",
        "without privacy",
        "ε reserved",
        "ε by losses",
    )
    for run in summary.runs:
        name = escape(run.run) + (" (left)" if run.left else "")
        counts = (str(count) for count in (run.stages, run.sealed, run.extra, run.refusals, run.released))
        table.add_row(name, *counts, _figure(run.epsilon), _by_losses(run))
    console.print(table)
    console.print(
        f"ε of a run alone, at δ = {summary.delta:g} per patient and site: as Rényi DP reserved it, and by "
        "privacy losses, for the schedule that the plan fixed (where somebody stopped the run after looking "
        "at it, the whole plan's ε is what holds)"
    )
    table = _table("units by history", "units", "sources", "arrived", "ε in all")
    for units in summary.classes:
        arrived = "as new patients" if units.declared else "maybe known under other ids"
        table.add_row(str(units.units), escape(", ".join(units.sources)), arrived, _figure(units.epsilon))
    console.print(table)
    for note in book.notes:
        console.print(f"row {note.row}: {note.kind}, {note.who}: {note.why}", markup=False)
    by = "privacy losses" if summary.highest.accountant == "losses" else "Rényi DP"
    console.print(
        f"highest ε = {_figure(summary.highest)} at δ = {summary.delta:g}, per patient and site, as reserved "
        f"by {by}"
    )
    if summary.cap is None:
        console.print("no cap: nothing is refused")
    elif summary.left is not None:
        console.print(f"cap ε = {summary.cap:g}; {summary.left:.4g} left at Rényi order {summary.order:g}")


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _short(mechanism: Mechanism, steps: int) -> str:
    match mechanism.kind:
        case "sampled_gaussian":
            return f"{steps} × q {mechanism.sample_rate:.4g}, σ {mechanism.sigma:.4g}"
        case "gaussian":
            return f"{steps} × σ {mechanism.sigma:.4g}"
        case "bounded_mixture":
            rate, most = mechanism.sample_rate, mechanism.most_examples
            return f"{steps} × q {rate:.4g}, σ {mechanism.sigma:.4g}, K {most}"
        case "sampled_discrete_gaussians":
            rate, shares = mechanism.sample_rate, mechanism.shares
            return f"{steps} × q {rate:.4g}, σ {mechanism.sigma:.4g} of {shares} shares"
        case "banded_gaussian":
            whole, bands = mechanism.steps, mechanism.bands
            return f"{steps} × a run of {whole} steps, {bands} bands, σ {mechanism.sigma:.4g}"
        case "no_privacy":
            return "no privacy"


def _figure(epsilon: Epsilon) -> str:
    return "∞" if math.isinf(epsilon.value) else f"{epsilon.value:.4g}"


def _by_losses(run: RunLine) -> str:
    if run.reported is None:
        return "not asked: an earlier run"
    return "as reserved" if run.reported == run.epsilon else _figure(run.reported)


def _fields(line: ReservationLine) -> dict[str, Any]:
    return {**asdict(line), "mechanism": line.mechanism.model_dump()}


def _plain(value: Any) -> Any:
    """For JSON, which has no infinity."""
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return "infinite" if isinstance(value, float) and math.isinf(value) else value


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
