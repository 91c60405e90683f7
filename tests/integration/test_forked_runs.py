"""Simulations whose sites are trained by forked processes: the same run, whoever trains or is lost."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from who_trains import KINDS, figures, same_run, scored, trains_at

from wardround.core.errors import ConfigError
from wardround.runtime.event_log import read_events
from wardround.runtime.events import SiteReplied
from wardround.simulations import processes, together
from wardround.simulations.config import RunConfig
from wardround.simulations.processes import forks_pay
from wardround.simulations.simulate import run_simulation

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="workers are forked on Linux alone")
WARDS = 6
TEST = WARDS + 3
"""Lots of test rows: each ward's own, and everybody's 66 by four batches of eight."""
LOTS = TEST + 3 * WARDS + TEST
"""Test rows before, two rounds, the last state on validation rows, and test rows after."""


@pytest.fixture
def settings(notes: Callable[..., Any], tmp_path: Path) -> Callable[..., RunConfig]:
    """Six wards of different sizes, two rounds; all rows are test rows as well."""
    make: Callable[..., RunConfig] = notes(
        rows=66, wards=WARDS, rounds=2, test={"path": str(tmp_path / "rows.jsonl")}
    )

    def by_backend(name: str, **sections: Any) -> RunConfig:
        simulation = {"backend": name, "processes": 2} | sections.pop("simulation", {})
        machine = {"evaluation_batch_size": 8} | sections.pop("machine", {})
        return make(name, simulation=simulation, machine=machine, **sections)

    return by_backend


def not_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """No site may train in this process, or be scored."""
    from wardround.client import work

    def here(*_: Any) -> None:
        raise AssertionError("a site trained, or was scored, in the process that began the run")

    for name in ("train_locally", "score"):
        monkeypatch.setattr(work, name, here)


@KINDS
def test_who_trains_changes_nothing(
    settings: Callable[..., RunConfig], sections: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Adapter, scores and each site's figures have the same bits, noise and all; nobody is left behind."""
    inline = run_simulation(settings("inline", **sections))
    not_here(monkeypatch)
    workers = run_simulation(settings("processes", **sections))
    assert same_run(inline, workers)

    assert figures(inline) == figures(workers)
    assert scored(inline) == scored(workers)
    assert len(scored(workers)) == 2 * (1 + WARDS) + 3, "test rows twice, validation rows of each state"
    assert len(figures(workers)) == 2 * WARDS
    assert not multiprocessing.active_children()


def test_no_row_travels(settings: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers have them from the fork."""
    sent: list[Any] = []
    asked = processes.Worker.asked

    def seen(worker: processes.Worker, jobs: Any) -> Any:
        sent.extend(job.encoded for job in jobs)
        return asked(worker, jobs)

    monkeypatch.setattr(processes.Worker, "asked", seen)
    run_simulation(settings("processes"))
    assert len(sent) == LOTS + 2 * WARDS, "who trains is scored with it"
    assert all(isinstance(rows, processes._Known) for rows in sent)


@pytest.mark.parametrize("at", [1, TEST + 1, TEST + 4], ids=["scoring", "training", "later"])
def test_where_a_worker_is_killed_this_process_does_its_part(
    settings: Callable[..., RunConfig],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    at: int,
) -> None:
    """In the middle of its work: nothing is lost, no bit changes, and the log says it once."""
    inline = run_simulation(settings("inline"))
    start, started = processes.ForkedCrew.start, list[int]()

    def killing(crew: processes.ForkedCrew, jobs: Any) -> Any:
        wait = start(crew, jobs)
        started.append(len(jobs))
        if len(started) == at:
            pid = max(crew.workers, key=lambda worker: worker.waiting).process.pid
            assert pid is not None
            os.kill(pid, signal.SIGKILL)
        return wait

    monkeypatch.setattr(processes.ForkedCrew, "start", killing)
    assert same_run(inline, run_simulation(settings("processes")))
    assert len(started) == LOTS
    assert [r.message for r in caplog.records if "worker" in r.message] == [
        "a worker of the simulation was lost, as a rule to a full memory: this process does its part"
    ]
    assert not multiprocessing.active_children()


def test_a_workers_error_is_the_sites_own(
    settings: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A site that cannot train fails by its own code and words; the others are in the sum."""
    start = processes.ForkedCrew.start

    def without_rows(crew: processes.ForkedCrew, jobs: Any) -> Any:
        return start(crew, [replace(job, encoded=[]) if trains_at(job, "w1") else job for job in jobs])

    monkeypatch.setattr(processes.ForkedCrew, "start", without_rows)
    monkeypatch.setattr(together, "same", lambda *_: True)
    result = run_simulation(settings("processes", rounds={"quorum": 0.5}))
    replies = [e for e in read_events(result.folder / "metrics.jsonl") if isinstance(e, SiteReplied)]
    assert {(e.site, e.code) for e in replies if e.status == "failed"} == {("w1", "no_rows")}


class TwoReasonsError(Exception):
    """One that pickle cannot make again."""

    def __init__(self, one: str, other: str) -> None:
        super().__init__(one)
        self.other = other


def test_an_error_that_cannot_travel_is_its_sites_own_as_well(
    settings: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The others of its lot are in the sum, and no worker is lost over it."""
    alone = together.Trainer._alone

    def failing(trainer: together.Trainer, job: Any) -> Any:
        return TwoReasonsError("a", "b") if trains_at(job, "w1") else alone(trainer, job)

    monkeypatch.setattr(together.Trainer, "_alone", failing)
    result = run_simulation(settings("processes", rounds={"quorum": 0.5}))
    replies = [e for e in read_events(result.folder / "metrics.jsonl") if isinstance(e, SiteReplied)]
    assert {(e.site, e.code) for e in replies if e.status == "failed"} == {("w1", "internal")}
    assert "was lost" not in caplog.text


@pytest.mark.parametrize("after", [0, 1])
def test_where_the_system_gives_no_process_auto_goes_on(
    settings: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    """In this process, or in as many as there are; asked for outright it is an error with a remedy."""
    forked, made = processes._forked, list[int]()

    def scarce(*given: Any) -> processes.Worker:
        made.append(1)
        if len(made) > after:
            raise OSError("Resource temporarily unavailable")
        return forked(*given)

    monkeypatch.setattr(processes, "_forked", scarce)
    monkeypatch.setattr(processes, "cores", lambda: 2)
    few = {"machine": {"threads": None}, "simulation": {"processes": 2}}
    result = run_simulation(settings("auto", **few))
    assert result.federated.outcome.last.round == 2
    made.clear()
    with pytest.raises(ConfigError, match="no further process") as refused:
        run_simulation(settings("processes", **few))
    assert "simulation.backend=inline" in str(refused.value.remedy)
    assert not multiprocessing.active_children()


def test_a_worker_that_is_killed_while_it_answers_holds_nobody_up() -> None:
    """Half a message in its pipe: whoever waits for it is told, and the end of all comes."""

    class Large:
        """Trains nothing, and answers with more than a pipe holds."""

        def __call__(self, jobs: Any) -> list[bytes]:
            return [bytes(200 << 20)]

    large: Any = Large()
    worker = processes._forked(large, {})
    begun = worker.asked([])
    time.sleep(0.5)  # it sends, or is about to
    worker.process.kill()
    try:
        begun.result(timeout=60)
    except TimeoutError:  # an OSError as well
        pytest.fail("who waits is not told")
    except (EOFError, OSError):
        pass
    worker.end()
    assert not worker.process.is_alive()


def test_several_threads_are_refused_with_what_to_do(settings: Callable[..., RunConfig]) -> None:
    """They do not survive a fork."""
    with pytest.raises(ConfigError, match="cannot be had here") as refused:
        run_simulation(settings("processes", machine={"threads": 2}))
    assert refused.value.found == "machine.threads=2"
    assert "simulation.backend=ray" in str(refused.value.remedy)


@pytest.mark.parametrize(
    ("expected", "threads", "device", "cores", "sites", "words"),
    [
        (True, None, "cpu", 2, 4, 100), (False, 1, "cpu", 2, 4, 100), (False, None, "cuda", 2, 4, 100),
        (False, None, "cpu", 1, 4, 100), (False, None, "cpu", 2, 1, 100), (False, None, "cpu", 2, 4, 500_001),
    ],
    ids=["so", "threads", "gpu", "one core", "one site", "large"],
)  # fmt: skip
def test_what_auto_takes(
    monkeypatch: pytest.MonkeyPatch,
    expected: bool,
    threads: int | None,
    device: str,
    cores: int,
    sites: int,
    words: int,
) -> None:
    """Processes, unless somebody has said how to compute, or nothing is won."""
    monkeypatch.setattr(processes, "cores", lambda: cores)
    model = torch.nn.Linear(1000, words, bias=False, device="meta")
    bench: Any = SimpleNamespace(device=torch.device(device), model=model)
    machine, simulation = SimpleNamespace(threads=threads), SimpleNamespace(processes=None)
    config: Any = SimpleNamespace(machine=machine, simulation=simulation)
    assert forks_pay(config, bench, sites) is expected


@pytest.mark.parametrize(
    ("told", "expected"), [("150000 100000", 2), ("50000 100000", 1), ("max 100000", 8), ("", 8), (None, 8)]
)
def test_a_containers_share_of_the_cores_is_observed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: str | None, expected: int
) -> None:
    """It sees all of the machine's, and may use some."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    if told is not None:
        (tmp_path / "cpu.max").write_text(told)
    assert processes.cores(tmp_path) == expected


@pytest.mark.parametrize("threads", [None, 1])
def test_who_trains_where_nobody_says(
    settings: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch, threads: int | None
) -> None:
    """Forked processes, with as many bits as one thread has."""
    monkeypatch.setattr(processes, "cores", lambda: 2)
    begun: list[int] = []
    start = processes.ForkedCrew.start

    def counted(crew: processes.ForkedCrew, jobs: Any) -> Any:
        begun.append(len(crew.workers))
        return start(crew, jobs)

    monkeypatch.setattr(processes.ForkedCrew, "start", counted)
    config = settings("auto", machine={"threads": threads}, simulation={"processes": None})
    result = run_simulation(config)
    assert begun == ([2] * LOTS if threads is None else [])
    assert same_run(result, run_simulation(settings("inline")))


BEGUN = """
import pathlib, sys, time
from multiprocessing import active_children
from types import SimpleNamespace
import torch
from wardround.simulations.processes import forked_crew
bench = SimpleNamespace(device=torch.device("cpu"))
simulation = SimpleNamespace(processes=2, backend="auto")
config = SimpleNamespace(machine=SimpleNamespace(threads=None), simulation=simulation)
with forked_crew(config, bench, []):
    print(*(child.pid for child in active_children()), flush=True)
    time.sleep(60)
"""


def test_no_worker_outlives_the_process_that_began_the_run(tmp_path: Path) -> None:
    """Killed without a chance to tell them."""
    with subprocess.Popen([sys.executable, "-c", BEGUN], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        workers = [int(pid) for pid in process.stdout.readline().split()]
        assert len(workers) == 2
        process.kill()
    for _ in range(200):
        if not any(alive(pid) for pid in workers):
            break
        time.sleep(0.05)
    assert not any(alive(pid) for pid in workers)


def alive(pid: int) -> bool:
    """And no mere entry that waits to be looked at."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False
