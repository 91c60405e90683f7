"""Strategies of two stages between processes: the simulation's bits, also where somebody dies in between."""

from __future__ import annotations

import os
import signal
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from deployed import wait_for
from federation import Deployed, Federation, config_of, server_process, submitted

from wardround.client.supervisor import running_site
from wardround.runtime.event_log import read_events
from wardround.runtime.events import RoundFolded, RoundStarted
from wardround.server.run_states import RunStatus
from wardround.simulations.simulate import SimulationResult, run_simulation

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
COUNTS = {"aachen": 24, "basel": 17, "cork": 30}
TWO_PASS: dict[str, Any] = {
    "strategy": {"name": "two_pass"}, "rounds": {"rounds": 3, "deadline_s": 120.0},
}  # fmt: skip


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory, tiny_bert: Path) -> Federation:
    """Its folders and files."""
    return Federation.make(tmp_path_factory.mktemp("stages"), tiny_bert, COUNTS)


@pytest.fixture(scope="module")
def simulated(federation: Federation, tmp_path_factory: pytest.TempPathFactory) -> SimulationResult:
    """The simulation of the same plan."""
    output = tmp_path_factory.mktemp("simulated") / "run"
    return run_simulation(config_of(federation.base, federation.rows, output=str(output), **TWO_PASS))


def folded(events: Path) -> list[tuple[int, str, tuple[str, ...]]]:
    """Round, digest of the adapter after it, and its survivors, as they were told."""
    told = (event for event in read_events(events) if isinstance(event, RoundFolded))
    return [(event.round, event.adapter_digest, event.survivors) for event in told]


def test_the_rounds_are_the_simulations(federation: Federation, simulated: SimulationResult) -> None:
    """Under secure aggregation, in both stages: the same adapter after every round."""
    with ExitStack() as stack:
        deployed = Deployed.start(stack, federation)
        run = deployed.submit(federation.plan("plain", **TWO_PASS), "plain")
        record = deployed.ended(run)
        assert record.status is RunStatus.FINISHED, record.reason
        found = folded(deployed.server.desk.run(run).folder.events)
    assert found == folded(simulated.folder / "metrics.jsonl")
    assert [survivors for _, _, survivors in found] == [tuple(sorted(COUNTS))] * 3


def asked(events: Path, round: int, stage: int) -> bool:
    """Whether a stage of a round has been asked for; what a killed server told of its round is dropped."""
    return events.exists() and any(
        isinstance(event, RoundStarted) and (event.round, event.stage) == (round, stage)
        for event in read_events(events)
    )


def test_server_and_worker_killed_between_the_stages_change_no_bit(
    federation: Federation, simulated: SimulationResult, tmp_path: Path
) -> None:
    """The server dies in the second stage of round 2 and goes on in it; in that of round 3 a site's worker.

    Nobody trains again, and the worker's site contributes from what it had trained and sealed.
    """
    practice, log = federation.practice, tmp_path / "server.log"
    plan = federation.plan("killed", **TWO_PASS)
    with ExitStack() as stack:
        sites = {name: stack.enter_context(running_site(site.path)) for name, site in practice.sites.items()}
        with server_process(practice.server, log) as first:
            run = submitted(practice.server, plan)
            folder = practice.server / "runs" / run
            wait_for(lambda: asked(folder / "events.jsonl", 2, 1), 240)
            first.send_signal(signal.SIGKILL)
            first.wait()
        assert (folder / "between.safetensors").exists()
        memory = {name: site.path / "runs" / run / "memory" for name, site in practice.sites.items()}
        assert all((path / "stage-00002-0.sealed").exists() for path in memory.values())
        time.sleep(1.0)
        with server_process(practice.server, log):
            wait_for(lambda: asked(folder / "events.jsonl", 3, 0), 240)
            assert not asked(folder / "events.jsonl", 2, 0), "the first stage was asked for again"
            wait_for(lambda: asked(folder / "events.jsonl", 3, 1), 240)
            worker = next(state for state in sites["basel"].states() if state.name == "worker")
            assert worker.pid is not None
            os.kill(worker.pid, signal.SIGKILL)
            wait_for((folder / "result" / "result.signed.json").exists, 300)
    assert folded(folder / "events.jsonl") == folded(simulated.folder / "metrics.jsonl")
    assert not (folder / "between.safetensors").exists()
    left = {path.name for own in memory.values() for path in own.glob("*") if path.name.startswith("stage")}
    assert not left, "what a stage left outlives the run's last round"
