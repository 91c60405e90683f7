"""Processes of their own that begin with torch and PEFT imported: forked from one that is kept for it.

To import them takes most of the time of a process that a test kills or interrupts, and is not what it tests.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections.abc import Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path

_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["wardround.cli", "wardround.simulations.command", "wardround.training.merge"])


def start(code: str, arguments: Sequence[str], folder: Path, output: Path) -> BaseProcess:
    """A process that runs such code, as `python -c CODE ARGUMENTS` would.

    Args:
        code: Python.
        arguments: What it finds in `sys.argv` after the first.
        folder: Where it runs.
        output: File for all that it says.
    """
    process = _FORKS.Process(target=_run, args=(code, list(arguments), str(folder), str(output)))
    process.start()
    return process


def ended(process: BaseProcess, seconds: float = 240) -> int:
    """Its exit code, negative for a signal, once it has ended."""
    process.join(seconds)
    if process.exitcode is None:
        process.kill()
        raise AssertionError(f"it did not end within {seconds} s")
    return process.exitcode


def _run(code: str, arguments: list[str], folder: str, output: str) -> None:
    # A shell that starts the tests in the background lets them, and their children, ignore SIGINT.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with Path(output).open("ab", buffering=0) as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    os.chdir(folder)
    sys.argv = ["-c", *arguments]
    exec(compile(code, "<started>", "exec"), {"__name__": "__main__"})  # noqa: S102 - the tests' own code
