"""Replies that are malformed, stale, foreign, or say more than was asked: quarantined or passed over."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from wardround.core.errors import QuorumError
from wardround.core.plan import ReleaseRule, RoundRules
from wardround.runtime.events import Evaluated, RoundFolded, SiteReplied
from wardround.server.rounds import run_rounds

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


UNASKED = {
    "weight": ("weight", {"evaluate"}),
    "training loss": ("train.loss", {"evaluate"}),
    "training targets": ("train.targets", {"evaluate"}),
    "validation": ("validation.examples", {"train"}),
}


def with_counters(reply: Any, change: Any) -> Any:
    """The reply's counters, changed as a vector."""
    return reply.counters.with_vector(change(reply.counters.vector))


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
        outcome.last.adapter.vector, bench.expected_adapter(transport, 5, {2: {"b"}})
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
    np.testing.assert_array_equal(outcome.last.adapter.vector, bench.expected_adapter(transport, 5))


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
    np.testing.assert_array_equal(outcome.last.adapter.vector, bench.expected_adapter(transport, 5))


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
        np.testing.assert_array_equal(outcome.last.adapter.vector, bench.expected_adapter(transport, 1))
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
