"""Sums of cores between shared factors are sums of products, exactly; of factors they are not."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from wardround.core.packed import Layout, Packed, TensorSpec
from wardround.strategies import STRATEGIES
from wardround.strategies.contract import LocalUpdate, SiteMemory
from wardround.training.adapters._frozen_factors import drawn_pair

D_OUT, D_IN, R = 9, 7, 3
LAYOUT = Layout(tensors=(TensorSpec(name="m.lora_R.weight", shape=(R, R), module="m"),))


@st.composite
def federations(draw: st.DrawFn) -> tuple[Any, list[Any], list[float], int]:
    """The cores before, those of so many sites after, their weights, and the seed of the factors."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    sites = draw(st.integers(1, 7))
    size = draw(st.sampled_from([1e-3, 1.0, 50.0]))
    before, *after = (rng.normal(0, size, (R, R)).astype(np.float32) for _ in range(sites + 1))
    weights = [float(draw(st.integers(1, 1000))) for _ in range(sites)]
    return before, after, weights, draw(st.integers(0, 2**32))


@settings(deadline=None, max_examples=60)
@given(federations())
def test_the_fold_of_cores_is_the_mean_of_the_products(federation: Any) -> None:
    """B (Σ w_i R_i) A = Σ w_i B R_i A, through the strategy's own contributions and fold."""
    before, after, weights, seed = federation
    strategy = STRATEGIES.get("fedavg")(STRATEGIES.get("fedavg").Options(), LAYOUT)
    state = strategy.begin(Packed(LAYOUT, before.reshape(-1)))
    broadcast = strategy.broadcast(state, 1, 0)
    total = np.zeros(LAYOUT.size)
    for core, weight in zip(after, weights, strict=True):
        update = LocalUpdate(state.adapter, Packed(LAYOUT, core.reshape(-1)))
        sent, _ = strategy.contribute(broadcast, update, SiteMemory(), 1, 0)
        total += weight * sent.vector.astype(np.float64)
    statistics = Packed(LAYOUT, total)
    folded = strategy.fold(state, statistics, sum(weights), 0).adapter["m.lora_R.weight"]

    b, a = (factor.astype(np.float64) for factor in drawn_pair(D_OUT, D_IN, R, seed, "m"))
    products = [w * b @ core.astype(np.float64) @ a for w, core in zip(weights, after, strict=True)]
    mean = sum(products) / sum(weights)
    scale = max(np.abs(core).max() for core in (before, *after))
    assert np.abs(b @ folded.astype(np.float64) @ a - mean).max() <= 1e-6 * scale


def test_of_factors_it_is_not() -> None:
    """What the method is for: means of B and of A do not multiply to the mean of B A."""
    rng = np.random.default_rng(0)
    pairs = [(rng.normal(size=(D_OUT, R)), rng.normal(size=(R, D_IN))) for _ in range(3)]
    mean = sum(b @ a for b, a in pairs) / 3
    of_factors = sum(b for b, _ in pairs) / 3 @ sum(a for _, a in pairs) / 3
    assert np.linalg.norm(of_factors - mean) > 0.3 * np.linalg.norm(mean)
