"""The part of the site's supervisor that keeps its two processes alive: the node and the worker.

It holds no key and reads no data; the path of the transport key goes through it, and the secret with which
the worker takes tasks is made here, for one start of the site.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any, Self

from wardround.client.child import (
    CERTIFICATE,
    CLOCK,
    DEADLINE,
    NOT_ADMITTED,
    NOT_YET,
    QUIET,
    NodeSettings,
    WorkerSettings,
)
from wardround.core.checked import Frozen
from wardround.runtime.files import private_folder, storing

LOG = logging.getLogger(__name__)

LOOK_S = 0.1
STOP_S = 12.0
LARGEST_LOG = 10 * 2**20
LARGEST_REPORT = 4096
"""Bytes of one of the node's lines: a pipe passes so many as one."""
REASONS: Mapping[int, str] = {
    NOT_ADMITTED: "the server does not accept this site's key: it is not admitted, or was revoked",
    NOT_YET: "the server takes this site for online still; it lets it in again within a minute",
    CLOCK: "this machine's clock and the server's differ by over five minutes: set the one that is wrong",
    CERTIFICATE: "the server's certificate does not hold under the consortium's CA",
    DEADLINE: "a message took longer than it may",
}


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
class _Child:
    """A process that is started again when it ends."""

    name: str
    module: str
    settings: Frozen
    restarts: Restarts
    log: Path | None
    inherited: Sequence[int] = ()
    process: subprocess.Popen[bytes] | None = None
    due: float = 0.0
    began: float = 0.0
    in_a_row: int = 0
    starts: int = 0
    code: int | None = None

    def look(self) -> int | None:
        """Start it where it is due; gives its exit code when it has just ended."""
        now = time.monotonic()
        if self.process is None:
            if now >= self.due:
                self.start()
            return None
        code = self.process.poll()
        if code is None:
            return None
        self._close_pipe()
        self.process, self.code = None, code
        self.in_a_row = 1 if now - self.began > self.restarts.calm_s else self.in_a_row + 1
        pause = self.restarts.pause_s(code, self.in_a_row)
        self.due = now + pause
        LOG.warning("the site's %s has ended (%s); it starts again in %.1f s", self.name, _why(code), pause)
        return code

    def start(self) -> None:
        output = self._log_file()
        try:
            self.process = subprocess.Popen(  # noqa: S603 - our own interpreter and module
                [sys.executable, "-P", "-m", self.module],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                pass_fds=self.inherited,
                env=os.environ | QUIET,
                start_new_session=True,  # an interrupt at a terminal is for the supervisor
            )
        finally:
            if output is not None:
                output.close()
        self.began = time.monotonic()
        self.starts += 1
        self.order(json.loads(self.settings.model_dump_json()))

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
        if self.process is not None and self.process.stdin is not None:
            try:
                self.process.stdin.close()
            except OSError:
                LOG.debug("what was left in the pipe is of no use any more")

    def _log_file(self) -> IO[bytes] | None:
        if self.log is None:
            return None
        with storing(self.log):
            private_folder(self.log.parent)
            if self.log.exists() and self.log.stat().st_size > LARGEST_LOG:
                self.log.replace(self.log.with_suffix(".1.log"))
            return os.fdopen(os.open(self.log, os.O_APPEND | os.O_CREAT | os.O_WRONLY, 0o600), "ab")

    @property
    def state(self) -> ProcessState:
        pid = self.process.pid if self.process is not None else None
        return ProcessState(
            self.name, pid, max(0, self.starts - 1), self.code, "" if self.code is None else _why(self.code)
        )


def _why(code: int) -> str:
    if code in REASONS:
        return REASONS[code]
    return f"signal {-code}" if code < 0 else f"exit code {code}"


@dataclass(frozen=True)
class SiteSettings:
    """What the two processes are started with.

    Attributes:
        server: `host:port` of the consortium's server.
        ca: PEM file of the consortium's CA.
        transport_key: OpenSSH file of the site's P-384 key; only the node reads it.
        factory: `module:function` that makes the worker's Flower app, of the installed package.
        arguments: For the factory; JSON.
        deadline_s: Seconds that one message may take.
        logs: Folder for the output of both; None leaves it where the supervisor's goes.
        least_s: Pause between looks for messages while one is expected.
        most_s: The same of an idle site.
    """

    server: str
    ca: Path
    transport_key: Path
    factory: str
    deadline_s: float
    arguments: Mapping[str, Any] = field(default_factory=dict)
    logs: Path | None = None
    least_s: float = 0.2
    most_s: float = 15.0


class SiteProcesses:
    """Node and worker of a site, kept alive from `__enter__` to `__exit__`, or by `run`.

    Both end with this process, whatever ends it: they watch the pipe from which their settings came.
    """

    def __init__(self, settings: SiteSettings, restarts: Restarts | None = None) -> None:
        restarts = restarts or Restarts()
        secret = secrets.token_hex(32)
        self._listener = socket.create_server(("127.0.0.1", 0))  # stays when the node starts anew
        descriptor = self._listener.fileno()
        self._reports, report = os.pipe()
        os.set_blocking(self._reports, False)
        self._pipe: tuple[int, ...] = (self._reports, report)
        self._note = ""
        node = NodeSettings(
            server=settings.server, ca=settings.ca, transport_key=settings.transport_key,
            listener=descriptor, secret=secret, report=report,
            least_s=settings.least_s, most_s=settings.most_s,
        )  # fmt: skip
        worker = WorkerSettings(
            node=f"127.0.0.1:{self._listener.getsockname()[1]}", secret=secret, factory=settings.factory,
            arguments=dict(settings.arguments), deadline_s=settings.deadline_s,
        )  # fmt: skip
        logs = settings.logs
        self._node = _Child(
            "node", "wardround.client.supernode_process", node, restarts,
            logs / "node.log" if logs else None, (descriptor, report),
        )  # fmt: skip
        self._worker = _Child(
            "worker", "wardround.client.worker_process", worker, restarts,
            logs / "worker.log" if logs else None,
        )  # fmt: skip
        self._done = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._keep, name="wardround-processes", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def run(self, done: threading.Event) -> None:
        """Keep both alive until `done` is set, then end both."""
        with self:
            done.wait()

    def stop(self) -> None:
        """End both, the worker first; returns when neither runs. A second time does nothing."""
        self._done.set()
        if self._thread is not None:
            self._thread.join()
        self._worker.end(STOP_S)
        self._node.end(STOP_S)
        self._listener.close()
        for end in self._pipe:
            os.close(end)
        self._pipe = ()

    def states(self) -> tuple[ProcessState, ProcessState]:
        """Node and worker."""
        node = self._node.state
        return replace(node, note=self._note if node.pid else ""), self._worker.state

    def _keep(self) -> None:
        while not self._done.wait(LOOK_S):
            try:
                self._hear()
                if self._node.look() is not None:
                    self._note = ""
                ended = self._worker.look()
                if ended is not None:
                    self._node.order({"worker_ended": _said(ended)})
            except Exception:
                LOG.exception("a process of the site could not be looked after; tried again")

    def _hear(self) -> None:
        """The node's last word on its connection, one line each time that it changes."""
        with suppress(BlockingIOError):
            while said := os.read(self._reports, LARGEST_REPORT):
                self._note = said.decode(errors="replace").split("\n")[-2:][0]


def _said(code: int) -> str:
    """What the server is told of a worker that has ended while it had a message."""
    if code == DEADLINE:
        return "the site's worker took longer over a message than it may"
    return "the site's worker ended before it had answered"
