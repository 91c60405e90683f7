"""Discrete Gaussian noise on the integers, exactly: P(x) ∝ exp(−x² / (2 σ²)).

Canonne, Kamath & Steinke 2020, arXiv:2004.00010, algorithm 3: draw Y from the discrete Laplace of an integer
scale t, P(y) ∝ exp(−|y| / t), and keep it with probability exp(−(|Y| − σ²/t)² / (2 σ²)). For t = ⌊σ⌋ + 1 at
least half are kept. Where the paper decides each coin by a series of rational coins, the coins here are
uniform *reals*: ⌊−t ln U⌋ is the geometric size of Y, and U' < exp(−…) keeps it. In float64 they are computed
from 63 and 64 bits; where float64 could be wrong (one candidate in 2^19, and in about 2^38 / σ), `exact.py`
reads as many bits as it takes. The result has exactly the distribution above, for uniform words: no error has
to be charged.

What is relied on: NumPy's log and exp to 2^−46 of their result (they are good to 2^−50, which a test
measures).
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Final

import numpy as np

from wardround.core.errors import ConfigError
from wardround.core.packed import Array
from wardround.privacy.noise.exact import Real, below_exponential, floor_of_exponential
from wardround.privacy.noise.source import RandomSource

CHUNK: Final = 1 << 15
"""Candidates at a time: all of a chunk's arrays stay in the cache."""
LEAST_VARIANCE: Final = 1e-6
MOST_VARIANCE: Final = 2.0**60
"""σ = 2^30, more than any ring holds; beyond, float64 would decide too little, and less noise is none."""
_DOUBT: float = 2.0**-40
"""Nearer than this to a boundary (the first one times t), float64 is not asked. A logarithm of up to 44 is
off by 2^−45 at most, the probability of keeping by 2^−46."""
_DOUBTFUL_TAIL: int = 1 << 44
"""A uniform of fewer times 2^−63 is known to fewer than 44 bits."""


def discrete_gaussian(source: RandomSource, count: int, variance: float) -> Array:
    """Exact draws from the discrete Gaussian of mean 0.

    Args:
        source: Random words.
        count: How many.
        variance: σ² of the formula, taken as the exact binary fraction that it is; the variance of the draws
            is at most that, and the same from about 1 on.

    Returns:
        (count,) int64.

    Raises:
        ConfigError: Below `LEAST_VARIANCE`, or above `MOST_VARIANCE`.
    """
    if not LEAST_VARIANCE <= variance <= MOST_VARIANCE:
        raise ConfigError(
            "no discrete Gaussian is drawn with this variance", found=variance,
            expected=f"from {LEAST_VARIANCE:g} to {MOST_VARIANCE:g}",
        )  # fmt: skip
    draws = np.empty(count, dtype=np.int64)
    done = 0
    while done < count:
        # A quarter or more is thrown away; a few too many are cheaper than one more turn.
        kept = _candidates(source, min(CHUNK, 2 * (count - done) + 64), variance)[: count - done]
        draws[done : done + kept.size] = kept
        done += kept.size
    return draws


def _candidates(source: RandomSource, count: int, variance: float) -> Array:
    """Those of `count` candidates that are kept, int64."""
    scale = math.floor(math.sqrt(variance)) + 1
    words = source.words(2 * count)
    sizes, negative = _laplace_sizes(words[:count], scale, source)
    kept = _kept(sizes, words[count:], scale, variance, source)
    kept &= (sizes != 0) | ~negative  # zero has two signs, and is counted once
    draws = np.where(negative, -sizes, sizes)[kept]
    return draws.astype(np.int64)


def _laplace_sizes(words: Array, scale: int, source: RandomSource) -> tuple[Array, Array]:
    """(⌊−t ln U⌋ as float64, sign) for each word: 63 bits of U, and the last one for the sign."""
    halves = (words >> np.uint64(1)).view(np.int64)
    exponentials = np.multiply(halves, 2.0**-63)
    exponentials += 2.0**-64
    np.log(exponentials, out=exponentials)
    exponentials *= -float(scale)
    sizes = np.floor(exponentials)
    exponentials -= np.rint(exponentials)
    doubtful = np.abs(exponentials, out=exponentials) < scale * _DOUBT
    doubtful |= halves < _DOUBTFUL_TAIL
    for place in np.flatnonzero(doubtful):
        sizes[place] = floor_of_exponential(Real(int(halves[place]), 63, source), scale)
    return sizes, (words & np.uint64(1)).astype(bool)


def _kept(sizes: Array, words: Array, scale: int, variance: float, source: RandomSource) -> Array:
    """Whether U' < exp(−(size − σ²/t)² / (2 σ²)), for 64 bits of U' in each word."""
    powers = sizes - variance / scale
    np.square(powers, out=powers)
    powers *= -0.5 / variance
    np.exp(powers, out=powers)
    powers -= np.multiply((words >> np.uint64(11)).view(np.int64), 2.0**-53)
    kept = powers > 0
    for place in np.flatnonzero(np.abs(powers, out=powers) < _DOUBT):
        distance = int(sizes[place]) - Fraction(variance) / scale
        exponent = distance * distance / (2 * Fraction(variance))
        kept[place] = below_exponential(Real(int(words[place]), 64, source), exponent)
    return kept
