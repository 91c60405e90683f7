"""Differential privacy between machines: real sites with ledgers of their own, charged as the record says."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from deployed import wait_for
from federation import Deployed, Federation

from wardround.client.accepted import RunFolders
from wardround.client.fetching import Fetched, fetch_result
from wardround.client.ledger.commands import amend_policy, show_ledger
from wardround.client.ledger.reading import look
from wardround.client.ledger.summary import reservations, summarise
from wardround.client.site_commands import fetch_run
from wardround.runtime.event_log import read_events
from wardround.runtime.events import Event, PlanAnswered, RoundFolded, SiteReplied
from wardround.server.run_states import RunStatus

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]
DELTA = 1e-2
POOR, BARE = "dover", "emden"
"""A site whose cap is good for one round of the plan with local noise, and one without a ledger."""
COUNTS = {"aachen": 24, "basel": 26, "cork": 30, POOR: 28, BARE: 24}
RICH = ("aachen", "basel", "cork")
PATIENT: dict[str, Any] = {"unit": "patient", "epsilon": 6.0, "delta": DELTA}
DISTRIBUTED = PATIENT | {"noise": "distributed", "sample_rate": 0.5}
ONE_STEP = {"steps": 1, "epochs": None, "optimiser": "sgd", "learning_rate": 0.5}
ROUNDS = 2


@dataclass
class Ended:
    """A run that has ended.

    Attributes:
        run_id: Its id.
        events: What it told.
        fetched: The result, as a site fetches it.
    """

    run_id: str
    events: list[Event]
    fetched: Fetched

    def survivors(self) -> dict[int, tuple[str, ...]]:
        """Round → whose contribution is in its sum."""
        return {event.round: event.survivors for event in self.events if isinstance(event, RoundFolded)}


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory, tiny_bert: Path) -> Federation:
    """Its folders and files."""
    federation = Federation.make(tmp_path_factory.mktemp("private"), tiny_bert, COUNTS)
    federation.give_ledgers(dict.fromkeys(RICH, 60.0) | {POOR: 5.0}, delta=DELTA, allow_release=True)
    return federation


@pytest.fixture(scope="module")
def deployed(federation: Federation) -> Iterator[Deployed]:
    """All of its processes."""
    with ExitStack() as stack:
        yield Deployed.start(stack, federation)


def private_plan(federation: Federation, name: str, privacy: dict[str, Any], **local: Any) -> Path:
    """The folder of a signed plan."""
    return federation.plan(
        name, least=3, grace_s=60.0, units=(8, 15), privacy=privacy, strategy={"weighting": "uniform"},
        local={"epochs": 1, "batch_size": 4, "max_grad_norm": None} | local,
        rounds={"rounds": ROUNDS, "deadline_s": 900.0},
    )  # fmt: skip


def ended(federation: Federation, deployed: Deployed, run_id: str) -> Ended:
    """The run to its end."""
    record = deployed.ended(run_id, 1200)
    assert record.status is RunStatus.FINISHED, record.reason
    site = federation.practice.sites["aachen"]
    fetched = fetch_result(site, RunFolders(site.path / "runs"), run_id)
    return Ended(run_id, list(read_events(deployed.server.desk.run(run_id).folder.events)), fetched)


@pytest.fixture(scope="module")
def local_noise(federation: Federation, deployed: Deployed) -> Ended:
    """A run with noise at each step."""
    return ended(federation, deployed, deployed.submit(private_plan(federation, "local", PATIENT), "local"))


@pytest.fixture(scope="module")
def distributed_noise(federation: Federation, deployed: Deployed) -> Ended:
    """A run whose sums hold a share of discrete noise of each site."""
    plan = private_plan(federation, "distributed", DISTRIBUTED, **ONE_STEP)
    return ended(federation, deployed, deployed.submit(plan, "distributed"))


def require_charged(federation: Federation, run: Ended, site: str, rounds: list[int]) -> None:
    """Each of these rounds was reserved once and sealed once at the site, and ε is as the record says."""
    book, torn = look(federation.ledger(site))
    assert not torn
    reserved = [line for line in reservations(book) if line.run == run.run_id]
    assert [(line.round, line.stage) for line in reserved] == [(round, 0) for round in rounds], site
    assert [place for id, *place in book.seals if id == run.run_id] == [[round, 0] for round in rounds], site
    (line,) = [line for line in summarise(book).runs if line.run == run.run_id]
    assert (line.extra, line.sealed) == (0, len(rounds))
    assert run.fetched.record.privacy is not None
    assert run.fetched.record.privacy.sites[site] == pytest.approx(line.epsilon.value, rel=1e-9)


def test_a_site_without_a_ledger_refuses_the_offer(local_noise: Ended, distributed_noise: Ended) -> None:
    """With the reason; the run begins without it."""
    for run in (local_noise, distributed_noise):
        answers = {event.site: event for event in run.events if isinstance(event, PlanAnswered)}
        assert {site: answer.verdict for site, answer in answers.items()} == {
            **dict.fromkeys((*RICH, POOR), "accepted"), BARE: "refused",
        }  # fmt: skip
        assert "no privacy ledger" in str(answers[BARE].reasons)
        assert BARE not in run.fetched.record.sites


def test_every_folded_round_is_reserved_and_sealed_once(federation: Federation, local_noise: Ended) -> None:
    """At each site that was in it."""
    survivors = local_noise.survivors()
    assert sorted(survivors) == [1, 2]
    for site in (*RICH, POOR):
        rounds = [round for round, sites in survivors.items() if site in sites]
        require_charged(federation, local_noise, site, rounds)
    assert all(set(RICH) <= set(sites) for sites in survivors.values())


def test_a_site_whose_cap_is_reached_drops_out_by_name(federation: Federation, local_noise: Ended) -> None:
    """It was in the first round; the others go on, and its ledger has the refusal."""
    survivors = local_noise.survivors()
    assert [round for round, sites in survivors.items() if POOR in sites] == [1]
    said = [
        (event.round, event.status, event.code)
        for event in local_noise.events
        if isinstance(event, SiteReplied) and event.site == POOR and event.code == "budget"
    ]
    assert said == [(2, "refused", "budget")]
    book, _ = look(federation.ledger(POOR))
    (line,) = [line for line in summarise(book).runs if line.run == local_noise.run_id]
    assert line.refusals == 1
    assert line.epsilon.value <= 5.0
    assert line.released > 0, "those who were held back"


def test_shares_of_noise_in_the_sum_cost_what_the_record_says(
    federation: Federation, distributed_noise: Ended
) -> None:
    """The masked sum of every round holds a share of each site that was charged for it."""
    survivors = distributed_noise.survivors()
    assert sorted(survivors) == [1, 2]
    for site in RICH:
        assert all(site in sites for sites in survivors.values())
        require_charged(federation, distributed_noise, site, [1, 2])


def test_the_signed_result_says_what_was_promised(
    federation: Federation, local_noise: Ended, distributed_noise: Ended, capsys: pytest.CaptureFixture[str]
) -> None:
    """And so does the command that fetches it."""
    for run, noise in ((local_noise, "local"), (distributed_noise, "distributed")):
        privacy = run.fetched.record.privacy
        assert privacy is not None
        assert (privacy.unit, privacy.noise, privacy.delta) == ("patient", noise, DELTA)
        assert all(0 < epsilon <= 6.0 for epsilon in privacy.sites.values())
        assert {*RICH} <= set(privacy.sites) <= {*RICH, POOR}
        fetch_run(federation.practice.sites["basel"].path, run.run_id, merge=None)
        told = capsys.readouterr().out
        assert f"per patient and site ({noise} noise)" in told


def test_ledger_show_lists_the_run(
    federation: Federation, local_noise: Ended, capsys: pytest.CaptureFixture[str]
) -> None:
    """As the site's people see it."""
    show_ledger(federation.ledger("cork"), last=20, as_json=True)
    shown = json.loads(capsys.readouterr().out)
    (run,) = [run for run in shown["runs"] if run["run"] == local_noise.run_id]
    assert (run["stages"], run["sealed"], run["extra"]) == (2, 2, 0)


def test_a_worker_killed_in_mid_round_costs_an_extra_charge_and_contributes_once(
    federation: Federation, deployed: Deployed, local_noise: Ended, distributed_noise: Ended
) -> None:
    """It dies when the round is charged and not yet sealed: whatever it drew then never leaves.

    The people of the site whose cap was reached raise it before, so that a quorum is left.
    """
    assert local_noise.run_id < distributed_noise.run_id
    amend_policy(federation.ledger(POOR), {"epsilon": 60.0}, "Dr. D.", "agreed with the ethics board", None)
    victim = "basel"
    run_id = deployed.submit(private_plan(federation, "killed", PATIENT, epochs=40), "killed")
    ledger = federation.ledger(victim)

    def charged() -> bool:
        book, _ = look(ledger)
        return any(line.run == run_id for line in reservations(book))

    wait_for(charged, 600)
    worker = deployed.sites[victim].states()[1]
    assert worker.pid is not None
    os.kill(worker.pid, signal.SIGKILL)
    assert not any(run == run_id for run, *_ in look(ledger)[0].seals), "it was killed too late"
    run = ended(federation, deployed, run_id)
    book, _ = look(ledger)
    reserved = [line.round for line in reservations(book) if line.run == run_id]
    sealed = [round for name, round, _ in book.seals if name == run_id]
    assert sealed == [round for round, sites in run.survivors().items() if victim in sites]
    assert sealed == sorted(set(sealed))
    assert len(reserved) == len(sealed) + 1, "one draw is charged and lost"
    assert reserved[0] == 1
    (line,) = [line for line in summarise(book).runs if line.run == run_id]
    assert run.fetched.record.privacy is not None
    assert run.fetched.record.privacy.sites[victim] == pytest.approx(line.epsilon.value, rel=1e-9)


def test_a_banded_run_is_charged_once_although_a_worker_was_killed_in_mid_round(
    federation: Federation, deployed: Deployed
) -> None:
    """The whole run, in its first round, which is done again from the noise that the site had kept."""
    victim = "cork"
    plan = private_plan(federation, "banded", PATIENT | {"mechanism": "banded"}, epochs=40)
    run_id = deployed.submit(plan, "banded")
    ledger, folder = federation.ledger(victim), federation.practice.sites[victim].path / "runs" / run_id
    wait_for(lambda: any(line.run == run_id for line in reservations(look(ledger)[0])), 600)
    worker = deployed.sites[victim].states()[1]
    assert worker.pid is not None
    os.kill(worker.pid, signal.SIGKILL)
    assert not any(run == run_id for run, *_ in look(ledger)[0].seals), "it was killed too late"
    run = ended(federation, deployed, run_id)
    book, _ = look(ledger)
    (reserved,) = [line for line in reservations(book) if line.run == run_id]
    assert (reserved.round, reserved.stage, reserved.steps) == (0, 0, 1)
    sealed = [round for name, round, _ in book.seals if name == run_id]
    assert sealed == [round for round, sites in run.survivors().items() if victim in sites]
    assert sealed[-1] == ROUNDS
    assert run.fetched.record.privacy is not None
    assert run.fetched.record.privacy.sites[victim] == pytest.approx(reserved.epsilon.value, rel=1e-9)
    kept = sorted(path.name for path in (folder / "noise").iterdir())
    assert kept == ["round-00000.sealed", "round-00001.sealed"]
