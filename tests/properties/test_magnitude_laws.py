"""What a fold means for DoRA's weight: products and magnitudes by their laws, their function to first order.

That each strategy averages magnitudes as it averages what else rides along stands in
`tests/contract/test_strategies.py`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from wardround.core import lora
from wardround.core.packed import Layout, Packed, TensorSpec, pack, zeros
from wardround.strategies import STRATEGIES
from wardround.strategies.contract import LocalUpdate, SiteMemory, SumStrategy

R, D_OUT, D_IN, SCALING = 3, 16, 20, 2.0
A, B, M = "m.lora_A.weight", "m.lora_B.weight", "m.lora_magnitude_vector"
SIZES = (0.08, 0.04, 0.02, 0.01)
WEIGHTS = (3.0, 1.0, 2.0)
OVER_SUMS = ("fedavg", "ffa_lora", "rolora", "fedsvd", "tangent", "one_pass", "two_pass", "hetlora")
Matrix = np.ndarray[Any, Any]

LAYOUT = Layout(
    tensors=(
        TensorSpec(name=A, shape=(R, D_IN), role="lora_a", module="m", scaling=SCALING),
        TensorSpec(name=B, shape=(D_OUT, R), role="lora_b", module="m", scaling=SCALING),
        TensorSpec(name=M, shape=(D_OUT,), role="magnitude", module="m"),
    )
)
BASE = np.random.default_rng(0).standard_normal((D_OUT, D_IN))
"""W, frozen."""


def start() -> Packed:
    """Balanced factors of a random product, and the norms of W with it."""
    draw = np.random.default_rng(1)
    found = lora.Factored(draw.standard_normal((D_OUT, R)), draw.standard_normal((R, D_IN))).truncated(R)
    b, a = lora.balanced(found, zeros(LAYOUT, np.float64), lora.pairs(LAYOUT)[0])
    norms = np.linalg.norm(BASE + SCALING * b @ a, axis=1)
    return pack(LAYOUT, {A: a, B: b, M: norms}, np.float32)


def product(adapter: Packed) -> Matrix:
    """The s · B A."""
    return lora.product(adapter, lora.pairs(LAYOUT)[0]).dense()


def weight(adapter: Packed) -> Matrix:
    """The layer's weight as DoRA defines it: m · (W + s · B A) / ‖W + s · B A‖."""
    whole = BASE + product(adapter)
    return np.asarray(
        adapter[M].astype(np.float64)[:, None] * whole / np.linalg.norm(whole, axis=1, keepdims=True)
    )


def trained(strategy: SumStrategy, before: Packed, size: float, round: int) -> list[Packed]:
    """What three sites make of the adapter, where the strategy lets them."""
    frozen = strategy.local_rules(before, SiteMemory(), round).frozen
    draw, found = np.random.default_rng(7), []
    for _ in WEIGHTS:
        moved = {
            name: tensor + (name not in frozen) * size * draw.standard_normal(tensor.shape)
            for name, tensor in before.tensors().items()
        }
        found.append(pack(LAYOUT, moved, np.float32))
    return found


def folded(strategy: SumStrategy, before: Packed, sites: list[Packed]) -> Packed:
    """One round, as the server sees it."""
    state = strategy.begin(before)
    for stage in range(strategy.stages):
        broadcast = strategy.broadcast(state, 1, stage)
        total = zeros(strategy.statistics_layout(stage), np.float64)
        for w, after in zip(WEIGHTS, sites, strict=True):
            sent, _ = strategy.contribute(broadcast, LocalUpdate(before, after), SiteMemory(), 1, stage)
            total = total.with_vector(total.vector + w * sent.vector)
        state = strategy.fold(state, total, sum(WEIGHTS), stage)
    return state.adapter


def gaps(name: str) -> tuple[list[float], list[float]]:
    """How far a fold's product, and its weight, are from the means of the sites', by size of the updates."""
    products, weights = [], []
    for size in SIZES:
        strategy = STRATEGIES.get(name)(STRATEGIES.get(name).Options(), LAYOUT)
        sites = trained(strategy, start(), size, 1)
        after = folded(strategy, start(), sites)
        for of, found in ((product, products), (weight, weights)):
            mean = sum(w * of(site) for w, site in zip(WEIGHTS, sites, strict=True)) / sum(WEIGHTS)
            found.append(float(np.linalg.norm(of(after) - mean)))
    return products, weights


def order(errors: list[float]) -> float:
    """The least that is observed."""
    return float((np.diff(np.log(errors)) / np.diff(np.log(SIZES))).min())


@pytest.mark.parametrize("name", OVER_SUMS)
def test_the_weight_is_the_mean_of_the_sites_weights_to_first_order(name: str) -> None:
    """What is missed is of second order in the updates, as the factors' own is under FedIT.

    HetLoRA weighs a site's factors by their product, so that the mean of its products is another one.
    """
    _, weights = gaps(name)
    assert order(weights) > (0.9 if name == "hetlora" else 1.8)


@pytest.mark.parametrize("name", ["ffa_lora", "rolora", "fedsvd"])
def test_where_the_mean_of_the_products_is_exact_that_of_the_weights_is_not(name: str) -> None:
    """A norm is no linear function, and magnitudes multiply it."""
    products, weights = gaps(name)
    assert max(products) < 2e-6
    assert min(weights) > 1e-5
    assert order(weights) < 2.3


@pytest.mark.parametrize("name", OVER_SUMS)
def test_magnitudes_are_the_mean_of_the_sites(name: str) -> None:
    """Exactly, but for one rounding to float32."""
    strategy = STRATEGIES.get(name)(STRATEGIES.get(name).Options(), LAYOUT)
    sites = trained(strategy, start(), 0.1, 1)
    mean = sum(w * site[M].astype(float) for w, site in zip(WEIGHTS, sites, strict=True)) / sum(WEIGHTS)
    np.testing.assert_allclose(folded(strategy, start(), sites)[M], mean, rtol=1e-6)


@pytest.mark.parametrize("name", ["fedavg", "ffa_lora", "rolora", "fedsvd"])
def test_a_site_alone_gets_its_own_weight(name: str) -> None:
    """With equal sites as well: then there is nothing to average."""
    strategy = STRATEGIES.get(name)(STRATEGIES.get(name).Options(), LAYOUT)
    site = trained(strategy, start(), 0.1, 1)[0]
    np.testing.assert_allclose(weight(folded(strategy, start(), [site] * 3)), weight(site), atol=2e-6)
