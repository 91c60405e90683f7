"""The discrete Gaussian: its probabilities, its moments, and decisions without rounding."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from scipy import stats

from wardround.core.errors import ConfigError
from wardround.core.packed import Array
from wardround.privacy.noise import discrete
from wardround.privacy.noise.discrete import CHUNK, LEAST_VARIANCE, MOST_VARIANCE, discrete_gaussian
from wardround.privacy.noise.source import RandomSource

Repeatable = Callable[[int], RandomSource]


def probabilities(variance: float, reach: int) -> Array:
    """P(x) for x from −reach to reach, by the definition."""
    weights = np.exp(-np.square(np.arange(-reach, reach + 1)) / (2 * variance))
    return np.asarray(weights / weights.sum())


@pytest.mark.parametrize("variance", [0.05, 0.3, 1.0, 2.5, 7.3, 16.0, 150.0, 1e4])
def test_frequencies_are_the_probabilities(variance: float, repeatable: Repeatable) -> None:
    """A chi-square over every integer that is expected ten times, and the rest together."""
    many, reach = 300_000, math.ceil(12 * math.sqrt(variance)) + 4
    drawn = discrete_gaussian(repeatable(1), many, variance)
    assert drawn.dtype == np.int64
    assert np.abs(drawn).max() <= reach
    expected = many * probabilities(variance, reach)
    found = np.bincount(drawn + reach, minlength=2 * reach + 1)
    often = expected >= 10
    cells, wanted = (
        np.append(values[often], values[~often].sum()).astype(float) for values in (found, expected)
    )
    if wanted[-1] < 10:
        cells, wanted = np.append(cells[:-2], cells[-2:].sum()), np.append(wanted[:-2], wanted[-2:].sum())
    assert stats.chisquare(cells, wanted, sum_check=False).pvalue > 1e-3


@pytest.mark.parametrize("variance", [1.0, 25.0, 1e6, 1e12, MOST_VARIANCE])
def test_moments(variance: float, repeatable: Repeatable) -> None:
    """Those of the Gaussian, from a variance of 1 on to some digits."""
    many = 20_000 if variance == MOST_VARIANCE else 200_000
    drawn = discrete_gaussian(repeatable(2), many, variance) / math.sqrt(variance)
    assert abs(drawn.mean()) < 4 / math.sqrt(many)
    assert abs(drawn.var() - 1) < 4 * math.sqrt(2 / many)
    assert abs((drawn**4).mean() - 3) < 4 * math.sqrt(96 / many)


def test_wide_noise_uses_every_integer(repeatable: Repeatable) -> None:
    """No step of floating point shows in the last bits, even of draws near 2^30."""
    drawn = discrete_gaussian(repeatable(3), 20_000, MOST_VARIANCE)
    for modulus in (2, 3, 7, 64):
        assert stats.chisquare(np.bincount(drawn % modulus, minlength=modulus)).pvalue > 1e-3
    assert stats.kstest(drawn / math.sqrt(MOST_VARIANCE), "norm").pvalue > 1e-3


@pytest.mark.parametrize("variance", [LEAST_VARIANCE, 0.4, 16.0, 12_345.678, 1e9, MOST_VARIANCE])
def test_slow_decisions_agree_with_the_fast_ones(
    variance: float, repeatable: Repeatable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With everything in doubt, exact arithmetic finds the same integers as float64 did."""
    fast = discrete_gaussian(repeatable(4), 600, variance)
    monkeypatch.setattr(discrete, "_DOUBT", math.inf)
    assert np.array_equal(discrete_gaussian(repeatable(4), 600, variance), fast)


@pytest.mark.parametrize("count", [0, 1, 2, 1_000, CHUNK + 1, 3 * CHUNK])
def test_as_many_as_were_asked_for(count: int, repeatable: Repeatable) -> None:
    """Whatever is thrown away underway."""
    drawn = discrete_gaussian(repeatable(5), count, 20.0)
    assert drawn.shape == (count,)


def test_hardly_any_noise_is_almost_always_zero(repeatable: Repeatable) -> None:
    """At the least variance the next integer has probability exp(−500,000)."""
    assert not discrete_gaussian(repeatable(6), 2_000, LEAST_VARIANCE).any()


@pytest.mark.parametrize("variance", [0.0, -1.0, math.nan, math.inf, 1e-7, 2.0**61])
def test_what_is_no_variance_is_refused(variance: float, repeatable: Repeatable) -> None:
    """Named with the range."""
    with pytest.raises(ConfigError, match="from 1e-06 to"):
        discrete_gaussian(repeatable(7), 3, variance)
