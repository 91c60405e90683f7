"""The part of the site's supervisor that keeps its two processes alive: the node and the worker.

It reads no data. The transport key goes through it to the node, the storage key to the worker, each in the
first line that the child reads; the secret with which the worker takes tasks is made here, for one start of
the site.
"""

from __future__ import annotations

import logging
import os
import secrets
import socket
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

from wardround.client.child import CLOSED, DEADLINE, NodeSettings, WorkerSettings
from wardround.client.history.line import Recording
from wardround.client.kept_process import KeptProcess, ProcessState, Restarts

LOG = logging.getLogger(__name__)

LOOK_S = 0.1
STOP_S = 12.0
SILENT_S = 300.0
"""Rather long: code that holds Python's lock is silent as well, and a worker that is killed in a private
round has spent it."""
LARGEST_REPORT = 4096
"""Bytes of one of the node's lines: a pipe passes so many as one."""


@dataclass(frozen=True)
class SiteSettings:
    """What the two processes are started with.

    Attributes:
        server: `host:port` of the consortium's server.
        ca: PEM file of the consortium's CA.
        transport_key: Gives the site's P-384 key as the content of an OpenSSH file, at each start of the
            node: one whose key was rotated, and is refused, comes back with the next one.
        factory: `module:function` that makes the worker's Flower app, of the installed package.
        arguments: For the factory; JSON.
        record: Makes a row of the history durable, of what the node is about to send; raises where it does
            not, and then nothing leaves.
        deadline_s: Seconds that one message may take.
        logs: Folder for the output of both; None leaves it where the supervisor's goes.
        least_s: Pause between looks for messages while one is expected.
        most_s: The same of an idle site.
        silent_s: A process that gives no sign of life for so long is killed, and started again.
        open: Whether the site works now; while it does not, it has no worker.
    """

    server: str
    ca: Path
    transport_key: Callable[[], str]
    factory: str
    record: Callable[[Mapping[str, Any]], None]
    deadline_s: float
    arguments: Mapping[str, Any] = field(default_factory=dict, repr=False)
    logs: Path | None = None
    least_s: float = 0.2
    most_s: float = 15.0
    silent_s: float = SILENT_S
    open: Callable[[], bool] = lambda: True


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
        self._recording = Recording(settings.record)
        history = self._recording.theirs.fileno()

        def node() -> NodeSettings:
            return NodeSettings(
                server=settings.server, ca=settings.ca, transport_key=settings.transport_key(),
                listener=descriptor, secret=secret, report=report, history=history,
                least_s=settings.least_s, most_s=settings.most_s,
            )  # fmt: skip

        worker = WorkerSettings(
            node=f"127.0.0.1:{self._listener.getsockname()[1]}", secret=secret, factory=settings.factory,
            arguments=dict(settings.arguments), deadline_s=settings.deadline_s,
        )  # fmt: skip
        logs = settings.logs
        self._node = KeptProcess(
            "node", "wardround.client.supernode_process", node, restarts,
            logs / "node.log" if logs else None, settings.silent_s,
            (descriptor, report, history),
        )  # fmt: skip
        self._worker = KeptProcess(
            "worker", "wardround.client.worker_process", lambda: worker, restarts,
            logs / "worker.log" if logs else None, settings.silent_s,
        )  # fmt: skip
        self._open, self._told = settings.open, False
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
        self._recording.close()
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
                ended = self._worker.look(start=self._opened())
                if ended is not None:
                    self._node.order({"worker_ended": _said(ended), "too_late": ended == DEADLINE})
            except Exception:
                LOG.exception("a process of the site could not be looked after; tried again")

    def _opened(self) -> bool:
        """Whether the worker may start; one that runs outside the site's hours is told to come to its end."""
        opened = self._open()
        if opened or not self._worker.running:
            self._told = False
        elif not self._told:
            self._worker.order({"closing": True})
            self._told = True
        return opened

    def _hear(self) -> None:
        """The node's last word on its connection, one line each time that it changes."""
        with suppress(BlockingIOError):
            while said := os.read(self._reports, LARGEST_REPORT):
                self._note = said.decode(errors="replace").split("\n")[-2:][0]


def _said(code: int) -> str:
    """What the server is told of a worker that has ended while it had a message."""
    if code == CLOSED:
        return "the site's working hours are over: it goes on when they begin again"
    if code == DEADLINE:
        return "the site's worker took longer over a message than it may"
    return "the site's worker ended before it had answered"
