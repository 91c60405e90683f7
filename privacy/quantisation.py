"""Weighted statistics as integers of a narrow ring: bounded, rounded at random, never wrapping in the sum.

With n sites, weights of at most w_max, coordinates of at most c in size and a ring of 2^b:

    encode:  z_i = ⌊w_i · clip(x_i, ±c) · s + u⌋,  u uniform in [0, 1)       E z_i = w_i · x_i · s
    fits:    n · (w_max · c · s + 1) < 2^(b−1)
    decode:  Σ z_i / s = Σ w_i x_i + e,   |e| < n / s,   sd(e) ≤ √n / (2 s)

so that the mean Σ w_i x_i / Σ w_i is off by at most n / (s Σ w_i). Stochastic rounding keeps the sum unbiased
where values are far below one quantum; it protects nothing, so u comes from the seed tree.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from wardround.core.errors import ConfigError, InternalError, TrainingError
from wardround.core.packed import Array
from wardround.privacy.packing import Bits, word_of

CHUNK = 1 << 15
"""Coordinates at a time: all of a chunk's arrays stay in the cache."""
_NORM_SLACK = 1e-4
"""A vector is shortened to this much below its bound, so that float32 does not miss it."""


@dataclass(frozen=True)
class Scale:
    """How one round's statistics become ring integers; everybody derives the same from plan and cohort.

    Attributes:
        bits: Width of the ring.
        integers_per_unit: s above.
        largest: c: no coordinate is larger in size before its weight is multiplied in.
        norm: No vector is longer (L2) before its weight is multiplied in; infinity shortens none.
        most_weight: w_max.
        sites: n.
    """

    bits: Bits
    integers_per_unit: float
    largest: float
    norm: float
    most_weight: int
    sites: int

    @property
    def quantum(self) -> float:
        """1/s: what one integer stands for, in units of weight · value."""
        return 1.0 / self.integers_per_unit

    def error_of_mean(self, total_weight: float) -> float:
        """Largest error of a coordinate of the mean, by quantisation alone."""
        return self.sites * self.quantum / total_weight


def scale_for(*, bits: Bits, largest: float, norm: float = math.inf, most_weight: int, sites: int) -> Scale:
    """The finest scale at which the sum cannot wrap.

    Raises:
        ConfigError: The ring is too narrow for so many sites.
    """
    # Two integers for rounding; the factor, since float64 would round 2^62 − 2 up again.
    room = 2.0 ** (bits - 1) / sites * (1 - 2.0**-40) - 2.0
    if not (room > 1 and math.isfinite(largest) and largest > 0 and most_weight >= 1 and norm > 0):
        raise ConfigError(
            "no scale lets this sum fit its ring",
            found=f"{bits} bits, {sites} sites, coordinates to {largest:g}",
            expected="positive, finite bounds, and a ring with room for every site",
            remedy="a wider ring: encoding.bits",
        )  # fmt: skip
    return Scale(bits, room / (most_weight * largest), largest, norm, most_weight, sites)


@dataclass(frozen=True)
class Quantised:
    """A contribution's coordinates in the ring, and what the bounds did to it.

    Attributes:
        integers: (n,), of the ring's word.
        shortened_by: Factor that brought the vector down to its norm; 1 where it was short enough.
        clipped: Coordinates beyond `largest`.
    """

    integers: Array
    shortened_by: float
    clipped: int


def quantise(vector: Array, weight: int, scale: Scale, rng: np.random.Generator) -> Quantised:
    """Weighted statistics as ring integers.

    Args:
        vector: (n,), float32 or float64; too long a one is shortened, too large coordinates are clipped, and
            both is counted.
        weight: 1 to `scale.most_weight`.
        scale: Of this round.
        rng: From the seed tree.

    Raises:
        TrainingError: A value is not finite; nothing is encoded.
        InternalError: Not a flat vector of floats, or a weight beyond the scale's.
    """
    floats = vector.ndim == 1 and vector.dtype in (np.float32, np.float64)
    if not floats or not 1 <= weight <= scale.most_weight:
        raise InternalError(
            "this cannot be quantised", found=f"{vector.dtype} {vector.shape}, weight {weight}",
            expected=f"a flat vector of floats, and a weight from 1 to {scale.most_weight}",
        )  # fmt: skip
    factor = shortening(vector, scale.norm)
    integers, clipped = np.empty(vector.size, dtype=word_of(scale.bits)), 0
    signed = integers.view(f"<i{integers.itemsize}")
    multiplier = factor * weight * scale.integers_per_unit
    bound = weight * scale.largest * scale.integers_per_unit
    scaled_buffer, random_buffer = np.empty((2, min(CHUNK, vector.size)))
    for start in range(0, vector.size, CHUNK):
        part = vector[start : start + CHUNK]
        scaled, random = scaled_buffer[: part.size], random_buffer[: part.size]
        np.multiply(part, multiplier, out=scaled, dtype=np.float64)
        if scaled.max() > bound or scaled.min() < -bound:
            clipped += int(np.count_nonzero(np.abs(scaled) > bound * (1 + 1e-12)))
            np.clip(scaled, -bound, bound, out=scaled)
        rng.random(out=random)
        scaled += random
        np.floor(scaled, out=scaled)
        np.copyto(signed[start : start + CHUNK], scaled, casting="unsafe")
    return Quantised(integers, factor, clipped)


def shortening(vector: Array, norm: float) -> float:
    """The factor that brings a vector just below a norm; 1 where it is short enough.

    Raises:
        TrainingError: A value is not finite.
    """
    length = length_of(vector)
    if not math.isfinite(length):
        bad = int(vector.size - np.isfinite(vector).sum())
        raise TrainingError(
            "non_finite_contribution", "the contribution is not finite",
            found=f"{bad} of {vector.size} values", expected="finite numbers",
            remedy="lower the learning rate, or look at the site's data",
        )  # fmt: skip
    return min(1.0, norm * (1 - _NORM_SLACK) / length) if length > norm else 1.0


def length_of(vector: Array) -> float:
    """‖vector‖₂ in float64, the same to the last bit on any number of threads; NaN or ∞ where it is none."""
    # Not np.dot: on long pieces it may wake BLAS's threads, and their number would decide the last bit.
    return math.sqrt(sum(float(np.einsum("i,i->", part, part)) for part in _in_float64(vector)))


def dequantise(total: Array, scale: Scale) -> Array:
    """Σ w_i x_i in float64 from the centred sum, int64.

    Raises:
        InternalError: The sum is of another type.
    """
    if total.dtype != np.int64:
        raise InternalError("a sum has the wrong type", found=total.dtype, expected="int64")
    return np.asarray(total.astype(np.float64) * scale.quantum)


def _in_float64(vector: Array) -> Iterator[Array]:
    return (vector[start : start + CHUNK].astype(np.float64) for start in range(0, vector.size, CHUNK))
