"""A site that is killed in a run, for good: the run ends right and names it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from deployed import wait_for
from federation import Deployed, Federation, kill_for_good

from wardround.client.accepted import RunFolders
from wardround.client.fetching import fetch_result
from wardround.runtime.event_log import read_events
from wardround.runtime.events import RoundFolded, RoundStarted
from wardround.server.run_states import RunStatus

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
COUNTS = {"aachen": 24, "basel": 17, "cork": 30, "delft": 20}
SITES = tuple(sorted(COUNTS))


@pytest.fixture
def federation(tmp_path_factory: pytest.TempPathFactory, tiny_bert: Path) -> Federation:
    """Its folders and files."""
    return Federation.make(tmp_path_factory.mktemp("lost"), tiny_bert, COUNTS)


@pytest.fixture
def deployed(federation: Federation) -> Iterator[Deployed]:
    """All of its processes."""
    with ExitStack() as stack:
        yield Deployed.start(stack, federation)


def events_of(deployed: Deployed, run_id: str, kind: type[Any]) -> list[Any]:
    """Those of a kind, so far."""
    path = deployed.server.desk.run(run_id).folder.events
    return [event for event in read_events(path) if isinstance(event, kind)] if path.exists() else []


def begun(deployed: Deployed, run_id: str, round: int) -> bool:
    """Whether a round has been asked for."""
    return any(event.round == round for event in events_of(deployed, run_id, RoundStarted))


def test_a_site_that_is_killed_for_good_is_named_in_the_result(
    federation: Federation, deployed: Deployed
) -> None:
    """Under secure aggregation, in the middle of round 2: that round and the later ones go on without it."""
    plan = federation.plan("plan", rounds={"rounds": 3, "deadline_s": 60.0})
    run_id = deployed.submit(plan)
    wait_for(lambda: begun(deployed, run_id, 2), 300)
    kill_for_good(deployed.sites["delft"])
    record = deployed.ended(run_id, 400)
    assert record.status is RunStatus.FINISHED, record.reason
    rounds = {event.round: event.survivors for event in events_of(deployed, run_id, RoundFolded)}
    assert sorted(rounds) == [1, 2, 3]
    assert rounds[3] == ("aachen", "basel", "cork")
    site = federation.practice.sites["aachen"]
    result = fetch_result(site, RunFolders(site.path / "runs"), run_id).record
    assert result.sites == SITES
    assert dict(result.missing)[3] == ("delft",)
    assert {round for round, _ in result.missing} <= {2, 3}
