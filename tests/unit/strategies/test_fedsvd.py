"""FedSVD: exact means, and an A whose rows are orthogonal and of one length after every fold."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from wardround.core import lora
from wardround.core.packed import Layout, Packed, TensorSpec, pack, zeros
from wardround.strategies.contract import LocalUpdate, ServerState, SiteMemory
from wardround.strategies.fedsvd import FedSVD, FedSVDOptions

R, D_OUT, D_IN, SCALING = 4, 12, 15, 2.0
A, B = "m.lora_A", "m.lora_B"
LAYOUT = Layout(
    tensors=(
        TensorSpec(name="head", shape=(3,)),
        TensorSpec(name=A, shape=(R, D_IN), role="lora_a", module="m", scaling=SCALING),
        TensorSpec(name=B, shape=(D_OUT, R), role="lora_b", module="m", scaling=SCALING),
    )
)
Matrix = np.ndarray[Any, Any]


def fresh(seed: int = 0) -> Packed:
    """LoRA's usual start."""
    a = np.random.default_rng(seed).uniform(-1, 1, (R, D_IN)) / np.sqrt(D_IN)
    return pack(LAYOUT, {"head": np.zeros(3), A: a, B: np.zeros((D_OUT, R))}, np.float32)


def made(**options: Any) -> FedSVD:
    """The strategy."""
    return FedSVD(FedSVDOptions(**options), LAYOUT)


def folded(strategy: FedSVD, state: ServerState, moves: list[Matrix]) -> ServerState:
    """A round of sites that moved B."""
    total = np.zeros(strategy.statistics_layout(0).size)
    for move in moves:
        after = state.adapter.with_vector(state.adapter.vector.copy())
        after[B][...] += move.astype(np.float32)
        total += strategy.contribute(
            state.adapter, LocalUpdate(state.adapter, after), SiteMemory(), state.round + 1, 0
        )[0].vector
    return strategy.fold(state, Packed(strategy.statistics_layout(0), total), float(len(moves)), 0)


def dense(adapter: Packed) -> Matrix:
    """The module's s · B A."""
    return lora.product(adapter, lora.pairs(LAYOUT)[0]).dense()


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), rank=st.integers(1, R), rounds=st.integers(1, 3))
def test_the_mean_is_exact_and_a_has_orthogonal_rows_of_one_length(seed: int, rank: int, rounds: int) -> None:
    """c² = ‖A‖²/r as it was drawn, in every round; Bᵀ B is diagonal and falls; no σ, no column."""
    strategy, draw = made(), np.random.default_rng(seed)
    state = strategy.begin(fresh(seed))
    length = float(np.sum(state.adapter[A] ** 2)) / R
    for _ in range(rounds):
        moves = [draw.standard_normal((D_OUT, R)) * (np.arange(R) < rank) for _ in range(3)]
        mean = SCALING * sum(moves) @ state.adapter[A] / 3
        before, state = dense(state.adapter), folded(strategy, state, moves)
        np.testing.assert_allclose(dense(state.adapter), before + mean, atol=1e-5 * np.linalg.norm(mean))
        a, b = state.adapter[A].astype(np.float64), state.adapter[B].astype(np.float64)
        np.testing.assert_allclose(a @ a.T, length * np.eye(R), atol=1e-6)
        gram = b.T @ b
        np.testing.assert_allclose(gram, np.diag(np.diag(gram)), atol=1e-5 * gram.max())
        assert (np.diff(np.diag(gram)) <= 1e-6 * gram.max()).all()
    if rounds == 1:
        assert (state.adapter[B][:, rank:] == 0).all()


def test_a_module_that_is_still_zero_keeps_its_factors() -> None:
    """B = 0 and nobody moved it: nothing is turned, while a head moves."""
    strategy, start = made(), fresh()
    total = zeros(strategy.statistics_layout(0), np.float64)
    total["head"][...] = 1.0
    state = strategy.fold(strategy.begin(start), total, 1.0, 0)
    for name in (A, B):
        np.testing.assert_array_equal(state.adapter[name], start[name])
    assert (state.adapter["head"] == 1).all()
    assert strategy.local_rules(start, SiteMemory(), 1).frozen == {A}


def test_momentum_keeps_its_product_when_a_turns() -> None:
    """A round in which nobody moves goes on along the same product, times β."""
    strategy = made(server={"optimiser": "momentum", "momentum": 0.5})
    draw, start = np.random.default_rng(3), fresh(3)
    one = folded(strategy, strategy.begin(start), [draw.standard_normal((D_OUT, R))])
    step = dense(one.adapter)
    two = folded(strategy, one, [draw.standard_normal((D_OUT, R)) * 0])
    np.testing.assert_allclose(dense(two.adapter), 1.5 * step, atol=1e-5 * np.linalg.norm(step))
    three = folded(strategy, two, [draw.standard_normal((D_OUT, R)) * 0])
    np.testing.assert_allclose(dense(three.adapter), 1.75 * step, atol=1e-5 * np.linalg.norm(step))


def test_factors_that_an_svd_may_turn_are_no_difference() -> None:
    """Equal singular values: another machine's rotation is the same state, another length is not."""
    strategy, draw = made(), np.random.default_rng(4)
    u, v = (np.linalg.qr(draw.standard_normal((size, R)))[0] for size in (D_OUT, D_IN))
    turn = np.linalg.qr(draw.standard_normal((R, R)))[0]

    def state(b: Matrix, a: Matrix) -> Packed:
        return pack(LAYOUT, {"head": np.zeros(3), A: a, B: b}, np.float64)

    one = state(3 * u, 0.5 * v.T)
    assert strategy.difference(one, state(3 * u @ turn, 0.5 * turn.T @ v.T)) < 1e-12
    assert strategy.difference(one, state(1.5 * u, v.T)) > 0.5
