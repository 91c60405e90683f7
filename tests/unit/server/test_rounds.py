"""The round loop over sites that answer by arithmetic."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from wardround.core.errors import ConfigError, QuorumError, StorageError
from wardround.core.plan import Encoding, ReleaseRule, RoundRules
from wardround.privacy.sums.contract import EVALUATION, TRAINING
from wardround.runtime.events import Evaluated, RoundFolded, RunFinished, SiteReplied, SumOpened
from wardround.server.cohorts import choose_cohort
from wardround.server.rounds import run_rounds

MODES = pytest.mark.parametrize("mode", ["off", "real", "trusted"])
FEW = tuple("abcd")
"""Where none is lost, as few as secure aggregation allows: each one more asks for more of every other."""


@MODES
@pytest.mark.parametrize("bits", [16, 32])
def test_every_round_folds_the_weighted_mean_and_the_last_adapter_is_scored(
    bench: Any, mode: str, bits: Any
) -> None:
    """Five rounds equal FedAvg on the individuals; states 0 to 5 are each scored once.

    To the bit on what the ring holds of them, to the ring's stated error on the individuals themselves.
    """
    transport = bench.transport(
        bench.plan_of(mode, encoding=Encoding(bits=bits, largest=6.0, most_weight=50))
    )
    outcome = run_rounds(bench.run(transport, FEW), bench.initial)
    np.testing.assert_array_equal(outcome.last.adapter.vector, bench.expected_adapter(transport, 5))
    mean, off = bench.mean_adapter(transport, 5)
    np.testing.assert_allclose(outcome.last.adapter.vector, mean, rtol=1e-6, atol=off)
    assert [event.round for event in bench.recorder.of(Evaluated)] == [0, 1, 2, 3, 4, 5]
    assert outcome.last.round == 5
    assert outcome.reason == "completed"


@MODES
def test_the_order_of_arrival_changes_no_bit(bench: Any, tmp_path: Any, mode: str) -> None:
    """Replies folded backwards give the identical adapter."""
    plan = bench.plan_of(mode)
    forwards = run_rounds(bench.run(bench.transport(plan), FEW), bench.initial)
    other = type(bench)(tmp_path / "other")
    backwards = run_rounds(other.run(other.transport(plan, order=-1), FEW), other.initial)
    assert forwards.last.adapter.digest == backwards.last.adapter.digest


@pytest.mark.parametrize("mode", ["real", "accounted", "trusted"])
def test_what_protects_the_sums_changes_no_bit_of_them(bench: Any, tmp_path: Any, mode: str) -> None:
    """Adapter and scores are those of the same plan without secure aggregation."""
    run_rounds(bench.run(bench.transport(bench.plan_of("off")), FEW), bench.initial)
    other = type(bench)(tmp_path / "other")
    run_rounds(other.run(other.transport(other.plan_of(mode)), FEW), other.initial)
    told = [
        [(e.round, e.adapter_digest, e.train_loss, e.survivors) for e in one.recorder.of(RoundFolded)]
        for one in (bench, other)
    ]
    assert told[0] == told[1]
    assert bench.recorder.of(Evaluated) == other.recorder.of(Evaluated)


@pytest.mark.parametrize(("mode", "exchanges"), [("off", 1), ("trusted", 1), ("accounted", 5), ("real", 5)])
def test_every_sum_is_told_with_what_it_took(bench: Any, mode: str, exchanges: int) -> None:
    """Two a round, the last one of the evaluation alone: mode, sites, exchanges, bytes both ways."""
    transport = bench.transport(bench.plan_of(mode, rounds=RoundRules(rounds=1)))
    run = bench.run(transport)
    run_rounds(run, bench.initial)
    opened = bench.recorder.of(SumOpened)
    assert {(e.round, e.name) for e in opened} == {(1, TRAINING), (1, EVALUATION), (2, EVALUATION)}
    assert {(e.mode, e.exchanges, e.attempt, e.stage) for e in opened} == {(mode, exchanges, 0, 0)}
    assert {(e.cohort, e.survivors) for e in opened} == {(len(run.sites), len(run.sites))}
    for event in opened:
        down = sum(len(r.sums[event.name]) for r in transport.asked
                   if r.round == event.round and event.name in r.sums)  # fmt: skip
        assert event.bytes_down == down > 0
        assert event.bytes_up > 0


@MODES
@pytest.mark.parametrize(("best", "released"), [(5, 5), (3, 3), (0, 1)])
def test_the_released_round_is_the_best_by_the_plans_metric(
    bench: Any, best: int, released: int, mode: str
) -> None:
    """Best in the middle and at the end: that round is released; the untrained round 0 never is."""
    plan = bench.plan_of(mode)
    transport = bench.transport(plan, correct=lambda round, site: 9 if round == best else 4)
    states: dict[int, str] = {}
    outcome = run_rounds(
        bench.run(transport, FEW, on_state=lambda state: states.update({state.round: state.adapter.digest})),
        bench.initial,
    )
    assert outcome.released_round == released
    assert outcome.released.digest == states[released]
    assert outcome.last.adapter.digest == states[5]


@MODES
def test_early_stopping_ends_after_patience_and_releases_the_best(bench: Any, mode: str) -> None:
    """No improvement after round 1 with patience 2: stopped, round 1 released."""
    plan = bench.plan_of(
        mode,
        rounds=RoundRules(rounds=20),
        release=ReleaseRule(metric="accuracy", direction="max", patience=2),
    )
    transport = bench.transport(plan, correct=lambda round, site: {0: 3, 1: 8}.get(round, 5))
    outcome = run_rounds(bench.run(transport, FEW), bench.initial)
    assert (outcome.reason, outcome.released_round, outcome.last.round) == ("early_stop", 1, 4)


def test_a_run_that_stopped_early_stays_stopped_though_its_last_round_is_the_best(bench: Any) -> None:
    """The last adapter, scored after the stop, wins: it is released, and resuming trains nothing."""
    plan = bench.plan_of(
        rounds=RoundRules(rounds=20), release=ReleaseRule(metric="accuracy", direction="max", patience=2)
    )
    correct = {0: 3, 1: 8, 2: 5, 3: 5, 4: 9}
    transport = bench.transport(plan, correct=lambda round, site: correct.get(round, 5))
    first = run_rounds(bench.run(transport), bench.initial)
    assert (first.reason, first.released_round, first.last.round) == ("early_stop", 4, 4)
    again = bench.transport(plan, correct=lambda round, site: correct.get(round, 5))
    resumed = run_rounds(bench.run(again), bench.initial)
    assert again.asked == []
    assert (resumed.reason, resumed.released_round) == ("early_stop", 4)


@pytest.mark.parametrize(
    ("killed_in", "mode", "exchange"),
    [
        (1, "off", 0),
        (3, "off", 0),
        (5, "off", 0),
        (3, "real", 0),
        (1, "real", 2),
        (5, "real", 4),
        (3, "trusted", 0),
    ],
)
def test_a_killed_run_resumes_to_the_identical_adapter(
    bench: Any, tmp_path: Any, killed_in: int, mode: str, exchange: int
) -> None:
    """A server that dies while round k trains goes on with round k and ends with the same bits."""
    plan = bench.plan_of(mode)
    undisturbed = run_rounds(bench.run(bench.transport(plan), FEW), bench.initial)

    class Killed(BaseException):
        pass

    def die(request: Any, reply: Any) -> Any:
        if (request.round, request.exchange, request.site) == (killed_in, exchange, "c"):
            raise Killed
        return [reply]

    other = type(bench)(tmp_path / "other")
    with pytest.raises(Killed):
        run_rounds(other.run(other.transport(plan, die), FEW), other.initial)
    again = other.transport(plan)
    resumed = run_rounds(other.run(again, FEW), other.initial)
    assert resumed.last.adapter.digest == undisturbed.last.adapter.digest
    assert resumed.selection == undisturbed.selection
    assert resumed.released.digest == undisturbed.released.digest
    assert min(request.round for request in again.asked) == killed_in


def test_a_finished_run_resumes_without_asking_anybody_to_train(bench: Any) -> None:
    """Resuming after the end gives the same outcome."""
    plan = bench.plan_of()
    first = run_rounds(bench.run(bench.transport(plan)), bench.initial)
    transport = bench.transport(plan)
    again = run_rounds(bench.run(transport), bench.initial)
    assert transport.asked == []
    assert again.released.digest == first.released.digest


def test_a_journal_of_another_plan_is_refused(bench: Any) -> None:
    """Another seed is another plan: nothing is mixed."""
    run_rounds(bench.run(bench.transport(bench.plan_of())), bench.initial)
    with pytest.raises(StorageError, match="another plan"):
        run_rounds(bench.run(bench.transport(bench.plan_of(seed=8))), bench.initial)


@MODES
def test_a_site_that_failed_or_is_late_is_named_and_the_round_goes_on(bench: Any, mode: str) -> None:
    """One failure with its code, one silence until the deadline: both are named as missing."""
    plan = bench.plan_of(mode, rounds=RoundRules(rounds=1, deadline_s=0.3))

    def fault(request: Any, reply: Any) -> Any:
        if request.round > 1:
            return [reply]
        if request.site == "a":
            return [bench.failed(reply)]
        return [] if request.site == "d" else [reply]

    transport = bench.transport(plan, fault)
    run_rounds(bench.run(transport), bench.initial)
    assert bench.recorder.of(RoundFolded)[0].missing == ("a", "d")
    codes = {event.site: event.code for event in bench.recorder.of(SiteReplied) if event.code}
    assert codes == {"a": "non_finite_loss", "d": "deadline"}


@pytest.mark.parametrize(
    ("mode", "lost"), [("off", "cd"), ("trusted", "cd"), ("real", "cdf"), ("real", "cd")]
)
def test_a_round_below_its_quorum_ends_the_run_by_name_and_can_be_resumed(
    bench: Any, mode: str, lost: str
) -> None:
    """Two of four at a quorum of 0.75: an error names the missing; the journal stands at round 1.

    So it does under secure aggregation, where three of seven are below the threshold as well as the quorum
    and two below the quorum alone.
    """
    quorum = 0.75 if mode in {"off", "trusted"} else 6 / 7
    plan = bench.plan_of(mode, rounds=RoundRules(rounds=3, quorum=quorum, deadline_s=0.05))
    transport = bench.transport(
        plan, lambda request, reply: [] if request.round == 2 and request.site in lost else [reply]
    )
    with pytest.raises(QuorumError, match=", ".join(lost)):
        run_rounds(bench.run(transport), bench.initial)
    again = bench.transport(plan)
    healed = run_rounds(bench.run(again), bench.initial)
    assert healed.last.round == 3
    assert min(request.round for request in again.asked) == 2
    plain = type(bench)(bench.folder.parent / "undisturbed")
    whole = run_rounds(plain.run(plain.transport(plan)), plain.initial)
    assert healed.last.adapter.digest == whole.last.adapter.digest


@MODES
def test_partial_participation_draws_the_same_cohorts_every_time(bench: Any, mode: str) -> None:
    """Half of ten sites a round, from the seed tree; every site evaluates."""
    plan = bench.plan_of(mode, rounds=RoundRules(rounds=4, participation=0.5))
    sites = tuple(f"site_{i}" for i in range(10))
    cohorts = [choose_cohort(plan, sites, round) for round in range(1, 5)]
    assert all(len(cohort) == 5 for cohort in cohorts)
    assert len({tuple(cohort) for cohort in cohorts}) > 1
    transport = bench.transport(plan)
    outcome = run_rounds(bench.run(transport, sites), bench.initial)
    assert [bench.asked_to_train(transport, n) for n in range(1, 5)] == cohorts
    for n in range(1, 6):
        begun = [r for r in transport.asked if r.round == n and r.exchange == 0]
        assert sum(EVALUATION in r.sums for r in begun) == 10
    np.testing.assert_array_equal(outcome.last.adapter.vector, bench.expected_adapter(transport, 4))


@MODES
def test_where_the_cohort_evaluates_nobody_else_is_asked_until_the_end(bench: Any, mode: str) -> None:
    """The last adapter is scored by every site all the same."""
    plan = bench.plan_of(
        mode, rounds=RoundRules(rounds=2, participation=0.5),
        release=ReleaseRule(metric="accuracy", direction="max", evaluators="cohort"),
    )  # fmt: skip
    sites = tuple(f"site_{i}" for i in range(10))
    transport = bench.transport(plan)
    run_rounds(bench.run(transport, sites), bench.initial)
    for n in (1, 2):
        begun = [r for r in transport.asked if r.round == n and r.exchange == 0]
        assert sorted(r.site for r in begun) == choose_cohort(plan, sites, n)
        assert all(set(r.sums) == {TRAINING, EVALUATION} for r in begun)
    last = [r for r in transport.asked if r.round == 3 and r.exchange == 0]
    assert [(r.site, set(r.sums)) for r in last] == [(site, {EVALUATION}) for site in sites]
    assert [e.support["accuracy"] for e in bench.recorder.of(Evaluated)] == [50, 50, 100]


def test_an_evaluation_every_other_round_is_asked_for_in_those_rounds_alone(bench: Any) -> None:
    """States 0, 2 and 4, and the last one."""
    plan = bench.plan_of(release=ReleaseRule(metric="accuracy", direction="max", every=2))
    transport = bench.transport(plan)
    run_rounds(bench.run(transport), bench.initial)
    assert {r.round for r in transport.asked if EVALUATION in r.sums} == {1, 3, 5, 6}
    assert [event.round for event in bench.recorder.of(Evaluated)] == [0, 2, 4, 5]


def test_the_run_says_how_it_ended(bench: Any) -> None:
    """The last event carries rounds, release and digest."""
    outcome = run_rounds(bench.run(bench.transport(bench.plan_of())), bench.initial)
    finished = bench.recorder.of(RunFinished)
    assert [(e.reason, e.last_round, e.adapter_digest) for e in finished] == [
        ("completed", 5, outcome.released.digest)
    ]


def test_another_initial_adapter_than_the_plans_is_refused(bench: Any) -> None:
    """Nothing is asked of anybody."""
    transport = bench.transport(bench.plan_of())
    other = bench.initial.with_vector(bench.initial.vector + np.float32(1))
    with pytest.raises(ConfigError, match="initial adapter is not the plan's"):
        run_rounds(bench.run(transport), other)
    assert transport.asked == []


def test_a_clock_that_stands_still_makes_nobody_late(bench: Any) -> None:
    """A simulation's: a site that takes longer than the deadline is in the sum, and times are told."""
    import time

    plan = bench.plan_of(rounds=RoundRules(rounds=1, deadline_s=0.01))
    transport = bench.transport(plan)
    answers = transport.receive

    def slow(timeout_s: float) -> Any:
        time.sleep(0.05)
        return answers(timeout_s)[:]

    def nothing_then_slow(timeout_s: float) -> Any:
        transport.receive = slow
        time.sleep(0.05)
        return []

    transport.receive = nothing_then_slow
    outcome = run_rounds(bench.run(transport, clock=lambda: 0.0), bench.initial)
    folded = bench.recorder.of(RoundFolded)[0]
    assert folded.missing == ()
    assert folded.wall_s >= 0.1
    assert outcome.wall_s >= folded.wall_s


def test_the_seconds_of_a_resumed_run_are_those_of_the_whole_run(bench: Any) -> None:
    """A run that was resumed after its end says what it said at its end."""
    import time

    plan = bench.plan_of(rounds=RoundRules(rounds=2))
    slept = bench.run(bench.transport(plan), on_state=lambda state: time.sleep(0.1))
    first = run_rounds(slept, bench.initial)
    again = run_rounds(bench.run(bench.transport(plan)), bench.initial)
    assert first.wall_s >= 0.3
    assert abs(again.wall_s - first.wall_s) < 0.1
    assert bench.recorder.of(RunFinished)[1].wall_s == again.wall_s
