"""What is known of one run in memory: its record, its feeds, its view; each change goes to disk first."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from wardround.core.errors import StorageError
from wardround.runtime.events import Event, as_record
from wardround.runtime.files import append_line, json_text
from wardround.server.feed import Feed
from wardround.server.observing import Nobody, Observer
from wardround.server.round_control import RunStoppedError
from wardround.server.run_control import RunControl
from wardround.server.run_record import RunFolder, RunRecord
from wardround.server.run_states import RunStatus
from wardround.server.run_view import RunView, sentence

LARGEST_LINE_CHARACTERS = 1 << 20
log = logging.getLogger("wardround.desk")


class LiveRun:
    """One run; the desk holds its lock while it changes the record.

    What followers read is loaded when somebody asks for it: old runs are many.

    Attributes:
        folder: On disk.
        record: As it is on disk, unless the disk refuses.
        control: Of the executor that is at it.
        finished: Whether its executor said that the run has finished.
        observer: Looks on.
    """

    def __init__(
        self, folder: RunFolder, record: RunRecord, kept: int, observer: Observer | None = None
    ) -> None:
        self.folder, self.record = folder, record
        self.observer = observer or Nobody()
        self.control: RunControl | None = None
        self.finished = False
        self._kept, self._loading = kept, threading.RLock()
        self._events: Feed[dict[str, Any]] | None = None
        self._lines: Feed[dict[str, Any]] | None = None
        self._view = RunView()
        self._unlogged = False

    @property
    def view(self) -> RunView:
        """Folded from its events."""
        with self._loading:
            self._load()
            return self._view

    @property
    def events(self) -> Feed[dict[str, Any]]:
        """Feed of its events' records."""
        return self._load()[0]

    @property
    def lines(self) -> Feed[dict[str, Any]]:
        """Feed of its log's records."""
        return self._load()[1]

    def see(self, record: dict[str, Any]) -> None:
        """Take one event for view and followers."""
        with self._loading:
            events, _ = self._load()
            self._view = self._view.after(record)
            events.put(record)
        try:
            self.observer.event(record)
        except Exception:
            log.exception("an event could not be looked at; the run goes on")

    def _load(self) -> tuple[Feed[dict[str, Any]], Feed[dict[str, Any]]]:
        with self._loading:
            if self._events is None or self._lines is None:
                known = read_lines(self.folder.events)
                self._view = viewed(known)
                self._events = Feed(known, kept=self._kept)
                self._lines = Feed(read_lines(self.folder.log), kept=self._kept)
                if self.record.status.ended:
                    self._events.end()
                    self._lines.end()
            return self._events, self._lines

    def change(self, record: RunRecord) -> None:
        """Make a new record durable, and tell followers of a new status.

        Raises:
            StorageError: The disk refuses; the record in memory is the old one.
        """
        try:
            self.folder.save(record)
        except StorageError:
            self.observer.unkept("record")
            raise
        self._take(record)

    def force(self, record: RunRecord) -> None:
        """As `change`; where the disk refuses, memory goes on without it: nobody waits for the disk."""
        try:
            self.folder.save(record)
        except StorageError as error:
            self.observer.unkept("record")
            log.error("the record of %s could not be written: %s", record.run_id, error)  # noqa: TRY400 - words suffice
        self._take(record)

    def put_off(self, reason: str) -> None:
        """Say once why its turn does not begin; in memory alone, since the disk takes nothing."""
        if self.record.reason != reason:
            self.record = self.record.model_copy(update={"reason": reason})
            log.error("%s %s", self.record.run_id, reason)
            self.lines.put({"time_s": round(time.time(), 3), "level": "warning", "text": reason})

    def _take(self, record: RunRecord) -> None:
        before, self.record = self.record.status, record
        if record.status is not before:
            self.events.put(status_record(record))
            level = "warning" if record.status is RunStatus.FAILED else "info"
            self.say(level, f"{record.status}{': ' if record.reason else ''}{record.reason}")

    def say(self, level: str, text: str) -> None:
        """A line for the log; a disk that refuses it ends nothing."""
        line = {"time_s": round(time.time(), 3), "level": level, "text": text}
        try:
            append_line(self.folder.log, line, durable=False)
            self._unlogged = False
        except StorageError as error:
            self.observer.unkept("log")
            if not self._unlogged:  # once: a full disk refuses each line
                log.error("the log of %s could not be written: %s", self.record.run_id, error)  # noqa: TRY400 - as above
            self._unlogged = True
        self.lines.put(line)


class Gate:
    """The first of a run's sinks: shut once the desk has given the executor up.

    Args:
        abandoned: Set then: nothing that the executor still says counts, and it is told to stop.
    """

    def __init__(self, abandoned: threading.Event) -> None:
        self._abandoned = abandoned

    def emit(self, _: Event) -> None:
        """Let an event pass.

        Raises:
            RunStoppedError: The executor was given up.
        """
        if self._abandoned.is_set():
            raise RunStoppedError("this executor was given up", remedy="restart the server")

    def close(self) -> None:
        """Nothing is held."""


class LiveSink:
    """Reads a run's events for its view, its feeds and its log.

    Args:
        run: Whose events they are.
        on_event: Told of each event, after it counts.
    """

    def __init__(self, run: LiveRun, on_event: Callable[[dict[str, Any]], None]) -> None:
        self._run, self._on_event = run, on_event

    def emit(self, event: Event) -> None:
        """Take one event."""
        record = json.loads(json_text(as_record(event)))  # as it lies on disk: plain values, no NaN
        self._run.see(record)
        said = sentence(record)
        if said is not None:
            self._run.say(*said)
        self._on_event(record)

    def close(self) -> None:
        """Nothing is held."""


def status_record(record: RunRecord) -> dict[str, Any]:
    """A new status as followers read it among the events."""
    return {
        "event": "StatusChanged", "time_s": round(record.changed, 3), "status": str(record.status),
        "reason": record.reason,
    }  # fmt: skip


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The JSON objects of a file of lines, without torn or endless ones; none where there is no file."""
    found = []
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            while line := file.readline(LARGEST_LINE_CHARACTERS):
                try:
                    record = json.loads(line)
                except (ValueError, RecursionError):  # also of a number of thousands of digits
                    continue
                if isinstance(record, dict):
                    found.append(record)
    except OSError:
        return found
    return found


def viewed(records: list[dict[str, Any]]) -> RunView:
    """The view of these events; one that an edited or older file lacks something of changes nothing."""
    view = RunView()
    for record in records:
        try:
            view = view.after(record)
        except (KeyError, TypeError, ValueError, AttributeError):
            log.warning("an event of a run's file is not as it should be: %s", str(record.get("event"))[:40])
    return view
