"""Rounds that begin while some sites are away: who is asked, what is scored; how long a look is."""

from __future__ import annotations

from typing import Any

import pytest

from wardround.core.errors import QuorumError
from wardround.core.plan import RoundRules, cohort_size
from wardround.privacy.sums.contract import EVALUATION
from wardround.runtime.events import Evaluated, RoundFolded
from wardround.server.cohorts import choose_cohort
from wardround.server.rounds import run_rounds
from wardround.server.stage import look_s

SIX = tuple("abcdef")


@pytest.mark.parametrize("mode", ["off", "real"])
def test_whoever_is_away_is_asked_for_nothing(bench: Any, mode: str) -> None:
    """Neither to train nor to score; it is no missing site of the round, and one of its score."""
    asked: list[int] = []

    def away(round: int) -> frozenset[str]:
        asked.append(round)
        return frozenset({2: "a", 3: "bf"}.get(round, ""))

    transport = bench.transport(bench.plan_of(mode, rounds=RoundRules(rounds=3)))
    run_rounds(bench.run(transport, SIX, away=away), bench.initial)
    assert asked == [1, 2, 3, 4], "once a round, and for the last score"
    heard = {round: {r.site for r in transport.asked if r.round == round} for round in asked}
    assert heard == {1: set("abcdef"), 2: set("bcdef"), 3: set("acde"), 4: set("abcdef")}
    assert [event.missing for event in bench.recorder.of(RoundFolded)] == [(), (), ()]
    assert [event.survivors for event in bench.recorder.of(RoundFolded)] == [
        SIX, tuple("bcdef"), tuple("acde"),
    ]  # fmt: skip
    # The state of round r is scored in round r + 1: round 2 lacks a, round 3 lacks b and f.
    scored = {event.round: event.missing for event in bench.recorder.of(Evaluated)}
    assert scored == {0: (), 1: ("a",), 2: ("b", "f"), 3: ()}


def test_a_cohort_is_the_share_of_all_sites_as_long_as_so_many_are_there(bench: Any) -> None:
    """Half of six are three, of whoever is there; all of two."""
    gone = {1: "", 2: "abc", 3: "abcd"}
    plan = bench.plan_of("off", rounds=RoundRules(rounds=3, participation=0.5))
    transport = bench.transport(plan)
    run = bench.run(transport, SIX, away=lambda round: frozenset(gone.get(round, "")))
    run_rounds(run, bench.initial)
    cohorts = [bench.asked_to_train(transport, round) for round in (1, 2, 3)]
    assert cohorts == [choose_cohort(plan, SIX, 1), list("def"), list("ef")]
    assert cohort_size(plan.rounds, 6) == 3
    assert len(choose_cohort(plan, SIX[:4], 1, of=6)) == 3
    assert len(choose_cohort(plan, SIX[:4], 1)) == 2


def test_a_round_that_nobody_is_there_for_says_so(bench: Any) -> None:
    """The run can be resumed."""
    run = bench.run(bench.transport(bench.plan_of("off")), SIX, away=lambda _: frozenset(SIX))
    with pytest.raises(QuorumError, match="no site of the run is left to be asked"):
        run_rounds(run, bench.initial)


def test_a_last_score_that_nobody_is_there_for_is_none(bench: Any) -> None:
    """What was trained is released all the same."""
    plan = bench.plan_of("off", rounds=RoundRules(rounds=2))
    transport = bench.transport(plan)
    away = lambda round: frozenset(SIX if round == 3 else "")
    outcome = run_rounds(bench.run(transport, SIX, away=away), bench.initial)
    assert outcome.last.round == 2
    assert [round for round, _ in outcome.selection.scores] == [1]
    assert not [r for r in transport.asked if r.round == 3 and EVALUATION in r.sums]


def test_a_look_for_replies_never_goes_beyond_the_deadline(bench: Any) -> None:
    """Nor is it longer than people who ask something of the run should wait."""
    channel = bench.run(bench.transport(bench.plan_of("off")), SIX, clock=lambda: 10.0).channel
    assert look_s(channel, 100.0) == 0.2
    assert look_s(channel, 10.05) == pytest.approx(0.05)
    assert look_s(channel, 9.0) == 0.0
    run = bench.run(bench.transport(bench.plan_of("off")), SIX, clock=lambda: 10.0, poll_s=float("inf"))
    assert look_s(run.channel, 100.0) == 90.0
