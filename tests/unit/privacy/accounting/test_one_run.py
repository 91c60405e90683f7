"""What guesses about canaries show."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from wardround.core.errors import ConfigError
from wardround.privacy.accounting.one_run import chance_of_guesses, shown_epsilon


def slow_chance(m: int, r: int, v: int, epsilon: float, delta: float) -> float:
    """The theorem term by term."""
    guessed = stats.binom(r, math.exp(epsilon) / (1 + math.exp(epsilon)))
    tail = sum(guessed.pmf(k) for k in range(v, r + 1))
    worst = max((sum(guessed.pmf(k) for k in range(v - i, v)) / i for i in range(1, v + 1)), default=0.0)
    return float(min(1.0, tail + 2 * m * delta * worst))


@pytest.mark.parametrize(
    ("m", "r", "v", "epsilon", "delta"),
    [(100, 100, 70, 0.5, 1e-5), (1000, 50, 48, 1.0, 1e-6), (10, 10, 10, 0.0, 0.0), (20, 7, 0, 2.0, 1e-3)],
)
def test_the_chance_is_the_theorems(m: int, r: int, v: int, epsilon: float, delta: float) -> None:
    """Against sums written out."""
    assert chance_of_guesses(m, r, v, epsilon, delta) == pytest.approx(
        slow_chance(m, r, v, epsilon, delta), rel=1e-9
    )


def test_what_is_shown_is_where_the_chance_is_what_may_go_wrong() -> None:
    """All right of r: (e^ε / (1 + e^ε))^r = 5 %."""
    expected = math.log(0.05 ** (1 / 200) / (1 - 0.05 ** (1 / 200)))
    assert shown_epsilon(200, 200, 200, 0.0) == pytest.approx(expected, rel=1e-9)
    found = shown_epsilon(1000, 300, 250, 1e-5)
    assert chance_of_guesses(1000, 300, 250, found, 1e-5) == pytest.approx(0.05, rel=1e-6)
    assert found < shown_epsilon(1000, 300, 250, 0.0)
    assert shown_epsilon(1000, 300, 250, 1e-5, confidence=0.99) < found
    assert shown_epsilon(1000, 300, 150, 0.0) == 0
    assert shown_epsilon(10, 0, 0, 0.0) == 0


def test_the_bound_is_one() -> None:
    """Randomised response is ε-DP, and nothing is nearer to its limit: 95 % of the bounds are below ε."""
    rng, epsilon = np.random.default_rng(0), 1.0
    right = rng.binomial(400, math.exp(epsilon) / (1 + math.exp(epsilon)), 600)
    shown = {v: shown_epsilon(400, 400, v, 0.0) for v in set(right.tolist())}
    bounds = np.array([shown[v] for v in right.tolist()])
    assert 0.93 < (bounds <= epsilon).mean() < 0.985
    assert np.median(bounds) > 0.7  # and no empty one


@pytest.mark.parametrize("wrong", [(5, 6, 1, 0.0, 0.0), (5, 5, 6, 0.0, 0.0), (5, 5, 5, -1.0, 0.0)])
def test_no_guesses_are_refused(wrong: tuple[int, int, int, float, float]) -> None:
    """More right ones than guesses, more guesses than canaries, a negative ε."""
    with pytest.raises(ConfigError, match="no guesses"):
        chance_of_guesses(*wrong)
