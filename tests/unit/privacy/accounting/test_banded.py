"""Banded matrix factorisation: its matrix, what one unit can change, and what that costs."""

from __future__ import annotations

import itertools
import math
from functools import partial

import numpy as np
import pytest
from scipy import optimize, stats

from wardround.privacy.accounting.account import Account
from wardround.privacy.accounting.banded import (
    coefficients,
    error_of_sums,
    inverse,
    sensitivity,
    variances,
)
from wardround.privacy.accounting.calibrate import least_noise
from wardround.privacy.accounting.mechanisms import BandedGaussian, Gaussian
from wardround.privacy.accounting.tally import Tally

SIZES = [(1, 1), (1, 5), (2, 5), (3, 9), (3, 10), (4, 4), (5, 3), (7, 40)]


def dense(bands: int, steps: int) -> np.ndarray:
    """C, written out."""
    matrix = np.zeros((steps, steps))
    for line, column in itertools.product(range(steps), repeat=2):
        if 0 <= line - column < bands:
            matrix[line, column] = math.comb(2 * (line - column), line - column) / 4 ** (line - column)
    return matrix


def test_all_bands_are_the_square_root_of_prefix_sums() -> None:
    """C C is the lower triangle of ones (Kalinin & Lampert 2024)."""
    root = dense(9, 9)
    np.testing.assert_allclose(root @ root, np.tril(np.ones((9, 9))), atol=1e-14)
    np.testing.assert_allclose(coefficients(9), root[:, 0], rtol=1e-15)


@pytest.mark.parametrize(("bands", "steps"), SIZES)
def test_the_inverse_is_that_of_the_dense_matrix(bands: int, steps: int) -> None:
    """And so are the variances of the noise and of its prefix sums."""
    expected = np.linalg.inv(dense(bands, steps))
    np.testing.assert_allclose(inverse(bands, steps), expected[:, 0], atol=1e-13)
    covariance = expected @ expected.T
    np.testing.assert_allclose(variances(bands, steps), np.diag(covariance), rtol=1e-12)
    sums = np.tril(np.ones((steps, steps))) @ expected
    assert error_of_sums(bands, steps) == pytest.approx(np.linalg.norm(sums) / math.sqrt(steps))


def patterns(bands: int, steps: int) -> list[tuple[int, ...]]:
    """Every set of steps that are at least so far apart: also those that no block has."""
    apart = [
        found
        for size in range(1, steps + 1)
        for found in itertools.combinations(range(steps), size)
        if all(b - a >= bands for a, b in itertools.pairwise(found))
    ]
    assert apart
    return apart


@pytest.mark.parametrize(("bands", "steps"), [(1, 5), (2, 9), (3, 9), (3, 10), (4, 11), (5, 3), (6, 6)])
def test_no_unit_changes_more_than_the_sensitivity(bands: int, steps: int) -> None:
    """Over all patterns with that separation, and any directions: the bound is reached, not passed."""
    matrix, rng = dense(bands, steps), np.random.default_rng(0)
    moved = 0.0
    for pattern in patterns(bands, steps):
        for _ in range(5):
            vectors, any_way = np.zeros((steps, 3)), rng.normal(size=(len(pattern), 3))
            vectors[list(pattern)] = any_way / np.linalg.norm(any_way, axis=1, keepdims=True)
            moved = max(moved, float(np.linalg.norm(matrix @ vectors)))
        same = matrix[:, list(pattern)].sum(axis=1)  # all the same way, where columns share lines if ever
        moved = max(moved, float(np.linalg.norm(same)))
    assert moved == pytest.approx(sensitivity(bands, steps), rel=1e-12)
    times = math.ceil(steps / bands)
    assert sensitivity(bands, steps) <= math.sqrt(times) * np.linalg.norm(coefficients(bands)) * (1 + 1e-12)


@pytest.mark.parametrize(("bands", "steps"), [(2, 9), (4, 11)])
def test_units_that_come_sooner_again_would_change_more(bands: int, steps: int) -> None:
    """What the pattern is enforced for."""
    column = dense(bands, steps)[:, : bands - 1 + 1 : bands - 1].sum(axis=1)
    alone = BandedGaussian(sigma=1.0, bands=bands, steps=bands).whole.sigma
    assert np.linalg.norm(column) > math.sqrt(2) / alone


def exact_epsilon(sigma: float, delta: float) -> float:
    """Of one Gaussian mechanism: Balle & Wang 2018, theorem 8."""

    def excess(epsilon: float) -> float:
        high = stats.norm.cdf(0.5 / sigma - epsilon * sigma)
        low = stats.norm.logcdf(-0.5 / sigma - epsilon * sigma)
        return float(high - math.exp(epsilon + low) - delta)

    return float(optimize.brentq(excess, 1e-9, 100.0, xtol=1e-12))


@pytest.mark.parametrize("sigma", [0.6, 1.0, 3.0, 9.0])
def test_a_run_costs_what_one_gaussian_mechanism_costs(sigma: float) -> None:
    """By losses to three digits of the closed form; by Rényi DP more, never less."""
    bands, steps, delta = 7, 40, 1e-4
    run = BandedGaussian(sigma=sigma * sensitivity(bands, steps), bands=bands, steps=steps)
    account = Account(mechanisms=(run,))
    exact = exact_epsilon(sigma, delta)
    assert account.fixed_schedule_epsilon(delta, units=100).value == pytest.approx(exact, rel=1e-3)
    assert exact <= account.epsilon(delta, units=100).value <= 1.25 * exact
    one = Account(mechanisms=(Gaussian(sigma=run.whole.sigma),))
    assert account.epsilon(delta, units=100) == one.epsilon(delta, units=100)
    tally = Tally()
    tally.add(run)
    assert tally.account() == one
    assert Account.parse(account.canonical()) == account


@pytest.mark.parametrize("ran", [1, 6, 7, 8, 39])
def test_fewer_steps_cost_no_more(ran: int) -> None:
    """A run that stops, or a site that misses rounds, has been charged for all."""
    assert sensitivity(7, ran) <= sensitivity(7, 40)


def test_it_wins_where_amplification_is_small_and_not_elsewhere() -> None:
    """Noise on prefix sums at equal ε, as `benchmarks/private_mechanisms.py` has it."""

    def ratio(epsilon: float, bands: int, passes: int) -> float:
        steps = bands * passes
        noise = partial(least_noise, epsilon, 1e-4, units=2000, tolerance=1e-2)
        poisson = noise(sample_rate=1 / bands, steps=steps) * error_of_sums(1, steps)
        whole = noise(sample_rate=1.0, steps=1) * sensitivity(bands, steps)
        return whole * error_of_sums(bands, steps) / poisson

    assert ratio(8.0, 125, 3) < 0.5
    assert ratio(1.0, 20, 10) > 1.2
