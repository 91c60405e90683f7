"""The logs of a site's three processes as one story, in order of time.

logs/site.jsonl    the supervisor's, JSON lines (`runtime/log_file.py`); .1 to .5 are the ones before it
logs/worker.log    what the worker wrote, lines with time and level; worker.1.log is the one before it
logs/node.log      the node's, likewise
"""

from __future__ import annotations

import json
import logging
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

from wardround.core.errors import ConfigError
from wardround.runtime.log_file import FORMER

SUPERVISOR: Final = "site.jsonl"
CHILDREN: Final = ("worker", "node")
LEVELS: Final = ("debug", "info", "warning", "error", "critical")
LOOK_S: Final = 0.5
LONGEST_LINE: Final = 2**20
_LINE: Final = re.compile(
    r"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d),(\d{3}) (?:worker|node) ([A-Z]+) (.*)", re.DOTALL
)
_AGO: Final = re.compile(r"(\d{1,6})([smhd])")
_UNITS: Final = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


@dataclass(frozen=True)
class Entry:
    """One record of a log.

    Attributes:
        when: Seconds since 1970; 0 where the line does not say.
        level: Such as WARNING.
        source: `site`, `worker` or `node`.
        text: What was said, of several lines perhaps.
        traceback: Of a fault of ours; empty as a rule.
    """

    when: float
    level: str
    source: str
    text: str
    traceback: str = ""


@dataclass(frozen=True)
class Wanted:
    """Which entries are asked for.

    Attributes:
        since: Seconds since 1970.
        level: Number of the least level.
        run: Id of a run that has to be named; None: any or none.
    """

    since: float = 0.0
    level: int = logging.NOTSET
    run: str | None = None

    def takes(self, entry: Entry) -> bool:
        """Whether it is asked for."""
        grave = logging.getLevelNamesMapping().get(entry.level, logging.INFO) >= self.level
        return grave and entry.when >= self.since and (self.run is None or self.run in entry.text)


def wanted(since: str | None, level: str, run: str | None, now: float) -> Wanted:
    """From what a person wrote.

    Args:
        since: So long ago (90s, 30m, 1h, 2d), a time as ISO 8601 writes it, or None.
        level: Its name.
        run: Id, or None.
        now: Seconds since 1970.

    Raises:
        ConfigError: No such time or level.
    """
    if level.lower() not in LEVELS:
        raise ConfigError("unknown --level", found=level, expected=", ".join(LEVELS))
    return Wanted(
        0.0 if since is None else _moment(since, now), logging.getLevelNamesMapping()[level.upper()], run
    )


def entries(folder: Path, which: Wanted) -> list[Entry]:
    """Entries of all logs in a folder, in order of time; what is not there or torn is passed over."""
    found = [entry for source, paths in _files(folder).items() for entry in _read(source, paths)]
    return sorted(filter(which.takes, found), key=lambda entry: entry.when)


def follow(folder: Path, which: Wanted, show: Callable[[Entry], None], done: Callable[[], bool]) -> None:
    """Show entries as they are written, from now on, until `done`."""
    tails = {source: _Tail(paths[-1]) for source, paths in _files(folder).items()}
    last: dict[str, Entry] = {}
    while not done():
        new = []
        for source, tail in tails.items():
            for entry in parsed(source, tail.lines()):
                before = last.get(source)
                if not entry.when and before is not None:  # lines that belong to what was shown already
                    new.append(replace(entry, when=before.when, level=before.level))
                else:
                    new.append(entry)
                    last[source] = entry
        for entry in sorted(filter(which.takes, new), key=lambda entry: entry.when):
            show(entry)
        time.sleep(LOOK_S)


def parsed(source: str, lines: Iterable[str]) -> Iterator[Entry]:
    """Entries from the lines of one process."""
    yield from _from_json(lines) if source == "site" else _from_text(source, lines)


def _files(folder: Path) -> dict[str, list[Path]]:
    """Source → its files, the present one last."""
    supervisor = [folder / f"{SUPERVISOR}.{number}" for number in range(FORMER, 0, -1)]
    children = {name: [folder / f"{name}.1.log", folder / f"{name}.log"] for name in CHILDREN}
    return {"site": [*supervisor, folder / SUPERVISOR], **children}


def _read(source: str, paths: Iterable[Path]) -> Iterator[Entry]:
    for path in paths:
        try:
            with path.open(encoding="utf-8", errors="replace") as file:
                yield from parsed(source, iter(lambda: file.readline(LONGEST_LINE), ""))
        except OSError:
            continue


def _from_json(lines: Iterable[str]) -> Iterator[Entry]:
    for line in lines:
        try:
            record: Any = json.loads(line)
            when = datetime.fromisoformat(record["time"]).timestamp()
            text, level = str(record["text"]), str(record["level"])
        except (ValueError, KeyError, TypeError):
            continue  # torn by a kill
        yield Entry(when, level, "site", text, str(record.get("traceback", "")))


def _from_text(source: str, lines: Iterable[str]) -> Iterator[Entry]:
    """A line without a time belongs to the one before it."""
    held: list[str] = []
    head: tuple[float, str] = (0.0, "INFO")
    for raw in lines:
        line = raw.rstrip("\n")
        match = _LINE.fullmatch(line)
        if match is None:
            held.append(line)
            continue
        if held:
            yield _entry(source, head, held)
        moment = datetime.strptime(match[1], "%Y-%m-%d %H:%M:%S").astimezone()
        head, held = (moment.timestamp() + int(match[2]) / 1000, match[3]), [match[4]]
    if held:
        yield _entry(source, head, held)


def _entry(source: str, head: tuple[float, str], lines: list[str]) -> Entry:
    traces = [number for number, line in enumerate(lines) if line.startswith("Traceback (most recent call")]
    cut = traces[0] if traces else len(lines)
    return Entry(*head, source, "\n".join(lines[:cut]), "\n".join(lines[cut:]))


@dataclass
class _Tail:
    """What is appended to a file, also when another one takes its place."""

    path: Path
    place: int = field(init=False)
    inode: int = field(init=False)

    def __post_init__(self) -> None:
        about = self._about()
        self.place, self.inode = (about.st_size, about.st_ino) if about else (0, 0)

    def lines(self) -> list[str]:
        """Whole lines since the last time."""
        about = self._about()
        if about is None:
            return []
        if about.st_ino != self.inode or about.st_size < self.place:
            self.place, self.inode = 0, about.st_ino
        try:
            with self.path.open("rb") as file:
                file.seek(self.place)
                data = file.read()
        except OSError:
            return []
        whole = data[: data.rfind(b"\n") + 1]
        self.place += len(whole)
        return whole.decode("utf-8", "replace").splitlines()

    def _about(self) -> os.stat_result | None:
        try:
            return self.path.stat()
        except OSError:
            return None


def _moment(text: str, now: float) -> float:
    ago = _AGO.fullmatch(text)
    if ago is not None:
        return now - timedelta(**{_UNITS[ago[2]]: int(ago[1])}).total_seconds()
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise ConfigError(
            "--since is no time", found=text, expected="such as 90s, 30m, 1h, 2d or 2026-11-01T12:00",
        ) from None  # fmt: skip
    return moment.astimezone(UTC).timestamp()
