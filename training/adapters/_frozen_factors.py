"""Outer factors B (d_out, r) and A (r, d_in) that nobody trains or sends: how every site makes the same ones.

B has orthonormal columns and A orthonormal rows. From the seed (`drawn_pair`) both are orthonormalised noise,
by Gram-Schmidt in float64; from the frozen weight (`leading_pair`) they are its first r singular vectors, as
LoRA-XS takes them, by randomised subspace iteration (Halko, Martinsson and Tropp 2011, arXiv:0909.4061v2,
Algorithms 4.4 and 5.1) from a start that is the same for everybody. Noise is made of a generator's raw bits,
whose stream NumPy promises to keep, by exact operations.

Two machines then differ by their order of summation alone: about 1e-16 times a condition number, which the
cast to float32 nearly always swallows. It is not swallowed where two singular values are equal to within
rounding: singular vectors may then be any basis of their plane, and with another basis R means another
update. So the plan carries a *fingerprint* of the factors that it was made with, and a site whose own are
others is refused before it trains. The fingerprint is a handful of inner products with random signs and not a
digest, which a single bit would change: bits may differ, factors may not.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final

import numpy as np

from wardround.core.errors import ModelError
from wardround.core.lora import Factored, orthonormal
from wardround.core.packed import Array
from wardround.core.seeds import Purpose, generator

Factors = tuple[Array, Array]
"""(B, A), float32."""

PROBES: Final = 8
TOLERANCE: Final = 1e-6
"""Between two fingerprints. A reversed sign of one column in 200 modules moves each probe by about 1e-2."""
DIGITS: Final = 7
"""Of a probe, after the point: a bit here and there leaves a plan its digest."""
_SPARE: Final = 16
"""Columns beyond r in the subspace iteration."""
_PASSES: Final = 4
"""Of it; what lies beside the block shrinks by (σ_{r+16} / σ_r)² in each."""


def drawn_pair(d_out: int, d_in: int, r: int, seed: int, module: str) -> Factors:
    """Orthonormal factors of a module from the seed; r is at most d_out and d_in."""
    noise = _noise(seed, module, (d_out + d_in) * r)
    b, a = noise[: d_out * r].reshape(d_out, r), noise[d_out * r :].reshape(d_in, r)
    return orthonormal(b).astype(np.float32), orthonormal(a).T.astype(np.float32)


def leading_pair(weight: Array, r: int, module: str) -> Factors:
    """The first r singular vectors of a weight (d_out, d_in), by falling singular value, signs fixed.

    A vector's sign is that which makes the largest entry of its column of B positive.

    Raises:
        ModelError: The weight is not finite.
    """
    w = weight.astype(np.float64)
    if not np.isfinite(w).all():
        raise ModelError("a weight of the base model is not finite", found=module, remedy="get it again")
    block = min(r + _SPARE, *w.shape)
    basis = np.linalg.qr(w @ _noise(0, module, w.shape[1] * block).reshape(-1, block))[0]
    for _ in range(_PASSES):
        basis = np.linalg.qr(w @ np.linalg.qr(w.T @ basis)[0])[0]
    inner, _, vt = np.linalg.svd(basis.T @ w, full_matrices=False)
    u, vt = basis @ inner[:, :r], vt[:r]
    signs = np.sign(u[np.argmax(np.abs(u), axis=0), np.arange(r)])
    return (u * signs).astype(np.float32), (vt * signs[:, None]).astype(np.float32)


def fingerprint_of(factors: Mapping[str, Factors], seed: int) -> tuple[float, ...]:
    """Inner products of all factors with random signs, over their length: `PROBES` numbers of about 1.

    Args:
        factors: Module → its two.
        seed: Of the signs.
    """
    total, squares = np.zeros(PROBES), 0.0
    for module, pair in sorted(factors.items()):
        flat = np.concatenate([factor.reshape(-1) for factor in pair]).astype(np.float64)
        words = generator(seed, Purpose.FACTORS, site=f"{module}\x1fprobe").bit_generator.random_raw(
            -(-flat.size // 8)
        )
        bits = words.astype("<u8").view(np.uint8)[: flat.size]
        squares += float(flat @ flat)
        for probe in range(PROBES):
            total[probe] += np.sum(np.where((bits >> probe) & 1, flat, -flat))
    length = math.sqrt(squares) or 1.0
    return tuple(round(float(value) / length, DIGITS) + 0.0 for value in total)


def require_fingerprint(found: tuple[float, ...], expected: tuple[float, ...]) -> None:
    """Refuse factors that are not the plan's.

    Raises:
        ModelError: They differ by more than rounding.
    """
    apart = max(abs(one - other) for one, other in zip(found, expected, strict=True))
    if not apart <= TOLERANCE:
        raise ModelError(
            "the frozen factors that this machine makes are not the plan's",
            found=f"fingerprints {apart:.2g} apart", expected=f"at most {TOLERANCE:g}",
            remedy="install the versions of Wardround and NumPy that made the plan; where singular values "
            "of the base's weights are equal, make the plan with adapter.options.start=random",
            code="adapter",
        )  # fmt: skip


def recovered(b: Array, a: Array, left: Array, right: Array) -> tuple[Array, float]:
    """The core R (r, r) with B R A nearest to a product, and how far it is from it, relatively.

    Args:
        b: B (d_out, r).
        a: A (r, d_in).
        left: (d_out, k) of the product.
        right: (k, d_in) of the product.

    Returns:
        R, float64, and ‖B R A − left right‖ / ‖left right‖, 0 for a product of zero.
    """
    b, a, left, right = (x.astype(np.float64) for x in (b, a, left, right))
    outer, inner = np.linalg.lstsq(b, left)[0], np.linalg.lstsq(a.T, right.T)[0].T
    core = outer @ inner
    size = Factored(left, right).norm()
    return core, (Factored(left, right) - Factored(b @ core, a)).norm() / size if size else 0.0


def _noise(seed: int, module: str, count: int) -> Array:
    """Uniform in [−1, 1), float64: the same bits on every machine."""
    words = generator(seed, Purpose.FACTORS, site=module).bit_generator.random_raw(count)
    return (words >> np.uint64(11)).astype(np.float64) * 2.0**-52 - 1.0
