"""Lines between sites and server are cut in the middle of rounds of a real federation, and mended."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from deployed import wait_for
from federation import Deployed, Federation, config_of, reroute
from wire import CLOSED, HOLE, RESET, Wire

from wardround.runtime.event_log import read_events
from wardround.runtime.events import Event, RoundFolded, RoundStarted, SiteReplied
from wardround.server.run_states import RunStatus
from wardround.simulations.simulate import run_simulation

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
COUNTS = {"aachen": 24, "basel": 17, "cork": 30, "delft": 20}
SITES = tuple(sorted(COUNTS))


@dataclass
class Wired:
    """A federation whose sites each have a wire of their own to the server."""

    federation: Federation
    deployed: Deployed
    wires: dict[str, Wire]

    def events(self, run_id: str) -> list[Event]:
        """So far."""
        path = self.deployed.server.desk.run(run_id).folder.events
        return read_events(path) if path.exists() else []

    def reached(self, run_id: str, kind: type[Any], round: int) -> bool:
        """Whether a round has begun, or was folded."""
        return any(isinstance(event, kind) and event.round == round for event in self.events(run_id))

    def rounds(self, run_id: str) -> dict[int, tuple[str, ...]]:
        """Round → whose contributions are in it."""
        return {
            event.round: event.survivors for event in self.events(run_id) if isinstance(event, RoundFolded)
        }

    def trained(self, run_id: str) -> list[tuple[int, str]]:
        """Round and site of each good answer to a request to train; the last exchange only evaluates."""
        rounds = self.rounds(run_id)
        return sorted(
            (event.round, event.site)
            for event in self.events(run_id)
            if isinstance(event, SiteReplied)
            and event.round in rounds
            and event.status == "ok"
            and event.exchange == 0
        )

    def restarts(self) -> int:
        """How often any process of a site was started again."""
        return sum(state.restarts for site in self.deployed.sites.values() for state in site.states())

    def finished(self, run_id: str) -> None:
        """Wait for a good end."""
        record = self.deployed.ended(run_id, 400)
        assert record.status is RunStatus.FINISHED, record.reason


@pytest.fixture(scope="module")
def wired(tmp_path_factory: pytest.TempPathFactory, tiny_bert: Path) -> Iterator[Wired]:
    """All of its processes."""
    federation = Federation.make(tmp_path_factory.mktemp("wired"), tiny_bert, COUNTS)
    with ExitStack() as stack:
        wires = {}
        for name, site in federation.practice.sites.items():
            wires[name] = stack.enter_context(Wire(site.server_address))
            reroute(site, wires[name].address)
        yield Wired(federation, Deployed.start(stack, federation), wires)


@pytest.fixture(scope="module")
def undisturbed(wired: Wired, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The last adapter's digest of the simulation of the same plan."""
    output = tmp_path_factory.mktemp("undisturbed") / "run"
    config = config_of(wired.federation.base, wired.federation.rows, output=str(output))
    return run_simulation(config).federated.outcome.last.adapter.digest


@pytest.mark.parametrize(
    ("how", "cut", "seconds"), [(HOLE, ("basel",), 6.0), (RESET, ("delft",), 6.0), (CLOSED, SITES, 12.0)]
)
def test_a_cut_shorter_than_the_deadline_costs_nothing(
    wired: Wired, undisturbed: str, how: str, cut: tuple[str, ...], seconds: float
) -> None:
    """One site's line or all: each round has all sites, each trained it once, the adapter is the same."""
    name = f"short-{how}"
    before = wired.restarts()
    run_id = wired.deployed.submit(wired.federation.plan(name), name)
    wait_for(lambda: wired.reached(run_id, RoundStarted, 1), 120)
    for site in cut:
        wired.wires[site].cut(how)
    time.sleep(seconds)
    for site in cut:
        wired.wires[site].mend()
    wired.finished(run_id)
    assert wired.rounds(run_id) == {1: SITES, 2: SITES}
    assert wired.trained(run_id) == [(round, site) for round in (1, 2) for site in SITES]
    assert wired.restarts() == before
    folded = [event for event in wired.events(run_id) if isinstance(event, RoundFolded)]
    assert folded[-1].adapter_digest == undisturbed


@pytest.mark.parametrize("how", [CLOSED, HOLE])
def test_a_cut_longer_than_the_deadline_costs_the_sites_round(wired: Wired, how: str) -> None:
    """It is named as late, the round counts without it, and it is back in a later one without a person."""
    name = f"long-{how}"
    rounds = {"rounds": 5, "deadline_s": 45.0}
    run_id = wired.deployed.submit(wired.federation.plan(name, rounds=rounds), name)
    wait_for(lambda: wired.reached(run_id, RoundStarted, 1), 120)
    wired.wires["cork"].cut(how)
    wait_for(lambda: wired.reached(run_id, RoundFolded, 1), 120)
    wired.wires["cork"].mend()
    wired.finished(run_id)
    of_cork = {
        (event.round, event.status, event.code)
        for event in wired.events(run_id)
        if isinstance(event, SiteReplied) and event.site == "cork" and event.exchange == 0
    }
    assert (1, "late", "deadline") in of_cork
    rounds_of = wired.rounds(run_id)
    assert rounds_of[1] == ("aachen", "basel", "delft")
    assert rounds_of[5] == SITES
    log = wired.deployed.server.desk.run(run_id).folder.log.read_text()
    assert "round 1: cork late: no answer before the deadline" in log
    assert "without cork" in log
