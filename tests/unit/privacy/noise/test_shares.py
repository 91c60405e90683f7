"""Shares of distributed noise: what is left in the worst case, what rounding adds, what the ring holds."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy import stats

from wardround.core.errors import ConfigError, InternalError
from wardround.core.packed import Array
from wardround.privacy.noise.discrete import discrete_gaussian
from wardround.privacy.noise.shares import (
    BETA,
    LEAST_SHARE_DEVIATION,
    guaranteed,
    honest_shares,
    round_conditionally,
    round_randomly,
    rounded_sensitivity,
    share_variance,
    surplus,
    wrap_probability,
)
from wardround.privacy.noise.source import RandomSource

Repeatable = Callable[[int], RandomSource]
WORST: dict[str, Any] = {"least_survivors": 7, "colluders": 3, "site_is_adversary": True}


def test_shares_are_sized_for_the_worst_case() -> None:
    """Seven survivors, three colluders and a curious site: three shares have to do."""
    assert honest_shares(**WORST) == 3
    variance = share_variance(60.0, **WORST)
    assert variance == pytest.approx(1200)
    assert guaranteed(variance, **WORST) == pytest.approx(60)
    assert guaranteed(variance, **WORST) >= 60
    assert surplus(10, **WORST) == pytest.approx(math.sqrt(10 / 3))


def test_shares_sized_for_everybody_leave_too_little() -> None:
    """Ten sites, seven survive, three collude: forty per cent of the variance."""
    left = guaranteed(100.0, least_survivors=7, colluders=3, site_is_adversary=False)
    assert left * left / (10 * 100.0) == pytest.approx(0.4)


def test_a_curious_site_counts_as_one_more() -> None:
    """It knows its own share."""
    without = WORST | {"site_is_adversary": False}
    assert share_variance(60.0, **WORST) / share_variance(60.0, **without) == pytest.approx(4 / 3)


@pytest.mark.parametrize(
    ("least", "colluders", "curious"), [(3, 3, False), (3, 2, True), (1, 0, True), (0, 0, False)]
)
def test_no_noise_is_left(least: int, colluders: int, curious: bool) -> None:
    """Named with the numbers, wherever it is asked."""
    worst: dict[str, Any] = {
        "least_survivors": least, "colluders": colluders, "site_is_adversary": curious,
    }  # fmt: skip
    for ask in (
        lambda: share_variance(100.0, **worst),
        lambda: guaranteed(100.0, **worst),
        lambda: surplus(10, **worst),
    ):
        with pytest.raises(ConfigError, match=f"{least} survivors at least, {colluders} assumed"):
            ask()


def test_colluders_are_no_negative_number() -> None:
    """It would add noise that nobody draws."""
    with pytest.raises(ConfigError, match="assumed to collude"):
        honest_shares(least_survivors=5, colluders=-1, site_is_adversary=True)


def test_more_survivors_than_sites_are_refused() -> None:
    """A surplus below one would be no surplus."""
    with pytest.raises(ConfigError, match="7 of 6"):
        surplus(6, **WORST)
    assert surplus(7, **WORST) > 1


@pytest.mark.parametrize("sigma", [0.0, -60.0, 6.9, math.nan, math.inf])
def test_noise_too_narrow_for_integers_is_refused(sigma: float) -> None:
    """Below 4 ring units a share; here that is 6.93 in all."""
    with pytest.raises(ConfigError, match=r"6\.928 in all"):
        share_variance(sigma, **WORST)
    assert math.sqrt(share_variance(6.93, **WORST)) >= LEAST_SHARE_DEVIATION


def test_a_sum_of_shares_is_what_was_planned(repeatable: Repeatable) -> None:
    """Seven sites' shares, less the three colluders' and the curious one's: σ as it was asked for."""
    variance, many = share_variance(9.0, **WORST), 200_000
    drawn = [discrete_gaussian(repeatable(site), many, variance) for site in range(3)]
    left = np.sum(drawn, axis=0)
    assert abs(left.var() / 81 - 1) < 4 * math.sqrt(2 / many)
    reach = 60
    one = np.exp(-np.square(np.arange(-reach, reach + 1)) / (2 * variance))
    whole = np.convolve(np.convolve(one, one), one)
    found = np.bincount(left + 3 * reach, minlength=whole.size)
    expected = many * whole / whole.sum()
    often = expected >= 10
    assert (
        stats.chisquare(found[often], expected[often] * found[often].sum() / expected[often].sum()).pvalue
        > 1e-3
    )


@pytest.mark.parametrize("headroom", [10, 25, 60])
def test_the_bound_on_wrapping_holds(headroom: int) -> None:
    """Against the exact tail of three shares in a ring of 8 bits."""
    variance, largest = 75.0, 128 - headroom
    one = np.exp(-np.square(np.arange(-200, 201)) / 50.0)
    whole = np.convolve(np.convolve(one, one), one)
    whole /= whole.sum()
    noise = np.arange(-600, 601)
    for signal in (largest, -largest, 0):
        wraps = float(whole[(noise + signal > 127) | (noise + signal < -128)].sum())
        bound = wrap_probability(bits=8, variance=variance, largest=largest, coordinates=1)
        assert wraps <= bound
        assert signal == 0 or wraps > bound / 200


def test_wrapping_is_summed_over_coordinates() -> None:
    """And never more than certain."""
    few, many = (wrap_probability(bits=16, variance=4e6, largest=20_000, coordinates=d) for d in (1, 10_000))
    assert many == pytest.approx(10_000 * few)
    assert few == pytest.approx(2 * math.exp(-(12_768**2) / 8e6))
    assert wrap_probability(bits=16, variance=1e12, largest=0, coordinates=10) == 1
    assert wrap_probability(bits=32, variance=4.0, largest=0, coordinates=10**9) == 0


@pytest.mark.parametrize(
    "change",
    [{"largest": 32_768}, {"largest": -1}, {"variance": 0.0}, {"coordinates": 0}, {"largest": math.nan}],
)
def test_a_ring_without_room_is_refused(change: dict[str, Any]) -> None:
    """The sum without noise already fills it."""
    wanted = {"bits": 16, "variance": 4e6, "largest": 20_000, "coordinates": 10} | change
    with pytest.raises(ConfigError, match="no room for noise"):
        wrap_probability(**wanted)


def test_rounding_adds_to_the_sensitivity() -> None:
    """By √d for a sum; by less for vectors that are rounded apart; by nothing much at a fine scale."""
    assert rounded_sensitivity(100.0, 10_000) == 200
    assert rounded_sensitivity(100.0, 10_000, beta=BETA) == pytest.approx(math.sqrt(10_000 + 2_500 + 150))
    assert rounded_sensitivity(100.0, 10_000, beta=1e-30) < rounded_sensitivity(100.0, 10_000)
    assert rounded_sensitivity(1.0, 1, beta=1e-30) == 2
    assert rounded_sensitivity(1e6, 10_000, beta=BETA) == pytest.approx(1e6, rel=1e-5)


@pytest.mark.parametrize(
    ("norm", "coordinates", "beta"),
    [
        (0.0, 1, None), (-1.0, 1, None), (math.inf, 1, None), (math.nan, 1, 0.5), (1.0, 0, None),
        (1.0, 1, 0.0), (1.0, 1, 1.0),
    ],
)  # fmt: skip
def test_what_bounds_nothing_is_refused(norm: float, coordinates: int, beta: float | None) -> None:
    """A norm, a number of coordinates, a β that is none."""
    with pytest.raises(ConfigError, match="no sensitivity follows"):
        rounded_sensitivity(norm, coordinates, beta=beta)


def test_rounding_at_random_keeps_the_mean(repeatable: Repeatable) -> None:
    """Each coordinate goes up with the probability of its fraction; shapes stay."""
    values = np.array([-2.75, -0.5, 0.0, 0.1, 3.0, 7.9])
    rounded = round_randomly(np.tile(values, (50_000, 1)), repeatable(1))
    assert rounded.dtype == np.int64
    assert rounded.shape == (50_000, 6)
    assert ((rounded == np.floor(values)) | (rounded == np.ceil(values))).all()
    np.testing.assert_allclose(rounded.mean(axis=0), values, atol=4 * 0.5 / math.sqrt(50_000))
    assert abs(np.corrcoef(rounded[:, 0], rounded[:, 1])[0, 1]) < 4 / math.sqrt(50_000)


def clipped(coordinates: int, norm: float, *, fraction: float = 0.5) -> Array:
    """A vector of this length whose coordinates all lie at one fraction between integers: the worst case."""
    vector = np.full(coordinates, fraction)
    vector[0] += math.floor(math.sqrt(norm**2 - (coordinates - 1) * fraction**2) - fraction)
    return vector


@pytest.mark.parametrize("beta", [BETA, 1e-3])
def test_a_rounded_vector_is_never_longer_than_the_bound(beta: float, repeatable: Repeatable) -> None:
    """In 2,000 draws; without the condition some would be, since the bound is near the usual length."""
    vector, source = clipped(400, 12.0), repeatable(2)
    bound = rounded_sensitivity(12.0, 400, beta=beta)
    assert bound < rounded_sensitivity(12.0, 400)
    lengths = [
        np.linalg.norm(round_conditionally(vector, source, norm=12.0, beta=beta)) for _ in range(2_000)
    ]
    assert max(lengths) <= bound
    free = np.linalg.norm(round_randomly(np.tile(vector, (2_000, 1)), source), axis=1)
    assert (free > bound).mean() <= beta
    if beta == BETA:
        assert (free > bound).any()


def test_conditional_rounding_hardly_moves_the_mean(repeatable: Repeatable) -> None:
    """Far less than the √d β / (1 − β) that is promised."""
    vector, source = clipped(400, 12.0), repeatable(3)
    mean = np.mean([round_conditionally(vector, source, norm=12.0) for _ in range(4_000)], axis=0)
    moved = np.linalg.norm(mean - vector)
    assert moved < 20 * BETA / (1 - BETA) / 10
    assert moved < 1.0


@pytest.mark.parametrize("vector", [np.full(4, 6.1), np.array([math.nan, 0.0]), np.array([math.inf])])
def test_a_vector_that_was_not_clipped_is_a_fault_of_ours(vector: Array, repeatable: Repeatable) -> None:
    """Too long, or not finite; no value shows."""
    with pytest.raises(InternalError, match="not clipped") as caught:
        round_conditionally(vector, repeatable(4), norm=12.0)
    assert "6.1" not in str(caught.value)
