"""Replies that are malformed, stale, foreign, or say more than was asked: quarantined or passed over."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from wardround.core.plan import ReleaseRule, RoundRules
from wardround.privacy.sums.contract import EVALUATION, TRAINING, Lanes
from wardround.runtime.events import Evaluated, RoundFolded, SiteReplied, SumOpened
from wardround.server.rounds import run_rounds

MODES = pytest.mark.parametrize("mode", ["off", "real"])
SOME = tuple("abcde")
"""One of them may be lost under secure aggregation; each one more asks for more of every other."""
DEEP = b"WSA1" + (4000).to_bytes(4, "little") + b"[" * 4000
"""A head that no parser of limited depth reads to its end."""


def counted(bench: Any, transport: Any, request: Any, **counters: int) -> np.ndarray:
    """The counters of the site's contribution, some of them replaced by their place."""
    lanes = transport.lanes(TRAINING, bench.offer_in(request, TRAINING), request.site)
    vector = lanes.counters.copy()
    for place, value in counters.items():
        vector[int(place[1:])] = value
    return vector


def coordinates(bench: Any, transport: Any, request: Any) -> np.ndarray:
    """The coordinates of the site's contribution."""
    return transport.lanes(TRAINING, bench.offer_in(request, TRAINING), request.site).coordinates.copy()


def with_first(vector: np.ndarray, value: int) -> np.ndarray:
    """The vector with another first coordinate."""
    vector[0] = value
    return vector


# What a site signs itself, whatever is in it: only the server's own checks stand between it and the sum.
SIGNED = {
    "shape": lambda b, t, r: {"coordinates": coordinates(b, t, r)[:-1]},
    "broadcastable shape": lambda b, t, r: {"coordinates": coordinates(b, t, r)[:1]},
    "dtype": lambda b, t, r: {"coordinates": coordinates(b, t, r).astype("<f8").tobytes()},
    "a wider ring": lambda b, t, r: {"coordinates": coordinates(b, t, r).astype("<u4").tobytes()},
    "too few counters": lambda b, t, r: {"counters": counted(b, t, r)[:-1]},
    "weight": lambda b, t, r: {"counters": counted(b, t, r, _0=51)},
    "zero weight": lambda b, t, r: {"counters": counted(b, t, r, _0=0)},
    "wrapping contribution": lambda b, t, r: {"coordinates": with_first(coordinates(b, t, r), 2**15)},
    "contribution beyond the bounds": lambda b, t, r: {
        "coordinates": with_first(coordinates(b, t, r), -(2**14) % 2**16)
    },
    "wrapping counters": lambda b, t, r: {"counters": counted(b, t, r, _1=2**60)},
    "negative counters": lambda b, t, r: {"counters": counted(b, t, r, _1=2**64 - 5)},
    "in another's name": lambda b, t, r: {"site": "c"},
    "of another attempt": lambda b, t, r: {"dealt": bytes(32)},
    "signed by another": lambda b, t, r: {"signer": "c"},
}


@pytest.mark.parametrize("kind", sorted(SIGNED))
def test_a_contribution_out_of_bounds_quarantines_its_sender_by_name_and_the_round_goes_on(
    bench: Any, kind: str
) -> None:
    """One malformed contribution in round 2: that site is left out of that round only."""
    plan = bench.plan_of()

    def fault(request: Any, reply: Any) -> Any:
        if (request.site, request.round) != ("b", 2):
            return [reply]
        message = bench.forged(transport, request, **SIGNED[kind](bench, transport, request))
        return [bench.replace(reply, sums={**reply.sums, TRAINING: message})]

    transport = bench.transport(plan, fault)
    outcome = run_rounds(bench.run(transport), bench.initial)
    np.testing.assert_array_equal(
        outcome.last.adapter.vector, bench.expected_adapter(transport, 5, {2: {"b"}})
    )
    assert_quarantined(bench, ("b", 2, 0))
    assert bench.recorder.of(RoundFolded)[1].missing == ("b",)


def test_a_forged_contribution_that_is_right_is_taken(bench: Any) -> None:
    """The twin of the test above: what it changes is all that is wrong with its messages."""
    plan = bench.plan_of()

    def fault(request: Any, reply: Any) -> Any:
        if (request.site, request.round) != ("b", 2):
            return [reply]
        return [bench.replace(reply, sums={**reply.sums, TRAINING: bench.forged(transport, request)})]

    transport = bench.transport(plan, fault)
    outcome = run_rounds(bench.run(transport), bench.initial)
    np.testing.assert_array_equal(outcome.last.adapter.vector, bench.expected_adapter(transport, 5))


def assert_quarantined(bench: Any, *places: tuple[str, int, int]) -> None:
    """Exactly these sites, rounds and exchanges, each once, and nobody was told of in any other way."""
    told = [event for event in bench.recorder.of(SiteReplied) if event.status != "ok"]
    assert [(event.site, event.round, event.exchange) for event in told] == list(places)
    assert {(event.status, event.code) for event in told} == {("quarantined", "malformed_reply")}
    assert all(event.reason for event in told)


def without(reply: Any, name: str) -> dict[str, bytes]:
    """The reply's sums, one of them left out."""
    return {kept: message for kept, message in reply.sums.items() if kept != name}


BAD = {
    "plan": lambda b, reply: b.replace(reply, plan_digest="f" * 64),
    "no sums": lambda b, reply: b.replace(reply, sums={}),
    "no contribution": lambda b, reply: b.replace(reply, sums=without(reply, TRAINING)),
    "no counters": lambda b, reply: b.replace(reply, sums=without(reply, EVALUATION)),
    "too many sums": lambda b, reply: b.replace(reply, sums={**reply.sums, "other": b"x"}),
    "empty": lambda b, reply: b.replace(reply, sums=dict.fromkeys(reply.sums, b"")),
    "garbled": lambda b, reply: b.replace(reply, sums={n: garbled(m) for n, m in reply.sums.items()}),
    "another protocol": lambda b, reply: b.replace(
        reply, sums={n: b"X" + m[1:] for n, m in reply.sums.items()}
    ),
    "longer": lambda b, reply: b.replace(reply, sums={n: m + b"\0" for n, m in reply.sums.items()}),
    "shorter": lambda b, reply: b.replace(reply, sums={n: m[:-1] for n, m in reply.sums.items()}),
    "too deep": lambda b, reply: b.replace(reply, sums=dict.fromkeys(reply.sums, DEEP)),
    "of the other sum": lambda b, reply: b.replace(
        reply, sums=dict(zip(reply.sums, reversed(reply.sums.values()), strict=True))
    ),
}  # fmt: skip


def garbled(message: bytes) -> bytes:
    """A flipped bit in what the site signed: the first one after its signature's name."""
    place = message.index(b'"signature":"') + 20
    return message[:place] + bytes([message[place] ^ 1]) + message[place + 1 :]


@pytest.mark.parametrize(("mode", "exchange"), [("off", 0), *(("real", exchange) for exchange in range(5))])
def test_a_bad_reply_quarantines_its_sender_by_name_and_the_round_goes_on(
    bench: Any, mode: str, exchange: int
) -> None:
    """In any exchange: whoever had sent its masked vector by then is in the sum, nobody else is lost.

    One kind a round, from two sites in turn: in the rounds before and after its own, each takes part as ever.
    """
    wrong = {round: ("bc"[round % 2], BAD[kind]) for round, kind in enumerate(sorted(BAD), start=2)}
    rounds = max(wrong) + 1
    plan = bench.plan_of(mode, rounds=RoundRules(rounds=rounds))

    def fault(request: Any, reply: Any) -> Any:
        sender, spoil = wrong.get(request.round, ("", None))
        here = spoil is not None and (request.site, request.exchange) == (sender, exchange)
        return [spoil(bench, reply) if here else reply]

    transport = bench.transport(plan, fault)
    outcome = run_rounds(bench.run(transport, SOME), bench.initial)
    assert_quarantined(bench, *((sender, round, exchange) for round, (sender, _spoil) in wrong.items()))
    lost = {} if exchange >= 3 else {round: (sender,) for round, (sender, _spoil) in wrong.items()}
    assert [(event.round, event.missing) for event in bench.recorder.of(RoundFolded)] == [
        (round, lost.get(round, ())) for round in range(1, rounds + 1)
    ]
    expected = bench.expected_adapter(transport, rounds, {round: set(sites) for round, sites in lost.items()})
    np.testing.assert_array_equal(outcome.last.adapter.vector, expected)
    assert {event.attempt for event in bench.recorder.of(SumOpened)} == {0}


@MODES
@pytest.mark.parametrize("copies", [2, 3])
def test_the_same_reply_twice_counts_once(bench: Any, copies: int, mode: str) -> None:
    """Doubled replies change no bit."""
    plan = bench.plan_of(mode, rounds=RoundRules(rounds=2))
    transport = bench.transport(plan, lambda request, reply: [reply] * copies)
    outcome = run_rounds(bench.run(transport, SOME), bench.initial)
    np.testing.assert_array_equal(outcome.last.adapter.vector, bench.expected_adapter(transport, 2))
    assert {event.status for event in bench.recorder.of(SiteReplied)} == {"ok"}


@MODES
@pytest.mark.parametrize(
    "change",
    [{"round": 1}, {"run_id": "another"}, {"attempt": 1}, {"stage": 1}, {"exchange": 7}, {"site": "zz"}],
    ids=str,
)
def test_a_stale_or_foreign_reply_is_ignored(bench: Any, change: dict[str, Any], mode: str) -> None:
    """A replayed reply of another round, run, attempt, exchange or site beside the right one: no change."""
    plan = bench.plan_of(mode, rounds=RoundRules(rounds=3))
    transport = bench.transport(
        plan,
        lambda request, reply: [bench.replace(reply, **change), reply] if request.round == 2 else [reply],
    )
    outcome = run_rounds(bench.run(transport, SOME), bench.initial)
    np.testing.assert_array_equal(outcome.last.adapter.vector, bench.expected_adapter(transport, 3))
    assert {event.status for event in bench.recorder.of(SiteReplied)} == {"ok"}


@pytest.mark.parametrize("kind", ["a contribution", "validation counters"])
def test_a_sum_that_was_not_asked_for_is_quarantined(bench: Any, kind: str) -> None:
    """A site that only evaluates cannot shrink the update by a weight, nor one that only trains vote.

    What it sends is right in itself, and signed: for the cohort's own offer.
    """
    plan = bench.plan_of(
        rounds=RoundRules(rounds=1, participation=0.5),
        release=ReleaseRule(metric="accuracy", direction="max"),
    )
    name = TRAINING if kind == "a contribution" else EVALUATION
    if name == EVALUATION:
        plan = plan.model_copy(update={"data": plan.data.model_copy(update={"validation_fraction": 0.0})})

    def fault(request: Any, reply: Any) -> Any:
        if name in request.sums or request.round > 1:
            return [reply]
        offers = [bench.offer_in(asked, name) for asked in transport.asked if name in asked.sums]
        offer = offers[0] if offers else evaluation_offer(transport)
        message = bench.forged(transport, request, name=name, offer=offer)
        return [bench.replace(reply, sums={**reply.sums, name: message})]

    transport = bench.transport(plan, fault)
    run = bench.run(transport)
    if name == EVALUATION:  # nobody is left that trains
        with pytest.raises(Exception, match="did not reach its quorum"):
            run_rounds(run, bench.initial)
    else:
        outcome = run_rounds(run, bench.initial)
        np.testing.assert_array_equal(outcome.last.adapter.vector, bench.expected_adapter(transport, 1))
    replies = [event for event in bench.recorder.of(SiteReplied) if event.round == 1]
    faulty = {event.site for event in replies if event.status == "quarantined"}
    assert faulty == {r.site for r in transport.asked if r.round == 1 and name not in r.sums}
    assert faulty


def evaluation_offer(transport: Any) -> Any:
    """An offer of the evaluation that the server might have made."""
    from wardround.core.packed import Layout
    from wardround.privacy.sums.offers import offer_of

    plan, first = transport.plan, transport.asked[0]
    return offer_of(
        plan, name=EVALUATION, run_id="run", round=1, stage=0, attempt=0,
        cohort=tuple(sorted(transport.parties)), roster=transport.consortium.roster(plan).digest,
        broadcast=bytes.fromhex(first.broadcast.digest), statistics=Layout(tensors=()),
    )  # fmt: skip


@MODES
def test_a_site_that_has_gone_astray_stays_in_the_round(bench: Any, mode: str) -> None:
    """Any number of rows at the largest loss is within what the server takes, and still a bad figure."""
    from wardround.core.counting import metric_counters, training_counters
    from wardround.core.metrics.contract import LARGEST_LOSS, LOSS_UNIT

    plan = bench.plan_of(mode, rounds=RoundRules(rounds=1))
    rows = 10**7

    def astray(name: str, request: Any, lanes: Lanes) -> Lanes:
        if request.site != "a":
            return lanes
        if name == TRAINING:
            counters = training_counters(weight=int(lanes.counters[0]), loss_sum=1e30, targets=rows)
        else:
            one = int(LARGEST_LOSS / LOSS_UNIT)
            scored = {
                "examples": np.int64(rows), "loss": np.int64(one * (rows // 10)),
                "confusion": np.array([[rows, 0], [0, 0]]),
            }  # fmt: skip
            counters = metric_counters(plan, scored)
        return Lanes(lanes.coordinates, counters.vector.astype(lanes.counters.dtype))

    run_rounds(bench.run(bench.transport(plan, tamper=astray)), bench.initial)
    assert {event.status for event in bench.recorder.of(SiteReplied)} == {"ok"}
    assert bench.recorder.of(RoundFolded)[0].train_loss > 100
    assert bench.recorder.of(Evaluated)[0].values["loss"] > 100


@MODES
@pytest.mark.parametrize("bad", [TRAINING, EVALUATION])
def test_one_bad_sum_of_a_reply_leaves_the_other_alone(bench: Any, mode: str, bad: str) -> None:
    """Whichever stands first in the reply: its sender is named, and is in the sum that was right."""
    plan = bench.plan_of(mode, rounds=RoundRules(rounds=1))
    for order in (list, lambda names: list(names)[::-1]):
        bench.recorder.events.clear()
        transport = bench.transport(
            plan,
            lambda request, reply, order=order: (
                [
                    bench.replace(
                        reply,
                        sums={
                            n: garbled(reply.sums[n]) if n == bad else reply.sums[n]
                            for n in order(reply.sums)
                        },
                    )
                ]
                if (request.site, request.round, request.exchange) == ("b", 1, 0)
                else [reply]
            ),
        )
        run = bench.run(transport)
        run_rounds(
            bench.replace(
                run, journal=bench.replace(run.journal, folder=bench.folder / f"{bad}{order is list}")
            ),
            bench.initial,
        )
        assert_quarantined(bench, ("b", 1, 0))
        sums = {e.name: e.cohort - e.survivors for e in bench.recorder.of(SumOpened) if e.round == 1}
        assert sums == {name: int(name == bad) for name in (TRAINING, EVALUATION)}
