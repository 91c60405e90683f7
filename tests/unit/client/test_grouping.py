"""A site in a run that sums over groups: its part in the draw, its own group only, and a checked vote."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
from toy_plans import toy_plan

from wardround.client.fold_check import FoldCheck
from wardround.client.grouping import Grouped
from wardround.client.round import answer
from wardround.core.errors import PeerError
from wardround.core.messages import Request
from wardround.core.packed import Layout, Packed, TensorSpec
from wardround.core.plan import (
    Encoding,
    RoundRules,
    StrategySpec,
)
from wardround.privacy.quantisation import quantise
from wardround.privacy.secagg.policy import SecurePolicy
from wardround.privacy.secagg.total import Sum, centred
from wardround.privacy.sums.contract import GROUPS
from wardround.privacy.sums.offers import scale_of
from wardround.privacy.sums.opened import opened, statistics_of
from wardround.simulations.consortium import Consortium
from wardround.strategies import STRATEGIES
from wardround.strategies.contract import ServerState, combined

LAYOUT = Layout(tensors=(TensorSpec(name="a", shape=(8,)),))
INITIAL = Packed(LAYOUT, np.linspace(-1, 1, 8, dtype=np.float32))
DRAWN = (("a", "e", "i"), ("b", "c", "d", "h"), ("f", "g", "j"))
MADE = STRATEGIES.get("group_median")
STRATEGY = MADE(MADE.Options(group_size=3), LAYOUT)
PLAN = toy_plan(
    layout=LAYOUT,
    initial=INITIAL.digest,
    encoding=Encoding(largest=0.5, most_weight=10),
    strategy=StrategySpec(name="group_median", options={"group_size": 3}),
    rounds=RoundRules(rounds=9),
)
OWN = 1
"""The group of the site that checks."""


@dataclass
class Server:
    """An honest server, and what it sends with each broadcast."""

    state: ServerState = field(default_factory=lambda: STRATEGY.begin(INITIAL))
    opened: tuple[bytes, ...] = ()

    @property
    def round(self) -> int:
        """The round that the next broadcast begins."""
        return self.state.round + 1

    def total(self, group: int, survivors: tuple[str, ...]) -> Sum:
        """The sum of a group's contributions."""
        scale = scale_of(PLAN.encoding, len(DRAWN[group]))
        rngs = [np.random.default_rng([self.round, *site.encode()]) for site in survivors]
        parts = [quantise(rng.uniform(-0.4, 0.4, 8), 3, scale, rng).integers for rng in rngs]
        total: Any = sum(centred(part, 16) for part in parts)
        return Sum(total, np.array([3 * len(survivors), 0, 0]), survivors, ())

    def part(self, of: int, **changes: Any) -> bytes:
        """A group's sum as it is sent; `changes` replace what an honest one says."""
        survivors = changes.pop("survivors", DRAWN[of])
        places = {"round": self.round, "stage": 0, "cohort": len(DRAWN[of]), "group": of}
        return opened(self.total(of, survivors), bits=16, **(places | changes))

    def fold(self, groups: tuple[int, ...] = (0, 1, 2)) -> None:
        """One round over these groups."""
        sums = []
        for group in groups:
            statistics, _ = statistics_of(
                self.total(group, DRAWN[group]), LAYOUT, PLAN.encoding, cohort=len(DRAWN[group])
            )
            sums.append((statistics, 3.0 * len(DRAWN[group])))
        self.opened = tuple(self.part(group) for group in groups)
        self.state = STRATEGY.fold(self.state, *combined(STRATEGY, sums), 0)


def asked(site: FoldCheck, server: Server, **changes: Any) -> bool:
    """The site's check of what the server sends."""
    return site.check(
        server.round, STRATEGY.broadcast(server.state, server.round, 0),
        changes.get("opened", server.opened), changes.get("confirmed", {0: DRAWN[OWN]}),
    )  # fmt: skip


@pytest.fixture
def begun() -> tuple[FoldCheck, Server]:
    """A site that has trained in round 1, which is folded."""
    site, server = FoldCheck(PLAN, STRATEGY, groups=DRAWN), Server()
    assert asked(site, server, confirmed={})
    server.fold()
    return site, server


def test_the_vote_is_followed_from_round_to_round(begun: tuple[FoldCheck, Server]) -> None:
    """The site folds the groups' sums as the server did."""
    site, server = begun
    for _ in range(4):
        assert asked(site, server)
        server.fold()
    assert not site.broken


BEFORE = Server()
"""Sends the sums of round 1."""


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ([BEFORE.part(0), BEFORE.part(1)], "too few groups are left"),
        ([], "not the fold"),
        ([BEFORE.part(0), BEFORE.part(1), BEFORE.part(1)], "not in their order"),
        ([BEFORE.part(1), BEFORE.part(0), BEFORE.part(2)], "not in their order"),
        ([BEFORE.part(0), BEFORE.part(1), BEFORE.part(2, group=3)], "not in their order"),
        ([BEFORE.part(0), BEFORE.part(1), BEFORE.part(2, cohort=9)], "not of the group that it names"),
        ([BEFORE.part(0), BEFORE.part(1), BEFORE.part(2, survivors=("f", "g", "x"))], "not of the group"),
        ([BEFORE.part(0), BEFORE.part(1, survivors=("b", "c", "d")), BEFORE.part(2)], "other survivors"),
        ([BEFORE.part(0, survivors=("a", "e")), BEFORE.part(1), BEFORE.part(2)], "not the fold"),
        ([BEFORE.part(0), BEFORE.part(1), BEFORE.part(2, round=2)], "of another round"),
        ([BEFORE.part(0), BEFORE.part(1), BEFORE.part(2, stage=1)], "of another round"),
    ],
)
def test_sums_that_are_not_those_of_the_groups_are_refused(
    begun: tuple[FoldCheck, Server], parts: list[bytes], message: str
) -> None:
    """Each in its order, of its own members, and together what the broadcast was made of."""
    site, server = begun
    with pytest.raises(PeerError, match=message):
        asked(site, server, opened=tuple(parts))
    assert site.broken


def test_a_group_whose_sum_was_lost_may_be_missing() -> None:
    """As long as the others are enough: four groups here."""
    groups = (*DRAWN, ("k", "l", "m"))
    site, server = FoldCheck(PLAN, STRATEGY, groups=groups), Server()
    assert asked(site, server, confirmed={})
    server.fold()
    assert asked(site, server)


def offer_over(cohort: tuple[str, ...]) -> Any:
    """As far as a site's own group is concerned, an offer is its cohort."""

    class Offer:
        pass

    offer: Any = Offer()
    offer.cohort = cohort
    return offer


@pytest.mark.parametrize("cohort", [DRAWN[0], DRAWN[1][:3], tuple(sorted((*DRAWN[1], "x"))), DRAWN[1][::-1]])
def test_a_site_contributes_to_its_own_group_only(cohort: tuple[str, ...]) -> None:
    """Neither to another one, nor to a part of its own, nor to more than it."""
    grouped = Grouped("c", draw=None, groups=DRAWN)  # type: ignore[arg-type]  # drawn already
    grouped.check(offer_over(DRAWN[1]))
    with pytest.raises(PeerError, match="not over this site's group"):
        grouped.check(offer_over(cohort))


@pytest.mark.parametrize("groups", [(), (DRAWN[0], DRAWN[2])])
def test_a_site_without_a_group_contributes_to_none(groups: Any) -> None:
    """It was not there for the draw."""
    grouped = Grouped("c", draw=None, groups=groups)  # type: ignore[arg-type]  # drawn already
    with pytest.raises(PeerError, match="were not drawn with this site"):
        grouped.check(offer_over(DRAWN[1]))


def draw_request(**changes: Any) -> Request:
    """The first phase of a draw, malformed."""
    fields: dict[str, Any] = {
        "run_id": "run", "plan_digest": PLAN.digest, "round": 0, "site": "ward", "sums": {GROUPS: b"x" * 20},
    }  # fmt: skip
    return Request(**(fields | changes))


def test_a_plan_without_groups_has_no_draw(make: Callable[..., Any]) -> None:
    """The request does not follow from the plan, and says so."""
    server = make()
    reply = answer(draw_request(plan_digest=server.site.plan.digest), server.site)
    assert (reply.status, reply.code) == ("refused", "bad_request")
    assert reply.reason == "the plan's strategy has no groups"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({}, "another protocol or version"),
        ({"exchange": 1}, "another protocol or version"),
        ({"exchange": 2}, "another protocol or version"),
        ({"exchange": 3}, "no such phase"),
        ({"sums": {}}, "nothing else"),
        ({"sums": {GROUPS: b"x", "training": b"x"}}, "nothing else"),
        ({"run_id": "other"}, "another run"),
        ({"site": "other_1"}, "another site"),
        ({"plan_digest": "0" * 64}, "another plan"),
    ],
)
def test_a_malformed_draw_is_refused_by_name(
    make: Callable[..., Any], change: dict[str, Any], reason: str
) -> None:
    """Whatever the server sends, the site answers in its own words."""
    server = make()
    consortium = Consortium.of(server.wards, SecurePolicy(group_strategies=("group_median",), least_cohort=3))
    grouped = consortium.grouped("ward", server.site.plan, "run", STRATEGY)
    site = replace(server.site, grouped=grouped)
    request = draw_request(**({"plan_digest": site.plan.digest} | change))
    reply = answer(request, site)
    assert (reply.status, reply.code) == ("refused", "bad_request")
    assert reason in reply.reason
