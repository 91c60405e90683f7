"""The round loop over sites that answer by arithmetic."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from wardround.core.errors import ConfigError, QuorumError, StorageError
from wardround.core.plan import ReleaseRule, RoundRules
from wardround.privacy.ring import decode
from wardround.runtime.events import Evaluated, Notice, RoundFolded, RunFinished, SiteReplied
from wardround.server.rounds import choose_cohort, run_rounds


def expected_adapter(
    bench: Any, transport: Any, rounds: int, skip: dict[int, set[str]] | None = None
) -> np.ndarray:
    """FedAvg on the individuals, in float64 and rounded once a round."""
    state = bench.initial.vector.astype(np.float32)
    for round in range(1, rounds + 1):
        total, weight = 0.0, 0
        for request in transport.asked:
            if (
                request.round == round
                and request.train
                and request.site not in (skip or {}).get(round, set())
            ):
                reply = transport.reply(request)
                total = total + decode(reply.statistics, transport.plan.encoding)
                weight += int(reply.counters["weight"])
        state = (state.astype(np.float64) + total / weight).astype(np.float32)
    return state


def test_every_round_folds_the_weighted_mean_and_the_last_adapter_is_scored(bench: Any) -> None:
    """Five rounds equal FedAvg on the individuals; states 0 to 5 are each scored once."""
    transport = bench.transport(bench.plan_of())
    outcome = run_rounds(bench.run(transport), bench.initial)
    np.testing.assert_array_equal(outcome.last.adapter.vector, expected_adapter(bench, transport, 5))
    assert [event.round for event in bench.recorder.of(Evaluated)] == [0, 1, 2, 3, 4, 5]
    assert outcome.last.round == 5
    assert outcome.reason == "completed"


def test_the_order_of_arrival_changes_no_bit(bench: Any, tmp_path: Any) -> None:
    """Replies folded backwards give the identical adapter."""
    plan = bench.plan_of()
    forwards = run_rounds(bench.run(bench.transport(plan)), bench.initial)
    other = type(bench)(tmp_path / "other")
    backwards = run_rounds(other.run(other.transport(plan, order=-1)), other.initial)
    assert forwards.last.adapter.digest == backwards.last.adapter.digest


@pytest.mark.parametrize(("best", "released"), [(5, 5), (3, 3), (0, 1)])
def test_the_released_round_is_the_best_by_the_plans_metric(bench: Any, best: int, released: int) -> None:
    """Best in the middle and at the end: that round is released; the untrained round 0 never is."""
    plan = bench.plan_of()
    transport = bench.transport(plan, correct=lambda round, site: 9 if round == best else 4)
    states: dict[int, str] = {}
    outcome = run_rounds(
        bench.run(transport, on_state=lambda state: states.__setitem__(state.round, state.adapter.digest)),
        bench.initial,
    )
    assert outcome.released_round == released
    assert outcome.released.digest == states[released]
    assert outcome.last.adapter.digest == states[5]


def test_early_stopping_ends_after_patience_and_releases_the_best(bench: Any) -> None:
    """No improvement after round 1 with patience 2: stopped, round 1 released."""
    plan = bench.plan_of(
        rounds=RoundRules(rounds=20), release=ReleaseRule(metric="accuracy", direction="max", patience=2)
    )
    transport = bench.transport(plan, correct=lambda round, site: {0: 3, 1: 8}.get(round, 5))
    outcome = run_rounds(bench.run(transport), bench.initial)
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


@pytest.mark.parametrize("killed_in", [1, 3, 5])
def test_a_killed_run_resumes_to_the_identical_adapter(bench: Any, tmp_path: Any, killed_in: int) -> None:
    """A server that dies while round k trains goes on with round k and ends with the same bits."""
    plan = bench.plan_of()
    undisturbed = run_rounds(bench.run(bench.transport(plan)), bench.initial)

    class Killed(BaseException):
        pass

    def die(request: Any, reply: Any) -> Any:
        if request.round == killed_in and request.site == "c":
            raise Killed
        return [reply]

    other = type(bench)(tmp_path / "other")
    with pytest.raises(Killed):
        run_rounds(other.run(other.transport(plan, die)), other.initial)
    again = other.transport(plan)
    resumed = run_rounds(other.run(again), other.initial)
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


def with_counters(reply: Any, change: Any) -> Any:
    """The reply's counters, changed as a vector."""
    return reply.counters.with_vector(change(reply.counters.vector))


BAD = {
    "layout": lambda b, reply: b.replace(reply, statistics_layout_digest="f" * 64),
    "shape": lambda b, reply: b.replace(reply, statistics=reply.statistics[:-1]),
    "broadcastable shape": lambda b, reply: b.replace(reply, statistics=reply.statistics[:1]),
    "dtype": lambda b, reply: b.replace(reply, statistics=reply.statistics.astype(np.float64)),
    "plan": lambda b, reply: b.replace(reply, plan_digest="f" * 64),
    "no counters": lambda b, reply: b.replace(reply, counters=None),
    "no statistics": lambda b, reply: b.replace(reply, statistics=None),
    "weight": lambda b, reply: b.replace(
        reply, counters=with_counters(reply, lambda v: np.where(np.arange(v.size) == 0, 10**15, v))
    ),
    "wrapping contribution": lambda b, reply: b.replace(reply, statistics=reply.statistics + 2**62),
    "wrapping counters": lambda b, reply: b.replace(
        reply, counters=with_counters(reply, lambda v: np.where(np.arange(v.size) == 5, 2**60, v))
    ),
    "negative counters": lambda b, reply: b.replace(reply, counters=with_counters(reply, lambda v: -v)),
    "zero weight": lambda b, reply: b.replace(reply, counters=with_counters(reply, lambda v: 0 * v)),
}  # fmt: skip


@pytest.mark.parametrize("kind", sorted(BAD))
def test_a_bad_reply_quarantines_its_sender_by_name_and_the_round_goes_on(bench: Any, kind: str) -> None:
    """One malformed reply in round 2: that site is left out of that round only."""
    plan = bench.plan_of()
    transport = bench.transport(
        plan,
        lambda request, reply: (
            [BAD[kind](bench, reply)] if (request.site, request.round) == ("b", 2) else [reply]
        ),
    )
    outcome = run_rounds(bench.run(transport), bench.initial)
    np.testing.assert_array_equal(
        outcome.last.adapter.vector, expected_adapter(bench, transport, 5, {2: {"b"}})
    )
    quarantined = [event for event in bench.recorder.of(SiteReplied) if event.status == "quarantined"]
    assert [(event.site, event.round, event.code) for event in quarantined] == [("b", 2, "malformed_reply")]
    assert bench.recorder.of(RoundFolded)[1].missing == ("b",)


@pytest.mark.parametrize("copies", [2, 3])
def test_the_same_reply_twice_counts_once(bench: Any, copies: int) -> None:
    """Doubled replies change no bit."""
    plan = bench.plan_of()
    transport = bench.transport(plan, lambda request, reply: [reply] * copies)
    outcome = run_rounds(bench.run(transport), bench.initial)
    np.testing.assert_array_equal(outcome.last.adapter.vector, expected_adapter(bench, transport, 5))


@pytest.mark.parametrize(
    "change", [{"round": 1}, {"run_id": "another"}, {"attempt": 1}, {"stage": 1}, {"site": "zz"}]
)
def test_a_stale_or_foreign_reply_is_ignored(bench: Any, change: dict[str, Any]) -> None:
    """A replayed reply of another round, run, attempt or site beside the right one changes nothing."""
    plan = bench.plan_of()
    transport = bench.transport(
        plan,
        lambda request, reply: [bench.replace(reply, **change), reply] if request.round == 3 else [reply],
    )
    outcome = run_rounds(bench.run(transport), bench.initial)
    np.testing.assert_array_equal(outcome.last.adapter.vector, expected_adapter(bench, transport, 5))


def test_a_site_that_failed_or_is_late_is_named_and_the_round_goes_on(bench: Any) -> None:
    """One failure with its code, one silence until the deadline: both are named as missing."""
    plan = bench.plan_of(rounds=RoundRules(rounds=1, deadline_s=0.3))

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


def test_a_round_below_its_quorum_ends_the_run_by_name_and_can_be_resumed(bench: Any) -> None:
    """Two of four at a quorum of 0.75: an error names the missing; the journal stands at round 1."""
    plan = bench.plan_of(rounds=RoundRules(rounds=3, quorum=0.75, deadline_s=0.2))
    transport = bench.transport(
        plan, lambda request, reply: [] if request.round == 2 and request.site in "cd" else [reply]
    )
    with pytest.raises(QuorumError, match="c, d"):
        run_rounds(bench.run(transport), bench.initial)
    healed = run_rounds(bench.run(bench.transport(plan)), bench.initial)
    assert healed.last.round == 3


def test_partial_participation_draws_the_same_cohorts_every_time(bench: Any) -> None:
    """Half of ten sites a round, from the seed tree; every site evaluates."""
    plan = bench.plan_of(rounds=RoundRules(rounds=4, participation=0.5))
    sites = tuple(f"site_{i}" for i in range(10))
    cohorts = [choose_cohort(plan, sites, round) for round in range(1, 5)]
    assert all(len(cohort) == 5 for cohort in cohorts)
    assert len({tuple(cohort) for cohort in cohorts}) > 1
    transport = bench.transport(plan)
    run_rounds(bench.run(transport, sites), bench.initial)
    trained = [sorted(r.site for r in transport.asked if r.round == n and r.train) for n in range(1, 5)]
    assert trained == cohorts
    assert all(sum(r.evaluate for r in transport.asked if r.round == n) == 10 for n in range(1, 6))


def test_the_run_says_how_it_ended(bench: Any) -> None:
    """The last event carries rounds, release and digest."""
    outcome = run_rounds(bench.run(bench.transport(bench.plan_of())), bench.initial)
    finished = bench.recorder.of(RunFinished)
    assert [(e.reason, e.last_round, e.adapter_digest) for e in finished] == [
        ("completed", 5, outcome.released.digest)
    ]


def hard_and_easy(round: int, site: str) -> int:
    """Rows right after so many rounds: "hard" has 10 rows and 0, the others get better until round 3."""
    return 0 if site == "hard" else {1: 7, 2: 8, 3: 9}.get(round, 6)


def released_with(bench: Any, fault: Any, **changes: Any) -> tuple[Any, list[Any]]:
    """A run of four rounds over a hard site and three easy ones: its outcome, its validation scores."""
    changes = {"rounds": RoundRules(rounds=4, deadline_s=0.05)} | changes
    transport = bench.transport(bench.plan_of(**changes), fault, correct=hard_and_easy)
    outcome = run_rounds(bench.run(transport, ("a", "b", "c", "hard")), bench.initial)
    return outcome, bench.recorder.of(Evaluated)


def test_a_training_that_failed_does_not_change_which_rows_score_the_broadcast(bench: Any) -> None:
    """What the site scored before it failed counts: every score is over the same 40 rows."""
    outcome, evaluated = released_with(
        bench,
        lambda request, reply: (
            [bench.failed(reply)] if (request.site, request.round) == ("hard", 2) else [reply]
        ),
    )
    assert [event.support["accuracy"] for event in evaluated] == [40] * 5
    assert [event.missing for event in evaluated] == [()] * 5
    assert outcome.released_round == 3
    assert bench.recorder.of(RoundFolded)[1].missing == ("hard",)
    assert outcome.selection.scores[0] == (1, 21 / 40)


@pytest.mark.parametrize("reply_to_round_2", ["late", "quarantined", "failed before it had scored"])
def test_a_score_that_lacks_a_site_is_shown_and_not_compared_with_whole_ones(
    bench: Any, reply_to_round_2: str
) -> None:
    """Without the hard site round 1 looks like the best by far; it is not released for that."""

    def fault(request: Any, reply: Any) -> Any:
        if (request.site, request.round) != ("hard", 2):
            return [reply]
        return {
            "late": [],
            "quarantined": [bench.replace(reply, counters=None)],
            "failed before it had scored": [bench.replace(bench.failed(reply), counters=None)],
        }[reply_to_round_2]

    outcome, evaluated = released_with(bench, fault)
    assert [event.support["accuracy"] for event in evaluated] == [40, 30, 40, 40, 40]
    assert [event.missing for event in evaluated] == [(), ("hard",), (), (), ()]
    assert evaluated[1].values["accuracy"] > max(event.values["accuracy"] for event in evaluated[2:])
    assert outcome.released_round == 3
    notices = [event.text for event in bench.recorder.of(Notice)]
    assert len(notices) == 1
    assert "round 1 lacks hard" in notices[0]


def test_a_site_that_has_left_for_good_does_not_pin_the_release_to_the_rounds_before(bench: Any) -> None:
    """From round 3 on the hard site is gone: the rounds scored without it are the larger group."""
    outcome, evaluated = released_with(
        bench,
        lambda request, reply: [] if request.site == "hard" and request.round >= 3 else [reply],
        rounds=RoundRules(rounds=6, deadline_s=0.05),
    )
    assert [event.missing for event in evaluated][1:] == [(), *[("hard",)] * 5]
    assert outcome.released_round == 3


def test_what_is_missing_from_a_score_survives_a_kill(bench: Any) -> None:
    """The journal says it, so that a resumed run releases the same round."""
    plan = bench.plan_of(rounds=RoundRules(rounds=4, deadline_s=0.05))

    class Killed(BaseException):
        pass

    def late(request: Any, reply: Any, dies: bool = False) -> Any:
        if dies and request.round == 4:
            raise Killed
        return [] if (request.site, request.round) == ("hard", 2) else [reply]

    sites = ("a", "b", "c", "hard")
    killed = bench.transport(plan, lambda request, reply: late(request, reply, dies=True), hard_and_easy)
    with pytest.raises(Killed):
        run_rounds(bench.run(killed, sites), bench.initial)
    outcome = run_rounds(bench.run(bench.transport(plan, late, hard_and_easy), sites), bench.initial)
    assert outcome.selection.missing == (("hard",), (), (), ())
    assert outcome.released_round == 3


UNASKED = {
    "weight": ("weight", {"evaluate"}),
    "training loss": ("train.loss", {"evaluate"}),
    "training targets": ("train.targets", {"evaluate"}),
    "validation": ("validation.examples", {"train"}),
}
"""Counter that is filled all the same, and what the site that fills it was asked for."""


@pytest.mark.parametrize("kind", sorted(UNASKED))
def test_counters_that_were_not_asked_for_are_quarantined(bench: Any, kind: str) -> None:
    """A site that only evaluates cannot shrink the update by a weight, nor one that only trains vote."""
    name, asked = UNASKED[kind]
    plan = bench.plan_of(
        rounds=RoundRules(rounds=1, participation=0.5),
        release=ReleaseRule(metric="accuracy", direction="max"),
    )
    if asked == {"train"}:
        plan = plan.model_copy(update={"data": plan.data.model_copy(update={"validation_fraction": 0.0})})

    def fault(request: Any, reply: Any) -> Any:
        if request.train != ("train" in asked) or request.round > 1:
            return [reply]
        place = reply.counters.layout.offsets[name][0]
        return [bench.replace(reply, counters=with_counters(
            reply, lambda v: np.where(np.arange(v.size) == place, 7, v)
        ))]  # fmt: skip

    transport = bench.transport(plan, fault)
    run = bench.run(transport)
    if asked == {"train"}:
        with pytest.raises(QuorumError):
            run_rounds(run, bench.initial)
    else:
        outcome = run_rounds(run, bench.initial)
        np.testing.assert_array_equal(outcome.last.adapter.vector, expected_adapter(bench, transport, 1))
    replies = [event for event in bench.recorder.of(SiteReplied) if event.round == 1]
    faulty = {event.site for event in replies if event.status == "quarantined"}
    assert faulty == {r.site for r in transport.asked if r.round == 1 and r.train == ("train" in asked)}


def test_a_contribution_that_was_not_asked_for_is_quarantined(bench: Any) -> None:
    """Statistics beside zero counters, from a site that was asked to evaluate and from one that failed."""
    plan = bench.plan_of(rounds=RoundRules(rounds=1, participation=0.5))
    given = np.zeros(bench.initial.layout.size, dtype=np.int64)

    def fault(request: Any, reply: Any) -> Any:
        if request.round == 1 and not request.train:
            return [bench.replace(reply, statistics=given)]
        return [reply]

    transport = bench.transport(plan, fault)
    run_rounds(bench.run(transport), bench.initial)
    statuses = {event.site: event.status for event in bench.recorder.of(SiteReplied) if event.round == 1}
    expected = {r.site: "ok" if r.train else "quarantined" for r in transport.asked if r.round == 1}
    assert statuses == expected


def test_a_site_that_has_gone_astray_stays_in_the_round(bench: Any) -> None:
    """Any number of rows at the largest loss is within what the server takes, and still a bad figure."""
    from wardround.core.counting import MOST_COUNT, MOST_SITES, fill_counters, most_count, reply_layout
    from wardround.core.metrics.contract import LARGEST_LOSS, LOSS_UNIT

    assert MOST_COUNT * MOST_SITES < 2**63 <= MOST_COUNT * (MOST_SITES + 1)
    assert all(most_count(sites) * sites < 2**63 for sites in (1, MOST_SITES, MOST_SITES + 1, 10**6))
    plan = bench.plan_of(rounds=RoundRules(rounds=1))
    rows = 10**7

    def fault(request: Any, reply: Any) -> Any:
        if request.site != "a":
            return [reply]
        weight = int(reply.counters["weight"])
        one = int(LARGEST_LOSS / LOSS_UNIT)
        validation = {
            "examples": np.int64(rows), "loss": np.int64(one * (rows // 10)),
            "confusion": np.array([[rows, 0], [0, 0]]),
        }  # fmt: skip
        counters = fill_counters(
            reply_layout(plan), weight=weight, loss_sum=1e30 if weight else 0, targets=rows if weight else 0,
            validation=validation if request.evaluate else None,
        )  # fmt: skip
        return [bench.replace(reply, counters=counters)]

    run_rounds(bench.run(bench.transport(plan, fault)), bench.initial)
    assert {event.status for event in bench.recorder.of(SiteReplied)} == {"ok"}
    assert bench.recorder.of(RoundFolded)[0].train_loss > 100
    assert bench.recorder.of(Evaluated)[0].values["loss"] > 100


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
