"""Gaussian noise of which floating point gives nothing away: x + σ Z, rounded to a grid, Z a *real* normal.

Usual samplers give Z as one of some 2^53 floats. Added to x they reach only some results, and other ones from
another x: a look at the last bits tells the two apart (Mironov 2012; Holohan & Braghin 2021,
arXiv:2107.10138; Jin et al. 2022, arXiv:2112.05307). Holohan & Braghin, and with them the secure mode of
Opacus, add up four normals, so that finding out which results can be reached costs an attacker 2^159 steps.
Here there is nothing to be found:

    y = g · rint((x + σ Z) / g),    g the power of two with 2^20 g ≤ σ < 2^21 g

with Z = Φ⁻¹(U) for a uniform *real* U. In float64 it is computed from 64 bits of U; where the result is so
near to a boundary of rounding that float64 could be wrong (one draw in about 2^19), or so far out in a tail
that 64 bits say too little, `exact.py` reads as many bits of U as it takes. So y is exactly what the
Gaussian mechanism on the reals would have given, rounded. Rounding is post-processing, its grid depends on σ
alone, and the guarantee is that of the mechanism on the reals: nothing has to be charged for arithmetic.
The grid adds 2^−40 σ² / 12 to the variance, which nobody will see.

What is relied on: words that are uniform (AES-CTR), and `scipy.special.ndtri` to 2^−42 in absolute terms (it
is good to 2^−48, which a test measures).
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Final

import numpy as np

from wardround.core.errors import ConfigError, InternalError
from wardround.core.packed import Array
from wardround.privacy.noise.exact import Real, rounded_normal
from wardround.privacy.noise.source import RandomSource

GRID_BITS: Final = 20
"""The grid is 2^−20 to 2^−21 of the standard deviation."""
CHUNK: Final = 1 << 15
"""Values at a time: all of a chunk's arrays stay in the cache."""
_DOUBT: float = 2.0**-20
"""In units of the grid: nearer to a boundary than this, float64 is not asked. σ Z is off by 2^−24 at most:
by 2^−25 for the interval that 64 bits leave, by 2^−27 for ndtri, by 2^−29 for products. What the sum x + σ Z
rounds can carry it onto a half, which is a float64, and never across."""
_DOUBTFUL_TAIL: int = 1 << 43
"""A tail of fewer times 2^−64 is known to fewer than 43 bits."""
_FARTHEST: Final = 2.0**44
"""In units of the grid: beyond it, too much would be left to exact arithmetic, and σ is nothing beside x."""
_LEAST_DEVIATION: Final = 1e-200
_MOST_DEVIATION: Final = 1e200


def gaussian(source: RandomSource, count: int, standard_deviation: float) -> Array:
    """Normal noise, rounded to the grid: to look at, to test, and for what is not added to data.

    Data gets its noise from `noised`: a float sum `data + gaussian(…)` is rounded by the data, and has the
    holes that this module is about.

    Args:
        source: Random words.
        count: How many values.
        standard_deviation: σ.

    Returns:
        (count,) float64.

    Raises:
        ConfigError: No such standard deviation.
    """
    return noised(np.zeros(count), standard_deviation, source)


def noised(total: Array, standard_deviation: float, source: RandomSource) -> Array:
    """Total + N(0, σ² I), rounded to the grid as described above.

    Guarantee: of the Gaussian mechanism on the reals, for whatever sensitivity `total` has as it stands here,
        and under its noise being secret: from a `SystemSource`.

    Args:
        total: (n,) float32 or float64: a sum of clipped contributions.
        standard_deviation: σ, a constant of the plan: noise multiplier times clip norm.
        source: Random words.

    Returns:
        (n,) float64, multiples of the grid; the input is left as it is.

    Raises:
        ConfigError: No such standard deviation.
        InternalError: Not a flat vector of floats, not finite, or 2^23 times larger than the noise.
    """
    if not _LEAST_DEVIATION <= standard_deviation <= _MOST_DEVIATION:
        raise ConfigError(
            "this is no standard deviation of noise", found=standard_deviation,
            expected=f"a number from {_LEAST_DEVIATION:g} to {_MOST_DEVIATION:g}",
        )  # fmt: skip
    if total.ndim != 1 or total.dtype not in (np.float32, np.float64):
        raise InternalError(
            "this cannot be noised", found=f"{total.dtype} {total.shape}", expected="a flat vector of floats"
        )
    grid = 2.0 ** (math.frexp(standard_deviation)[1] - 1 - GRID_BITS)
    result = np.empty(total.size)
    for start in range(0, total.size, CHUNK):
        part = result[start : start + CHUNK]
        with np.errstate(over="ignore"):  # what becomes infinite is refused below
            np.divide(total[start : start + CHUNK], grid, out=part, dtype=np.float64)
        _add_rounded_normals(part, standard_deviation / grid, source)
        part *= grid
    return result


def _add_rounded_normals(centres: Array, deviation: float, source: RandomSource) -> None:
    """Centres ← rint(centres + deviation · Z); all in units of the grid."""
    from scipy.special import ndtri

    farthest = max(float(centres.max()), -float(centres.min()))
    if not farthest <= _FARTHEST:
        raise InternalError(
            "a sum and its noise do not go together",
            found="values that are not finite, or far beyond the noise",
            expected=f"finite values, up to 2^{math.log2(_FARTHEST / deviation):.0f} times the noise",
            remedy="the sum is clipped, and rows that are not finite are left out, before noise is added",
        )
    words = source.words(centres.size)
    halves = (words >> np.uint64(1)).view(np.int64)
    normals = np.multiply(halves, 2.0**-64)
    normals += 2.0**-65
    ndtri(normals, out=normals)  # the lower half; the last bit of a word is the sign
    signs = np.left_shift(words, np.uint64(63), out=words)
    np.bitwise_xor(normals.view(np.uint64), signs, out=normals.view(np.uint64))
    normals *= deviation
    normals += centres
    found = np.rint(normals)
    normals -= found
    np.abs(normals, out=normals)
    doubtful = normals > 0.5 - _DOUBT
    doubtful |= halves < _DOUBTFUL_TAIL
    for place in np.flatnonzero(doubtful):
        found[place] = _decide(centres[place], deviation, int(halves[place]), bool(signs[place]), source)
    # Without a −0, whose sign would say more than the grid does.
    np.add(found, 0.0, out=centres)


def _decide(centre: float, deviation: float, half: int, upper: bool, source: RandomSource) -> int:
    """One value of the above, whatever it takes."""
    from scipy.special import ndtri

    real = Real(half, 63, source)
    real.settle()
    # The upper half is the lower one of the mirrored problem.
    sign = -1 if upper else 1
    exact_centre, exact_deviation = sign * Fraction(float(centre)), Fraction(deviation)
    normal = Fraction(float(ndtri(real.middle() / 2)))
    guess = round(exact_centre + exact_deviation * normal)
    return sign * rounded_normal(real, exact_centre, exact_deviation, guess)
