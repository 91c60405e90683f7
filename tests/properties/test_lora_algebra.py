"""Algebra in factored form against the same on whole matrices."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wardround.core import lora
from wardround.core.errors import PeerError
from wardround.core.lora import Factored
from wardround.core.packed import Layout, Packed, TensorSpec, pack, zeros

SEEDS = st.integers(0, 10**6)
SIZES = st.tuples(st.integers(1, 12), st.integers(1, 9), st.integers(0, 14))


def matrix(seed: int, sizes: tuple[int, int, int]) -> Factored:
    """Of d_out × d_in with inner size k, which may be larger than both."""
    draw, (d_out, d_in, k) = np.random.default_rng(seed), sizes
    return Factored(draw.standard_normal((d_out, k)), draw.standard_normal((k, d_in)))


def layout_of(rank: int, scaling: float, d_out: int = 5, d_in: int = 7) -> Layout:
    """One module, and a head."""
    return Layout(
        tensors=(
            TensorSpec(name="head", shape=(2,)),
            TensorSpec(name="m.lora_A", shape=(rank, d_in), role="lora_a", module="m", scaling=scaling),
            TensorSpec(name="m.lora_B", shape=(d_out, rank), role="lora_b", module="m", scaling=scaling),
        )
    )


@settings(deadline=None)
@given(seed=SEEDS, sizes=SIZES, more=st.integers(0, 5), factor=st.floats(-3, 3))
def test_sums_norms_and_inner_products(
    seed: int, sizes: tuple[int, int, int], more: int, factor: float
) -> None:
    """Whatever the inner sizes, zero included."""
    one, two = matrix(seed, sizes), matrix(seed + 1, (*sizes[:2], more))
    x, y = one.dense(), two.dense()
    near: dict[str, Any] = {"rtol": 1e-10, "atol": 1e-10}
    np.testing.assert_allclose((one + two).dense(), x + y, **near)
    np.testing.assert_allclose((one - two).dense(), x - y, **near)
    np.testing.assert_allclose(one.scaled(factor).dense(), factor * x, **near)
    np.testing.assert_allclose(one.norm(), np.linalg.norm(x), **near)
    np.testing.assert_allclose(one.inner(two), np.sum(x * y), **near)


@settings(deadline=None)
@given(seed=SEEDS, sizes=SIZES, rank=st.integers(1, 6))
def test_truncation_is_that_of_the_whole_matrix(seed: int, sizes: tuple[int, int, int], rank: int) -> None:
    """The same product, orthonormal sides, falling values, and what was cut off."""
    found = matrix(seed, sizes).truncated(rank)
    u, values, vt = np.linalg.svd(matrix(seed, sizes).dense(), full_matrices=False)
    expected = (u[:, :rank] * values[:rank]) @ vt[:rank]
    np.testing.assert_allclose(found.factored.dense(), expected, atol=1e-9)
    np.testing.assert_allclose(found.cut, np.sum(values[rank:] ** 2), atol=1e-9)
    np.testing.assert_allclose(found.energy, np.sum(values[:rank] ** 2), rtol=1e-9, atol=1e-9)
    kept = len(found.values)
    for side in (found.u, found.v):
        np.testing.assert_allclose(side.T @ side, np.eye(kept), atol=1e-9)
    assert (np.diff(found.values) <= 1e-12).all()


def test_a_small_difference_of_large_products_is_right() -> None:
    """No cancellation of norms: a change of 1e-9 of the size is seen to four digits."""
    one = matrix(0, (300, 200, 8))
    change = matrix(1, (300, 200, 3)).scaled(1e-9)
    assert ((one + change) - one).norm() == pytest.approx(change.norm(), rel=1e-4)


@settings(deadline=None)
@given(seed=SEEDS, n=st.integers(1, 20), k=st.integers(0, 8), twice=st.booleans())
def test_a_basis_spans_what_the_columns_span(seed: int, n: int, k: int, twice: bool) -> None:
    """Orthonormal, in place, zero where a column says nothing new; signs are those of the columns."""
    columns = np.random.default_rng(seed).standard_normal((n, k))
    if twice and k > 1:
        columns[:, -1] = columns[:, 0]
    basis = lora.orthonormal(columns)
    used = np.any(basis != 0, axis=0)
    np.testing.assert_allclose(basis[:, used].T @ basis[:, used], np.eye(int(used.sum())), atol=1e-12)
    np.testing.assert_allclose(basis @ (basis.T @ columns), columns, atol=1e-9)
    assert used.sum() == np.linalg.matrix_rank(columns)
    assert (np.einsum("ij,ij->j", basis, columns)[used] > 0).all()


@settings(deadline=None)
@given(seed=SEEDS, rank=st.integers(1, 4), scaling=st.sampled_from([0.25, 1.0, 32.0]))
def test_scaling_belongs_to_the_product(seed: int, rank: int, scaling: float) -> None:
    """Folded in when factors are read, taken out when written; other scalings compare."""
    draw = np.random.default_rng(seed)
    product = Factored(draw.standard_normal((5, rank)), draw.standard_normal((rank, 7)))
    layout = layout_of(rank, scaling)
    pair = lora.pairs(layout)[0]
    b, a = lora.balanced(product.truncated(rank), zeros(layout, np.float64), pair)
    written = pack(layout, {"head": np.ones(2), pair.a.name: a, pair.b.name: b}, np.float64)
    np.testing.assert_allclose(lora.product(written, pair).dense(), product.dense(), atol=1e-9)
    np.testing.assert_allclose(np.linalg.norm(a, axis=1), np.linalg.norm(b, axis=0), rtol=1e-6)
    plain = layout_of(rank, 1.0)
    other = pack(
        plain, {"head": np.ones(2), pair.a.name: product.right, pair.b.name: product.left}, np.float64
    )
    assert lora.difference(written, other) < 1e-9
    assert lora.distance(written, other.with_vector(other.vector * 0)) > 1


def test_dense_tensors_count_in_a_distance() -> None:
    """The head moved by 3 and 4; nothing else did."""
    layout = layout_of(2, 1.0)
    one = Packed(layout, np.random.default_rng(0).standard_normal(layout.size))
    two = one.with_vector(one.vector.copy())
    two["head"][...] += [3.0, 4.0]
    assert lora.distance(one, two) == pytest.approx(5.0)


BROKEN = {
    "one factor": (lambda specs: specs[:-1], "no two factors"),
    "other inner sizes": (
        lambda specs: (*specs[:-1], specs[-1].model_copy(update={"shape": (5, 3)})), "form no product",
    ),
    "other scalings": (
        lambda specs: (*specs[:-1], specs[-1].model_copy(update={"scaling": 3.0})), "form no product",
    ),
    "a factor twice": (
        lambda specs: (*specs, specs[-1].model_copy(update={"name": "m.lora_B2"})), "a factor twice",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", sorted(BROKEN))
def test_factors_that_form_no_product_are_refused_by_module(kind: str) -> None:
    """Before anything is multiplied."""
    change, reason = BROKEN[kind]
    with pytest.raises(PeerError, match=reason):
        lora.pairs(Layout(tensors=tuple(change(layout_of(2, 1.0).tensors))))


def test_what_is_not_finite_is_refused() -> None:
    """And adapters of other modules do not compare."""
    broken = matrix(0, (4, 4, 2))
    broken.left[0, 0] = np.nan
    with pytest.raises(PeerError, match="not finite"):
        broken.truncated(2)
    head = Layout(tensors=(TensorSpec(name="head", shape=(2,)),))
    with pytest.raises(PeerError, match="other modules"):
        lora.distance(zeros(layout_of(2, 1.0)), zeros(head))
