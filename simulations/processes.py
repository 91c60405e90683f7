"""Sites of a simulation trained by processes of this machine, which share the base model's memory.

They are forked from the process that began the run once model and rows are there: nothing is loaded again, no
row travels, and beside its activations a worker needs hardly any memory. What it is sent is a local round
(`LocalJob`), what comes back is what that gave; both depend on the seed tree alone. Where a worker dies, the
process that began the run trains what is left itself.

One thread a worker: the threads of a process do not survive its fork. Several machines, and GPUs, are Ray's
(`ray_workers.py`).
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import math
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import torch

from wardround.core.errors import ConfigError
from wardround.simulations.config import RunConfig
from wardround.simulations.together import Made, Trainer
from wardround.training.local_round import LocalJob
from wardround.training.workbench import Workbench

LOG = logging.getLogger(__name__)
DIE_WITH_PARENT: Final = 1
"""PR_SET_PDEATHSIG of prctl(2): a worker outlives nobody."""
SMALL: Final = 500_000_000
"""Parameters of a base model with which each core may train a site of its own unasked."""

Rows = Mapping[int, Sequence[Any]]
"""Rows of sites by their identity, which a fork leaves as it is."""


@dataclass(frozen=True)
class _Work:
    """What a worker trains with; set once in each."""

    train: Trainer
    rows: Rows


_WORK: list[_Work] = []


@dataclass(frozen=True)
class _Known:
    """Stands for rows that a worker has."""

    identity: int


@dataclass
class ForkedCrew:
    """Workers of this machine.

    Attributes:
        pool: Its processes; None once one of them has died.
        workers: So many.
        here: Trains what is left then.
        rows: That workers have.
    """

    pool: ProcessPoolExecutor | None
    workers: int
    here: Trainer
    rows: Rows

    @property
    def ahead(self) -> int:
        """A lot for each worker, and one that waits at each."""
        return 2 * self.workers - 1

    def start(self, jobs: Sequence[LocalJob]) -> Callable[[], Sequence[Made]]:
        """As `Crew`."""
        light = [replace(job, encoded=self._light(job.encoded)) for job in jobs]
        begun = self._begun(light)

        def wait() -> Sequence[Made]:
            if begun is not None:
                try:
                    return begun.result()
                except BrokenProcessPool:
                    self._lost()
            with one_thread():
                return self.here(jobs)

        return wait

    def _begun(self, jobs: Sequence[LocalJob]) -> Future[Sequence[Made]] | None:
        if self.pool is None:
            return None
        try:
            return self.pool.submit(_train, jobs)
        except BrokenProcessPool:
            self._lost()
            return None

    def _light(self, rows: Sequence[Any]) -> Any:
        return _Known(id(rows)) if self.rows.get(id(rows)) is rows else rows

    def _lost(self) -> None:
        if self.pool is not None:
            LOG.warning(
                "a worker of the simulation was lost, as a rule to a full memory: this process does its part"
            )
            self.pool.shutdown(wait=False, cancel_futures=True)
            self.pool = None


@contextlib.contextmanager
def forked_crew(config: RunConfig, bench: Workbench, rows: Iterable[Sequence[Any]]) -> Iterator[ForkedCrew]:
    """Workers for a run, for as long as it lasts.

    Args:
        config: Of the run.
        bench: What it was prepared with.
        rows: Of each site.

    Raises:
        ConfigError: This machine, its device or the number of threads allows none.
    """
    require_forks(config, bench)
    known = {id(own): own for own in rows}
    workers = config.simulation.processes or min(cores(), max(1, len(known)))
    here = Trainer(bench)
    others = multiprocessing.active_children()
    pool = ProcessPoolExecutor(
        workers, multiprocessing.get_context("fork"), _begin, (_Work(here, known), os.getpid())
    )
    try:
        pool.submit(_nothing).result()  # all are forked here and now, by the thread that stays
        yield ForkedCrew(pool, workers, here, known)
    finally:
        for child in multiprocessing.active_children():
            if child not in others:
                child.kill()  # of what it may still train nobody waits for the end
        pool.shutdown(cancel_futures=True)


def require_forks(config: RunConfig, bench: Workbench) -> None:
    """Refuse what a fork cannot carry.

    Raises:
        ConfigError: Another system than Linux, another device than the CPU, or several threads.
    """
    wrong = _against(config, bench)
    if wrong:
        raise ConfigError(
            "simulation.backend=processes cannot be had here", found=", ".join(wrong),
            expected="Linux, the CPU, and machine.threads null or 1: each process computes with one thread",
            remedy="set simulation.backend=ray, or inline",
        )  # fmt: skip


def forks_pay(config: RunConfig, bench: Workbench, sites: int) -> bool:
    """Whether processes are what a run takes that asks for nothing else.

    Not where it says with how many threads it computes, and not where memory may not hold the activations of
    several sites at once.
    """
    parameters = sum(parameter.numel() for parameter in bench.model.parameters())
    several = min(sites, config.simulation.processes or cores()) > 1
    return several and config.machine.threads is None and parameters <= SMALL and not _against(config, bench)


def cores(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """That this process may use, a container's share of them observed."""
    if sys.platform != "linux":
        return 1
    allowed = len(os.sched_getaffinity(0))
    with contextlib.suppress(OSError, ValueError):
        quota, period = (cgroup / "cpu.max").read_text().split()
        allowed = min(allowed, math.ceil(int(quota) / int(period)))  # "max" is no number: there is none
    return max(1, allowed)


def _against(config: RunConfig, bench: Workbench) -> list[str]:
    threads = config.machine.threads
    found = {
        sys.platform: sys.platform != "linux",
        f"the device {bench.device.type}": bench.device.type != "cpu",
        f"machine.threads={threads}": threads not in (None, 1),
    }
    return [what for what, refused in found.items() if refused]


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Compute as a worker does, to its bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _begin(work: _Work, parent: int) -> None:
    """In a worker, before anything else."""
    ctypes.CDLL(None).prctl(DIE_WITH_PARENT, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)  # it was too late to be told
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # who began the run ends it
    torch.set_num_threads(1)
    _WORK[:] = [work]


def _train(jobs: Sequence[LocalJob]) -> Sequence[Made]:
    (work,) = _WORK
    return work.train(
        [
            replace(job, encoded=work.rows[job.encoded.identity]) if isinstance(job.encoded, _Known) else job
            for job in jobs
        ]
    )


def _nothing() -> None:
    """Asked of a pool so that it begins its processes."""
