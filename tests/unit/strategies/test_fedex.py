"""FedEx-LoRA: FedIT's factors, and the rest of the mean of products in frozen directions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from toy_plans import toy_plan

from wardround.core.errors import ConfigError, PeerError
from wardround.core.lora import pairs, products
from wardround.core.packed import Layout, Packed, TensorSpec, zeros
from wardround.core.plan import SecureRules, StrategySpec
from wardround.core.ranks import beside, first_directions
from wardround.strategies import STRATEGIES
from wardround.strategies.contract import DISCARDED, LocalUpdate, ServerState, SiteMemory
from wardround.training.plan_strategy import bind_strategy, check_rank

RANK, TRAINED = 10, 2
LAYOUT = Layout(
    tensors=(
        TensorSpec(name="q.a", shape=(RANK, 16), role="lora_a", module="q", scaling=2.0),
        TensorSpec(name="q.b", shape=(20, RANK), role="lora_b", module="q", scaling=2.0),
        TensorSpec(name="head", shape=(5,)),
        TensorSpec(name="v.a", shape=(RANK, 14), role="lora_a", module="v", scaling=0.5),
        TensorSpec(name="v.b", shape=(13, RANK), role="lora_b", module="v", scaling=0.5),
    )
)
STRATEGY: Any = STRATEGIES.get("fedex")


def made(trained_rank: int = TRAINED) -> Any:
    """The strategy, bound."""
    return STRATEGY(STRATEGY.Options(trained_rank=trained_rank), LAYOUT)


def begun() -> ServerState:
    """LoRA's usual start."""
    packed = Packed(LAYOUT, np.random.default_rng(0).normal(size=LAYOUT.size).astype(np.float32))
    for pair in pairs(LAYOUT):
        packed[pair.b.name][...] = 0
    found: ServerState = made().begin(packed)
    return found


def site(state: ServerState, seed: int, rank: int | None = None) -> LocalUpdate:
    """A round of one site, which moves what the strategy lets train."""
    start = made().start(state.adapter, rank, np.random.default_rng(0))
    noise = np.random.default_rng(seed).normal(size=start.trained.layout.size).astype(np.float32)
    after = start.trained.with_vector(start.trained.vector + np.float32(0.3) * noise)
    return LocalUpdate(beside(start.trained, start.rest), beside(after, start.rest))


def folded(state: ServerState, sites: list[tuple[float, LocalUpdate]]) -> ServerState:
    """One round."""
    strategy, alone = made(), []
    for weight, local in sites:
        sent, _ = strategy.contribute(state.adapter, local, SiteMemory(), state.round + 1, 0)
        alone.append((sent.with_vector(sent.vector * weight), weight))
    found: ServerState = strategy.fold(state, *strategy.combine_individuals(state, alone), 0)
    return found


def mean_of_products(sites: list[tuple[float, LocalUpdate]]) -> dict[str, Any]:
    """What the paper is exact to."""
    total = sum(weight for weight, _ in sites)
    found: dict[str, Any] = {}
    for weight, local in sites:
        for pair, product in products(local.after):
            found[pair.module] = found.get(pair.module, 0) + weight / total * product.dense()
    return found


def test_the_mean_of_products_is_exact_while_the_rank_holds_it() -> None:
    """Three sites of two directions leave at most four of residual, two rounds of it eight."""
    state = begun()
    for round in range(2):
        sites = [(weight, site(state, 10 * round + index)) for index, weight in enumerate((1.0, 4.0, 3.0))]
        expected, state = mean_of_products(sites), folded(state, sites)
        for pair, product in products(state.adapter):
            np.testing.assert_allclose(product.dense(), expected[pair.module], atol=1e-5)
        assert state.figures[DISCARDED] < 1e-12
    sites = [(1.0, site(state, seed)) for seed in (50, 51, 52)]
    assert 1e-9 < folded(state, sites).figures[DISCARDED] < 0.5


def test_what_is_cut_is_told_as_a_share_of_all_products() -> None:
    """Against the matrices themselves."""
    state = begun()
    sites = [(1.0, site(state, seed)) for seed in range(9)]
    expected, state = mean_of_products(sites), folded(state, sites)
    cut = sum(
        np.sum((product.dense() - expected[pair.module]) ** 2) for pair, product in products(state.adapter)
    )
    whole = sum(np.sum(matrix**2) for matrix in expected.values())
    assert cut > 1e-4 * whole
    np.testing.assert_allclose(state.figures[DISCARDED], cut / whole, rtol=1e-3)


def test_the_trained_factors_are_fedits() -> None:
    """Coordinate by coordinate: the mean of the sites' B and of their A."""
    state = begun()
    sites = [(weight, site(state, index)) for index, weight in enumerate((1.0, 4.0, 3.0))]
    found = folded(state, sites).adapter
    for name, block in (("q.a", np.s_[:TRAINED]), ("q.b", np.s_[:, :TRAINED]), ("head", np.s_[:])):
        mean = sum(weight / 8 * local.after[name].astype(np.float64) for weight, local in sites)
        np.testing.assert_allclose(found[name][block], np.asarray(mean)[block], rtol=1e-6, atol=1e-7)


def test_one_site_alone_has_no_residual() -> None:
    """The global adapter is what it trained; the frozen directions stay, bit for bit."""
    state = begun()
    local = site(state, 1)
    found = folded(state, [(3.0, local)]).adapter
    np.testing.assert_allclose(found.vector, local.after.vector, rtol=1.2e-7, atol=1e-14)
    np.testing.assert_array_equal(found["q.a"][TRAINED:], state.adapter["q.a"][TRAINED:])


def test_a_site_of_a_lower_rank_trains_the_first_directions() -> None:
    """And has the global factors in the others."""
    state = begun()
    sites = [(1.0, site(state, 1, rank=1)), (1.0, site(state, 2))]
    np.testing.assert_array_equal(sites[0][1].after["q.a"][1:], state.adapter["q.a"][1:])
    expected, found = mean_of_products(sites), folded(state, sites).adapter
    for pair, product in products(found):
        np.testing.assert_allclose(product.dense(), expected[pair.module], atol=1e-5)


def test_adapters_differ_by_products_and_by_what_trains() -> None:
    """Turned frozen factors are the same adapter; turned trained ones are another."""
    state = begun()
    adapter = folded(state, [(1.0, site(state, 1)), (1.0, site(state, 2))]).adapter
    turn = np.linalg.qr(np.random.default_rng(1).normal(size=(RANK, RANK)))[0]
    for block, near in ((slice(TRAINED, RANK), True), (slice(0, TRAINED), False)):
        turned = adapter.with_vector(adapter.vector.copy())
        own = turn[block, block]
        turned["q.b"][:, block] = adapter["q.b"][:, block] @ own
        turned["q.a"][block] = np.linalg.solve(own, adapter["q.a"][block].astype(np.float64))
        assert (made().difference(adapter, turned) < 1e-5) == near


def test_a_sum_of_another_size_is_refused() -> None:
    """The adapter's own layout is none of them."""
    with pytest.raises(PeerError, match="layout"):
        made().fold(begun(), zeros(LAYOUT, np.float64), 1.0, 0)


def test_what_cannot_be_bound_is_refused() -> None:
    """No direction for the residual; no factors; contributions that are hidden."""
    with pytest.raises(ConfigError, match=f"trained_rank={RANK}"):
        made(RANK)
    assert first_directions(begun().adapter, RANK - 1).rest is not None
    head = Layout(tensors=(TensorSpec(name="head", shape=(5,)),))
    with pytest.raises(ConfigError, match="has none"):
        STRATEGY(STRATEGY.Options(), head)
    plan = toy_plan(layout=LAYOUT, strategy=StrategySpec(name="fedex"), secure=SecureRules(mode="real"))
    with pytest.raises(ConfigError, match="has to see each"):
        bind_strategy(plan)


def test_no_site_trains_more_than_the_trained_rank() -> None:
    """Not even the plan's own."""
    plan = toy_plan(layout=LAYOUT, strategy=StrategySpec(name="fedex"), secure=SecureRules(mode="off"))
    strategy = bind_strategy(plan)
    for rank in (1, 3, 4):
        check_rank(plan, strategy, rank)
    with pytest.raises(ConfigError, match=r"(?s)fewer directions.*at most 4"):
        check_rank(plan, strategy, RANK)
