"""`wardround site logs` and `site support-bundle`: what happened, and what of it may be shown to others."""

from __future__ import annotations

import json
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console

from wardround.client.log_reading import Entry, entries, follow, wanted
from wardround.client.membership.site_folder import open_site_folder
from wardround.client.support_bundle import LEFT_OUT, collect, write_bundle
from wardround.runtime.log_file import LOGS


def show_logs(
    folder: Path,
    *,
    since: str | None,
    level: str,
    run: str | None,
    more: bool,
    tracebacks: bool,
    as_json: bool,
) -> None:
    """Print what the site's processes logged, in order of time.

    Args:
        folder: Of the site.
        since: As of `wanted`.
        level: The least one.
        run: Only what names this run.
        more: Go on as lines are written, until Ctrl-C.
        tracebacks: Show those of faults of ours, which may hold anything.
        as_json: One JSON line an entry.

    Raises:
        ConfigError: No such time or level.
        StorageError: The folder is no site's.
    """
    site = open_site_folder(folder)
    which = wanted(since, level, run, time.time())

    def show(entry: Entry) -> None:
        sys.stdout.write(line_of(entry, tracebacks=tracebacks, as_json=as_json) + "\n")
        sys.stdout.flush()

    for entry in entries(site.path / LOGS, which):
        show(entry)
    if more:
        try:
            follow(site.path / LOGS, which, show, lambda: False)
        except KeyboardInterrupt:
            return


def line_of(entry: Entry, *, tracebacks: bool, as_json: bool) -> str:
    """An entry as it is printed; lines after its first one are indented."""
    moment = datetime.fromtimestamp(entry.when, UTC).astimezone()
    traceback = entry.traceback if tracebacks else ""
    if as_json:
        record = {
            "time": moment.isoformat(timespec="milliseconds"), "level": entry.level, "source": entry.source,
            "text": entry.text, **({"traceback": traceback} if traceback else {}),
        }  # fmt: skip
        return json.dumps(record, ensure_ascii=False)
    text = "\n".join(filter(None, (entry.text, traceback))).replace("\n", "\n    ")
    hint = " (--tracebacks shows where)" if entry.traceback and not tracebacks else ""
    return f"{moment:%Y-%m-%d %H:%M:%S} {entry.level} {entry.source}: {text}{hint}"


def make_bundle(folder: Path, path: Path) -> None:
    """Write a redacted archive, and say what is in it and what is not.

    Raises:
        ConfigError: There is such a file already.
        StorageError: The folder is no site's, or the archive cannot be written.
    """
    site = open_site_folder(folder)
    bundle = collect(site, datetime.now(UTC))
    write_bundle(bundle, path)
    _say(f"{path}, for you alone to read; inside:")
    for name, data in bundle.files.items():
        _say(f"  {name}  {len(data)} bytes")
    for fault in bundle.faults:
        _say(f"could not be read: {fault}")
    _say("left out:")
    for what in LEFT_OUT:
        _say(f"  {what}")
    _say("Every file is text: open it and read it before you send it.")


def _say(text: str) -> None:
    Console().print(text, markup=False, highlight=False, soft_wrap=True)
