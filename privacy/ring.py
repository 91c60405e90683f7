"""The fixed-point ring in which contributions are summed: exact in any order, and what masks need.

    encode: z_i = round(x_i · w_i · 2^f)
    add:    Σ z_i mod 2^64
    decode: Σ z_i / 2^f = Σ w_i x_i ± n/2 · 2^-f

with f = `Encoding.fraction_bits` and n sites. Rounding is to the nearest integer, halves to even, so that
encoding is a function of its input alone.
"""

from __future__ import annotations

import numpy as np

from wardround.core.errors import InternalError, PeerError
from wardround.core.packed import Array
from wardround.core.plan import Encoding

MOST_WEIGHT = 2**32
"""Largest weight of one site."""
_MODULUS_HALF = 2**63


def encode(vector: Array, weight: int, encoding: Encoding, *, sites: int) -> Array:
    """Weighted statistics as ring integers.

    Args:
        vector: (n,), float32 or float64.
        weight: The site's integer weight, 1 to 2^32.
        encoding: Fraction bits of the ring.
        sites: At most so many contributions are summed; the headroom is for all of them.

    Returns:
        (n,) int64. Each is within 1/2 of x·w·2^f; beyond 2^53 float64's own relative 2^-53 is added.

    Raises:
        PeerError: A value is not finite, the weight is out of bounds, or the sum of `sites` such
            contributions could leave the ring.
        InternalError: The vector is not a one-dimensional array of floats, or `sites` is not positive.
    """
    if vector.ndim != 1 or vector.dtype not in (np.float32, np.float64):
        raise InternalError(
            "only flat vectors of floats are encoded",
            found=f"{vector.dtype} {vector.shape}",
            expected="float32 or float64, (n,)",
        )
    if sites < 1:
        raise InternalError("the number of sites is not positive", found=sites, expected="at least 1")
    if isinstance(weight, bool) or int(weight) != weight or not 1 <= weight <= MOST_WEIGHT:
        raise PeerError(
            "a site's weight is out of bounds",
            found=weight,
            expected=f"a whole number from 1 to {MOST_WEIGHT}",
        )
    bad = int(vector.size - np.isfinite(vector).sum())
    if bad:
        raise PeerError(
            "the contribution is not finite",
            found=f"{bad} of {vector.size} values",
            expected="finite numbers",
            remedy="lower the learning rate, or look at the site's data",
        )
    with np.errstate(over="ignore"):  # infinite after scaling is refused just below
        scaled = np.rint(vector.astype(np.float64) * float(weight) * 2.0**encoding.fraction_bits)
    peak = float(np.abs(scaled).max(initial=0.0))
    if not np.isfinite(peak) or int(peak) * int(sites) >= _MODULUS_HALF:
        bound = 2.0 ** (63 - encoding.fraction_bits) / (float(weight) * sites)
        raise PeerError(
            "the contribution does not fit the ring",
            found=f"more, at weight {weight}, {sites} sites, {encoding.fraction_bits} fraction bits",
            expected=f"every value below {bound:.6g} in size",
            remedy="lower the learning rate or encoding.fraction_bits in the plan, or weigh sites uniformly",
        )
    return scaled.astype(np.int64)


def add(total: Array, part: Array) -> None:
    """Add in place: total ← total + part mod 2^64.

    Raises:
        InternalError: A shape or a type differs; check what a peer sent before it gets here.
    """
    if total.dtype != np.int64 or part.dtype != np.int64 or total.shape != part.shape:
        raise InternalError(
            "ring vectors of different kinds were added",
            found=f"{total.dtype} {total.shape} and {part.dtype} {part.shape}",
            expected="two of int64 and one shape",
        )
    np.add(total, part, out=total)


def decode(total: Array, encoding: Encoding) -> Array:
    """Σ w_i x_i in float64 from the summed ring integers.

    Raises:
        InternalError: The vector is not int64.
    """
    if total.dtype != np.int64:
        raise InternalError("a ring vector has the wrong type", found=total.dtype, expected="int64")
    return np.ldexp(total.astype(np.float64), -encoding.fraction_bits)
