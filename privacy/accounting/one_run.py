"""The least ε that guesses about many canaries in one run can show.

m canaries, each put into the run with probability 1/2 and apart from the others; whoever looks at what the
run released guesses for some of them whether they were in it. Under (ε, δ)-DP with one canary more or less as
neighbours, so many right guesses are as unlikely as Steinke, Nasr & Jagielski 2023, arXiv:2305.08846, say
(their theorem for approximate DP, as their `p_value_DP_audit` computes it):

    P[W ≥ v] ≤ P[Ŵ ≥ v] + 2 m δ · max_i P[v > Ŵ ≥ v − i] / i,    Ŵ ~ Binomial(r, e^ε / (1 + e^ε))
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np
from scipy import special, stats

from wardround.core.errors import ConfigError

_HALVINGS: Final = 50
_MOST: Final = 60.0
"""No number of guesses shows more: their accuracy then is 1 in float64."""


def chance_of_guesses(canaries: int, guesses: int, right: int, epsilon: float, delta: float) -> float:
    """Bound on the probability of so many right guesses, or more, under (ε, δ)-DP.

    Args:
        canaries: m, with those that nobody guessed about.
        guesses: r.
        right: v.
        epsilon: ε.
        delta: δ.

    Raises:
        ConfigError: Not 0 ≤ v ≤ r ≤ m, or ε or δ is none.
    """
    if not (0 <= right <= guesses <= canaries and epsilon >= 0 and 0 <= delta <= 1):
        raise ConfigError(
            "these are no guesses about canaries",
            found=f"{right} right of {guesses} of {canaries}, epsilon {epsilon}, delta {delta}",
            expected="0 <= right <= guesses <= canaries, epsilon >= 0, delta in [0, 1]",
        )
    guessed = stats.binom(guesses, special.expit(epsilon))
    chance = float(guessed.sf(right - 1))
    if right and delta:
        below = np.cumsum(guessed.pmf(np.arange(right - 1, -1, -1)))  # P[v > Ŵ ≥ v − i], i = 1, …, v
        chance += 2 * canaries * delta * float((below / np.arange(1, right + 1)).max())
    return min(1.0, chance)


def shown_epsilon(
    canaries: int, guesses: int, right: int, delta: float, *, confidence: float = 0.95
) -> float:
    """The largest ε that the guesses refute: a lower bound on the run's own, at this confidence.

    Args:
        canaries: m.
        guesses: r.
        right: v.
        delta: δ that the bound is meant at.
        confidence: Probability with which the run's ε is no smaller.

    Returns:
        ε, 0 where nothing is shown.

    Raises:
        ConfigError: As `chance_of_guesses`, or the confidence is none.
    """
    if not 0 < confidence < 1:
        raise ConfigError("this is no confidence", found=confidence, expected="between 0 and 1")

    def refuted(epsilon: float) -> bool:
        return chance_of_guesses(canaries, guesses, right, epsilon, delta) < 1 - confidence

    if not refuted(0.0):
        return 0.0
    low, high = 0.0, 1.0
    while high < _MOST and refuted(high):
        low, high = high, 2 * high
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if refuted(middle) else (low, middle)
    return low if math.isfinite(low) else 0.0
