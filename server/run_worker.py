"""One executor at one run: begun, watched, asked to stop, given up, and what its end means for the run."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from wardround.core.errors import StorageError, WardroundError
from wardround.runtime.event_log import JsonlSink
from wardround.runtime.events import EventStream
from wardround.runtime.files import is_full
from wardround.server.round_control import RunStoppedError
from wardround.server.run_control import Execute, RunControl
from wardround.server.run_live import Gate, LiveRun, LiveSink
from wardround.server.run_record import RunRecord
from wardround.server.run_states import RunStatus, Wish

log = logging.getLogger("wardround.desk")


class NoSpaceError(StorageError):
    """A run's turn cannot begin: the disk is full. It keeps its place, and its turn comes again."""


@dataclass(frozen=True)
class Work:
    """How runs are worked at.

    Attributes:
        execute: Does it.
        changed: The desk's lock, and how it hears of changes.
        closing: Whether the server is going down.
        beat_s: So often the record says that somebody is at the run.
        stop_grace_s: So long an executor may take to stop.
    """

    execute: Execute
    changed: threading.Condition
    closing: Callable[[], bool]
    beat_s: float
    stop_grace_s: float

    def at(self, run: LiveRun) -> threading.Thread | None:
        """Work at a run until it has ended, or the server goes down.

        Returns:
            The executor's thread, where it did not stop when it was told to and was given up.
        """
        with self.changed:
            record = run.record.taken_up(time.time())
            try:
                if record.status is RunStatus.QUEUED:
                    record = record.to(RunStatus.OFFERING, "", time.time())
                run.change(record)
            except StorageError as error:
                if is_full(error):
                    raise NoSpaceError(str(error)) from error
                run.force(run.record.to(RunStatus.FAILED, str(error), time.time()))
                return None
            control = RunControl(excluded=record.excluded, down_s=record.down_s, worked_s=record.worked_s)
            if record.wish is Wish.STOP:  # told between the server's start and this
                control.ask_stop()
            elif record.wish is Wish.DRAIN:
                control.ask_drain()
            run.control, run.finished = control, False
        attempt = _Attempt(self, run, control)
        attempt.thread.start()
        given_up = attempt.watched()
        with self.changed:
            run.control = None
            ended = given_up_record(run.record, self.stop_grace_s) if given_up else self._after(run, attempt)
            run.force(ended)
            if ended.status.ended:
                run.events.end()
                run.lines.end()
            self.changed.notify_all()
        return attempt.thread if given_up else None

    def _after(self, run: LiveRun, attempt: _Attempt) -> RunRecord:
        now = time.time()
        record = run.record.at_work(now)
        if self.closing() and not run.finished:  # why the executor ended says nothing of the run
            return record.model_copy(update={"closed": True})
        if isinstance(attempt.error, StorageError):
            run.observer.unkept("run")
        status, reason = verdict(record, attempt.error, finished=run.finished)
        return record.to(status, reason, now)


def verdict(record: RunRecord, error: BaseException | None, *, finished: bool) -> tuple[RunStatus, str]:
    """Status and reason of a run whose executor has ended.

    Args:
        record: As it was.
        error: What the executor raised.
        finished: Whether its events say that the run has finished.
    """
    asked = {Wish.NONE: "its executor stopped", Wish.DRAIN: "drained", Wish.STOP: "stopped"}[record.wish]
    if error is None and (finished or record.wish is Wish.NONE):
        return RunStatus.FINISHED, "completed"
    if error is None or isinstance(error, RunStoppedError):
        return RunStatus.STOPPED, asked
    if isinstance(error, WardroundError):
        return RunStatus.FAILED, str(error)
    log.error("an executor met a fault of its own", exc_info=error)
    return RunStatus.FAILED, f"a fault of the server's own ({type(error).__name__}); its log has the details"


def given_up_record(record: RunRecord, grace_s: float) -> RunRecord:
    """The record of a run whose executor did not stop."""
    now = time.time()
    reason = f"stopped; its executor did not end within {grace_s:g} s and was given up"
    return record.at_work(now).to(RunStatus.STOPPED, reason, now)


class _Attempt:
    """An executor's thread and how it ended."""

    def __init__(self, work: Work, run: LiveRun, control: RunControl) -> None:
        self.error: BaseException | None = None
        self.ended = False
        self._work, self._run, self._control = work, run, control
        self._abandoned = threading.Event()
        told = LiveSink(run, self._heard)
        self._events = EventStream((Gate(self._abandoned), JsonlSink(run.folder.events), told))
        self.thread = threading.Thread(target=self._body, name=f"run-{run.record.run_id}", daemon=True)

    def watched(self) -> bool:
        """Wait for the end; True where the executor was given up."""
        asked: float | None = None
        changed, grace_s = self._work.changed, self._work.stop_grace_s
        with changed:
            while not self.ended:
                if asked is None and self._control.stop_requested:
                    asked = time.monotonic()
                left = grace_s if asked is None else asked + grace_s - time.monotonic()
                if left <= 0:
                    self._abandoned.set()
                    return not self._work.closing()
                changed.wait(min(self._work.beat_s, left))
                self._beat()
        return False

    def _beat(self) -> None:
        now = time.time()
        if not self.ended and now - self._run.record.alive >= self._work.beat_s / 2:
            self._run.force(self._run.record.at_work(now))

    def _body(self) -> None:
        try:
            self._work.execute(self._run.folder, self._control, self._events)
        except BaseException as error:  # noqa: BLE001 - whatever it is, the place has to be free again
            self.error = error
        with self._work.changed:
            self.ended = True
            self._work.changed.notify_all()

    def _heard(self, event: dict[str, Any]) -> None:
        with self._work.changed:
            run, now = self._run, time.time()
            match event["event"]:
                case "RunStarted" if run.record.status is RunStatus.OFFERING:
                    run.change(run.record.to(RunStatus.TRAINING, "", now))
                case "RoundFolded" if run.record.deaths:
                    run.change(run.record.model_copy(update={"deaths": 0}))
                case "RunFinished":
                    run.finished = True
