"""`wardround site history`: what did leave this site, checked and counted."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from rich.console import Console

from wardround.client.accepted import RUNS, RunFolders
from wardround.client.history.history import FOLDER, require_noted, verify
from wardround.client.history.rows import Sent
from wardround.client.membership.site_folder import SiteFolder, open_site_folder
from wardround.runtime.sizes import size_text

SHORT: Final = 12
"""Digits of a digest that people see."""


def show_history(folder: Path, run: str | None, *, noted: str | None, last: int, as_json: bool) -> None:
    """Check the history, and print what left.

    Args:
        folder: Of the site.
        run: Leaves out all others.
        noted: A head that somebody noted; a history that is not at or beyond it is refused.
        last: So many rows are printed at the most; 0 prints all.
        as_json: All of it as JSON.

    Raises:
        StorageError: The folder is no site's, or its history was altered or cut; names the row.
    """
    site = open_site_folder(folder)
    verified = verify(site.path / FOLDER)
    if noted is not None:
        require_noted(noted, site.path / FOLDER)
    rows = [row for row in verified.sent if run is None or row.left.run == run]
    if as_json:
        record = {
            "site": site.name, "head": verified.head.text, "rows": verified.head.rows,
            "key": verified.begun.key, "begun": verified.begun.at,
            "sent": [{"row": row.row, "at": row.at} | row.left.model_dump(mode="json") for row in rows],
            "totals": totals(rows), "missing": missing(site, verified.sent),
        }  # fmt: skip
        sys.stdout.write(json.dumps(record, indent=2) + "\n")
        return
    shown = rows[-last:] if last else rows
    lines = [f"{site.name}: {len(rows)} messages since {_when(verified.begun.at)}, signed and whole"]
    if len(shown) < len(rows):
        lines.append(f"the last {len(shown)}; --last 0 shows all")
    lines += table(shown)
    for name, total in totals(rows).items():
        many = "" if total["messages"] == 1 else "s"
        size = f"{size_text(total['bytes'])} ({total['bytes']:,} bytes)"
        lines.append(f"{name}: {total['messages']} message{many}, {size}")
    for name in missing(site, verified.sent) if run is None else ():
        lines.append(f"note: run {name} was accepted here, and the history has no message of it: ask why")
    if verified.torn:
        lines.append("note: a row is being written, or a kill tore one; nothing left on its account")
    lines.append(f"head {verified.head.text}: note it, and `--noted` refuses a history that has lost it")
    Console().print("\n".join(lines), markup=False, highlight=False, soft_wrap=True)


def totals(rows: Sequence[Sent]) -> dict[str, dict[str, int]]:
    """Run → its messages and bytes; what is about no run under `no run`, all under `in all`."""
    found: dict[str, dict[str, int]] = {}
    for row in rows:
        for name in (row.left.run or "no run", "in all"):
            total = found.setdefault(name, {"messages": 0, "bytes": 0})
            total["messages"] += 1
            total["bytes"] += row.left.bytes
    everything = found.pop("in all", {"messages": 0, "bytes": 0})
    return found | {"in all": everything}


def missing(site: SiteFolder, sent: Sequence[Sent]) -> list[str]:
    """Runs that this site accepted and of which the history has nothing."""
    known, runs = {row.left.run for row in sent}, RunFolders(site.path / RUNS)
    return [run for run in runs.runs() if run not in known and runs.accepted(run) is not None]


def table(rows: Sequence[Sent]) -> list[str]:
    """One line a row."""
    head = ("row", "when (UTC)", "run", "place", "what", "bytes", "digest")
    cells = [head, *(_cells(row) for row in rows)]
    if not rows:
        return []
    widths = [max(len(line[column]) for line in cells) for column in range(len(head))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in cells
    ]


def _cells(row: Sent) -> tuple[str, ...]:
    left = row.left
    what = f"{left.kind} {left.note}".strip()
    if left.sums:
        what += f" ({', '.join(left.sums)})"
    return (
        str(row.row), _when(row.at), left.run or "-", _place(left.model_dump()), what, str(left.bytes),
        left.digest[:SHORT],
    )  # fmt: skip


def _place(left: Mapping[str, Any]) -> str:
    if left["round"] is None:
        return "-"
    stage = f" stage {left['stage']}" if left["stage"] else ""
    attempt = f" attempt {left['attempt'] + 1}" if left["attempt"] else ""
    return f"round {left['round']}{stage}{attempt} step {(left['exchange'] or 0) + 1}"


def _when(at: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(at))
