"""Rounds that are spent without a fold: the adapter stays, the loop goes on, and it survives a kill."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from wardround.core.plan import RoundRules
from wardround.privacy.sums.contract import EVALUATION, TRAINING, Lanes
from wardround.runtime.events import (
    Evaluated,
    RoundBurnt,
    RoundFolded,
    RunFinished,
    SiteReplied,
    SumOpened,
)
from wardround.server.rounds import run_rounds

PHASED = pytest.mark.parametrize("mode", ["accounted", "real"])
UNMASK = 4


def vanishing(round: int, *, sums: tuple[str, ...] = (TRAINING, EVALUATION)) -> Any:
    """Three of seven sites never give their shares for these sums of a round."""

    def fault(request: Any, reply: Any) -> Any:
        if request.round != round or request.exchange < UNMASK or request.site not in "aeg":
            return [reply]
        kept = {name: message for name, message in reply.sums.items() if name not in sums}
        return [replace(reply, status="failed", code="internal", reason="KeyError", sums=kept)]

    return fault


@PHASED
@pytest.mark.parametrize("round", [1, 2, 3])
def test_a_sum_that_cannot_be_opened_any_more_costs_its_round_and_no_more(
    bench: Any, mode: str, round: int
) -> None:
    """Sites may have helped to open it, so that there is no other attempt; the next round trains afresh.

    The state of the round before is broadcast again under the next number, and the run ends in time.
    """
    plan = bench.plan_of(mode, rounds=RoundRules(rounds=3))
    transport = bench.transport(plan, vanishing(round))
    states: dict[int, str] = {}
    outcome = run_rounds(
        bench.run(transport, on_state=lambda state: states.__setitem__(state.round, state.adapter.digest)),
        bench.initial,
    )
    np.testing.assert_array_equal(
        outcome.last.adapter.vector, bench.expected_adapter(transport, 3, burnt=[round])
    )
    (burnt,) = bench.recorder.of(RoundBurnt)
    assert (burnt.round, burnt.reason) == (round, "too few sites answered to open the sum")
    assert [e.round for e in bench.recorder.of(RoundFolded)] == [n for n in (1, 2, 3) if n != round]
    assert states[round] == states[round - 1]
    assert len(set(states.values())) == 3
    assert {request.attempt for request in transport.asked} == {0}
    assert [(e.last_round, e.reason) for e in bench.recorder.of(RunFinished)] == [(3, "completed")]


def test_the_score_of_a_burnt_round_stands(bench: Any) -> None:
    """Only the contributions were lost: the state that was broadcast is scored, and so is the one after."""
    plan = bench.plan_of("real", rounds=RoundRules(rounds=3))
    transport = bench.transport(
        plan, vanishing(2, sums=(TRAINING,)), correct=lambda round, site: {1: 9}.get(round, 4)
    )
    outcome = run_rounds(bench.run(transport), bench.initial)
    assert [(e.round, e.missing) for e in bench.recorder.of(Evaluated)] == [(n, ()) for n in range(4)]
    assert [round for round, _ in outcome.selection.scores] == [1, 2, 3]
    assert outcome.released_round == 1
    opened = {(e.round, e.name) for e in bench.recorder.of(SumOpened)}
    assert {(2, EVALUATION), (3, TRAINING)} <= opened
    assert (2, TRAINING) not in opened


def impossible(place: int | None) -> Any:
    """What one site adds in round 2: a counter, or else a coordinate, that no honest site has."""

    def tamper(name: str, request: Any, lanes: Lanes) -> Lanes:
        if (name, request.round, request.site) != (TRAINING, 2, "b"):
            return lanes
        coordinates, counters = lanes.coordinates.copy(), lanes.counters.copy()
        if place is None:
            coordinates[:] = 2**15 - 1
        else:
            counters[place] = 10**6
        return Lanes(coordinates, counters)

    return tamper


@PHASED
@pytest.mark.parametrize(
    ("place", "reason"),
    [(0, "the summed weight is not possible"), (None, "the sum is beyond the plan's bounds")],
)
def test_a_sum_that_no_honest_sites_can_have_made_is_not_folded(
    bench: Any, mode: str, place: int | None, reason: str
) -> None:
    """Nobody sees who it was; the round is spent, and the next one counts."""
    plan = bench.plan_of(mode, rounds=RoundRules(rounds=3))
    transport = bench.transport(plan, tamper=impossible(place))
    outcome = run_rounds(bench.run(transport), bench.initial)
    np.testing.assert_array_equal(
        outcome.last.adapter.vector, bench.expected_adapter(transport, 3, burnt=[2])
    )
    assert [(e.round, e.reason) for e in bench.recorder.of(RoundBurnt)] == [(2, reason)]
    assert {e.status for e in bench.recorder.of(SiteReplied)} == {"ok"}


def test_where_the_server_sees_contributions_such_a_one_is_its_own_senders_fault(bench: Any) -> None:
    """The twin of the test above without secure aggregation: quarantined by name, and nothing is burnt."""
    plan = bench.plan_of("off", rounds=RoundRules(rounds=3))
    transport = bench.transport(plan, tamper=impossible(0))
    outcome = run_rounds(bench.run(transport), bench.initial)
    np.testing.assert_array_equal(
        outcome.last.adapter.vector, bench.expected_adapter(transport, 3, {2: {"b"}})
    )
    assert not bench.recorder.of(RoundBurnt)
    told = [(e.site, e.round, e.status) for e in bench.recorder.of(SiteReplied) if e.status != "ok"]
    assert told == [("b", 2, "quarantined")]


def test_a_burnt_round_is_journalled_as_spent(bench: Any) -> None:
    """A server that is killed in the round after it goes on there, and ends with the same bits."""
    plan = bench.plan_of("accounted", rounds=RoundRules(rounds=4))
    burning = vanishing(2)

    class Killed(BaseException):
        pass

    def dying(request: Any, reply: Any) -> Any:
        if (request.round, request.exchange, request.site) == (3, 2, "c"):
            raise Killed
        return burning(request, reply)

    with pytest.raises(Killed):
        run_rounds(bench.run(bench.transport(plan, dying)), bench.initial)
    again = bench.transport(plan, burning)
    resumed = run_rounds(bench.run(again), bench.initial)
    assert min(request.round for request in again.asked) == 3
    other = type(bench)(bench.folder.parent / "undisturbed")
    whole = run_rounds(other.run(other.transport(plan, burning)), other.initial)
    assert resumed.last.adapter.digest == whole.last.adapter.digest
    assert resumed.selection == whole.selection


def test_a_broadcast_carries_the_sums_of_the_round_before_it(bench: Any) -> None:
    """So that sites can check it; none in round 1, none after a burnt round, and with the last evaluation."""
    plan = bench.plan_of("accounted", rounds=RoundRules(rounds=3))
    transport = bench.transport(plan, vanishing(2))
    run_rounds(bench.run(transport), bench.initial)
    begun = [request for request in transport.asked if request.broadcast or request.follows]
    sent = {round: {len(q.opened) for q in begun if q.round == round} for round in range(1, 5)}
    assert sent == {1: {0}, 2: {1}, 3: {0}, 4: {1}}
    assert not [r for r in transport.asked if r.opened and r.broadcast is None and not r.follows]
