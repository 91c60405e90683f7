"""The handler and its sums: offers, phases, later attempts; a broadcast is held against the last sum."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from wardround.client.round import answer
from wardround.privacy.packing import unpack
from wardround.privacy.quantisation import dequantise
from wardround.privacy.secagg.messages import Advertisement, MaskedInput, decode
from wardround.privacy.secagg.offer import SignedOffer
from wardround.privacy.secagg.total import Sum, centred
from wardround.privacy.sums.contract import EVALUATION, SUMS, TRAINING
from wardround.privacy.sums.offers import scale_of
from wardround.privacy.sums.opened import opened

Make = Callable[..., Any]


def test_a_request_that_comes_twice_is_refused_by_the_same_process(make: Make, trained: Counter[int]) -> None:
    """One offer, one answer: nothing is trained a second time for it."""
    server = make()
    assert answer(server.request(), server.site).status == "ok"
    reply = answer(server.request(), server.site)
    assert (reply.status, reply.code, reply.sums) == ("refused", "bad_message", {})
    assert "not newer than the last one" in reply.reason
    assert trained == {1: 1}


@pytest.mark.parametrize(
    ("name", "change", "reason"),
    [
        (TRAINING, {"most_weight": 9}, "not what the plan says"),
        (EVALUATION, {"threshold": 4}, "not what the plan says"),
        (TRAINING, {"broadcast": bytes(32)}, "another broadcast"),
        (EVALUATION, {"cohort": ("other_1", "other_2", "other_3")}, "misses this one"),
        (TRAINING, {"attempt": 1}, "for another request"),
    ],
)
def test_an_offer_that_does_not_follow_is_refused_before_any_work(
    make: Make, trained: Counter[int], name: str, change: dict[str, Any], reason: str
) -> None:
    """Of either sum, though the server signed it: nothing is scored, trained or sent for the other one."""
    server = make()
    request = server.request()
    altered = server.offer(name, server.initial).model_copy(update=change)
    reply = answer(replace(request, sums={**request.sums, name: server.signed(altered)}), server.site)
    assert (reply.status, reply.code, reply.sums) == ("refused", "bad_message", {})
    assert reason in reply.reason
    assert not trained
    assert not server.site.parties.kept


@pytest.mark.parametrize("mode", ["accounted", "real"])
def test_a_cohort_that_the_sites_policy_refuses_costs_no_training(
    make: Make, trained: Counter[int], mode: str
) -> None:
    """Four sites are fewer than five: refused in the policy's words."""
    server = make(mode=mode)
    reply = answer(server.request(), server.site)
    assert (reply.status, reply.code, reply.sums) == ("refused", "policy", {})
    assert reply.reason == "the cohort is smaller than this site's policy allows"
    assert not trained


def test_under_secure_aggregation_the_first_answer_holds_keys_and_no_contribution(make: Make) -> None:
    """What was trained and scored is kept for the phase that asks for it."""
    server = make(mode="real", least_cohort=4)
    reply = answer(server.request(), server.site)
    assert (reply.status, set(reply.sums)) == ("ok", set(SUMS))
    for message in reply.sums.values():
        assert decode(message, Advertisement).site == "ward"
    assert set(server.site.parties.kept) == set(SUMS)
    assert {"seconds", "seconds.training", "seconds.evaluation", "train.loss"} <= set(reply.local)


def test_another_attempt_sends_what_was_kept_and_trains_nothing(make: Make, trained: Counter[int]) -> None:
    """Lane for lane, of both sums; in a round that was never begun here the site says so."""
    server = make()
    first = server.request()
    replies = [(first, answer(first, server.site))]
    for attempt in (1, 2):
        request = server.request(attempt=attempt)
        replies.append((request, answer(request, server.site)))
    assert {reply.status for _, reply in replies} == {"ok"}
    assert trained == {1: 1}
    for name in SUMS:
        lanes = [server.read(request, reply, name) for request, reply in replies]
        for coordinates, counters in lanes[1:]:
            np.testing.assert_array_equal(coordinates, lanes[0][0])
            np.testing.assert_array_equal(counters.vector, lanes[0][1].vector)
    nothing = answer(server.request(2, attempt=1), server.site)
    assert (nothing.status, nothing.code, nothing.sums) == ("failed", "nothing_kept", {})


def test_what_goes_wrong_with_one_sum_of_an_attempt_leaves_the_other_alone(make: Make) -> None:
    """Only the evaluation was ever asked for: it is sent again, and the training is named."""
    server = make()
    assert answer(server.request(sums=[EVALUATION]), server.site).status == "ok"
    reply = answer(server.request(attempt=1), server.site)
    assert (reply.status, reply.code, set(reply.sums)) == ("failed", "nothing_kept", {EVALUATION})


def test_a_phase_that_the_aggregation_does_not_have_is_refused(make: Make) -> None:
    """By name; nothing is trained or scored in it."""
    server = make()
    assert answer(server.request(), server.site).status == "ok"
    reply = answer(replace(server.request(), broadcast=None, exchange=1), server.site)
    assert (reply.status, reply.code, reply.sums) == ("refused", "bad_message", {})
    assert "does not have" in reply.reason


def test_a_broadcast_that_is_not_the_fold_of_the_last_sum_ends_this_sites_part_in_the_run(
    make: Make, trained: Counter[int]
) -> None:
    """The right one passes; a crafted one is refused before it is loaded, and so is whatever follows it."""
    server = make()
    site, plan = server.site, server.site.plan
    request = server.request()
    reply = answer(request, site)
    offer = decode(request.sums[TRAINING], SignedOffer).offer
    vector = decode(reply.sums[TRAINING], MaskedInput, offer)
    total = Sum(
        centred(unpack(vector.coordinates, offer.coordinates, offer.bits), offer.bits),
        unpack(vector.counters, 3, 64).astype(np.int64), ("ward",), (),
    )  # fmt: skip
    sums = (opened(total, round=1, stage=0, cohort=4, bits=plan.encoding.bits),)
    update = dequantise(total.coordinates, scale_of(plan.encoding, 4)) / 6
    folded = (server.initial.vector.astype(np.float64) + update).astype(np.float32)
    right = server.initial.with_vector(folded)
    crafted = right.with_vector(right.vector + np.float32(0.01))
    alone = server.restarted()
    assert answer(alone.request(), alone.site).status == "ok"
    assert answer(alone.request(2, broadcast=right, opened=sums), alone.site).status == "ok"
    trained.clear()
    reply = answer(server.request(2, broadcast=crafted, opened=sums), site)
    assert (reply.status, reply.code, reply.sums) == ("refused", "bad_request", {})
    assert reply.reason == "the broadcast is not the fold of the last sum"
    reply = answer(server.request(2, broadcast=right, opened=sums), site)
    assert (reply.status, reply.code, reply.sums) == ("refused", "bad_request", {})
    assert "an earlier broadcast" in reply.reason
    assert not trained
