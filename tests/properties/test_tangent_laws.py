"""Laws of tangent aggregation on matrices that are large enough for them to mean something."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wardround.core import lora
from wardround.core.checked import parse_options
from wardround.core.packed import Layout, Packed, TensorSpec, pack, zeros
from wardround.strategies._tangent_space import basis_at
from wardround.strategies.contract import LocalUpdate, ServerState, SiteMemory
from wardround.strategies.tangent import Tangent

R, D_OUT, D_IN, SCALING = 4, 24, 30, 2.0
A, B = "m.lora_A.weight", "m.lora_B.weight"
Matrix = np.ndarray[Any, Any]


def layout_of(rank: int = R, scaling: float = SCALING) -> Layout:
    """One module, and a head."""
    return Layout(
        tensors=(
            TensorSpec(name="head", shape=(3,)),
            TensorSpec(name=A, shape=(rank, D_IN), role="lora_a", module="m", scaling=scaling),
            TensorSpec(name=B, shape=(D_OUT, rank), role="lora_b", module="m", scaling=scaling),
        )
    )


LAYOUT = layout_of()


def adapter_of(b: Matrix, a: Matrix, scaling: float = SCALING, dtype: Any = np.float64) -> Packed:
    """An adapter of the module; float64, so that orders of magnitude can be seen."""
    return pack(layout_of(a.shape[0], scaling), {"head": np.zeros(3), A: a, B: b}, dtype)


def global_adapter(seed: int, dtype: Any = np.float64) -> Packed:
    """Balanced factors of a random product, as every fold leaves them."""
    draw = np.random.default_rng(seed)
    found = lora.Factored(draw.standard_normal((D_OUT, R)), draw.standard_normal((R, D_IN))).truncated(R)
    pair = lora.pairs(LAYOUT)[0]
    b, a = lora.balanced(found, zeros(LAYOUT, np.float64), pair)
    return adapter_of(b, a, dtype=dtype)


def made(**options: Any) -> Tangent:
    """The strategy."""
    return Tangent(parse_options(Tangent.Options, options, "tangent"), LAYOUT)


def sent(
    before: Packed, after: Packed, broadcast: Packed | None = None, strategy: Tangent | None = None
) -> Packed:
    """A site's statistics."""
    own = strategy or made()
    return own.contribute(broadcast or before, LocalUpdate(before, after), SiteMemory(), 1, 0)[0]


def dense(adapter: Packed) -> Matrix:
    """The module's s · B A."""
    return lora.product(adapter, lora.pairs(adapter.layout)[0]).dense()


def truncated(matrix: Matrix, rank: int = R) -> Matrix:
    """T_r, on the whole matrix."""
    u, values, vt = np.linalg.svd(matrix)
    return np.asarray((u[:, :rank] * values[:rank]) @ vt[:rank])


def step_of(broadcast: Packed, message: Packed) -> Matrix:
    """The matrix that a message stands for, in the product's own units."""
    basis = basis_at(broadcast, lora.pairs(LAYOUT)[0])
    first, second = (message[f"m.tangent_{part}"] * basis.unit for part in ("columns", "rows"))
    return basis.vector(first, second).dense()


@pytest.mark.parametrize(("ranks", "least"), [((4, 4, 4, 4), 2.8), ((2, 4, 3, 1), 2.8), ((2, 4, 7, 9), 1.9)])
def test_the_result_is_right_to_third_order(ranks: tuple[int, ...], least: float) -> None:
    """Against T_r(G + D): third order where sites train the broadcast's directions, second beyond them."""
    start = global_adapter(0)
    errors = []
    sizes = (0.02, 0.01, 0.005, 0.0025)
    for size in sizes:
        draw = np.random.default_rng(5)
        total, mean = np.zeros((D_OUT, D_IN)), np.zeros((D_OUT, D_IN))
        for rank in ranks:
            b, a = start[B], start[A]
            inside = (np.arange(R) < rank).astype(float)
            moved_b = b + size * draw.standard_normal(b.shape) * inside
            moved_a = a + size * draw.standard_normal(a.shape) * inside[:, None]
            more = max(0, rank - R)
            before = adapter_of(
                np.hstack([b, np.zeros((D_OUT, more))]), np.vstack([a, start_rows(more)]), SCALING
            )
            after = adapter_of(
                np.hstack([moved_b, size * draw.standard_normal((D_OUT, more))]),
                np.vstack([moved_a, start_rows(more) + size * draw.standard_normal((more, D_IN))]),
                SCALING,
            )
            total += step_of(start, sent(before, after, start)) / len(ranks)
            mean += (dense(after) - dense(start)) / len(ranks)
        errors.append(np.linalg.norm(truncated(dense(start) + mean) - truncated(dense(start) + total)))
    orders = np.diff(np.log(errors)) / np.diff(np.log(sizes))
    assert orders.min() >= least
    assert least > 2 or orders.max() < 2.5, "site ranks above r leave something of second order outside"


def start_rows(count: int) -> Matrix:
    """LoRA's usual start of further directions."""
    return np.asarray(np.random.default_rng(3).standard_normal((count, D_IN)) / np.sqrt(D_IN))


@pytest.mark.parametrize("factor", [A, B])
def test_updates_of_one_factor_are_exact(factor: str) -> None:
    """Where one factor trains everywhere, the sum is the sum of the products, to machine precision."""
    start, draw = global_adapter(1), np.random.default_rng(2)
    for _ in range(3):
        after = start.with_vector(start.vector.copy())
        after[factor][...] += draw.standard_normal(after[factor].shape)
        update = dense(after) - dense(start)
        assert np.linalg.norm(step_of(start, sent(start, after)) - update) < 1e-13 * np.linalg.norm(update)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), rank=st.integers(1, 8), scaling=st.sampled_from([0.25, 1.0, 16.0]))
def test_only_the_product_counts(seed: int, rank: int, scaling: float) -> None:
    """B → B R, A → R⁻¹ A, another scaling, zero columns beside: the message is the same."""
    draw, start = np.random.default_rng(seed), global_adapter(3)
    b, a = draw.standard_normal((D_OUT, rank)), draw.standard_normal((rank, D_IN))
    gauge = draw.standard_normal((rank, rank)) + 3 * np.eye(rank)
    plain = adapter_of(b, a, 1.0)
    turned = adapter_of(b @ gauge / scaling, np.linalg.solve(gauge, a), scaling)
    padded = adapter_of(np.hstack([b, np.zeros((D_OUT, 2))]), np.vstack([a, np.zeros((2, D_IN))]), 1.0)
    messages = []
    for trained in (plain, turned, padded):
        nothing = trained.with_vector(np.zeros(trained.layout.size))
        messages.append(sent(nothing, trained, start).vector)
    size = np.linalg.norm(messages[0])
    assert np.linalg.norm(messages[1] - messages[0]) < 1e-9 * size * np.linalg.cond(gauge)
    assert np.linalg.norm(messages[2] - messages[0]) < 1e-13 * size


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_the_message_is_as_long_as_the_projected_update(seed: int) -> None:
    """Isometric up to the module's public factor: a bound on lengths means what it says."""
    draw, start = np.random.default_rng(seed), global_adapter(4)
    after = start.with_vector(start.vector + 0.1 * draw.standard_normal(start.vector.size))
    message = sent(start, after)
    length = np.linalg.norm(
        np.concatenate([message["m.tangent_columns"].ravel(), message["m.tangent_rows"].ravel()])
    )
    unit = basis_at(start, lora.pairs(LAYOUT)[0]).unit
    projected = step_of(start, message)
    assert length * unit == pytest.approx(np.linalg.norm(projected), rel=1e-12)
    assert np.linalg.norm(projected) <= np.linalg.norm(dense(after) - dense(start)) * (1 + 1e-12)


def test_a_fresh_adapter_trains_b_alone_and_exactly() -> None:
    """B = 0 has no column space: A is frozen, and the first fold is the exact mean."""
    draw, strategy = np.random.default_rng(6), made()
    start = adapter_of(np.zeros((D_OUT, R)), start_rows(R), dtype=np.float32)
    rules = strategy.local_rules(start, SiteMemory(), 1)
    assert rules.frozen == {A}
    total, mean = np.zeros(strategy.statistics_layout(0).size), np.zeros((D_OUT, D_IN))
    for _ in range(3):
        after = start.with_vector(start.vector.copy())
        after[B][...] = draw.standard_normal((D_OUT, R))
        total += sent(start, after).vector
        mean += dense(after) / 3
    state = strategy.fold(strategy.begin(start), Packed(strategy.statistics_layout(0), total), 3.0, 0)
    assert np.linalg.norm(dense(state.adapter) - mean) < 1e-6 * np.linalg.norm(mean)
    assert state.figures["discarded_energy"] < 1e-12
    assert strategy.local_rules(state.adapter, SiteMemory(), 2).frozen == frozenset()


def test_the_factors_are_balanced_after_a_fold() -> None:
    """Bᵀ B = A Aᵀ = diag(σ)/s, by falling σ."""
    strategy, start, draw = made(), global_adapter(7, np.float32), np.random.default_rng(8)
    after = start.with_vector(
        start.vector + np.float32(0.1) * draw.standard_normal(start.vector.size, np.float32)
    )
    adapter = strategy.fold(strategy.begin(start), sent(start, after), 1.0, 0).adapter
    left, right = (
        (adapter[B].T @ adapter[B]).astype(np.float64),
        (adapter[A] @ adapter[A].T).astype(np.float64),
    )
    np.testing.assert_allclose(left, right, atol=1e-5)
    np.testing.assert_allclose(left, np.diag(np.diag(left)), atol=1e-5)
    assert (np.diff(np.diag(left)) <= 1e-6).all()


def test_rows_of_a_keep_their_usual_length_where_the_split_says_so() -> None:
    """The same product; A's rows as LoRA draws them, those of directions with nothing in them included."""
    start, draw = global_adapter(7, np.float32), np.random.default_rng(8)
    after = start.with_vector(
        start.vector + np.float32(0.1) * draw.standard_normal(start.vector.size, np.float32)
    )
    even, rows = (
        strategy.fold(strategy.begin(start), sent(start, after), 1.0, 0).adapter
        for strategy in (made(), made(split="rows"))
    )
    assert lora.difference(even, rows) < 1e-6
    np.testing.assert_allclose(np.linalg.norm(rows[A], axis=1), 1 / np.sqrt(3), rtol=1e-5)
    np.testing.assert_allclose(rows[A] @ rows[A].T, np.eye(R) / 3, atol=1e-6)
    assert made().difference(even, rows) > 0.1, "a site tells them apart"
    fresh = adapter_of(np.zeros((D_OUT, R)), start_rows(R), dtype=np.float32)
    moved = fresh.with_vector(fresh.vector.copy())
    moved[B][:, :2] = draw.standard_normal((D_OUT, 2))
    strategy = made(split="rows")
    adapter = strategy.fold(strategy.begin(fresh), sent(fresh, moved), 1.0, 0).adapter
    np.testing.assert_allclose(np.linalg.norm(adapter[A], axis=1), 1 / np.sqrt(3), rtol=1e-5)


def test_momentum_moves_with_the_tangent_space() -> None:
    """After a step along X the momentum is X projected onto the new tangent space; β and the rate act."""
    strategy = made(server={"optimiser": "momentum", "momentum": 0.5, "server_learning_rate": 2.0})
    start, draw = global_adapter(9, np.float32), np.random.default_rng(10)
    after = start.with_vector(
        start.vector + np.float32(0.05) * draw.standard_normal(start.vector.size, np.float32)
    )
    message = sent(start, after, strategy=strategy)
    step = step_of(start, message)
    one = strategy.fold(strategy.begin(start), message, 1.0, 0)
    near = 1e-6 * np.linalg.norm(dense(start))
    assert np.linalg.norm(dense(one.adapter) - truncated(dense(start) + 2 * step)) < near
    two = strategy.fold(one, zeros(strategy.statistics_layout(0), np.float64), 1.0, 0)
    u, p = projectors(one)
    carried = step - (np.eye(D_OUT) - u) @ step @ (np.eye(D_IN) - p)
    expected = truncated(dense(one.adapter) + 2 * 0.5 * carried)
    assert np.linalg.norm(dense(two.adapter) - expected) < near


def projectors(state: ServerState) -> tuple[Matrix, Matrix]:
    """On the column space of B and the row space of A."""
    u = np.linalg.svd(state.adapter[B].astype(np.float64), full_matrices=False)[0]
    p = np.linalg.svd(state.adapter[A].T.astype(np.float64), full_matrices=False)[0]
    return u @ u.T, p @ p.T


def test_a_direction_with_nothing_in_it_still_trains() -> None:
    """Where the product has less than the rank, A keeps a start for the rest, of its usual length."""
    strategy, draw = made(), np.random.default_rng(11)
    start = adapter_of(np.zeros((D_OUT, R)), start_rows(R), dtype=np.float32)
    after = start.with_vector(start.vector.copy())
    after[B][:, :2] = draw.standard_normal((D_OUT, 2))
    adapter = strategy.fold(strategy.begin(start), sent(start, after), 1.0, 0).adapter
    lengths = np.linalg.norm(adapter[A], axis=1)
    assert (np.linalg.norm(adapter[B], axis=0)[2:] == 0).all()
    np.testing.assert_allclose(lengths[2:], np.linalg.norm(start[A]) / 2, rtol=1e-6)
    assert np.linalg.matrix_rank(adapter[A]) == R


def test_factors_that_share_a_product_otherwise_are_told_apart() -> None:
    """A rotation among equal singular values is no difference; another balance of B and A is one."""
    strategy = made()
    q1, q2 = (
        np.linalg.qr(np.random.default_rng(n).standard_normal((d, R)))[0] for n, d in ((1, D_OUT), (2, D_IN))
    )
    turn = np.linalg.qr(np.random.default_rng(3).standard_normal((R, R)))[0]
    one, turned = adapter_of(q1, q2.T), adapter_of(q1 @ turn, turn.T @ q2.T)
    assert strategy.difference(one, turned) < 1e-12
    assert strategy.difference(one, adapter_of(q1 * 10, q2.T / 10)) > 1
    assert strategy.difference(one, adapter_of(q1 * 1.01, q2.T)) > 5e-3
