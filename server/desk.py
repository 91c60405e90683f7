"""The desk: durable registry and queue of a server's runs. One trains at a time, first come first served.

    submit → queued → the place is free → an executor works → finished, stopped or failed → the next one

Whatever becomes of an executor, its place is free afterwards. A server that is killed anywhere finds every
run where it was; the one that was at work goes on by itself.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pydantic import ValidationError

from wardround.core.errors import BudgetError, ConfigError, StorageError, unknown_name
from wardround.runtime.files import private_folder, storing
from wardround.server.feed import KEPT
from wardround.server.observing import Observer
from wardround.server.run_control import Execute
from wardround.server.run_live import LiveRun
from wardround.server.run_record import NO_SPACE, SITE, RunFolder, RunRecord, found_runs, make_run
from wardround.server.run_states import RunStatus, Wish, require_resumable, wished
from wardround.server.run_worker import NoSpaceError, Work

LOCK = ".desk.lock"
BEAT_S: Final = 5.0
"""So often the record says that an executor is at the run."""
STOP_GRACE_S: Final = 20.0
"""So long an executor may take to stop before it is given up and its place is free."""
MOST_DEATHS: Final = 10
"""So often in a row the server may die soon after it took a run up, before the run counts as failed."""
MOST_WAITING: Final = 500
SPACE_S: Final = 10.0
"""So often a run whose turn cannot begin since the disk is full looks whether there is space."""
log = logging.getLogger("wardround.desk")


def named_by_digest(plan: bytes) -> str:
    """A name for a plan that nobody has looked into."""
    return hashlib.sha256(plan).hexdigest()[:12]


@dataclass(frozen=True)
class Limits:
    """What a desk waits for and keeps; tests make it quicker."""

    beat_s: float = BEAT_S
    stop_grace_s: float = STOP_GRACE_S
    kept: int = KEPT
    most_waiting: int = MOST_WAITING
    space_s: float = SPACE_S


class Desk:
    """The registry and queue of one server folder.

    Args:
        folder: The server's folder; the runs lie in its `runs/`.
        execute: Does the work of a run, in a thread of its own.
        check: Looks at a signed plan before it is queued and gives its name, or raises.
        limits: What it waits for.
        observer: Is told of every event and of what the disk refuses.
    """

    def __init__(
        self,
        folder: Path,
        execute: Execute,
        *,
        check: Callable[[bytes], str] = named_by_digest,
        limits: Limits | None = None,
        observer: Observer | None = None,
    ) -> None:
        self._observer = observer
        self._folder = Path(folder) / "runs"
        self._check, self._limits = check, limits or Limits()
        self._changed = threading.Condition(threading.RLock())
        self._work = Work(
            execute, self._changed, lambda: self._closing, self._limits.beat_s, self._limits.stop_grace_s
        )
        self._runs: dict[str, LiveRun] = {}
        self._broken: dict[str, str] = {}
        self._given_up: dict[str, threading.Thread] = {}
        self._closing = False
        self._lock: int | None = None
        self._worker: threading.Thread | None = None

    def start(self) -> None:
        """Take the runs up where they are, and work at them in the background.

        Raises:
            StorageError: Another server works in this folder, or it cannot be written.
        """
        private_folder(self._folder)
        self._lock = _claimed(self._folder)
        for folder in found_runs(self._folder):
            try:
                self._runs[folder.run_id] = self._live(folder)
            except StorageError as error:  # one record that cannot be read hides no other run
                log.exception("a run's record cannot be read")
                self._broken[folder.run_id] = str(error)
        with self._changed:
            for run in self._runs.values():
                self._find_again(run)
        self._worker = threading.Thread(target=self._work_on, name="desk", daemon=True)
        self._worker.start()

    def close(self, timeout_s: float = 30.0) -> None:
        """Stop working, without ending any run: the one at work goes on when the desk starts again."""
        with self._changed:
            self._closing = True
            for run in self._runs.values():
                if run.control is not None:
                    run.control.ask_stop()
            self._changed.notify_all()
        if self._worker is not None:
            self._worker.join(timeout_s)
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def submit(self, plan: bytes, initial: Iterable[bytes], submission: str) -> RunRecord:
        """Queue a run; durable when it returns.

        Args:
            plan: The signed plan.
            initial: The initial adapter's file, in parts.
            submission: Chosen by the caller; asked again with the same one, no second run is made.

        Raises:
            ConfigError: It is no plan, or the submission was another plan's.
            BudgetError: Too many runs wait.
            StorageError: The disk refuses.
        """
        digest = hashlib.sha256(plan).hexdigest()
        if not 0 < len(submission) <= 64:  # noqa: PLR2004 - as the record has it
            raise ConfigError("a submission is named by 1 to 64 characters", found=f"{len(submission)}")
        with self._changed:
            known = self._submitted(submission, digest)
            if known is not None:
                return known
            if sum(run.record.status is RunStatus.QUEUED for run in self._runs.values()) >= (
                self._limits.most_waiting
            ):
                raise BudgetError(
                    "too many runs wait", expected=f"at most {self._limits.most_waiting}", remedy="stop some"
                )
        name, now = self._check(plan)[:200], time.time()

        def record(run_id: str) -> RunRecord:
            return RunRecord(
                run_id=run_id, name=name, plan_digest=digest, submission=submission, place=self._last_place(),
                submitted=now, changed=now,
            )  # fmt: skip

        folder = make_run(self._folder, plan, initial, record, now)  # an upload takes its time: unlocked
        with self._changed:
            known = self._submitted(submission, digest)
            if known is not None:  # by a second call at the same time
                shutil.rmtree(folder.path, ignore_errors=True)
                return known
            run = self._runs[folder.run_id] = self._live(folder)
            run.change(run.record.model_copy(update={"place": self._last_place()}))
            run.say("info", f"submitted: {name}")
            self._changed.notify_all()
            return run.record

    def listed(self) -> list[RunRecord]:
        """Every run, in the order of the queue: at work, waiting, then ended ones, newest first."""
        with self._changed:
            records = [run.record for run in self._runs.values()]
        return [
            *sorted((r for r in records if not r.status.ended), key=lambda r: (not r.status.active, r.place)),
            *sorted((r for r in records if r.status.ended), key=lambda r: -r.changed),
        ]

    @property
    def unreadable(self) -> dict[str, str]:
        """Run → why its record cannot be read; such a run is never at work."""
        return dict(self._broken)

    def run(self, run_id: str) -> LiveRun:
        """One run.

        Raises:
            ConfigError: There is none of this name; the nearest one is proposed.
            StorageError: Its record cannot be read.
        """
        with self._changed:
            found = self._runs.get(run_id)
            if found is not None:
                return found
            if run_id in self._broken:
                raise StorageError("the record of this run cannot be read", found=self._broken[run_id])
            raise unknown_name("run", run_id[:80], list(self._runs)[-20:])

    def ahead_of(self, run_id: str) -> list[RunRecord]:
        """Runs that have the place, or get it before this one."""
        names = [record for record in self.listed() if not record.status.ended]
        place = next((i for i, record in enumerate(names) if record.run_id == run_id), 0)
        return names[:place]

    def stop(self, run_id: str, timeout_s: float) -> RunRecord:
        """Stop a run at once, and wait until it has; longer than `Limits.stop_grace_s` none takes.

        Raises:
            ConfigError: It has ended already, or there is none.
            StorageError: The disk refuses to keep the wish.
        """
        self._wish(run_id, Wish.STOP)
        return self.wait(run_id, timeout_s)

    def drain(self, run_id: str) -> RunRecord:
        """Stop a run after the round that trains; one that has begun no round stops at once.

        Raises:
            ConfigError: It has ended already, or there is none.
            StorageError: The disk refuses to keep the wish.
        """
        return self._wish(run_id, Wish.DRAIN)

    def wait(self, run_id: str, timeout_s: float) -> RunRecord:
        """The run's record once it has ended, or after so many seconds."""
        run = self.run(run_id)
        with self._changed:
            self._changed.wait_for(lambda: run.record.status.ended or self._closing, timeout_s)
            return run.record

    def resume(self, run_id: str) -> RunRecord:
        """Queue a run again, at the end; it goes on from its journal.

        Raises:
            ConfigError: It did not stop or fail.
            StorageError: Its former executor, which did not stop when it was told, still has not ended.
        """
        with self._changed:
            run = self.run(run_id)
            require_resumable(run_id, run.record.status)
            former = self._given_up.get(run_id)
            if former is not None and former.is_alive():
                raise StorageError(
                    f"the run {run_id} cannot be resumed yet",
                    found="its former executor did not stop and still has not ended",
                    remedy="restart the server",
                )
            self._given_up.pop(run_id, None)
            again = run.record.to(RunStatus.QUEUED, "resumed", time.time())
            run.finished = False
            run.change(again.model_copy(update={"place": self._last_place(), "deaths": 0}))
            self._changed.notify_all()
            return run.record

    def exclude(self, run_id: str, site: str) -> RunRecord:
        """Leave a site out of a run from its next round on; again does nothing.

        Raises:
            ConfigError: The run has finished, or has no such site.
            StorageError: The disk refuses.
        """
        try:
            SITE.validate_python(site)
        except ValidationError:
            raise ConfigError("this is no site's name", expected="as the roster has it") from None
        with self._changed:
            run = self.run(run_id)
            if run.record.status is RunStatus.FINISHED:
                raise ConfigError(f"the run {run_id} has finished: no site takes part any more")
            if run.view.sites and site not in run.view.sites:
                raise unknown_name("site of this run", site, run.view.sites)
            excluded = tuple(sorted({*run.record.excluded, site}))
            run.change(run.record.model_copy(update={"excluded": excluded}))
            if run.control is not None:
                run.control.exclude(site)
            run.say("info", f"{site} is excluded from the next round on")
            return run.record

    def _live(self, folder: RunFolder) -> LiveRun:
        return LiveRun(folder, folder.load(), self._limits.kept, self._observer)

    def _find_again(self, run: LiveRun) -> None:
        if not run.record.status.active:
            return
        record, now = run.record.found_again(), time.time()
        if record.wish is not Wish.NONE:
            record = record.to(RunStatus.STOPPED, "stopped: the server went down meanwhile", now)
        elif record.deaths > MOST_DEATHS:
            reason = f"the server died {record.deaths} times soon after it had taken this run up"
            record = record.to(RunStatus.FAILED, reason, now)
        run.force(record)

    def _work_on(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closing or self._next() is not None)
                run = self._next()
                if self._closing or run is None:
                    return
            try:
                given_up = self._work.at(run)
            except NoSpaceError as error:
                with self._changed:
                    run.put_off(f"{NO_SPACE}: {error.what}")
                    self._changed.wait_for(lambda: self._closing, self._limits.space_s)
            except Exception as error:  # the queue goes on, whatever is wrong with one run
                log.exception("the run %s could not be worked at", run.record.run_id)
                with self._changed:
                    reason = f"a fault of the server's own ({type(error).__name__})"
                    run.control = None
                    if not run.record.status.ended:
                        run.force(run.record.to(RunStatus.FAILED, reason, time.time()))
                    self._changed.notify_all()
            else:
                if given_up is not None:
                    self._given_up[run.record.run_id] = given_up

    def _next(self) -> LiveRun | None:
        """Who was at work when the server ended, then who waits longest."""
        waiting = [r for r in self._runs.values() if not r.record.status.ended]
        return min(waiting, key=lambda r: (not r.record.status.active, r.record.place), default=None)

    def _submitted(self, submission: str, digest: str) -> RunRecord | None:
        for run in self._runs.values():
            if run.record.submission == submission:
                if run.record.plan_digest != digest:
                    raise ConfigError("this submission was another plan's", remedy="choose another name")
                return run.record
        return None

    def _last_place(self) -> int:
        with self._changed:
            return 1 + max((run.record.place for run in self._runs.values()), default=0)

    def _wish(self, run_id: str, wish: Wish) -> RunRecord:
        with self._changed:
            run = self.run(run_id)
            record, now = run.record, time.time()
            wish = wished(run_id, record.status, wish, record.wish)
            if record.status is RunStatus.QUEUED:
                run.change(record.to(RunStatus.STOPPED, "stopped before it began", now))
            elif wish is Wish.DRAIN and record.status is RunStatus.TRAINING:
                draining = record.to(RunStatus.DRAINING, "finishes the round that trains", now)
                run.change(draining.model_copy(update={"wish": wish}))
            else:
                run.change(record.model_copy(update={"wish": wish}))
            if run.control is not None:
                (run.control.ask_stop if wish is Wish.STOP else run.control.ask_drain)()
            self._changed.notify_all()
            return run.record


def _claimed(folder: Path) -> int:
    """The descriptor that holds a folder of runs for this process."""
    with storing(folder / LOCK):
        lock = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(lock)
        raise StorageError(
            "another server works at these runs", found=str(folder), remedy="stop it first"
        ) from error
    return lock
