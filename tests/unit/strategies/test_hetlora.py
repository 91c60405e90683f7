"""HetLoRA: weights that a sum can carry, within the ring's bound, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from site_plans import site_plan

from wardround.core.errors import ConfigError
from wardround.core.packed import Layout, Packed, TensorSpec, pack, zeros
from wardround.core.plan import StrategySpec
from wardround.strategies.contract import LocalUpdate, SiteMemory
from wardround.strategies.hetlora import HetLoRA, HetLoRAOptions
from wardround.training.plan_strategy import bind_strategy

R, D_OUT, D_IN, SCALING, LARGEST = 4, 12, 15, 2.0, 0.05
A, B = "m.lora_A", "m.lora_B"
LAYOUT = Layout(
    tensors=(
        TensorSpec(name=A, shape=(R, D_IN), role="lora_a", module="m", scaling=SCALING),
        TensorSpec(name=B, shape=(D_OUT, R), role="lora_b", module="m", scaling=SCALING),
    )
)
Matrix = np.ndarray[Any, Any]


def made(largest: float | None = LARGEST) -> HetLoRA:
    """The strategy."""
    return HetLoRA(HetLoRAOptions(largest_update=largest), LAYOUT)


def start(seed: int, trained: bool = True) -> Packed:
    """A global adapter, or LoRA's usual start."""
    draw = np.random.default_rng(seed)
    a = draw.uniform(-1, 1, (R, D_IN)) / np.sqrt(D_IN)
    return pack(LAYOUT, {A: a, B: trained * draw.standard_normal((D_OUT, R))}, np.float32)


def moved(before: Packed, rank: int, draw: np.random.Generator) -> Packed:
    """After a site of a rank has moved each of its coordinates within L."""
    after = before.with_vector(before.vector.copy())
    after[A][:rank] += draw.uniform(-LARGEST, LARGEST, (rank, D_IN)).astype(np.float32)
    after[B][:, :rank] += draw.uniform(-LARGEST, LARGEST, (D_OUT, rank)).astype(np.float32)
    return after


def sent(strategy: HetLoRA, before: Packed, after: Packed) -> Packed:
    """A site's statistics."""
    return strategy.contribute(before, LocalUpdate(before, after), SiteMemory(), 1, 0)[0]


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), rank=st.integers(1, R), trained=st.booleans())
def test_nothing_is_beyond_the_bound_and_the_share_is_of_the_sites_own_directions(
    seed: int, rank: int, *, trained: bool
) -> None:
    """|ρ d| ≤ L and 0 < L ρ ≤ L; ρ goes with ‖s B_i A_i‖ of the directions that the site trained."""
    before = start(seed, trained)
    after = moved(before, rank, np.random.default_rng(seed))
    message = sent(made(), before, after)
    assert np.abs(message.vector).max() <= LARGEST * (1 + 1e-6)
    share = float(message["m.norm_share"]) / LARGEST
    own = np.linalg.norm(SCALING * after[B][:, :rank].astype(np.float64) @ after[A][:rank].astype(np.float64))
    a, b = before[A].astype(np.float64), before[B].astype(np.float64)
    rows = np.linalg.norm(a, 2) + LARGEST * np.sqrt(D_IN)
    bound = SCALING * rows * (np.linalg.norm(b) + LARGEST * np.sqrt(D_OUT * R))
    assert share == pytest.approx(own / bound, rel=1e-9)
    assert 0.005 < share < 1


def test_a_site_of_a_small_rank_counts_for_less() -> None:
    """In the common direction the mean leans to the site with more to say, by the norms of the two."""
    before, draw, strategy = start(1), np.random.default_rng(2), made()
    small, large = moved(before, 1, draw), moved(before, R, draw)
    messages = [sent(strategy, before, after) for after in (small, large)]
    rho = [float(message["m.norm_share"]) for message in messages]
    assert rho[0] < 0.8 * rho[1]
    total = Packed(messages[0].layout, messages[0].vector + messages[1].vector)
    found = strategy.fold(strategy.begin(before), total, 2.0, 0).adapter
    updates = [after[B].astype(np.float64) - before[B] for after in (small, large)]
    expected = before[B] + (rho[0] * updates[0] + rho[1] * updates[1]) / sum(rho)
    np.testing.assert_allclose(found[B], expected, rtol=1e-6, atol=1e-7)


def test_rounding_of_tiny_weights_is_held_to_the_bound() -> None:
    """A share of nearly nothing makes no mean that no site could have sent; one of nothing makes none."""
    before, strategy = start(3), made()
    total = zeros(strategy.statistics_layout(0), np.float64)
    total[B][...], total["m.norm_share"][...] = 1e-3, 1e-9
    found = strategy.fold(strategy.begin(before), total, 1.0, 0).adapter
    np.testing.assert_allclose(found[B] - before[B], LARGEST, atol=1e-6)
    for share in (0.0, -1e-9):
        total["m.norm_share"][...] = share
        found = strategy.fold(strategy.begin(before), total, 1.0, 0).adapter
        np.testing.assert_array_equal(found.vector, before.vector)


def test_the_bound_comes_from_the_plan_and_privacy_is_refused() -> None:
    """L is `encoding.largest`; under privacy there is no weight, and what has none is named."""
    plan = site_plan().model_copy(update={"strategy": StrategySpec(name="hetlora", weighting="uniform")})
    assert plan.privacy is not None
    with pytest.raises(ConfigError, match="tangent or ffa_lora"):
        bind_strategy(plan)
    plain = plan.model_copy(update={"privacy": None})
    assert HetLoRAOptions().of_plan(plain).largest_update == plan.encoding.largest
    assert HetLoRAOptions(largest_update=0.125).of_plan(plain).largest_update == 0.125
