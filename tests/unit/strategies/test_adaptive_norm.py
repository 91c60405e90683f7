"""Adaptive clipping around a strategy: what it adds to it, and that C follows the quantile it was given."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from individual_definitions import INDIVIDUALS
from site_plans import site_plan

from wardround.core.counting import training_counters
from wardround.core.errors import ConfigError, PeerError
from wardround.core.packed import Array, Layout, Packed, TensorSpec, zeros
from wardround.core.plan import StrategySpec, TrainingPlan
from wardround.core.seeds import Purpose
from wardround.privacy.clip_norm import vector_sigma
from wardround.privacy.noise.source import RepeatableSource
from wardround.privacy.quantisation import quantise
from wardround.privacy.secagg.total import Sum, centred
from wardround.privacy.sums.noise import ring_noise
from wardround.privacy.sums.opened import statistics_of
from wardround.strategies import STRATEGIES
from wardround.strategies.adaptive_norm import COUNT, NORM, AdaptiveNorm, clip_norm_of
from wardround.strategies.contract import LocalUpdate, ServerState, SiteMemory
from wardround.training.plan_strategy import bind_strategy

LAYOUT = Layout(
    tensors=(
        TensorSpec(name="a", shape=(2, 3)),
        TensorSpec(name="m.lora_A", shape=(2, 3), role="lora_a", module="m"),
        TensorSpec(name="m.lora_B", shape=(4, 2), role="lora_b", module="m"),
    )
)
START = Packed(LAYOUT, np.linspace(-1, 1, 20, dtype=np.float32))
SEVERAL = {"two_pass", "flexlora", "flora", "fedex", *INDIVIDUALS}
"""Of more sums than one a round, as the strategies over groups."""
PLAIN = [
    name for name in STRATEGIES.names()
    if not name.startswith("group") and name not in {*SEVERAL, "hetlora"}
    and not hasattr(STRATEGIES.get(name), "private_alternative")
]  # fmt: skip
"""Not those that are refused under privacy."""


def bound(plan: TrainingPlan) -> AdaptiveNorm:
    """The plan's strategy."""
    strategy = bind_strategy(plan)
    assert isinstance(strategy, AdaptiveNorm)
    return strategy


def sent(strategy: AdaptiveNorm, state: ServerState, update: Array) -> Packed:
    """A site's statistics."""
    broadcast = strategy.broadcast(state, state.round + 1, 0)
    before = strategy.adapter_of(broadcast)
    trained = before.with_vector((before.vector + update).astype(np.float32))
    return strategy.contribute(broadcast, LocalUpdate(before, trained), SiteMemory(), state.round + 1, 0)[0]


def federated(
    plan: TrainingPlan, updates: Callable[[int], Sequence[Array]], rounds: int
) -> list[ServerState]:
    """Rounds through ring and noise, as server and sites do them; the states after each."""
    strategy = bound(plan)
    states = [strategy.begin(START)]
    for round in range(1, rounds + 1):
        states.append(folded(plan, strategy, states[-1], updates(round)))
    return states


def folded(
    plan: TrainingPlan, strategy: AdaptiveNorm, state: ServerState, updates: Sequence[Array]
) -> ServerState:
    """One round: contribute, round to the ring, add, noise, open, fold."""
    round, layout, sites = state.round + 1, strategy.statistics_layout(0), len(updates)
    noise = ring_noise(plan, cohort=sites, coordinates=layout.size, round=round)
    assert noise is not None
    total = np.zeros(layout.size, np.int64)
    for number, update in enumerate(updates):
        rng = np.random.default_rng([round, number])
        quantised = quantise(sent(strategy, state, update).vector, 1, noise.signal, rng)
        assert (quantised.clipped, quantised.shortened_by) == (0, 1.0)
        total += centred(quantised.integers, plan.encoding.bits)
    counters = training_counters(weight=sites)
    names = tuple(f"s{number}" for number in range(sites))
    source = RepeatableSource(1, Purpose.NOISE, round=round, site="")
    opened = noise.added_to_sum(Sum(total, counters.vector, names, ()), source)
    statistics, _ = statistics_of(opened, layout, plan.encoding, cohort=sites, noise=noise)
    return strategy.fold(state, statistics, float(sites), 0)


@pytest.mark.parametrize("name", PLAIN)
def test_updates_that_are_short_enough_are_folded_as_the_strategy_folds_them(name: str) -> None:
    """Clipping and its factors undo each other; C stands among the strategy's own slots."""
    plan = site_plan(layout=LAYOUT, clip_norm=0.3, adaptive={"quantile": 0.999, "rate": 0.5}, strategy=name)
    strategy, inner = bound(plan), bind_strategy(plan.model_copy(update={"privacy": None}))
    state, plain = strategy.begin(START), inner.begin(START)
    for round in range(3):
        rng = np.random.default_rng(round)
        updates = [rng.normal(0, 0.01, 20) for _ in range(4)]
        sums = zeros(strategy.statistics_layout(0), np.float64)
        for update in updates:
            sums = sums.with_vector(sums.vector + sent(strategy, state, update).vector)
        expected = zeros(inner.statistics_layout(0), np.float64)
        for update in updates:
            moved = plain.adapter.with_vector((plain.adapter.vector + update).astype(np.float32))
            own = inner.contribute(
                plain.adapter, LocalUpdate(plain.adapter, moved), SiteMemory(), round + 1, 0
            )[0]
            expected = expected.with_vector(expected.vector + own.vector)
        state, plain = strategy.fold(state, sums, 4.0, 0), inner.fold(plain, expected, 4.0, 0)
        np.testing.assert_allclose(state.adapter.vector, plain.adapter.vector, rtol=1e-6, atol=1e-6)
        assert state.slots.keys() == {*plain.slots, NORM}
        assert state.round == plain.round
    # Nobody is ever clipped, and more than all are wanted unclipped: C hardly moves.
    assert clip_norm_of(state) == pytest.approx(0.3 * np.exp(-3 * 0.5 * (1 - 0.999)), rel=1e-6)
    assert clip_norm_of(plain) is None


def test_a_longer_update_is_brought_to_the_norm_and_counted_against_it() -> None:
    """To the norm that was broadcast, and no other; b is 1 up to it, and 0 beyond."""
    plan = site_plan(layout=LAYOUT, clip_norm=0.3)
    strategy = bound(plan)
    joint, state = strategy.joint, strategy.begin(START)
    direction = np.zeros(20)
    direction[4] = 1.0
    for norm in (0.3, 0.01, 50.0):
        state = ServerState(state.round, START, {NORM: state.slots[NORM].with_vector(np.array([norm]))})
        for length, counted in ((0.5, 0.5), (0.999, 0.5), (1.001, -0.5), (7.0, -0.5)):
            found = sent(strategy, state, direction * length * norm)
            expected = min(length, 1.0) * joint.vector
            assert np.linalg.norm(found.vector[:-1]) == pytest.approx(expected, rel=1e-4), (norm, length)
            assert float(found[COUNT]) == counted * joint.count


@pytest.mark.parametrize("quantile", [0.5, 0.8])
@pytest.mark.parametrize("start", [0.01, 100.0])
def test_the_norm_follows_the_quantile_of_the_updates(quantile: float, start: float) -> None:
    """From a hundredth and a hundredfold of it, through ring and noise; and stays near it."""
    lengths = np.exp(np.random.default_rng(0).normal(0.0, 0.5, 100))  # median about 1

    def updates(round: int) -> list[Array]:
        rng = np.random.default_rng([7, round])
        directions = rng.normal(size=(100, 20))
        directions /= np.linalg.norm(directions, axis=1, keepdims=True)
        return list(directions * rng.permutation(lengths)[:, None])

    settings = {"quantile": quantile, "rate": 0.5, "count_noise": 5.0}  # a twentieth of the sites
    plan = site_plan(layout=LAYOUT, clip_norm=start, adaptive=settings)
    states = federated(plan, updates, 70)
    norms = [clip_norm_of(state) for state in states]
    expected = float(np.quantile(lengths, quantile))
    settled = np.array(norms[-20:], dtype=np.float64)
    assert settled.mean() == pytest.approx(expected, rel=0.1)
    assert np.abs(settled / expected - 1).max() < 0.25
    assert norms[0] == np.float32(start)
    # Server and sites compute with one value, which float32 can say.
    assert norms == [float(bound(plan).broadcast(state, 1, 0)[NORM]) for state in states]


def test_the_noise_on_the_mean_is_that_of_the_norm_of_the_round() -> None:
    """z_Δ C / n on every coordinate, whatever C is by then; σ_b on the count."""
    layout = Layout(tensors=(TensorSpec(name="a", shape=(4000,)),))
    begun = Packed(layout, np.zeros(4000, np.float32))
    for norm in (0.02, 1.0, 40.0):
        plan = site_plan(layout=layout, sigma=1.5, adaptive={"rate": 0.1})
        strategy = bound(plan)
        state = ServerState(0, begun, {NORM: strategy.begin(begun).slots[NORM].with_vector(np.array([norm]))})
        moved, shares = [], []
        for round in range(30):
            state_now = ServerState(round, begun, state.slots)
            after_round = folded(plan, strategy, state_now, [np.zeros(4000)] * 10)
            moved.append(after_round.adapter.vector.astype(np.float64))
            shares.append(-np.log((clip_norm_of(after_round) or 0.0) / norm) / 0.1 + 0.5)
        expected = vector_sigma(1.5, 2.0) * norm / 10
        assert np.std(moved) == pytest.approx(expected, rel=0.01)
        assert np.mean(shares) == pytest.approx(1.0, abs=4 * 0.2 / 30**0.5)  # all are short; σ_b / n = 0.2
        assert np.std(shares) == pytest.approx(0.2, rel=0.4)


def test_the_share_is_of_the_sites_that_are_in_the_sum() -> None:
    """Of three survivors two are short: two thirds, whatever the cohort was."""
    plan = site_plan(layout=LAYOUT, adaptive={"quantile": 0.4, "rate": 0.5})
    strategy = bound(plan)
    state = strategy.begin(START)
    total = zeros(strategy.statistics_layout(0), np.float64)
    for length in (0.2, 0.4, 3.0):
        update = np.full(20, length / 20**0.5)
        total = total.with_vector(total.vector + sent(strategy, state, update).vector)
    found = clip_norm_of(strategy.fold(state, total, 3.0, 0))
    assert found == pytest.approx(np.exp(-0.5 * (2 / 3 - 0.4)), rel=1e-6)


def test_the_norm_keeps_the_plans_limits() -> None:
    """At both ends, to what float32 can say of them, and a site takes what the server keeps there."""
    plan = site_plan(layout=LAYOUT, adaptive={"smallest": 0.7, "largest": 1.3, "rate": 5.0})
    strategy = bound(plan)
    for length, limit in ((1e-3, 0.7), (9.0, 1.3)):
        state = strategy.begin(START)
        for _ in range(3):
            total = sent(strategy, state, np.full(20, length))
            state = strategy.fold(state, total, 1.0, 0)
            assert strategy.adapter_of(strategy.broadcast(state, state.round + 1, 0)).digest
        assert clip_norm_of(state) == np.float32(limit)


@pytest.mark.parametrize("norm", [0.69, 1.31, 0.0, -1.0, np.nan, np.inf])
def test_a_site_refuses_a_norm_beyond_the_plans_limits(norm: float) -> None:
    """Before it loads an adapter, and before it contributes."""
    strategy = bound(site_plan(layout=LAYOUT, adaptive={"smallest": 0.7, "largest": 1.3}))
    honest = strategy.broadcast(strategy.begin(START), 1, 0)
    vector = honest.vector.copy()
    vector[-1] = norm
    crafted = honest.with_vector(vector)
    with pytest.raises(PeerError, match="clip norm is beyond the plan's limits"):
        strategy.adapter_of(crafted)
    with pytest.raises(PeerError, match="clip norm is beyond the plan's limits"):
        strategy.contribute(crafted, LocalUpdate(START, START), SiteMemory(), 1, 0)


def test_what_is_not_finite_is_refused_at_the_site_and_at_the_server() -> None:
    """By the strategy, by the count, and by the ring where a strategy lets it through."""
    strategy = bound(site_plan(layout=LAYOUT))
    state = strategy.begin(START)
    broken = START.vector.copy()
    broken[7] = np.inf
    broadcast = strategy.broadcast(state, 1, 0)
    with pytest.raises(PeerError, match="not finite"):
        strategy.contribute(broadcast, LocalUpdate(START, START.with_vector(broken)), SiteMemory(), 1, 0)
    for place in (7, -1):
        total = zeros(strategy.statistics_layout(0), np.float64)
        total.vector[place] = np.nan
        with pytest.raises(PeerError, match="not finite"):
            strategy.fold(state, total, 3.0, 0)


def test_other_layouts_weights_and_stages_are_refused() -> None:
    """As of any strategy."""
    strategy = bound(site_plan(layout=LAYOUT))
    state, total = strategy.begin(START), zeros(strategy.statistics_layout(0), np.float64)
    with pytest.raises(PeerError, match="layout"):
        strategy.fold(state, zeros(LAYOUT, np.float64), 1.0, 0)
    with pytest.raises(PeerError, match="weight"):
        strategy.fold(state, total, 0.0, 0)
    for ask in (
        strategy.broadcast_layout,
        strategy.statistics_layout,
        lambda stage: strategy.broadcast(state, 1, stage),
    ):
        with pytest.raises(PeerError, match="stage"):
            ask(1)


def test_folding_is_pure() -> None:
    """State and sums are left as they were."""
    strategy = bound(site_plan(layout=LAYOUT, strategy="fedadam"))
    state = strategy.begin(START)
    total = sent(strategy, state, np.full(20, 0.3))
    before: Any = (state.slots[NORM].digest, total.digest)
    one, two = (strategy.fold(state, total, 1.0, 0) for _ in range(2))
    assert {name: slot.digest for name, slot in one.slots.items()} == {
        name: slot.digest for name, slot in two.slots.items()
    }
    assert before == (state.slots[NORM].digest, total.digest)


@pytest.mark.parametrize("name", ["group_median", "group_trimmed_mean"])
def test_a_vote_over_groups_is_refused_by_name(name: str) -> None:
    """Each group would need noise of its own."""
    plan = site_plan(layout=LAYOUT)
    groups = plan.model_copy(update={"strategy": StrategySpec(name=name, weighting="uniform")})
    with pytest.raises(ConfigError, match="adds noise to one sum a round, and its strategy has several"):
        bind_strategy(groups)


def test_it_is_no_strategy_of_its_own() -> None:
    """A plan asks for it by its privacy."""
    assert "adaptive_norm" not in STRATEGIES.names()
