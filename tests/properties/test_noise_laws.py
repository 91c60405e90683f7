"""Laws of noise: float64 decides nothing that it cannot know, no bound is exceeded, no share is missing."""

from __future__ import annotations

import math
from collections.abc import Iterable
from fractions import Fraction
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from wardround.core.packed import Array
from wardround.core.seeds import Purpose
from wardround.privacy.noise import discrete, gaussian
from wardround.privacy.noise.discrete import discrete_gaussian
from wardround.privacy.noise.exact import Real, below_exponential, floor_of_exponential
from wardround.privacy.noise.gaussian import GRID_BITS, noised
from wardround.privacy.noise.shares import (
    guaranteed,
    round_conditionally,
    round_randomly,
    rounded_sensitivity,
    share_variance,
    surplus,
)
from wardround.privacy.noise.source import RepeatableSource

quick = settings(max_examples=60, deadline=None)
seeds = st.integers(0, 2**32)
words = st.integers(0, 2**64 - 1)
after = st.sampled_from((1, 2**63, 2**64 - 2))
"""What comes after the known bits: near the low end of what they leave open, in the middle, near the high."""


class Scripted:
    """These words, and always the same one after them."""

    repeatable = True

    def __init__(self, script: Iterable[int], after: int) -> None:
        self._script, self._after = list(script), after

    def words(self, count: int) -> Array:
        """The next ones."""
        taken, self._script = self._script[:count], self._script[count:]
        return np.array(taken + [self._after] * (count - len(taken)), dtype=np.uint64)


def repeatable(seed: int) -> RepeatableSource:
    """Some words."""
    return RepeatableSource(seed, Purpose.NOISE, round=0, site="")


@settings(max_examples=300, deadline=None)
@given(
    words,
    st.floats(2.0**20, 2.0**21, exclude_max=True),
    st.integers(-(2**40), 2**40),
    st.floats(-2.0, 2.0),
    after,
)
def test_no_normal_is_rounded_the_wrong_way(
    word: int, deviation: float, step: int, offset: float, further: int
) -> None:
    """Centres chosen so that the value lies next to a half, nearer or farther than float64 can see."""
    from scipy.special import ndtri

    half, upper = word >> 1, bool(word & 1)
    normal = float(ndtri(half * 2.0**-64 + 2.0**-65)) * (-1 if upper else 1)
    centre = step + 0.5 - deviation * normal + math.copysign(2.0 ** (-18 - 8 * abs(offset)), offset)
    values = np.array([centre])
    gaussian._add_rounded_normals(values, deviation, Scripted([word], further))
    assert values[0] == gaussian._decide(centre, deviation, half, upper, Scripted([], further))


@settings(max_examples=300, deadline=None)
@given(st.integers(1, 2**30), st.floats(0.0, 40.0), st.floats(-2.0, 2.0), st.booleans(), after)
def test_no_size_is_floored_the_wrong_way(
    scale: int, mean: float, offset: float, negative: bool, further: int
) -> None:
    """Words chosen so that −t ln U lies next to an integer."""
    size = math.floor(mean * scale)
    uniform = math.exp(-size / scale) * (1 + math.copysign(2.0 ** (-38 - 8 * abs(offset)), offset))
    half = min(2**63 - 1, int(Fraction(uniform) * 2**63))
    word = np.array([half << 1 | negative], dtype=np.uint64)
    sizes, signs = discrete._laplace_sizes(word, scale, Scripted([], further))
    assert sizes[0] == floor_of_exponential(Real(half, 63, Scripted([], further)), scale)
    assert signs[0] == negative


@settings(max_examples=300, deadline=None)
@given(st.floats(1e-3, 1e15), st.floats(0.0, 8.0), st.floats(-2.0, 2.0), after)
def test_no_coin_falls_the_wrong_way(variance: float, deviations: float, offset: float, further: int) -> None:
    """Words chosen next to the probability of keeping."""
    scale = math.floor(math.sqrt(variance)) + 1
    size = math.floor(deviations * math.sqrt(variance))
    distance = size - Fraction(variance) / scale
    exponent = distance * distance / (2 * Fraction(variance))
    near = math.exp(-float(exponent)) + math.copysign(2.0 ** (-38 - 8 * abs(offset)), offset)
    word = min(2**64 - 1, max(0, int(Fraction(near) * 2**64)))
    kept = discrete._kept(
        np.array([float(size)]), np.array([word], dtype=np.uint64), scale, variance, Scripted([], further)
    )
    assert kept[0] == below_exponential(Real(word, 64, Scripted([], further)), exponent)


@quick
@given(
    arrays.arrays(np.float64, st.integers(0, 40), elements=st.floats(-1e3, 1e3)),
    st.floats(1e-3, 1e3),
    seeds,
)
def test_noised_sums_lie_on_the_grid_near_the_sum(total: Array, deviation: float, seed: int) -> None:
    """Within ten deviations; and noise of the same words is the same, wherever the sum lies on the grid."""
    grid = 2.0 ** (math.frexp(deviation)[1] - 1 - GRID_BITS)
    result = noised(total, deviation, repeatable(seed))
    assert np.array_equal(result / grid, np.rint(result / grid))
    assert (np.abs(result - total) <= 10 * deviation).all()
    shifted = noised(total + 1024 * grid, deviation, repeatable(seed))
    exact = (total + 1024 * grid) - total == 1024 * grid
    assert np.array_equal((shifted - result)[exact], np.full(exact.sum(), 1024 * grid))


@quick
@given(st.integers(0, 300), st.floats(1e-3, 1e6), seeds)
def test_draws_are_integers_near_zero(count: int, variance: float, seed: int) -> None:
    """As many as asked for, within ten deviations and one."""
    drawn = discrete_gaussian(repeatable(seed), count, variance)
    assert drawn.shape == (count,)
    assert (np.abs(drawn) <= 10 * math.sqrt(variance) + 1).all()


vectors = st.integers(1, 60).flatmap(
    lambda size: st.tuples(
        *(arrays.arrays(np.float64, size, elements=st.floats(-100, 100, width=32)) for _ in range(2))
    )
)


@quick
@given(vectors, seeds)
def test_one_unit_moves_a_rounded_sum_by_no_more_than_stated(pair: tuple[Array, Array], seed: int) -> None:
    """For each draw of the fractions, with the unit and without it."""
    total, unit = pair
    with_it, without = (round_randomly(x, repeatable(seed)) for x in (total + unit, total))
    length = float(np.linalg.norm(unit))
    assert np.linalg.norm(with_it - without) <= rounded_sensitivity(length + 1e-9, total.size) * (1 + 1e-9)


@quick
@given(vectors, st.floats(0.05, 0.95), seeds)
def test_one_unit_rounded_apart_is_no_longer_than_stated(
    pair: tuple[Array, Array], beta: float, seed: int
) -> None:
    """Whatever its coordinates are, and next to where it was."""
    unit = pair[0]
    norm = float(np.linalg.norm(unit)) + 0.1
    rounded = round_conditionally(unit, repeatable(seed), norm=norm, beta=beta)
    assert np.linalg.norm(rounded) <= rounded_sensitivity(norm, unit.size, beta=beta)
    assert (np.abs(rounded - unit) <= 1).all()


@quick
@given(st.floats(40.0, 1e6), st.integers(1, 40), st.integers(0, 10), st.booleans(), st.integers(0, 10))
def test_no_share_is_missing(sigma: float, honest: int, colluders: int, curious: bool, more: int) -> None:
    """What was asked for is left in the worst case, and more where more survive than have to."""
    least = honest + colluders + curious
    worst: dict[str, Any] = {"colluders": colluders, "site_is_adversary": curious}
    variance = share_variance(sigma, least_survivors=least, **worst)
    assert honest * Fraction(variance) >= Fraction(sigma) ** 2
    assert sigma <= guaranteed(variance, least_survivors=least, **worst) <= sigma * (1 + 1e-12)
    assert guaranteed(variance, least_survivors=least + more, **worst) >= sigma
    assert surplus(least + more, least_survivors=least, **worst) >= 1
    assert share_variance(sigma, least_survivors=least + more, **worst) <= variance
