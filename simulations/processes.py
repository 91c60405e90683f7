"""Sites of a simulation trained and scored by processes of this machine, which share the base model's memory.

They are forked from the process that began the run once model and rows are there: nothing is loaded again, no
row travels, and beside its activations a worker needs hardly any memory. What it is sent is a local round
(`LocalJob`), or what is to be scored (`ScoringJob`); what comes back is what that gave. Both depend on the
seed tree alone. Where a worker dies, the process that began the run does what that one had, and the others
go on.

Each worker has a pipe of its own, whose end is closed everywhere else: whatever becomes of it is seen at
once. One thread a worker: the threads of a process do not survive its fork. Several machines, and GPUs, are
Ray's (`ray_workers.py`).
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import math
import multiprocessing
import os
import pickle
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Final

import torch

from wardround.core.errors import ConfigError, InternalError
from wardround.simulations.config import RunConfig
from wardround.simulations.together import Crew, Here, Job, Made, Trainer
from wardround.training.workbench import Workbench

LOG = logging.getLogger(__name__)
DIE_WITH_PARENT: Final = 1
"""PR_SET_PDEATHSIG of prctl(2): a worker outlives nobody."""
SMALL: Final = 500_000_000
"""Parameters of a base model with which each core may train a site of its own unasked."""

Rows = Mapping[int, Sequence[Any]]
"""Rows of sites by their identity, which a fork leaves as it is."""


@dataclass(frozen=True)
class _Known:
    """Stands for rows that a worker has."""

    identity: int


@dataclass
class Worker:
    """One process, and the thread that talks to it.

    Attributes:
        process: Of its own session of Python.
        line: To it.
        thread: Sends it a lot and waits for what it made, one lot after the other.
        waiting: Lots that it has.
        lost: Whether it has died.
    """

    process: BaseProcess
    line: Connection
    thread: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "wardround-lots"))
    waiting: int = 0
    lost: bool = False

    def asked(self, jobs: Sequence[Job]) -> Future[Sequence[Made]]:
        """What the jobs give, once it has come to them."""
        self.waiting += 1
        return self.thread.submit(self._ask, jobs)

    def _ask(self, jobs: Sequence[Job]) -> Sequence[Made]:
        self.line.send(jobs)
        made: Sequence[Made] = self.line.recv()
        return made

    def end(self) -> None:
        """Of what it may still train nobody waits for the end."""
        self.process.kill()
        self.process.join()
        self.thread.shutdown(cancel_futures=True)  # its pipe has come to an end
        self.line.close()


@dataclass
class ForkedCrew:
    """Workers of this machine.

    Attributes:
        workers: Each with a process.
        here: Trains what a lost one had.
        rows: That workers have.
    """

    workers: Sequence[Worker]
    here: Trainer
    rows: Rows

    @property
    def ahead(self) -> int:
        """A lot for each worker, and one that waits at each."""
        return 2 * len(self.workers) - 1

    def start(self, jobs: Sequence[Job]) -> Callable[[], Sequence[Made]]:
        """As `Crew`: at the worker that has least to do."""
        there = [worker for worker in self.workers if not worker.lost]
        if not there:
            return lambda: self._trained_here(jobs)
        worker = min(there, key=lambda each: each.waiting)
        begun = worker.asked([replace(job, encoded=self._light(job.encoded)) for job in jobs])

        def wait() -> Sequence[Made]:
            try:
                return begun.result()
            except (EOFError, OSError):
                if not worker.lost:
                    LOG.warning(
                        "a worker of the simulation was lost, as a rule to a full memory: "
                        "this process does its part"
                    )
                    worker.lost = True
                return self._trained_here(jobs)
            finally:
                worker.waiting -= 1

        return wait

    def _trained_here(self, jobs: Sequence[Job]) -> Sequence[Made]:
        with one_thread():
            return self.here(jobs)

    def _light(self, rows: Sequence[Any]) -> Any:
        return _Known(id(rows)) if self.rows.get(id(rows)) is rows else rows


@contextlib.contextmanager
def forked_crew(
    config: RunConfig, bench: Workbench, rows: Iterable[Sequence[Any]], scored: Iterable[Sequence[Any]] = ()
) -> Iterator[Crew]:
    """Workers for a run, for as long as it lasts; this process where there is none, and nobody asked for it.

    Args:
        config: Of the run.
        bench: What it was prepared with.
        rows: Of each site, to train on.
        scored: That are scored beside them.

    Raises:
        ConfigError: This machine, its device or the number of threads allows none.
    """
    require_forks(config, bench)
    trained = {id(own): own for own in rows}
    known = trained | {id(own): own for own in scored}
    here, workers = Trainer(bench), list[Worker]()
    try:
        try:
            for _ in range(config.simulation.processes or min(cores(), max(1, len(trained)))):
                workers.append(_forked(here, known))
        except OSError as error:
            if config.simulation.backend != "auto":
                raise ConfigError(
                    "the system gives the simulation no further process", found=str(error),
                    remedy="set simulation.processes to fewer, or simulation.backend=inline",
                ) from error  # fmt: skip
            LOG.warning("the system gives no process to train in (%s): this one trains", error)
        yield ForkedCrew(workers, here, known) if workers else Here(here)
    finally:
        for worker in workers:
            worker.end()


def _forked(here: Trainer, rows: Rows) -> Worker:
    """A worker, which the calling thread has to outlive."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    process = context.Process(
        target=_work, args=(theirs, here, rows, os.getpid()), daemon=True, name="wardround-worker"
    )
    try:
        process.start()
    except OSError:
        ours.close()
        raise
    finally:
        theirs.close()  # so that no later fork holds it open
    return Worker(process, ours)


def require_forks(config: RunConfig, bench: Workbench) -> None:
    """Refuse what a fork cannot carry.

    Raises:
        ConfigError: Another system than Linux, another device than the CPU, or several threads.
    """
    wrong = _against(config, bench)
    if wrong:
        raise ConfigError(
            "simulation.backend=processes cannot be had here", found=", ".join(wrong),
            expected="Linux without a GPU, and machine.threads null or 1: a process computes with one thread",
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
        # Once a gradient was computed beside one, torch refuses all gradients in forked processes.
        "a GPU that torch sees": torch.accelerator.is_available(),
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


def _work(line: Connection, train: Trainer, rows: Rows, parent: int) -> None:
    """All that a worker does."""
    ctypes.CDLL(None).prctl(DIE_WITH_PARENT, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        return  # it was too late to be told
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # who began the run ends it
    torch.set_num_threads(1)
    while True:
        jobs: Sequence[Job] = line.recv()
        made = train(
            [
                replace(job, encoded=rows[job.encoded.identity]) if isinstance(job.encoded, _Known) else job
                for job in jobs
            ]
        )
        line.send([_sound(each) if isinstance(each, Exception) else each for each in made])


def _sound(error: Exception) -> Exception:
    """An error that gets through a pipe: as it is, or what can be said of it."""
    try:
        pickle.loads(pickle.dumps(error))  # noqa: S301 - made a moment ago, right here
    except Exception:  # noqa: BLE001 - whatever its class does in there
        return InternalError(f"a site failed with {type(error).__name__}, which cannot leave its process")
    return error
