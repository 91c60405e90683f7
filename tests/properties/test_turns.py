"""Derivatives along other factors of a product, against derivatives of the product itself."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from wardround.core.packed import Array
from wardround.core.turns import Turn

SEEDS = st.integers(0, 10**6)
D_OUT, D_IN = 9, 7


def drawn(seed: int, rank: int) -> tuple[Array, Array, Array, np.random.Generator]:
    """B, A, the derivative by the weight, and a generator to go on with."""
    draw = np.random.default_rng(seed)
    b, a = draw.standard_normal((D_OUT, rank)), draw.standard_normal((rank, D_IN))
    return b, a, draw.standard_normal((D_OUT, D_IN)), draw


@settings(deadline=None)
@given(seed=SEEDS, rank=st.integers(1, 4))
def test_in_another_gauge_a_first_moment_is_the_derivative_there(seed: int, rank: int) -> None:
    """B R and R⁻¹ A stand for the same product."""
    b, a, by_weight, draw = drawn(seed, rank)
    gauge = draw.standard_normal((rank, rank))
    assume(np.linalg.cond(gauge) < 1e3)
    other = b @ gauge, np.linalg.solve(gauge, a)
    turn = Turn.between((b, a), other)
    near = {"rtol": 1e-7, "atol": 1e-7}
    np.testing.assert_allclose(turn.first("lora_b", by_weight @ a.T), by_weight @ other[1].T, **near)
    np.testing.assert_allclose(turn.first("lora_a", b.T @ by_weight), other[0].T @ by_weight, **near)
    for role, derivative in (("lora_b", by_weight @ a.T), ("lora_a", b.T @ by_weight)):
        assert turn.knows(role)
        # Without noise the second moment is the first one squared, and stays so.
        turned = turn.second(role, derivative, derivative**2)
        np.testing.assert_allclose(turned, turn.first(role, derivative) ** 2, rtol=1e-6, atol=1e-6)


@settings(deadline=None)
@given(seed=SEEDS, rank=st.integers(1, 4))
def test_in_another_order_and_sign_every_moment_is_the_same(seed: int, rank: int) -> None:
    """Those of each direction go with it."""
    b, a, _, draw = drawn(seed, rank)
    order, signs = draw.permutation(rank), draw.choice([-1.0, 1.0], rank)
    turn = Turn.between((b, a), (b[:, order] * signs, (a[order].T * signs).T))
    first = draw.standard_normal((D_OUT, rank))
    second = first**2 + draw.uniform(0, 9, (D_OUT, rank))
    np.testing.assert_allclose(turn.first("lora_b", first), first[:, order] * signs, atol=1e-9)
    np.testing.assert_allclose(turn.second("lora_b", first, second), second[:, order], atol=1e-8)
    first = draw.standard_normal((rank, D_IN))
    second = first**2 + draw.uniform(0, 9, (rank, D_IN))
    np.testing.assert_allclose(turn.first("lora_a", first), (first[order].T * signs).T, atol=1e-9)
    np.testing.assert_allclose(turn.second("lora_a", first, second), second[order], atol=1e-8)


@settings(deadline=None)
@given(seed=SEEDS, rank=st.integers(1, 3), more=st.integers(0, 2))
def test_what_the_old_factors_do_not_span_is_left_out_of_the_mean_and_filled_in_the_size(
    seed: int, rank: int, more: int
) -> None:
    """Other ranks go as well: the first moment is that along the part inside the span."""
    b, a, by_weight, draw = drawn(seed, rank)
    other = draw.standard_normal((D_OUT, rank + more)), draw.standard_normal((rank + more, D_IN))
    turn = Turn.between((b, a), other)
    inside = other[1] @ np.linalg.pinv(a) @ a
    first = by_weight @ a.T
    np.testing.assert_allclose(turn.first("lora_b", first), by_weight @ inside.T, rtol=1e-6, atol=1e-6)
    share = np.sum(inside**2, axis=1) / np.sum(other[1] ** 2, axis=1)
    np.testing.assert_allclose(turn.share_b, share, rtol=1e-8)
    assert turn.knows("lora_b") == bool(np.all(share >= 0.01))
    np.testing.assert_allclose(
        turn.second("lora_b", first, first**2) * share, turn.first("lora_b", first) ** 2, rtol=1e-6, atol=1e-6
    )


@pytest.mark.parametrize("role", ["lora_a", "lora_b"])
def test_of_a_new_direction_nothing_is_known(role: str) -> None:
    """One at a right angle to all old ones, or one of no length."""
    old = np.eye(D_OUT)[:, :2], np.eye(D_IN)[:2]
    for new in (
        (np.eye(D_OUT)[:, 1:3], np.eye(D_IN)[1:3]),
        (np.eye(D_OUT)[:, :2] * [1, 0], (np.eye(D_IN)[:2].T * [1, 0]).T),
    ):
        assert not Turn.between(old, new).knows(role)
    assert Turn.between(old, old).knows(role)
