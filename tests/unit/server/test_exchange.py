"""The attempts and phases of a stage's sums: who is asked again for what, who is told of, what is lost."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest

from wardround.core.errors import QuorumError
from wardround.core.plan import RoundRules, SecureRules
from wardround.privacy.secagg.messages import Box
from wardround.privacy.sums.contract import EVALUATION, TRAINING, Lanes
from wardround.runtime.events import RoundBurnt, RoundFolded, RoundStarted, SiteReplied, SumOpened
from wardround.server.rounds import run_rounds

PHASED = pytest.mark.parametrize("mode", ["accounted", "real"])
ADVERTISE, DEAL, MASK, CONFIRM, UNMASK, AGAIN = range(6)


def silent(exchange: int, sites: str, *, round: int = 1, attempts: int = 1) -> Any:
    """These sites say nothing in one exchange of the first attempts of a round."""

    def fault(request: Any, reply: Any) -> Any:
        here = (request.round, request.exchange) == (round, exchange) and request.attempt < attempts
        return [] if here and request.site in sites else [reply]

    return fault


def counting(contributed: Counter[tuple[str, str, int]]) -> Any:
    """Counts how often each site computes what it adds to a sum of a round."""

    def tamper(name: str, request: Any, lanes: Lanes) -> Lanes:
        contributed[name, request.site, request.round] += 1
        return lanes

    return tamper


@PHASED
@pytest.mark.parametrize("exchange", [DEAL, MASK, CONFIRM, UNMASK])
@pytest.mark.parametrize("way", ["failed", "late"])
def test_a_site_that_is_lost_in_a_later_phase_is_told_by_name_and_the_sum_goes_on(
    bench: Any, mode: str, exchange: int, way: str
) -> None:
    """With its code, its reason and the exchange; whoever had sent its vector by then is in the sum."""
    plan = bench.plan_of(mode, rounds=RoundRules(rounds=1, deadline_s=0.05))

    def fault(request: Any, reply: Any) -> Any:
        if (request.round, request.exchange, request.site) != (1, exchange, "d"):
            return [reply]
        gone = bench.replace(reply, status="failed", code="storage", reason="its own files", sums={})
        return [] if way == "late" else [gone]

    transport = bench.transport(plan, fault)
    outcome = run_rounds(bench.run(transport), bench.initial)
    (told,) = [event for event in bench.recorder.of(SiteReplied) if event.status != "ok"]
    assert (told.site, told.round, told.attempt, told.exchange) == ("d", 1, 0, exchange)
    expected = ("late", "deadline") if way == "late" else ("failed", "storage")
    assert (told.status, told.code) == expected
    skip = {1: {"d"}} if exchange <= MASK else {}
    np.testing.assert_array_equal(outcome.last.adapter.vector, bench.expected_adapter(transport, 1, skip))
    assert bench.recorder.of(RoundFolded)[0].missing == (("d",) if exchange <= MASK else ())
    assert {event.attempt for event in bench.recorder.of(SumOpened)} == {0}


def test_what_goes_wrong_with_one_sum_leaves_the_other_alone(bench: Any) -> None:
    """A site whose vector for the evaluation is lost is told as failed, and its contribution counts."""
    plan = bench.plan_of("real", rounds=RoundRules(rounds=1))

    def fault(request: Any, reply: Any) -> Any:
        if (request.round, request.exchange, request.site) != (1, MASK, "d"):
            return [reply]
        kept = {TRAINING: reply.sums[TRAINING]}
        return [bench.replace(reply, status="failed", code="internal", reason="KeyError", sums=kept)]

    transport = bench.transport(plan, fault)
    run_rounds(bench.run(transport), bench.initial)
    survivors = {(e.round, e.name): e.survivors for e in bench.recorder.of(SumOpened)}
    assert survivors == {(1, TRAINING): 7, (1, EVALUATION): 6, (2, EVALUATION): 7}
    asked = [r for r in transport.asked if (r.round, r.site) == (1, "d") and r.exchange > MASK]
    assert [set(r.sums) for r in asked] == [{TRAINING}, {TRAINING}]


@PHASED
@pytest.mark.parametrize("exchange", [ADVERTISE, DEAL, MASK, CONFIRM])
def test_another_attempt_sums_what_sites_have_kept(bench: Any, mode: str, exchange: int) -> None:
    """Three of seven are gone in one phase, and are back in the next attempt: nobody computes anything again.

    It goes out without a broadcast, and the adapter is that of an undisturbed run.
    """
    plan = bench.plan_of(mode, rounds=RoundRules(rounds=2, deadline_s=0.02))
    contributed: Counter[tuple[str, str, int]] = Counter()
    transport = bench.transport(plan, silent(exchange, "aeg"), tamper=counting(contributed))
    outcome = run_rounds(bench.run(transport), bench.initial)
    np.testing.assert_array_equal(outcome.last.adapter.vector, bench.expected_adapter(transport, 2))
    attempts = {(e.round, e.name): e.attempt for e in bench.recorder.of(SumOpened)}
    assert attempts == {
        (1, TRAINING): 1, (1, EVALUATION): 1, (2, TRAINING): 0, (2, EVALUATION): 0, (3, EVALUATION): 0,
    }  # fmt: skip
    assert set(contributed.values()) == {1}
    assert len(contributed) == 7 * 5
    again = [request for request in transport.asked if request.attempt == 1]
    assert {request.site for request in again} == set("abcdefg")
    assert {request.broadcast for request in again} == {None}
    assert len(bench.recorder.of(RoundStarted)) == 3
    late = [(e.site, e.exchange, e.attempt) for e in bench.recorder.of(SiteReplied) if e.status == "late"]
    assert late == [(site, exchange, 0) for site in "aeg"]


def test_only_the_sum_that_was_not_opened_is_asked_for_again(bench: Any) -> None:
    """The training was opened in the first attempt; two sums of it would show their difference."""
    plan = bench.plan_of("real", rounds=RoundRules(rounds=1))

    def fault(request: Any, reply: Any) -> Any:
        here = (request.round, request.attempt, request.exchange) == (1, 0, MASK)
        if not here or request.site not in "aeg":
            return [reply]
        kept = {TRAINING: reply.sums[TRAINING]}
        return [bench.replace(reply, status="failed", code="internal", reason="KeyError", sums=kept)]

    transport = bench.transport(plan, fault)
    run_rounds(bench.run(transport), bench.initial)
    assert {frozenset(r.sums) for r in transport.asked if r.attempt} == {frozenset({EVALUATION})}
    opened = [(e.name, e.attempt, e.survivors) for e in bench.recorder.of(SumOpened) if e.round == 1]
    assert opened == [(TRAINING, 0, 7), (EVALUATION, 1, 7)]


@pytest.mark.parametrize("attempts", [1, 2, 3])
def test_a_sum_is_tried_as_often_as_the_plan_says(bench: Any, attempts: int) -> None:
    """Then the round fails by name, nothing of it opened: it can be resumed."""
    rules = SecureRules(mode="accounted", attempts=attempts)
    plan = bench.plan_of(secure=rules, rounds=RoundRules(rounds=2, deadline_s=0.02))
    lost = silent(MASK, "aeg", round=2, attempts=99)
    transport = bench.transport(plan, lost)
    with pytest.raises(QuorumError, match=r"(?s)round 2 of federated.*masked vectors.*a, e, g"):
        run_rounds(bench.run(transport), bench.initial)
    asked = {r.attempt for r in transport.asked if r.round == 2}
    assert asked == set(range(attempts))
    resumed = run_rounds(bench.run(bench.transport(plan)), bench.initial)
    assert resumed.last.round == 2


def test_a_site_that_has_nothing_to_contribute_again_is_named_and_left_out(bench: Any) -> None:
    """Its process is another one: the attempt goes on without it."""
    plan = bench.plan_of("real", rounds=RoundRules(rounds=1, deadline_s=0.02))
    transport = bench.transport(plan)
    first = silent(MASK, "aeg")

    def fault(request: Any, reply: Any) -> Any:
        if (request.round, request.attempt, request.exchange) == (1, 0, MASK):
            transport.parties["b"].kept.clear()
        return first(request, reply)

    transport.fault = fault
    outcome = run_rounds(bench.run(transport), bench.initial)
    np.testing.assert_array_equal(
        outcome.last.adapter.vector, bench.expected_adapter(transport, 1, {1: {"b"}})
    )
    told = [e for e in bench.recorder.of(SiteReplied) if e.status == "failed"]
    assert [(e.site, e.code, e.attempt, e.exchange) for e in told] == [("b", "nothing_kept", 1, 0)]


def lies_when_dealing(transport: Any, site: str) -> None:
    """From now on the site's boxes of contributions open for nobody; it signs them all the same."""
    dealer = transport.parties[site].parties[TRAINING]._site
    right = dealer._box

    def wrong(keyed: Any, peer: Any, head: bytes, agreed: bytes, *shares: Any) -> Box:
        box = right(keyed, peer, head, agreed, *shares)
        box = box.model_copy(update={"sealed": flipped(box.sealed, 0)})
        signed = box.statement(keyed.offer.context, site, agreed)
        return box.model_copy(update={"signature": dealer.member.signer.sign(signed)})

    dealer._box = wrong


def flipped(data: bytes, place: int) -> bytes:
    """One bit of one byte is another."""
    changed = bytearray(data)
    changed[place] ^= 1
    return bytes(changed)


def lies_when_unmasking(transport: Any, site: str, place: int = -1) -> None:
    """From now on one byte of every share that the site gives is wrong; it signs them all the same."""
    member = transport.parties[site].parties[TRAINING]._site
    right = member.unmask

    def wrong(message: Any) -> Any:
        context = member._phase.masked.offer.context
        answer = right(message)
        shares = {name: flipped(share, place) for name, share in answer.self_shares.items()}
        answer = answer.model_copy(update={"self_shares": shares})
        return answer.model_copy(update={"signature": member.member.signer.sign(answer.statement(context))})

    member.unmask = wrong


def test_a_liar_is_left_out_of_the_next_attempt_and_of_the_rounds_after_it(bench: Any) -> None:
    """A box that does not open ends the attempt; the next one goes on without its dealer, from what was kept.

    In the cohort it still stands, as one that dropped out: a round's cohort never changes.
    """
    plan = bench.plan_of("real", rounds=RoundRules(rounds=2))
    contributed: Counter[tuple[str, str, int]] = Counter()
    transport = bench.transport(plan, tamper=counting(contributed))
    run = bench.run(transport)
    lies_when_dealing(transport, "b")
    outcome = run_rounds(run, bench.initial)
    np.testing.assert_array_equal(
        outcome.last.adapter.vector, bench.expected_adapter(transport, 2, {1: {"b"}})
    )
    opened = {(e.round, e.name): (e.attempt, e.cohort, e.survivors) for e in bench.recorder.of(SumOpened)}
    assert opened[1, TRAINING] == (1, 7, 6)
    assert opened[2, TRAINING] == (0, 6, 6)
    assert not [r for r in transport.asked if r.site == "b" and (r.attempt or r.round > 1)]
    assert set(contributed.values()) == {1}


def test_a_site_that_gives_wrong_shares_is_corrected_and_asked_no_more(bench: Any) -> None:
    """The sum is right at once, its own contribution in it; from the next round on it is gone."""
    plan = bench.plan_of("real", rounds=RoundRules(rounds=2))
    transport = bench.transport(plan)
    run = bench.run(transport)
    lies_when_unmasking(transport, "c")
    outcome = run_rounds(run, bench.initial)
    np.testing.assert_array_equal(outcome.last.adapter.vector, bench.expected_adapter(transport, 2))
    assert bench.asked_to_train(transport, 1) == list("abcdefg")
    assert bench.asked_to_train(transport, 2) == list("abdefg")
    assert not [r for r in transport.asked if r.site == "c" and r.round > 1]
    assert {event.attempt for event in bench.recorder.of(SumOpened)} == {0}


def test_a_resumed_run_does_not_ask_a_liar_again(bench: Any) -> None:
    """Killed after the round in which it was caught: who cannot stop a run twice cannot after a restart."""
    plan = bench.plan_of("real", rounds=RoundRules(rounds=3))
    transport = bench.transport(plan)

    class KilledError(Exception):
        pass

    def kill(state: Any) -> None:
        if state.round == 1:
            raise KilledError

    run = bench.run(transport, on_state=kill)
    lies_when_unmasking(transport, "c")
    with pytest.raises(KilledError):
        run_rounds(run, bench.initial)
    again = bench.transport(plan)
    outcome = run_rounds(bench.run(again), bench.initial)
    assert outcome.last.round == 3
    assert not [request for request in again.asked if request.site == "c"]


def test_a_share_that_is_no_number_of_the_field_is_its_senders_fault(bench: Any) -> None:
    """Its first byte makes it larger than the prime: quarantined by name, and six shares open the sum."""
    plan = bench.plan_of("real", rounds=RoundRules(rounds=2))
    transport = bench.transport(plan)
    run = bench.run(transport)
    lies_when_unmasking(transport, "c", 0)
    outcome = run_rounds(run, bench.initial)
    assert not bench.recorder.of(RoundBurnt)
    np.testing.assert_array_equal(outcome.last.adapter.vector, bench.expected_adapter(transport, 2))
    told = [e for e in bench.recorder.of(SiteReplied) if e.status == "quarantined"]
    assert {(e.site, e.exchange) for e in told} == {("c", UNMASK)}


@PHASED
def test_a_lost_unmask_answer_is_asked_for_once_more_and_repeated(bench: Any, mode: str) -> None:
    """Three of seven answers are lost on their way: the same request again, to those three alone."""
    plan = bench.plan_of(mode, rounds=RoundRules(rounds=1, deadline_s=0.02))
    answers: dict[tuple[str, int], Any] = {}
    lost = silent(UNMASK, "aeg")

    def fault(request: Any, reply: Any) -> Any:
        if request.round == 1:
            answers[request.site, request.exchange] = reply.sums
        return lost(request, reply)

    transport = bench.transport(plan, fault)
    outcome = run_rounds(bench.run(transport), bench.initial)
    np.testing.assert_array_equal(outcome.last.adapter.vector, bench.expected_adapter(transport, 1))
    again = [r for r in transport.asked if (r.round, r.exchange) == (1, AGAIN)]
    assert [r.site for r in again] == list("aeg")
    assert all(answers[site, UNMASK] == answers[site, AGAIN] for site in "aeg")
    assert {(e.exchanges, e.attempt) for e in bench.recorder.of(SumOpened) if e.round == 1} == {(6, 0)}


def test_a_sum_below_the_plans_quorum_is_not_opened(bench: Any) -> None:
    """Five of seven reach the threshold, not the quorum of six: nobody is asked to confirm, or to unmask.

    So that the round can be asked for again: what is opened once never is a second time.
    """
    plan = bench.plan_of("real", rounds=RoundRules(rounds=1, quorum=6 / 7))
    transport = bench.transport(
        plan,
        lambda request, reply: (
            [bench.replace(reply, status="failed", code="internal", sums={})]
            if request.site in "cd" and request.exchange == MASK
            else [reply]
        ),
    )
    with pytest.raises(QuorumError, match=r"(?s)quorum.*5; not: c, d"):
        run_rounds(bench.run(transport), bench.initial)
    assert max(r.exchange for r in transport.asked if TRAINING in r.sums) == MASK
    assert {r.attempt for r in transport.asked} == {0, 1, 2}
    assert not [e for e in bench.recorder.of(SumOpened) if e.name == TRAINING]


class Ticking:
    """A clock on which every look takes a second."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 1.0
        return self.now


@pytest.mark.parametrize("mode", ["off", "real"])
@pytest.mark.parametrize(("quorum", "waits"), [(0.5, False), (1.0, True)])
def test_once_enough_have_answered_the_others_have_a_grace_period(
    bench: Any, mode: str, quorum: float, waits: bool
) -> None:
    """A site that never answers costs the grace period; where there is no quorum without it, all the time."""
    plan = bench.plan_of(mode, rounds=RoundRules(rounds=1, quorum=quorum, deadline_s=1000.0))

    def fault(request: Any, reply: Any) -> Any:
        return [] if request.site == "d" else [reply]

    clock = Ticking()
    run = bench.run(bench.transport(plan, fault), clock=clock, grace_s=5.0)
    if waits:
        with pytest.raises(QuorumError):
            run_rounds(run, bench.initial)
        assert clock.now > 1000.0
    else:
        run_rounds(run, bench.initial)
        assert clock.now < 200.0
    assert ("d", "late") in {(event.site, event.status) for event in bench.recorder.of(SiteReplied)}


def test_a_further_attempt_does_not_wait_again_for_a_site_that_let_a_deadline_pass(bench: Any) -> None:
    """It costs a deadline once, not once an attempt; a site that did answer then has its time."""
    plan = bench.plan_of("real", rounds=RoundRules(rounds=1, deadline_s=1000.0))

    def fault(request: Any, reply: Any) -> Any:
        if request.site == "d":
            return []
        lost = request.round == 1 and request.attempt < 2 and request.site in "ab"
        if (
            lost and request.exchange == MASK and EVALUATION in request.sums
        ):  # twice one too few of the scores
            kept = {name: message for name, message in reply.sums.items() if name != EVALUATION}
            return [bench.replace(reply, status="failed", code="internal", reason="KeyError", sums=kept)]
        return [reply]

    clock = Ticking()
    run_rounds(bench.run(bench.transport(plan, fault), clock=clock), bench.initial)
    opened = [(e.round, e.name, e.attempt, e.survivors) for e in bench.recorder.of(SumOpened)]
    assert opened == [(1, TRAINING, 0, 6), (1, EVALUATION, 2, 6), (2, EVALUATION, 0, 6)]
    late = [(e.round, e.attempt) for e in bench.recorder.of(SiteReplied) if e.status == "late"]
    assert late == [(1, 0), (1, 1), (1, 2), (2, 0)]
    assert 2000.0 < clock.now < 2200.0  # one deadline in either round
