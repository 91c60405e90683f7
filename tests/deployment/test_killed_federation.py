"""Server and sites are killed in the middle of a run, with real processes: it ends as an undisturbed one."""

from __future__ import annotations

import os
import signal
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from deployed import wait_for
from federation import Federation, config_of, server_process, started, submitted

from wardround.client.accepted import RunFolders
from wardround.client.fetching import fetch_result
from wardround.client.supervisor import running_site
from wardround.runtime.event_log import read_events
from wardround.runtime.events import RoundFolded
from wardround.simulations.simulate import run_simulation

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
COUNTS = {"aachen": 24, "basel": 17, "cork": 30}
ROUNDS = {"rounds": {"rounds": 4, "deadline_s": 120.0}}


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory, tiny_bert: Path) -> Federation:
    """Its folders and files."""
    return Federation.make(tmp_path_factory.mktemp("killed"), tiny_bert, COUNTS)


@pytest.fixture(scope="module")
def undisturbed(federation: Federation, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The simulation of the same plan."""
    output = tmp_path_factory.mktemp("undisturbed") / "run"
    return run_simulation(config_of(federation.base, federation.rows, output=str(output), **ROUNDS))


def test_a_run_whose_server_and_a_site_are_killed_ends_as_the_undisturbed_one(
    federation: Federation, undisturbed: Any, tmp_path: Path
) -> None:
    """The server dies in round 2, a site's worker in round 3: where it trained then, it does so once more."""
    practice, log = federation.practice, tmp_path / "server.log"
    plan = federation.plan("plan", **ROUNDS)
    with ExitStack() as stack:
        sites = {name: stack.enter_context(running_site(site.path)) for name, site in practice.sites.items()}
        with server_process(practice.server, log) as first:
            run_id = submitted(practice.server, plan)
            folder = practice.server / "runs" / run_id
            wait_for(lambda: started(folder, 2), 180)
            first.send_signal(signal.SIGKILL)
            first.wait()
        time.sleep(1.0)
        with server_process(practice.server, log):
            wait_for(lambda: started(folder, 3), 240)
            worker = next(state for state in sites["basel"].states() if state.name == "worker")
            assert worker.pid is not None
            os.kill(worker.pid, signal.SIGKILL)
            wait_for((folder / "result" / "result.signed.json").exists, 300)
            fetched = fetch_result(
                practice.sites["aachen"], RunFolders(practice.sites["aachen"].path / "runs"), run_id
            )
    rounds = [event for event in read_events(folder / "events.jsonl") if isinstance(event, RoundFolded)]
    assert [event.round for event in rounds] == [1, 2, 3, 4]
    complete = [event.round for event in rounds if event.survivors == tuple(sorted(COUNTS))]
    assert complete[:2] == [1, 2], "the killed server lost a site's contribution"
    assert fetched.record.sites == tuple(sorted(COUNTS))
    if complete == [1, 2, 3, 4]:
        assert fetched.record.last == undisturbed.federated.outcome.last.adapter.digest
