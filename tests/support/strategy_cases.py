"""Layouts, sites and states over which the laws of every strategy are held."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import strategies as st
from individual_definitions import INDIVIDUALS
from strategy_definitions import DEFINITIONS, MAGNITUDE, SCALING, A, B, Tensors, mean_of_models

from wardround.core.checked import parse_options
from wardround.core.packed import Layout, Packed, TensorSpec, zeros
from wardround.core.ranks import beside
from wardround.strategies import STRATEGIES
from wardround.strategies.contract import (
    IndividualStrategy,
    LocalUpdate,
    ProductStrategy,
    ServerState,
    SiteMemory,
    StartingStrategy,
    SumStrategy,
)

NAMES = STRATEGIES.names()
EVERY = pytest.mark.parametrize("name", NAMES)

OPTIONS: dict[str, dict[str, Any]] = {
    "fedavg": {},
    "fedprox": {"mu": 0.3},
    "fedavgm": {"momentum": 0.7, "server_learning_rate": 0.5},
    "fedadagrad": {"beta1": 0.4, "server_learning_rate": 0.3, "tau": 0.01},
    "fedyogi": {"beta1": 0.8, "beta2": 0.7, "server_learning_rate": 0.3, "tau": 0.01},
    "fedadam": {"beta1": 0.8, "beta2": 0.7, "server_learning_rate": 0.3, "tau": 0.01},
    "dual_adapter": {"global_rank": 1},
    "flora": {"site_rank": 2, "largest_update": 0.1},
    "fedex": {"trained_rank": 1},
    "coordinate_median": {"least_sites": 1},
    "trimmed_mean": {"trim": None, "share": 0.3},
    "multi_krum": {"attackers": 0, "selected": 1},
    "geometric_median": {"least_sites": 1, "smoothing": 1e-3, "iterations": 40},
    "norm_bounded_mean": {"least_sites": 1},
}
"""Not the defaults, so that every option is seen to act; a new strategy starts from its defaults."""
MEANS = [name for name in NAMES if DEFINITIONS.get(name) is mean_of_models or name in INDIVIDUALS]
"""Methods whose step is the mean update itself."""


VOTES = {"coordinate_median", "trimmed_mean", "multi_krum", "norm_bounded_mean"}
"""Methods in which a site that comes in two halves counts twice."""


@dataclass(frozen=True)
class Case:
    """A layout, an adapter, and rounds of sites with weights."""

    layout: Layout
    adapter: Packed
    rounds: tuple[tuple[tuple[int, Packed], ...], ...]


FLOATS = st.floats(-4.0, 4.0, width=32, allow_subnormal=False)


@st.composite
def cases(draw: st.DrawFn, rounds: int = 3, most_sites: int = 4) -> Case:
    """One to three dense tensors, scalars and empty dimensions among them, and a module, with DoRA or not."""
    shapes = draw(st.lists(st.lists(st.integers(0, 3), max_size=2).map(tuple), min_size=1, max_size=3))
    dense = (TensorSpec(name=f"t{i}", shape=shape) for i, shape in enumerate(shapes))
    sizes = (draw(st.integers(least, most)) for least, most in ((2, 3), (1, 4), (1, 4)))
    layout = Layout(tensors=(*dense, *module(*sizes, dora=draw(st.booleans()))))

    def packed() -> Packed:
        values = draw(st.lists(FLOATS, min_size=layout.size, max_size=layout.size))
        return Packed(layout, np.array(values, dtype=np.float32))

    def sites() -> tuple[tuple[int, Packed], ...]:
        count = draw(st.integers(1, most_sites))
        return tuple((draw(st.integers(1, 500)), packed()) for _ in range(count))

    return Case(layout, packed(), tuple(sites() for _ in range(draw(st.integers(1, rounds)))))


def module(rank: int, d_out: int, d_in: int, *, dora: bool = True) -> tuple[TensorSpec, ...]:
    """A and B of one module, and its magnitudes."""
    return (
        TensorSpec(name=A, shape=(rank, d_in), role="lora_a", module="m", scaling=SCALING),
        TensorSpec(name=B, shape=(d_out, rank), role="lora_b", module="m", scaling=SCALING),
        *[TensorSpec(name=MAGNITUDE, shape=(d_out,), role="magnitude", module="m")] * dora,
    )


def made(name: str, layout: Layout) -> SumStrategy:
    """The strategy with the options of this file."""
    strategy = STRATEGIES.get(name)
    return strategy(parse_options(strategy.Options, OPTIONS.get(name, {}), name), layout)


def folded(strategy: SumStrategy, state: ServerState, sites: Any) -> ServerState:
    """One round as the server sees it: the sums of each stage only."""
    round, before = state.round + 1, state.adapter
    if isinstance(strategy, IndividualStrategy):
        alone = []
        for w, after in enough(strategy, sites):
            local = trained(strategy, before, after)
            update, _ = strategy.contribute(state.adapter, local, SiteMemory(), round, 0)
            alone.append((update.with_vector(w * update.vector.astype(np.float64)), float(w)))
        return strategy.fold(state, *strategy.combine_individuals(state, alone), 0)
    for stage in range(strategy.stages):
        broadcast = strategy.broadcast(state, round, stage)
        assert broadcast.layout.digest == strategy.broadcast_layout(stage).digest
        before = strategy.adapter_of(broadcast) if stage == 0 else before
        total = zeros(strategy.statistics_layout(stage), np.float64)
        weight = 0.0
        for w, after in sites:
            local = LocalUpdate(before, after, before.with_vector(before.vector - after.vector))
            statistics, _ = strategy.contribute(broadcast, local, SiteMemory(), round, stage)
            assert statistics.layout.digest == strategy.statistics_layout(stage).digest
            total = total.with_vector(total.vector + w * statistics.vector.astype(np.float64))
            weight += w
        state = strategy.fold(state, total, weight, stage)
    return state


def trained(strategy: SumStrategy, before: Packed, after: Packed) -> LocalUpdate:
    """A site's training; where the strategy says what trains, that moves as far as its tensors went here."""
    if not isinstance(strategy, StartingStrategy):
        return LocalUpdate(before, after)
    start = strategy.start(before, None, np.random.default_rng(int(after.digest[:8], 16)))
    moved = start.trained.with_vector(start.trained.vector.copy())
    for name, tensor in moved.tensors().items():
        block = tuple(slice(size) for size in tensor.shape)
        tensor[...] += (after[name] - before[name])[block]
    return LocalUpdate(beside(start.trained, start.rest), beside(moved, start.rest))


def require_equal(strategy: SumStrategy, found: Packed, expected: Tensors) -> None:
    """Tensor by tensor, and of a method over products the products."""
    tensors = found.tensors()
    if isinstance(strategy, ProductStrategy):
        tensors, expected = products_of(wide(found)), products_of(expected)
    for tensor, value in tensors.items():
        # one rounding to float32; sums of another order; √ near 0 enlarges what is left of both
        np.testing.assert_allclose(value, expected[tensor], rtol=2e-6, atol=1e-5 if tensor == "m" else 2e-6)


def require_same(strategy: SumStrategy, one: Packed, two: Packed) -> None:
    """Equal but for rounding."""
    if isinstance(strategy, ProductStrategy):
        np.testing.assert_allclose(strategy.difference(one, two), 0.0, atol=2e-6)
    else:
        np.testing.assert_allclose(one.vector, two.vector, rtol=1e-6, atol=1e-6)


def products_of(tensors: Tensors) -> Tensors:
    """The product in place of its factors."""
    rest = {name: array for name, array in tensors.items() if name not in (A, B)}
    return {**rest, "m": SCALING * tensors[B] @ tensors[A]}


def enough(strategy: SumStrategy, sites: Any) -> list[Any]:
    """The sites, the first ones again where the strategy wants more."""
    least = strategy.least_sites if isinstance(strategy, IndividualStrategy) else 1
    return [sites[index % len(sites)] for index in range(max(least, len(sites)))]


def wide(packed: Packed) -> Tensors:
    """Tensors by name, float64."""
    return {name: array.astype(np.float64) for name, array in packed.tensors().items()}


def small() -> tuple[Layout, Packed]:
    """A layout of two dense tensors and a module with magnitudes, and an adapter."""
    layout = Layout(
        tensors=(
            TensorSpec(name="a", shape=(2, 3)),
            TensorSpec(name="b", shape=(2,)),
            *module(2, 2, 3),
        )
    )
    return layout, Packed(layout, np.linspace(-1, 1, layout.size, dtype=np.float32))


def at_the_last_stage(strategy: SumStrategy, adapter: Packed) -> tuple[ServerState, int]:
    """The state before the last stage of round 1, where no site had moved before."""
    state = strategy.begin(adapter)
    for stage in range(strategy.stages - 1):
        state = strategy.fold(state, zeros(strategy.statistics_layout(stage), np.float64), 1.0, stage)
    return state, strategy.stages - 1
