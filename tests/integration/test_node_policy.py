"""What a site's people decide of an offered plan: by their policy, and in person."""

from __future__ import annotations

import pytest
from federation import FEW, Federation
from offers import RUN, codes, node, offer, set_up

from wardround.client.accepted import RunFolders
from wardround.client.admitting import runs_of
from wardround.client.keeper import own_keeper
from wardround.client.round import leaving
from wardround.client.sealed_files import Owner
from wardround.core.errors import PolicyError
from wardround.privacy.sums.contract import TRAINING
from wardround.runtime.offer_codec import decode_answer, encode_answer
from wardround.runtime.plan_folder import read_plan


def test_policy_decides_what_it_says_of_rows_and_time(federation: Federation) -> None:
    """Neither, where the site's people do not want it."""
    set_up(federation, tell_rows=False, tell_seconds=False)
    answer = node(federation).answer(offer(federation))
    assert (answer.verdict, answer.rows, answer.seconds_a_round) == ("accepted", "unsaid", None)


def test_every_reason_of_the_policy_is_told_at_once_before_a_row_is_read(federation: Federation) -> None:
    """Each in a sentence with what the plan asks for, and what is allowed."""
    strict = {"most_rank": 1, "most_rounds": 1, "tasks": ["causal_lm"]}
    set_up(federation, plans=FEW | strict, source={"path": "nowhere.jsonl"})
    answer = node(federation).answer(offer(federation))
    assert codes(answer) == ("refused", ["policy"] * 3)
    assert [reason.text for reason in answer.reasons] == [
        "the task is not allowed (tasks: sequence_classification, allowed: causal_lm)",
        "the adapter's rank is too large (most_rank: 2, allowed: at most 1)",
        "the plan has too many rounds (most_rounds: 2, allowed: at most 1)",
    ]
    records, _ = encode_answer(answer)
    assert decode_answer(records) == answer


def test_a_policy_that_is_tightened_in_a_run_ends_it_here(federation: Federation) -> None:
    """The supervisor signs nothing more for it, whatever the worker had loaded."""
    site = federation.practice.sites["basel"]
    assert codes(node(federation).answer(offer(federation))) == ("accepted", [])
    plan = read_plan(federation.practice.folder / "plan").plan
    owner = Owner(run_id=RUN, plan=bytes.fromhex(plan.digest), site="basel")
    record = own_keeper(site).record(owner, TRAINING)
    runs_of(site)(owner, TRAINING, record)
    set_up(federation, plans=FEW | {"most_rank": 1})
    with pytest.raises(PolicyError, match="does not allow the plan"):
        runs_of(site)(owner, TRAINING, record)


def test_a_person_declines_a_plan_for_good(federation: Federation) -> None:
    """Before it is accepted, against an approval, and after: then nothing is signed for the run any more."""
    site = federation.practice.sites["basel"]
    runs, digest = RunFolders(site.path / "runs"), read_plan(federation.practice.folder / "plan").digest
    assert codes(node(federation).answer(offer(federation))) == ("accepted", [])
    runs.approve(RUN, digest, "Dr Ann")
    runs.decline(RUN, "0" * 64, "Dr Ben")  # another plan
    assert codes(node(federation).answer(offer(federation))) == ("accepted", [])
    runs.decline(RUN, digest, "Dr Ben")
    assert codes(node(federation).answer(offer(federation))) == ("refused", ["declined"])
    plan = read_plan(federation.practice.folder / "plan").plan
    owner = Owner(run_id=RUN, plan=bytes.fromhex(plan.digest), site="basel")
    record = own_keeper(site).record(owner, TRAINING)
    with pytest.raises(PolicyError, match="declined"):
        runs_of(site)(owner, TRAINING, record)


def test_only_so_many_runs_a_month(federation: Federation) -> None:
    """One that was accepted stays so."""
    set_up(federation, plans=FEW | {"runs_a_month": 1})
    assert codes(node(federation).answer(offer(federation))) == ("accepted", [])
    answer = node(federation).answer(offer(federation, run_id=RUN.replace("0a", "0b")))
    assert codes(answer) == ("refused", ["policy"])
    assert "runs_a_month" in answer.reasons[0].text
    assert codes(node(federation).answer(offer(federation))) == ("accepted", [])


def test_a_person_approves_this_plan_and_no_other(federation: Federation) -> None:
    """Waiting until then; an approval of another plan is none."""
    set_up(federation, approval="manual")
    site = federation.practice.sites["basel"]
    assert codes(node(federation).answer(offer(federation))) == ("waiting", ["approval"])
    runs = RunFolders(site.path / "runs")
    runs.approve(RUN, "0" * 64, "Dr Ann")
    assert codes(node(federation).answer(offer(federation))) == ("waiting", ["approval"])
    runs.approve(RUN, read_plan(federation.practice.folder / "plan").digest, "Dr Ann")
    assert codes(node(federation).answer(offer(federation))) == ("accepted", [])


def test_the_site_that_is_served_tells_of_itself_what_the_policy_names(federation: Federation) -> None:
    """By default nothing: a node that forgot it would show everything, as a simulation does."""
    for figures in ([], ["training"]):
        set_up(federation, plans=FEW | {"figures": figures})
        own = node(federation)
        assert codes(own.answer(offer(federation))) == ("accepted", [])
        site = own.get((RUN, "basel"))
        assert site is not None
        assert leaving(site, {"train.loss": 1.0}) == ({"train.loss": 1.0} if figures else {})


def test_runs_of_the_hospitals_other_sites_count(federation: Federation) -> None:
    """As `beside` names them; of a run that was only offered there nothing is counted."""
    other = federation.practice.sites["aachen"].path
    set_up(federation, plans=FEW | {"runs_a_month": 1}, beside=[str(other)])
    folders = RunFolders(other / "runs")
    folders.offered("elsewhere", b"a plan")
    assert codes(node(federation).answer(offer(federation))) == ("accepted", [])
    folders.accept("elsewhere", plan="a" * 64, roster=bytes(32), server=bytes(32))
    again = node(federation).answer(offer(federation, run_id=RUN.replace("0a", "0b")))
    assert codes(again) == ("refused", ["policy"])
    set_up(federation, plans=FEW | {"runs_a_month": 2}, beside=[])
    again = node(federation).answer(offer(federation, run_id=RUN.replace("0a", "0b")))
    assert codes(again) == ("accepted", [])
