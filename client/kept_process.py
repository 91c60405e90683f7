"""One process of a site that is started again when it ends, or gives no sign of life."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from wardround.client.child import CERTIFICATE, CLOCK, CLOSED, DEADLINE, NOT_ADMITTED, NOT_YET, QUIET
from wardround.core.checked import Frozen
from wardround.core.errors import StorageError
from wardround.runtime.files import private_folder, storing
from wardround.runtime.passphrases import without_passphrase

LOG = logging.getLogger(__name__)

LARGEST_LOG = 10 * 2**20
LONGEST_LOOK_S = 1.0
"""So much of the time between two looks counts as silence: where it is more, this process stood still."""
REASONS: Mapping[int, str] = {
    NOT_ADMITTED: "the server does not accept this site's key: it is not admitted, or was revoked",
    NOT_YET: "the server takes this site for online still; it lets it in again within a minute",
    CLOCK: "this machine's clock and the server's differ by over five minutes: set the one that is wrong",
    CERTIFICATE: "the server's certificate does not hold under the consortium's CA",
    DEADLINE: "a message took longer than it may",
    CLOSED: "until the site's working hours begin again",
}
MINUTE_OVER = 40
"""So many refusals in a row as an online site are not the minute after a node that was killed."""
COPIED = (
    "the server takes this site for online, and has for minutes: another machine runs with a copy of this "
    "site's folder; stop one of the two, and if nobody made that copy, rotate the keys at once"
)
SILENT = "it gave no sign of life, and was killed"


@dataclass(frozen=True)
class Restarts:
    """How long to wait before a process that has ended is started again.

    Attributes:
        least_s: After a first end, or one after a calm life.
        most_s: After many ends in a row.
        calm_s: A process that lived so long starts the count again.
        refused_s: Least, where the server refuses the site and a person has to do something.
        not_yet_s: Where Flower takes the site for online still, for a minute.
    """

    least_s: float = 0.5
    most_s: float = 60.0
    calm_s: float = 120.0
    refused_s: float = 15.0
    not_yet_s: float = 3.0

    def pause_s(self, code: int, in_a_row: int) -> float:
        """Seconds to wait.

        Args:
            code: How the process ended.
            in_a_row: Ends without a calm life between them, this one among them; from 1.
        """
        if code == NOT_YET:
            return self.not_yet_s
        if code in {NOT_ADMITTED, CLOCK, CERTIFICATE}:
            return max(self.refused_s, self._growing(in_a_row))
        return self._growing(in_a_row)

    def _growing(self, in_a_row: int) -> float:
        return min(self.least_s * 2.0 ** min(in_a_row - 1, 30), self.most_s)


@dataclass(frozen=True)
class ProcessState:
    """One of the two processes, as `status` shows it.

    Attributes:
        name: `node` or `worker`.
        pid: None while it does not run.
        restarts: How often it was started again.
        code: How it last ended; None where it never did.
        reason: The same in words, where there are some.
        note: What keeps it from its work while it runs; empty where nothing does.
    """

    name: str
    pid: int | None
    restarts: int
    code: int | None
    reason: str
    note: str = ""


@dataclass
class KeptProcess:
    """A process that is started again when it ends."""

    name: str
    module: str
    settings: Callable[[], Frozen]
    restarts: Restarts
    log: Path | None
    silent_s: float
    inherited: Sequence[int] = ()
    process: subprocess.Popen[bytes] | None = None
    due: float = 0.0
    began: float = 0.0
    in_a_row: int = 0
    starts: int = 0
    code: int | None = None
    beats: int | None = None
    looked: float = 0.0
    silence_s: float = 0.0
    silenced: bool = False
    fell_silent: bool = False
    """Whether that is why it last ended."""

    def look(self, *, start: bool = True) -> int | None:
        """Start it where it is due and may `start`; gives its exit code when it has just ended."""
        now = time.monotonic()
        if self.process is None:
            if start and now >= self.due:
                self.due = now + self.restarts.refused_s  # where it cannot even be started
                self.start()
            return None
        self._listen(now)
        code = self.process.poll()
        if code is None:
            self._bound_log()
            return None
        self._close_pipe()
        self.fell_silent, self.silenced = self.silenced, False
        self.process, self.code = None, code
        self.in_a_row = 1 if now - self.began > self.restarts.calm_s else self.in_a_row + 1
        pause = self.restarts.pause_s(code, self.in_a_row)
        self.due = now + pause
        again = "then" if code == CLOSED else f"in {pause:.1f} s"
        LOG.warning("the site's %s has ended (%s); it starts again %s", self.name, self._why(), again)
        return code

    def _listen(self, now: float) -> None:
        """Kill it where it has given no sign of life for too long: stopped, or stuck."""
        assert self.process is not None  # noqa: S101 - the caller looked
        heard = b""
        if self.beats is not None:
            with suppress(BlockingIOError):
                heard = os.read(self.beats, 4096)
        self.silence_s = 0.0 if heard else self.silence_s + min(now - self.looked, LONGEST_LOOK_S)
        self.looked = now
        if self.silence_s > self.silent_s and self.process.poll() is None:
            LOG.error("the site's %s gives no sign of life for %.0f s: killed", self.name, self.silence_s)
            self.process.kill()
            self.process.wait()
            self.silenced = True

    def start(self) -> None:
        """Start it, and tell it its settings as they are now.

        Raises:
            WardroundError: There are none now.
            OSError: The machine cannot start a process.
        """
        settings, output = json.loads(self.settings().model_dump_json()), self._log_file()
        self.beats, writing = os.pipe()
        os.set_blocking(self.beats, False)
        try:
            self.process = subprocess.Popen(  # noqa: S603 - our own interpreter and module
                [sys.executable, "-P", "-m", self.module],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                pass_fds=(*self.inherited, writing),
                env=without_passphrase(os.environ | QUIET),
                start_new_session=True,  # an interrupt at a terminal is for the supervisor
            )
        except OSError:
            self._close_pipe()
            raise
        finally:
            os.close(writing)
            if output is not None:
                output.close()
        self.began = self.looked = time.monotonic()
        self.silence_s = 0.0
        self.starts += 1
        self.order(settings | {"beats": writing})

    def order(self, order: Mapping[str, Any]) -> None:
        """Write one line to it, where it runs."""
        if self.process is None or self.process.stdin is None:
            return
        try:
            self.process.stdin.write(json.dumps(order).encode() + b"\n")
            self.process.stdin.flush()
        except OSError:
            LOG.info("the site's %s ended before it could be told something", self.name)

    def end(self, seconds: float) -> None:
        """Ask it to end; kill it after so many seconds."""
        if self.process is None:
            return
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            self.code = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.code = self.process.wait()
        self._close_pipe()  # not before: that is a signal as well, and a second one cuts leave-taking short
        self.process = None

    def _close_pipe(self) -> None:
        if self.beats is not None:
            os.close(self.beats)
            self.beats = None
        if self.process is not None and self.process.stdin is not None:
            try:
                self.process.stdin.close()
            except OSError:
                LOG.debug("what was left in the pipe is of no use any more")

    def _log_file(self) -> IO[bytes] | None:
        if self.log is None:
            return None
        try:
            with storing(self.log):
                private_folder(self.log.parent)
                self._bound_log()
                return os.fdopen(os.open(self.log, os.O_APPEND | os.O_CREAT | os.O_WRONLY, 0o600), "ab")
        except StorageError as error:  # a full disk keeps nobody from working
            LOG.warning("what the site's %s says goes where this process's output goes: %s", self.name, error)
            return None

    def _bound_log(self) -> None:
        """Keep what it wrote as the former log and begin anew, while it goes on writing.

        It appends, so that a cut file is filled from its beginning; what it writes between copy and cut is
        lost. Where the disk is too full for the copy, the whole of it is: a log has to end somewhere.
        """
        try:
            if self.log is None or self.log.stat().st_size <= LARGEST_LOG:
                return
        except FileNotFoundError:
            return
        former = self.log.with_suffix(".1.log")
        try:
            former.unlink(missing_ok=True)
            former.touch(mode=0o600)
            shutil.copyfile(self.log, former)
        except OSError as error:
            LOG.warning("the former log of the site's %s is not kept: %s", self.name, error.strerror)
            former.unlink(missing_ok=True)
        os.truncate(self.log, 0)

    @property
    def running(self) -> bool:
        """Whether it has been started and was not seen to end."""
        return self.process is not None

    @property
    def state(self) -> ProcessState:
        """As people see it."""
        pid = self.process.pid if self.process is not None else None
        return ProcessState(self.name, pid, max(0, self.starts - 1), self.code, self._why())

    def _why(self) -> str:
        if self.code is None:
            return ""
        if self.fell_silent:
            return SILENT
        if self.code == NOT_YET and self.in_a_row > MINUTE_OVER:
            return COPIED
        if self.code in REASONS:
            return REASONS[self.code]
        return f"signal {-self.code}" if self.code < 0 else f"exit code {self.code}"
