"""A site under adaptive clipping of whole sites: which norm it takes, and what of its update it tells."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
from broadcasting import Broadcasting
from site_plans import site_plan

from wardround.client.fold_check import TOLERANCE, FoldCheck
from wardround.client.round import answer
from wardround.core.errors import PeerError
from wardround.core.packed import Layout, Packed, TensorSpec
from wardround.core.plan import Encoding, TrainingPlan
from wardround.core.seeds import Purpose
from wardround.privacy.noise.source import RepeatableSource
from wardround.privacy.secagg.total import Sum
from wardround.privacy.sums.contract import TRAINING
from wardround.privacy.sums.noise import ring_noise
from wardround.privacy.sums.opened import opened, statistics_of
from wardround.strategies.adaptive_norm import NORM
from wardround.strategies.contract import ServerState, SumStrategy
from wardround.training.plan_strategy import bind_strategy

LAYOUT = Layout(tensors=(TensorSpec(name="a", shape=(8,)),))
INITIAL = Packed(LAYOUT, np.linspace(-1, 1, 8, dtype=np.float32) / 100)
SITES = tuple("abcdefghij")


@dataclass
class Server(Broadcasting):
    """An honest server of ten sites whose updates cancel each other, so that the noise alone is folded."""

    name: str = "fedavg"
    sigma: float = 1.0
    plan: TrainingPlan = field(init=False)
    strategy: SumStrategy = field(init=False)
    state: ServerState = field(init=False)
    opened: tuple[bytes, ...] = ()

    def __post_init__(self) -> None:
        plan = site_plan(layout=LAYOUT, sigma=self.sigma, strategy=self.name, adaptive={"largest": 1e3})
        spec = plan.adapter.model_copy(update={"initial_digest": INITIAL.digest})
        self.plan = plan.model_copy(update={"adapter": spec})
        self.strategy = bind_strategy(self.plan)
        self.state = self.strategy.begin(INITIAL)

    def fold(self) -> None:
        """One round."""
        noise = ring_noise(self.plan, cohort=10, coordinates=9, round=self.round)
        assert noise is not None
        total = Sum(np.zeros(9, np.int64), np.array([10, 0, 0]), SITES, ())
        source = RepeatableSource(1, Purpose.NOISE, round=self.round, site="")
        total = noise.added_to_sum(total, source)
        self.opened = (opened(total, round=self.round, stage=0, cohort=10, bits=32),)
        layout = self.strategy.statistics_layout(0)
        statistics, _ = statistics_of(total, layout, self.plan.encoding, cohort=10, noise=noise)
        self.state = self.strategy.fold(self.state, statistics, 10.0, 0)


def asked(site: FoldCheck, server: Server, broadcast: Packed | None = None) -> bool:
    """The site's check of what the server sends."""
    confirmed = {0: SITES} if server.opened else {}
    sent = server.broadcast if broadcast is None else broadcast
    return site.check(server.round, sent, server.opened, confirmed)


def with_norm(broadcast: Packed, factor: float) -> Packed:
    """The same adapter under another C."""
    vector = broadcast.vector.copy()
    vector[-1] *= np.float32(factor)
    return broadcast.with_vector(vector)


@pytest.mark.parametrize("name", ["fedavg", "fedadam"])
def test_an_honest_run_is_followed_and_its_norm_with_it(name: str) -> None:
    """From round to round, and asked again by a resumed server."""
    server = Server(name)
    site, norms = FoldCheck(server.plan, server.strategy), set()
    for _ in range(6):
        assert asked(site, server)
        assert asked(site, server)
        norms.add(float(server.broadcast[NORM]))
        server.fold()
    assert len(norms) == 6


@pytest.mark.parametrize("factor", [1 + 1e-5, 0.9, 2.0])
def test_a_norm_that_does_not_follow_from_the_last_sum_is_refused(factor: float) -> None:
    """However large the adapter beside it is, and whatever comes after it."""
    server = Server()
    site = FoldCheck(server.plan, server.strategy)
    asked(site, server)
    server.fold()
    with pytest.raises(PeerError, match="not the fold of the last sum"):
        asked(site, server, with_norm(server.broadcast, factor))
    with pytest.raises(PeerError, match="an earlier broadcast"):
        asked(site, server)


def test_a_large_norm_does_not_make_the_adapters_tolerance_larger() -> None:
    """Each is held against its own size."""
    server = Server(sigma=0.1)
    site = FoldCheck(server.plan, server.strategy)
    slots = {NORM: server.state.slots[NORM].with_vector(np.array([500.0]))}
    site.known = server.state = replace(server.state, round=4, slots=slots)
    server.fold()
    crafted = server.broadcast.vector.copy()
    by = 5e-6 * np.abs(crafted[:-1]).max()
    assert by < TOLERANCE * crafted[-1]
    crafted[3] += by
    with pytest.raises(PeerError, match="not the fold of the last sum"):
        asked(site, server, server.broadcast.with_vector(crafted))


def test_the_next_norm_is_checked_from_the_one_that_was_sent() -> None:
    """What another machine's exp leaves does not add up over the rounds."""
    server = Server()
    site = FoldCheck(server.plan, server.strategy)
    for _ in range(8):
        slot = server.state.slots[NORM]
        sent = slot.with_vector(np.float32(slot.vector * (1 + 0.7 * TOLERANCE)).astype(np.float64))
        if server.round > 1:
            server.state = replace(server.state, slots={NORM: sent})
        assert asked(site, server)
        server.fold()


def test_the_first_norm_is_the_plans() -> None:
    """Nobody begins with another."""
    server = Server()
    site = FoldCheck(server.plan, server.strategy)
    with pytest.raises(PeerError, match="not what the plan begins with"):
        asked(site, server, with_norm(server.broadcast, 1.5))
    assert asked(site, server)


@pytest.mark.parametrize("name", ["fedavg", "fedadam"])
def test_a_site_that_missed_rounds_takes_the_norm_from_the_broadcast(name: str) -> None:
    """And checks again from there, where the server keeps nothing else beside the adapter."""
    server = Server(name)
    site = FoldCheck(server.plan, server.strategy)
    asked(site, server)
    for _ in range(3):
        server.fold()
    assert asked(site, server) is False
    server.fold()
    assert asked(site, server) is (name == "fedavg")
    server.fold()
    if name == "fedavg":
        with pytest.raises(PeerError, match="not the fold"):
            asked(site, server, with_norm(server.broadcast, 1.1))


def test_a_norm_beyond_the_plans_limits_is_refused_even_where_nothing_is_known() -> None:
    """By a site that missed everything before."""
    server = Server()
    for _ in range(4):
        server.fold()
    site = FoldCheck(server.plan, server.strategy)
    with pytest.raises(PeerError, match="beyond the plan's limits"):
        asked(site, server, with_norm(server.broadcast, 1e4))


def under_rules(make: Callable[..., Any], **work: Any) -> tuple[Any, Packed]:
    """The tiny site of these tests under such a plan, and the broadcast of its first round."""
    server = make(encoding=Encoding(bits=32, largest=2.0, norm=0.01, most_weight=1), **work)
    old = server.site.plan
    rules = site_plan(clip_norm=0.01, sigma=0.5).privacy
    spec = old.strategy.model_copy(update={"weighting": "uniform"})
    plan = old.model_copy(update={"privacy": rules, "strategy": spec})
    strategy = bind_strategy(plan)
    parties = server.consortium.parties("ward", plan, "run")
    site = replace(
        server.site, plan=plan, strategy=strategy, parties=parties, folds=FoldCheck(plan, strategy)
    )
    return replace(server, site=site), strategy.broadcast(strategy.begin(server.initial), 1, 0)


def test_a_reply_says_nothing_of_how_long_the_update_was(make: Callable[..., Any]) -> None:
    """It goes into the sum clipped, with its part of the count; no figure of it stands in the clear."""
    server, broadcast = under_rules(make)
    request = server.request(broadcast=broadcast, sums=[TRAINING])
    reply = answer(request, server.site)
    assert reply.status == "ok", reply.reason
    assert all(name.startswith("seconds") for name in reply.local), reply.local
    found, counters = server.read(request, reply, TRAINING)
    joint = server.site.strategy.joint
    assert counters.vector.tolist() == [1, 0, 0]
    assert np.linalg.norm(found[:-1]) == pytest.approx(joint.vector, rel=1e-4)  # it trained further than C
    assert found[-1] == pytest.approx(-joint.count / 2, rel=1e-6)


def test_another_first_adapter_is_refused_beside_the_norm(make: Callable[..., Any]) -> None:
    """The broadcast's layout is not the adapter's, and its adapter is the plan's all the same."""
    server, broadcast = under_rules(make)
    vector = broadcast.vector.copy()
    vector[0] += np.float32(0.5)
    crafted = broadcast.with_vector(vector)
    reply = answer(server.request(broadcast=crafted, sums=[TRAINING]), server.site)
    assert (reply.status, reply.code) == ("refused", "bad_request")
    assert "not the plan's initial adapter" in reply.reason


def test_a_norm_beyond_the_limits_is_a_bad_request_by_name(make: Callable[..., Any]) -> None:
    """Nothing is trained for it."""
    server, broadcast = under_rules(make)
    crafted = with_norm(broadcast, 1e12)
    reply = answer(server.request(broadcast=crafted, sums=[TRAINING]), server.site)
    assert (reply.status, reply.code) == ("refused", "bad_request")
    assert "clip norm is beyond the plan's limits" in reply.reason


def test_an_update_that_is_not_finite_is_the_sites_own_failure(
    make: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Never a clipped one: nothing of it reaches the sum."""
    from wardround.client import work as handler

    train = handler.train_locally

    def spoilt(*args: Any, **keywords: Any) -> Any:
        result = train(*args, **keywords)
        vector = result.adapter.vector.copy()
        vector[0] = np.nan
        return replace(result, adapter=result.adapter.with_vector(vector))

    monkeypatch.setattr(handler, "train_locally", spoilt)
    server, broadcast = under_rules(make)
    reply = answer(server.request(broadcast=broadcast, sums=[TRAINING]), server.site)
    assert (reply.status, reply.code, reply.sums) == ("failed", "bad_contribution", {})
