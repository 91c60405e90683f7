"""Rounds of a strategy that sees individuals: a sum of each site, none of which any site is shown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from wardround.core.errors import QuorumError
from wardround.core.messages import reply_to
from wardround.core.plan import RoundRules, StrategySpec
from wardround.privacy.sums.contract import EVALUATION, TRAINING
from wardround.runtime.events import Notice, RoundBurnt, RoundFolded, SiteReplied, SumOpened
from wardround.server.attempts import Attempts
from wardround.server.rounds import run_rounds
from wardround.strategies import STRATEGIES

MODES = pytest.mark.parametrize("mode", ["off", "trusted"])
SITES = tuple(f"s{i:02}" for i in range(7))
ROUNDS = 3
RULES = RoundRules(rounds=ROUNDS, deadline_s=0.5, quorum=0.5)


class Medians:
    """Runs of the coordinate-wise median of single sites, and what has to come of them."""

    def __init__(self, bench: Any, mode: str, rounds: RoundRules = RULES, **options: Any) -> None:
        spec = StrategySpec(name="coordinate_median", options=options)
        self.bench = bench
        self.plan = bench.plan_of(mode, strategy=spec, rounds=rounds)
        made = STRATEGIES.get(spec.name)
        self.strategy = made(made.Options(**options), self.plan.adapter.layout)

    def transport(self, **hooks: Any) -> Any:
        return self.bench.transport(self.plan, **hooks)

    def run(self, transport: Any, sites: Sequence[str] = SITES, **changes: Any) -> Any:
        """To the end."""
        return run_rounds(
            self.bench.run(transport, sites, strategy=self.strategy, **changes), self.bench.initial
        )

    def expected(self, cohorts: Sequence[Sequence[str]]) -> np.ndarray:
        """The median of the sites' own updates, round by round."""
        state = self.bench.initial.vector.astype(np.float64)
        for round, cohort in enumerate(cohorts, start=1):
            if cohort:
                state = state + np.median([self.bench.drawn(round, site)[0] for site in cohort], axis=0)
        return state


def close(bench: Any, outcome: Any, expected: np.ndarray) -> None:
    """Within what the rounds say of their rings, which is little: each holds one site."""
    bound = sum(event.rounding for event in bench.recorder.of(RoundFolded)) + 1e-5
    assert bound < 0.05
    np.testing.assert_allclose(outcome.last.adapter.vector, expected, rtol=0, atol=bound)


def without(*sites: str, rounds: Sequence[int] = (1, 2, 3)) -> Any:
    """A fault: these sites do not train in these rounds."""

    def fault(request: Any, reply: Any) -> Any:
        if request.site in sites and request.round in rounds and TRAINING in request.sums:
            return [reply_to(request, status="failed", code="gone", reason="gone")]
        return [reply]

    return fault


@MODES
def test_a_round_is_the_median_of_single_updates(bench: Any, mode: str) -> None:
    """One sum a site; everybody scores in one sum of all."""
    medians = Medians(bench, mode)
    transport = medians.transport()
    outcome = medians.run(transport)
    close(bench, outcome, medians.expected([SITES] * ROUNDS))
    opened = [(e.round, e.name, e.cohort) for e in bench.recorder.of(SumOpened) if e.name != EVALUATION]
    assert sorted(opened) == [(r, f"training.{i}", 1) for r in range(1, ROUNDS + 1) for i in range(7)]
    assert {e.survivors for e in bench.recorder.of(RoundFolded)} == {SITES}
    for request in transport.asked:
        if TRAINING in request.sums:
            assert bench.offer_in(request, TRAINING).cohort == (request.site,)
    assert {e.cohort for e in bench.recorder.of(SumOpened) if e.name == EVALUATION} == {7}


def test_both_modes_give_one_adapter(bench: Any, tmp_path: Any) -> None:
    """To the bit: they differ by who carries what."""
    other = type(bench)(tmp_path / "other")
    found = {
        medians.run(medians.transport()).last.adapter.digest
        for medians in (Medians(bench, "off"), Medians(other, "trusted"))
    }
    assert len(found) == 1


@MODES
def test_no_site_is_shown_anothers_contribution(bench: Any, mode: str) -> None:
    """Nothing opened goes out, so each broadcast is sent as it is, to every site, at once."""
    medians = Medians(bench, mode)
    transport = medians.transport()
    medians.run(transport)
    assert all(request.opened == () for request in transport.asked)
    assert all(request.follows == "" for request in transport.asked)
    first = [request for request in transport.asked if not request.exchange and not request.attempt]
    assert all(request.broadcast is not None for request in first)
    assert len(first) == (ROUNDS + 1) * len(SITES)


@MODES
def test_a_missing_site_is_left_out(bench: Any, mode: str) -> None:
    """While the quorum is there nothing is asked again, and nothing is warned of."""
    medians = Medians(bench, mode)
    transport = medians.transport(fault=without("s01", "s04", rounds=[2]))
    outcome = medians.run(transport)
    rest = [site for site in SITES if site not in ("s01", "s04")]
    close(bench, outcome, medians.expected([SITES, rest, SITES]))
    assert {request.attempt for request in transport.asked} == {0}
    assert not [e.text for e in bench.recorder.of(Notice) if "score" not in e.text]
    second = next(e for e in bench.recorder.of(RoundFolded) if e.round == 2)
    assert second.missing == ("s01", "s04")


@MODES
def test_too_few_sites_end_the_run_and_it_can_be_resumed(bench: Any, mode: str, tmp_path: Path) -> None:
    """By their names. What was seen is not spent by it, as a sum that sites helped to open is."""
    medians, broken = Medians(bench, mode), list(SITES[:4])

    def fault(request: Any, reply: Any) -> Any:
        return without(*broken, rounds=[2])(request, reply)

    transport = medians.transport(fault=fault)
    attempts = Attempts(tmp_path / "attempts.json")
    with pytest.raises(QuorumError, match=r"(?s)round 2.*3 of 7 sites.*not: s00, s01, s02, s03.*at least 4"):
        medians.run(transport, attempts=attempts)
    assert not bench.recorder.of(RoundBurnt)
    broken.clear()
    resumed = medians.run(transport, attempts=Attempts(tmp_path / "attempts.json"))
    close(bench, resumed, medians.expected([SITES] * ROUNDS))


def test_under_an_aggregator_too_few_are_asked_again_and_the_others_count(bench: Any) -> None:
    """Each site whose contribution is there is not asked a second time."""
    medians = Medians(bench, "trusted")

    def fault(request: Any, reply: Any) -> Any:
        return without(*SITES[:4])(request, reply) if request.attempt == 0 else [reply]

    transport = medians.transport(fault=fault)
    close(bench, medians.run(transport), medians.expected([SITES] * ROUNDS))
    again = {request.site for request in transport.asked if request.attempt and TRAINING in request.sums}
    assert again == set(SITES[:4])


def test_the_strategys_own_least_counts_beside_the_quorum(bench: Any) -> None:
    """Five of seven are more than the quorum, and fewer than it asks for."""
    medians = Medians(bench, "off", least_sites=6)
    with pytest.raises(QuorumError, match=r"(?s)5 of 7 sites.*at least 6"):
        medians.run(medians.transport(fault=without("s00", "s01")))


@MODES
def test_who_is_asked_is_drawn_anew_in_every_round(bench: Any, mode: str) -> None:
    """Participation below one: a share of the sites, others each time."""
    medians = Medians(bench, mode, RoundRules(rounds=ROUNDS, deadline_s=0.5, participation=0.6))
    transport = medians.transport()
    outcome = medians.run(transport)
    cohorts = [bench.asked_to_train(transport, round) for round in range(1, ROUNDS + 1)]
    assert {len(cohort) for cohort in cohorts} == {4}
    assert len({tuple(cohort) for cohort in cohorts}) > 1
    close(bench, outcome, medians.expected(cohorts))


@MODES
def test_a_hostile_site_is_outvoted(bench: Any, mode: str) -> None:
    """It sends as much as its ring takes; the result stays within the others' range."""
    medians = Medians(bench, mode)

    def tamper(name: str, request: Any, lanes: Any) -> Any:
        if name != TRAINING or request.site != "s03":
            return lanes
        return replace(lanes, coordinates=np.full_like(lanes.coordinates, 30_000))

    last = medians.run(medians.transport(tamper=tamper)).last.adapter.vector.astype(np.float64)
    low = high = bench.initial.vector.astype(np.float64)
    for round in range(1, ROUNDS + 1):
        others = [bench.drawn(round, site)[0] for site in SITES if site != "s03"]
        low, high = low + np.min(others, axis=0), high + np.max(others, axis=0)
    assert (last >= low - 0.05).all()
    assert (last <= high + 0.05).all()


@MODES
def test_an_impossible_contribution_is_left_out_by_name(bench: Any, mode: str) -> None:
    """One that weighs more than the plan allows never counts; one that is too long for it neither."""
    medians = Medians(bench, mode)

    def tamper(name: str, request: Any, lanes: Any) -> Any:
        if name != TRAINING or request.site != "s03":
            return lanes
        counters = lanes.counters.copy()
        counters[0] = 1 if request.round == 1 else 5000  # its coordinates are of more than one row
        coordinates = np.full_like(lanes.coordinates, 30_000)
        return replace(lanes, counters=counters, coordinates=coordinates)

    outcome = medians.run(medians.transport(tamper=tamper))
    others = [site for site in SITES if site != "s03"]
    close(bench, outcome, medians.expected([others] * ROUNDS))
    told = [e.text for e in bench.recorder.of(Notice)]
    assert told == ["s03 is left out of round 1: the sum is beyond the plan's bounds"]
    quarantined = [e.round for e in bench.recorder.of(SiteReplied) if e.status == "quarantined"]
    assert quarantined == [2, 3]


@MODES
def test_impossible_contributions_of_most_burn_the_round(bench: Any, mode: str) -> None:
    """To ask again would end in the same; the next round goes on from the state before."""
    medians = Medians(bench, mode)

    def tamper(name: str, request: Any, lanes: Any) -> Any:
        if name != TRAINING or request.round != 2 or request.site in SITES[:3]:
            return lanes
        counters = lanes.counters.copy()
        counters[0] = 1
        return replace(lanes, counters=counters, coordinates=np.full_like(lanes.coordinates, 30_000))

    outcome = medians.run(medians.transport(tamper=tamper))
    assert [event.round for event in bench.recorder.of(RoundBurnt)] == [2]
    close(bench, outcome, medians.expected([SITES, (), SITES]))


@MODES
def test_the_others_are_waited_for_once_enough_have_answered(bench: Any, mode: str) -> None:
    """The grace begins with the quorum, and does not wait for each site's own sum."""
    medians = Medians(bench, mode, RULES.model_copy(update={"deadline_s": 3600.0, "rounds": 1}))

    def fault(request: Any, reply: Any) -> Any:
        return [] if request.site == "s06" else [reply]

    time = iter(range(10**9))
    medians.run(medians.transport(fault=fault), clock=lambda: float(next(time)), grace_s=20.0)
    assert next(time) < 600
    assert [e.missing for e in bench.recorder.of(RoundFolded)] == [("s06",)]
