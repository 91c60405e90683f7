"""Gaussian noise: the right distribution, on a grid, and decided as infinite precision would decide."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pytest
from scipy import stats

from wardround.core.errors import ConfigError, InternalError
from wardround.core.packed import Array
from wardround.privacy.noise import gaussian as gaussian_module
from wardround.privacy.noise.gaussian import CHUNK, GRID_BITS, gaussian, noised
from wardround.privacy.noise.source import RandomSource

Repeatable = Callable[[int], RandomSource]
Scripted = Callable[[Iterable[int]], RandomSource]
MANY = 400_000


def test_noise_is_normal(repeatable: Repeatable) -> None:
    """Kolmogorov-Smirnov, moments up to the fourth, and a chi-square over 200 cells of equal probability."""
    drawn = gaussian(repeatable(1), MANY, 2.5) / 2.5
    assert stats.kstest(drawn, "norm").pvalue > 1e-3
    assert abs(drawn.mean()) < 4 / math.sqrt(MANY)
    assert abs(drawn.var() - 1) < 4 * math.sqrt(2 / MANY)
    assert abs((drawn**3).mean()) < 4 * math.sqrt(15 / MANY)
    assert abs((drawn**4).mean() - 3) < 4 * math.sqrt(96 / MANY)
    cells = np.bincount((stats.norm.cdf(drawn) * 200).astype(int), minlength=200)
    assert stats.chisquare(cells).pvalue > 1e-3


def test_draws_do_not_know_each_other(repeatable: Repeatable) -> None:
    """Neighbours, and draws a chunk apart, are uncorrelated, in size as well."""
    drawn = gaussian(repeatable(2), MANY, 1.0)
    for lag in (1, 2, CHUNK):
        for values in (drawn, np.abs(drawn) - np.abs(drawn).mean()):
            correlation = float((values[lag:] * values[:-lag]).mean() / values.var())
            assert abs(correlation) < 4 / math.sqrt(MANY - lag)


@pytest.mark.parametrize("deviation", [1e-30, 0.3, 1.0, 1.999, 4096.0, 1e20])
def test_noise_lies_on_a_grid(deviation: float, repeatable: Repeatable) -> None:
    """A power of two, 2^20 to 2^21 times finer than the noise, whatever the noise is added to."""
    grid = 2.0 ** (math.floor(math.log2(deviation)) - GRID_BITS)
    assert 2.0**20 <= deviation / grid < 2.0**21
    data = deviation * np.random.default_rng(0).standard_normal(5_000)
    for total in (np.zeros(5_000), data, data.astype(np.float32) if deviation < 1e6 else data):
        result = noised(total, deviation, repeatable(3))
        steps = result / grid
        assert np.array_equal(steps, np.rint(steps))
        # Half of the steps are odd: the grid is no finer than it has to be, and no coarser.
        assert 0.45 < float((steps % 2 == 1).mean()) < 0.55
        assert not np.signbit(result[result == 0]).any()


def test_there_is_no_negative_zero(scripted: Scripted) -> None:
    """Its sign would tell on which side of the grid's point the value was."""
    # Tails of just below a half: Z is within a third of the grid's step from 0. The last bit is the sign.
    near = [word + sign for word in ((1 << 64) - (1 << 42), (1 << 64) - 2) for sign in (0, 1)]
    result = gaussian(scripted(near), len(near), 1.0)
    assert not result.any()
    assert not np.signbit(result).any()


@pytest.mark.parametrize("deviation", [1.0, 0.37])
def test_slow_decisions_agree_with_the_fast_ones(
    deviation: float, repeatable: Repeatable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With everything in doubt, exact arithmetic finds the same bits as float64 did."""
    data = 30 * deviation * np.random.default_rng(1).standard_normal(2_000)
    fast = noised(data, deviation, repeatable(4))
    monkeypatch.setattr(gaussian_module, "_DOUBT", math.inf)
    assert np.array_equal(noised(data, deviation, repeatable(4)), fast)


def test_doubt_is_rare_and_noticed(repeatable: Repeatable, monkeypatch: pytest.MonkeyPatch) -> None:
    """About one draw in 2^19 for the boundaries, and as many in a far tail."""
    asked = list[int]()
    decide = gaussian_module._decide

    def counting(centre: float, deviation: float, half: int, upper: bool, source: RandomSource) -> int:
        asked.append(half)
        return decide(centre, deviation, half, upper, source)

    monkeypatch.setattr(gaussian_module, "_decide", counting)
    gaussian(repeatable(5), 1 << 21, 1.0)
    boundaries = [half for half in asked if half >= 1 << 43]
    assert 0 < len(boundaries) < 15
    assert 0 < len(asked) - len(boundaries) < 15


@pytest.mark.parametrize("upper", [0, 1])
def test_tails_reach_as_far_as_probability_does(upper: int, scripted: Scripted) -> None:
    """A first word that says nothing but "beyond nine σ" is read on; the sign is its last bit."""
    beyond = [upper, (1 << 64) - 1, 0, 0]
    found = gaussian(scripted(beyond), 1, 1.0)[0]
    expected = stats.norm.isf(2.0**-64)  # all of the bits that follow are ones
    assert found == pytest.approx(expected if upper else -expected, abs=2.0**-GRID_BITS)
    farther = [upper, 0, 1 << 63, 0]
    found = gaussian(scripted(farther), 1, 1.0)[0]
    assert abs(found) == pytest.approx(stats.norm.isf(2.0**-129), abs=2.0**-GRID_BITS)


def test_noise_is_added(repeatable: Repeatable) -> None:
    """The difference is noise of the stated size, the input stays as it is, float32 and many chunks too."""
    data = 100 * np.random.default_rng(2).standard_normal(2 * CHUNK + 77)
    before = data.copy()
    noise = noised(data, 3.0, repeatable(6)) - data
    assert np.array_equal(data, before)
    assert stats.kstest(noise / 3.0, "norm").pvalue > 1e-3
    single = data.astype(np.float32)
    assert stats.kstest(noised(single, 3.0, repeatable(6)) - single, "norm", (0, 3.0)).pvalue > 1e-3
    assert noised(np.zeros(0), 3.0, repeatable(6)).size == 0


def test_the_last_bits_do_not_know_the_data(repeatable: Repeatable) -> None:
    """A naive float sum reaches other results from 1.0 than from 0.3; here both reach the same ones."""
    zeros = np.zeros(20_000)
    naive = [value + 1e-3 * np.random.default_rng(3).standard_normal(zeros.size) for value in (1.0, 0.3)]
    ours = [noised(zeros + value, 1e-3, repeatable(7)) for value in (1.0, 0.3)]

    def last_bits(values: Array) -> Array:
        return (values / 2.0**-53) % 2

    # Sums near 1 have no odd multiple of 2^−53 above it, sums near 0.3 have.
    assert abs(float(last_bits(naive[0]).mean()) - float(last_bits(naive[1]).mean())) > 0.05
    assert not last_bits(ours[0]).any()
    assert not last_bits(ours[1]).any()


def test_importing_costs_nothing_heavy() -> None:
    """SciPy comes when noise is drawn, torch never."""
    code = (
        "import sys\n"
        "from wardround.privacy.noise import discrete, gaussian, shares, source\n"
        "print([name for name in ('torch', 'scipy', 'dp_accounting') if name in sys.modules])\n"
        "gaussian.gaussian(source.SystemSource('noise'), 10, 1.0)\n"
        "print('torch' in sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], check=False, capture_output=True, text=True, timeout=120
    )
    assert done.stdout.splitlines() == ["[]", "False"], done.stderr


@pytest.mark.parametrize("deviation", [0.0, -1.0, math.nan, math.inf, 1e-201, 1e201])
def test_what_is_no_deviation_is_refused(deviation: float, repeatable: Repeatable) -> None:
    """Before a word is drawn."""
    with pytest.raises(ConfigError, match="no standard deviation"):
        noised(np.zeros(3), deviation, repeatable(8))


@pytest.mark.parametrize(
    "total",
    [
        np.array([0.0, math.nan]),
        np.array([math.inf, 0.0]),
        np.array([0.0, -math.inf]),
        np.array([1e300]),
        np.array([0.0, -17_776_543.25]),
    ],
)
def test_sums_that_noise_cannot_hide_are_a_fault_of_ours(total: Array, repeatable: Repeatable) -> None:
    """Not finite, or 2^24 times the noise; the message holds no value of the data."""
    with pytest.raises(InternalError, match=r"do not go together(\n.*)*2\^24 times") as caught:
        noised(total, 1.0, repeatable(9))
    assert "17" not in str(caught.value)
    assert "300" not in str(caught.value)


@pytest.mark.parametrize("total", [np.zeros(3, dtype=np.int64), np.zeros((2, 2)), np.zeros(3, dtype=complex)])
def test_other_things_than_flat_floats_are_a_fault_of_ours(total: Any, repeatable: Repeatable) -> None:
    """Integers belong to the discrete Gaussian."""
    with pytest.raises(InternalError, match="cannot be noised"):
        noised(total, 1.0, repeatable(10))
