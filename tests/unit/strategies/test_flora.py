"""FLoRA: stacks of new directions, exact while the global rank holds them, whatever the sites' ranks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from toy_plans import toy_plan

from wardround.core.errors import ConfigError, PeerError
from wardround.core.lora import difference, pairs, products
from wardround.core.packed import Layout, Packed, TensorSpec, zeros
from wardround.core.plan import Encoding, LocalWork, SecureRules, StrategySpec
from wardround.core.ranks import AtRank, beside
from wardround.privacy.quantisation import quantise, scale_for
from wardround.strategies import STRATEGIES
from wardround.strategies.contract import DISCARDED, LocalUpdate, ServerState, SiteMemory
from wardround.training.plan_strategy import bind_strategy, check_rank

RANK, SITE = 12, 3
LAYOUT = Layout(
    tensors=(
        TensorSpec(name="q.a", shape=(RANK, 16), role="lora_a", module="q", scaling=2.0),
        TensorSpec(name="q.b", shape=(20, RANK), role="lora_b", module="q", scaling=2.0),
        TensorSpec(name="head", shape=(5,)),
        TensorSpec(name="v.a", shape=(RANK, 14), role="lora_a", module="v", scaling=0.5),
        TensorSpec(name="v.b", shape=(13, RANK), role="lora_b", module="v", scaling=0.5),
    )
)
STRATEGY: Any = STRATEGIES.get("flora")


def made(**options: Any) -> Any:
    """The strategy, bound."""
    return STRATEGY(STRATEGY.Options(site_rank=SITE, **options), LAYOUT)


def initial() -> Packed:
    """LoRA's usual start."""
    packed = Packed(LAYOUT, np.random.default_rng(0).normal(size=LAYOUT.size).astype(np.float32))
    for pair in pairs(LAYOUT):
        packed[pair.b.name][...] = 0
    return packed


def trained(start: AtRank, seed: int, size: float = 0.1) -> Packed:
    """What a site's own training might make of its directions."""
    noise = np.random.default_rng(seed).normal(size=start.trained.layout.size).astype(np.float32)
    return start.trained.with_vector(start.trained.vector + np.float32(size) * noise)


def site(strategy: Any, state: ServerState, rank: int | None, seed: int) -> tuple[LocalUpdate, Packed]:
    """A round of one site, and what it trained alone."""
    start = strategy.start(state.adapter, rank, np.random.default_rng(seed))
    after = trained(start, seed)
    return LocalUpdate(beside(start.trained, start.rest), beside(after, start.rest)), after


def folded(strategy: Any, state: ServerState, sites: list[tuple[float, LocalUpdate]]) -> ServerState:
    """One round."""
    alone = []
    for weight, local in sites:
        sent, _ = strategy.contribute(state.adapter, local, SiteMemory(), state.round + 1, 0)
        alone.append((sent.with_vector(sent.vector * weight), weight))
    found: ServerState = strategy.fold(state, *strategy.combine_individuals(state, alone), 0)
    return found


def dense(packed: Packed) -> dict[str, Any]:
    """Module → s · B A."""
    return {pair.module: product.dense() for pair, product in products(packed)}


def test_a_site_begins_with_the_global_function_and_trains_new_directions() -> None:
    """B is zero, A is drawn anew; the whole adapter stands frozen."""
    adapter = folded_once()
    one, two = (made().start(adapter, None, np.random.default_rng(seed)) for seed in (1, 2))
    assert {pair.rank for pair in pairs(one.trained.layout)} == {SITE}
    assert not any(one.trained[pair.b.name].any() for pair in pairs(LAYOUT))
    assert not np.allclose(one.trained["q.a"], two.trained["q.a"])
    assert 0.8 / 4 < np.abs(one.trained["q.a"]).max() <= 1 / 4
    np.testing.assert_array_equal(one.trained["head"], adapter["head"])
    assert one.rest is not None
    for pair in pairs(LAYOUT):
        np.testing.assert_array_equal(one.rest[pair.a.name], adapter[pair.a.name])
    assert difference(adapter, beside(one.trained, one.rest)) < 1e-7


def folded_once() -> Packed:
    """A global adapter that is not zero."""
    state = made().begin(initial())
    return folded(made(), state, [(1.0, site(made(), state, None, 1)[0])]).adapter


def test_stacks_of_mixed_ranks_are_exact_while_the_rank_holds_them() -> None:
    """Two rounds of ranks 1, 2 and 3 make the twelve of the adapter; a third one cuts, and says so."""
    strategy = made(largest_update=0.05)
    state, expected = strategy.begin(initial()), dense(initial())
    for round in range(2):
        sites = [site(strategy, state, rank, 10 * round + rank) for rank in (1, 2, 3)]
        weights = (1.0, 5.0, 2.0)
        state = folded(strategy, state, [(w, local) for w, (local, _) in zip(weights, sites, strict=True)])
        for weight, (_, own) in zip(weights, sites, strict=True):
            for module, matrix in dense(own).items():
                expected[module] = expected[module] + weight / 8 * matrix
        for module, matrix in dense(state.adapter).items():
            np.testing.assert_allclose(matrix, expected[module], atol=1e-6)
        assert state.figures[DISCARDED] < 1e-12
    full = folded(strategy, state, [(1.0, site(strategy, state, 3, 99)[0])])
    assert 1e-6 < full.figures[DISCARDED] < 0.5


def test_one_site_alone_gets_its_own_product() -> None:
    """And its own head."""
    strategy = made()
    state = strategy.begin(folded_once())
    local, _ = site(strategy, state, 2, 5)
    after = folded(strategy, state, [(7.0, local)]).adapter
    assert difference(local.after, after) < 1e-6
    np.testing.assert_allclose(after["head"], local.after["head"], rtol=1e-6)


def test_zeros_beyond_a_sites_own_rank_are_what_it_sends() -> None:
    """Every message has one layout."""
    strategy = made()
    state = strategy.begin(initial())
    sent, _ = strategy.contribute(state.adapter, site(strategy, state, 1, 3)[0], SiteMemory(), 1, 0)
    assert sent.layout.digest == strategy.statistics_layout(0).digest
    assert sent["q.b"][:, 0].all()
    assert not sent["q.b"][:, 1:].any()
    assert not sent["q.a"][1:].any()


@pytest.mark.parametrize("rank", [0, SITE + 1])
def test_too_many_new_directions_are_refused(rank: int) -> None:
    """And none at all."""
    strategy, adapter = made(), initial()
    start = STRATEGY(STRATEGY.Options(site_rank=9), LAYOUT).start(
        adapter, rank or 1, np.random.default_rng(1)
    )
    after = beside(start.trained, start.rest) if rank else adapter
    with pytest.raises(PeerError, match="another layout"):
        strategy.contribute(adapter, LocalUpdate(after, after), SiteMemory(), 1, 0)


def test_a_stack_of_another_size_is_refused() -> None:
    """Half a site is none."""
    strategy = made()
    odd = Layout(
        tensors=tuple(
            spec.model_copy(update={"shape": tuple(4 if n == RANK else n for n in spec.shape)})
            for spec in LAYOUT.tensors
        )
    )
    with pytest.raises(PeerError, match="layout"):
        strategy.fold(strategy.begin(initial()), zeros(odd, np.float64), 1.0, 0)


def test_the_bound_of_the_plan_lets_a_through() -> None:
    """A begins far beyond an update's bound: within the units of the plan nothing is clipped."""
    largest = 0.01
    plan = plan_of(encoding=Encoding(largest=largest, most_weight=1))
    strategy: Any = bind_strategy(plan)
    state = strategy.begin(initial())
    start = strategy.start(state.adapter, None, np.random.default_rng(1))
    after = start.trained.with_vector(start.trained.vector + np.float32(0.99 * largest))
    local = LocalUpdate(beside(start.trained, start.rest), beside(after, start.rest))
    sent, _ = strategy.contribute(state.adapter, local, SiteMemory(), 1, 0)
    assert np.abs(after["q.a"]).max() > 10 * largest
    scale = scale_for(bits=16, largest=largest, most_weight=1, sites=1)
    assert quantise(sent.vector, 1, scale, np.random.default_rng(0)).clipped == 0
    assert np.abs(sent["q.a"]).max() > 0.5 * largest, "no more headroom than that"


def plan_of(rank: int | None = SITE, **sections: Any) -> Any:
    """A plan in the clear."""
    strategy = StrategySpec(name="flora", options={"site_rank": rank})
    plain: dict[str, Any] = {"layout": LAYOUT, "strategy": strategy, "secure": SecureRules(mode="off")}
    return toy_plan(**(plain | sections))


def test_plans_that_do_not_go_with_it_are_refused() -> None:
    """A norm would cut A; moments of old directions say nothing of new ones; a head alone has no factors."""
    with pytest.raises(ConfigError, match=r"encoding\.norm=1"):
        bind_strategy(plan_of(encoding=Encoding(largest=0.5, most_weight=1, norm=1.0)))
    with pytest.raises(ConfigError, match="optimiser_state=keep"):
        bind_strategy(plan_of(local=LocalWork(steps=1, optimiser_state="keep")))
    with pytest.raises(ConfigError, match="has none"):
        bind_strategy(plan_of(layout=Layout(tensors=(TensorSpec(name="head", shape=(5,)),))))
    with pytest.raises(ConfigError, match="has to see each"):
        bind_strategy(plan_of(secure=SecureRules(mode="real")))


def test_a_site_may_have_any_rank_up_to_the_largest() -> None:
    """That is the option's, be it above the plan's or below."""
    for most in (SITE, 2 * RANK):
        plan = plan_of(most)
        strategy = bind_strategy(plan)
        for rank in (1, most - 1, most):
            check_rank(plan, strategy, rank)
        with pytest.raises(ConfigError, match=rf"(?s)fewer directions.*at most {most}"):
            check_rank(plan, strategy, most + 1)
    default: Any = bind_strategy(plan_of(None))
    assert default.most_rank == RANK
