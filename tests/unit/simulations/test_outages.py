"""Sites that a simulation loses: how often, when, and what the loop hears of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import pytest
from toy_plans import toy_plan

from wardround.core.messages import Reply, Request, reply_to
from wardround.core.plan import SecureRules
from wardround.simulations.outages import CODE, Outages

SITES = tuple(f"s{index}" for index in range(200))


@dataclass
class Answering:
    """A transport whose sites answer at once."""

    asked: list[Request] = field(default_factory=list)

    def send(self, requests: Sequence[Request]) -> dict[str, int]:
        """A byte each."""
        self.asked += requests
        return {request.site: 1 for request in requests}

    def send_more(self, request: Request) -> int:
        """Likewise."""
        self.asked.append(request)
        return 1

    def receive(self, timeout_s: float) -> list[tuple[Reply, int]]:
        """All of them."""
        return [(reply_to(request), 1) for request in self.asked]


def request(site: str, **more: Any) -> Request:
    """One to a site."""
    return Request(run_id="run", plan_digest="", site=site, **({"round": 1, "sums": {}} | more))


def lost_in(mode: str, share: float, **more: Any) -> set[str]:
    """Sites that are lost by then."""
    inner = Answering()
    outages = Outages(inner, toy_plan(secure=SecureRules(mode=mode)), share)  # type: ignore[arg-type]  # one of them
    sent = outages.send([request(site, **more) for site in SITES])
    gone = {reply.site for reply, _ in outages.receive(0.0)} if len(sent) < len(SITES) else set()
    assert gone.isdisjoint(sent)
    assert gone | set(sent) == set(SITES)
    assert {ask.site for ask in inner.asked} == set(sent), "who is lost is sent nothing"
    return gone


def test_as_many_as_asked_for_are_lost_and_others_in_each_round() -> None:
    """Without masks before the round: a share of 0.3 of 200 within four standard deviations."""
    one, two = (lost_in("off", 0.3, round=round) for round in (1, 2))
    assert 34 <= len(one) <= 86
    assert one != two
    assert lost_in("off", 0.0) == set()
    assert lost_in("off", 0.3, round=0) == set(), "the draw of groups"


@pytest.mark.parametrize("mode", ["real", "accounted"])
def test_under_masks_they_are_lost_bit_by_bit_and_stay_so(mode: str) -> None:
    """From any exchange on, in every attempt, and in the stages that follow."""
    by_exchange = [lost_in(mode, 0.5, exchange=exchange) for exchange in range(5)]
    for earlier, later in pairwise(by_exchange):
        assert earlier < later
    assert lost_in(mode, 0.5, attempt=2) == by_exchange[0]
    assert lost_in(mode, 0.5, stage=1) == by_exchange[4]


def test_the_loop_hears_of_it_once_and_by_name() -> None:
    """Then of the others."""
    outages = Outages(Answering(), toy_plan(), 0.3)
    outages.send([request(site) for site in SITES])
    first, second = outages.receive(0.0), outages.receive(0.0)
    assert {(reply.status, reply.code) for reply, _ in first} == {("failed", CODE)}
    assert {reply.status for reply, _ in second} == {"ok"}
    assert len(first) + len(second) == len(SITES)
