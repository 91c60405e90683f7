"""Factors that nobody sends: singular vectors, noise, and how two machines notice that theirs differ."""

from __future__ import annotations

import numpy as np
import pytest

from wardround.core.errors import ModelError
from wardround.training.adapters._frozen_factors import (
    PROBES,
    drawn_pair,
    fingerprint_of,
    leading_pair,
    recovered,
    require_fingerprint,
)


def spectrum(d_out: int, d_in: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A matrix with singular values 1, 0.9, 0.81, …, and its vectors."""
    rng = np.random.default_rng(seed)
    u = np.linalg.qr(rng.normal(size=(d_out, min(d_out, d_in))))[0]
    v = np.linalg.qr(rng.normal(size=(d_in, min(d_out, d_in))))[0]
    return (u * 0.9 ** np.arange(u.shape[1])) @ v.T, u, v


@pytest.mark.parametrize("shape", [(60, 40), (40, 60), (12, 9), (200, 180)])
def test_leading_pairs_are_the_first_singular_vectors(shape: tuple[int, int]) -> None:
    """As NumPy's dense decomposition has them, signs aside; the largest entry of each column is positive."""
    w = spectrum(*shape)[0]
    b, a = leading_pair(w, 6, "m")
    u, _, vt = np.linalg.svd(w)
    assert np.allclose(np.abs(np.sum(b * u[:, :6], axis=0)), 1, atol=1e-6)
    assert np.allclose(np.abs(np.sum(a * vt[:6], axis=1)), 1, atol=1e-6)
    assert np.allclose(np.diag(b.T @ w @ a.T), 0.9 ** np.arange(6), atol=1e-6)
    assert (b[np.argmax(np.abs(b), axis=0), np.arange(6)] > 0).all()
    assert np.array_equal(leading_pair(w * 3, 6, "m")[0].round(6), b.round(6))


def test_a_weight_that_is_not_finite_is_refused_by_name() -> None:
    """Before LAPACK loses itself in it."""
    with pytest.raises(ModelError, match=r"layers\.0"):
        leading_pair(np.full((4, 4), np.nan), 2, "layers.0")


def test_drawn_pairs_follow_seed_and_module_alone() -> None:
    """The numbers are frozen: another stream would be another run."""
    b, a = drawn_pair(9, 7, 3, 5, "m")
    assert np.array_equal(b, drawn_pair(9, 7, 3, 5, "m")[0])
    assert not np.allclose(b, drawn_pair(9, 7, 3, 6, "m")[0])
    assert not np.allclose(b, drawn_pair(9, 7, 3, 5, "n")[0])
    assert np.allclose(b.T @ b, np.eye(3), atol=1e-6)
    assert np.allclose(a @ a.T, np.eye(3), atol=1e-6)
    assert drawn_pair(4, 4, 4, 5, "m")[0].any(axis=0).all()
    assert np.allclose(b[0], [-0.31942827, 0.03278498, 0.20165063], atol=1e-7)


def test_a_fingerprint_sees_factors_and_no_bits() -> None:
    """An ulp passes; a reversed sign, two columns turned in their plane or a swapped module do not."""
    factors = {f"m{i}": drawn_pair(40, 30, 4, 1, f"m{i}") for i in range(30)}
    known = fingerprint_of(factors, 1)
    assert len(known) == PROBES
    rounded = {name: (np.nextafter(b, np.float32(1)), a) for name, (b, a) in factors.items()}
    require_fingerprint(fingerprint_of(rounded, 1), known)

    b, a = factors["m3"]
    reversed_sign, turned = b.copy(), b.copy()
    reversed_sign[:, 2] *= -1
    turned[:, 0], turned[:, 1] = b[:, 0] + 1e-3 * b[:, 1], b[:, 1] - 1e-3 * b[:, 0]
    for wrong in (
        factors | {"m3": (reversed_sign, a)},
        factors | {"m3": (turned, a)},
        factors | {"m3": factors["m4"], "m4": factors["m3"]},
    ):
        with pytest.raises(ModelError, match="not the plan's"):
            require_fingerprint(fingerprint_of(wrong, 1), known)
    with pytest.raises(ModelError, match="not the plan's"):
        require_fingerprint((float("nan"),) * PROBES, known)
    assert fingerprint_of({}, 1) == (0.0,) * PROBES


def test_a_core_is_recovered_and_what_is_beside_it_is_measured() -> None:
    """R of B R A, whatever the form of the product; the share of what lies outside."""
    rng = np.random.default_rng(2)
    b, a = drawn_pair(20, 16, 3, 1, "m")
    core = rng.normal(size=(3, 3))
    found, apart = recovered(b, a, b @ core, a)
    assert np.allclose(found, core, atol=1e-12)
    assert apart < 1e-12
    outside = np.linalg.qr(np.hstack([b, rng.normal(size=(20, 1))]))[0][:, 3:]
    found, apart = recovered(
        b, a, np.hstack([b @ core, outside]), np.vstack([a, np.linalg.norm(core) * a[:1]])
    )
    assert np.allclose(found, core, atol=1e-6)
    assert apart == pytest.approx(np.sqrt(0.5), rel=1e-5)
    assert recovered(b, a, np.zeros((20, 3)), a)[1] == 0.0
