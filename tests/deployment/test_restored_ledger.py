"""Ledgers that are put back from a backup between two runs, of sites as they are deployed: peers tell."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from federation import Deployed, Federation

from wardround.client.ledger.commands import replay_rows, write_cap_off
from wardround.client.ledger.ledger import Ledger
from wardround.client.ledger.reading import look, verify
from wardround.client.ledger.row_file import FILE
from wardround.client.ledger.summary import reservations, summarise
from wardround.client.peer_heads import FILE as PEER_HEADS
from wardround.core.errors import RolledBackError
from wardround.runtime.event_log import read_events
from wardround.runtime.events import Event, RoundFolded, SiteReplied
from wardround.server.run_states import RunStatus

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]
COUNTS = {"aachen": 24, "basel": 26, "cork": 30, "dover": 28, "emden": 24}
REPLAYED, WRITTEN_OFF = "basel", "cork"
DELTA = 1e-2
PRIVACY: dict[str, Any] = {"unit": "patient", "epsilon": 6.0, "delta": DELTA}


@dataclass
class Ended:
    """A run that has ended.

    Attributes:
        run_id: Its id.
        events: What it told.
    """

    run_id: str
    events: list[Event]

    @property
    def survivors(self) -> tuple[str, ...]:
        """Whose contribution is in its one sum."""
        (folded,) = [event.survivors for event in self.events if isinstance(event, RoundFolded)]
        return folded

    def said(self, site: str) -> set[tuple[str, str]]:
        """What kept a site out: status and code."""
        replies = [event for event in self.events if isinstance(event, SiteReplied) and event.site == site]
        return {(event.status, event.code) for event in replies if event.status != "ok"}


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory, tiny_bert: Path) -> Federation:
    """Its folders and files; each site has a ledger that is good for several runs."""
    federation = Federation.make(tmp_path_factory.mktemp("restored"), tiny_bert, COUNTS)
    federation.give_ledgers(dict.fromkeys(COUNTS, 60.0), delta=DELTA)
    return federation


@pytest.fixture(scope="module")
def deployed(federation: Federation) -> Iterator[Deployed]:
    """All of its processes."""
    with ExitStack() as stack:
        yield Deployed.start(stack, federation)


def run(federation: Federation, deployed: Deployed, name: str) -> Ended:
    """One private run of one round, to its end."""
    plan = federation.plan(
        name, data=federation.data(validation_fraction=0.0),
        least=4, grace_s=60.0, units=(8, 15), privacy=PRIVACY, strategy={"weighting": "uniform"},
        local={"epochs": 1, "batch_size": 4, "max_grad_norm": None},
        rounds={"rounds": 1, "deadline_s": 900.0},
    )  # fmt: skip
    run_id = deployed.submit(plan, name)
    record = deployed.ended(run_id, 1200)
    assert record.status is RunStatus.FINISHED, record.reason
    return Ended(run_id, list(read_events(deployed.server.desk.run(run_id).folder.events)))


def restored(ledger: Path, backup: Path) -> Path:
    """Put a backup in a ledger's place; where the true one is then."""
    true = ledger.with_name(f"true-{ledger.parent.name}")
    ledger.rename(true)
    shutil.copytree(backup, ledger)
    return true


def test_a_ledger_that_was_put_back_between_two_runs_keeps_its_site_out(
    federation: Federation, deployed: Deployed, tmp_path: Path
) -> None:
    """By name, and the run goes on; replayed it is in again, written off as far as its cap says."""
    everybody = tuple(sorted(COUNTS))
    ledgers = {site: federation.ledger(site) for site in (REPLAYED, WRITTEN_OFF)}
    backups = {site: tmp_path / site for site in ledgers}
    for site, ledger in ledgers.items():
        shutil.copytree(ledger, backups[site])
    first = run(federation, deployed, "first")
    assert first.survivors == everybody
    for site in COUNTS:
        assert (federation.practice.sites[site].path / PEER_HEADS).stat().st_mode & 0o777 == 0o600

    ledger = ledgers[REPLAYED]
    true = restored(ledger, backups[REPLAYED])
    second = run(federation, deployed, "second")
    assert second.survivors == tuple(site for site in everybody if site != REPLAYED)
    assert second.said(REPLAYED) == {("refused", "rolled_back")}
    rows = (ledger / FILE).read_bytes()
    for opening in (lambda: Ledger.open(ledger), lambda: verify(ledger)):
        with pytest.raises(RolledBackError, match="wardround ledger replay"):
            opening()

    third = run(federation, deployed, "third")  # nothing is reserved any more
    assert third.survivors == second.survivors
    assert third.said(REPLAYED) == {("refused", "rolled_back")}
    assert (ledger / FILE).read_bytes() == rows

    replay_rows(ledger, true)
    restored(ledgers[WRITTEN_OFF], backups[WRITTEN_OFF])
    fourth = run(federation, deployed, "fourth")
    assert fourth.survivors == tuple(site for site in everybody if site != WRITTEN_OFF)
    assert fourth.said(WRITTEN_OFF) == {("refused", "rolled_back")}
    charged = {line.run for line in reservations(look(ledger)[0])}
    assert charged == {first.run_id, second.run_id, fourth.run_id}, "what it drew in the second run as well"

    write_cap_off(ledgers[WRITTEN_OFF], "Dr. C.", "the disk broke, and the mirror with it", [], None)
    fifth = run(federation, deployed, "fifth")
    assert fifth.survivors == fourth.survivors
    assert fifth.said(WRITTEN_OFF) == {("refused", "budget")}
    assert summarise(look(ledgers[WRITTEN_OFF])[0]).highest.value >= 60.0
