"""Banded matrix factorisation: what is added to steps so that the noise of later ones takes some of it back.

Let x_t be the clipped sum of step t, and z_t independent normal noise. Released is x_t + w_t, where w solves
C w = z, line by line:

    w_t = z_t − Σ_(0 < i < b) c_i w_(t−i)        c_0 = 1, c_i = c_(i−1) (2i − 1) / 2i = binom(2i, i) / 4^i

C is lower triangular, Toeplitz and has b bands: the first b coefficients of the square root of the matrix of
prefix sums, 1 / √(1 − y) = Σ c_i y^i ("BSR", Kalinin & Lampert 2024, arXiv:2405.13763, without momentum). A
model moves along prefix sums of what is released; the noise of neighbouring steps is opposed, and much of it
cancels there. How much is gained, and where nothing is, `benchmarks/private_mechanisms.py` measures.

**What it costs.** Whoever sees x + w sees C x + z, a Gaussian mechanism, also where x_t was chosen after
looking at what came before (Denisov et al. 2022, arXiv:2202.08312, theorem 2.1). A unit is in every b-th
step, and in no other (the pattern that `training/private/blocks.py` enforces). It changes C x by
Σ_j C[:, t_j] ⊗ v_j with ‖v_j‖ ≤ clip norm. Columns that are b or more apart share no line, so that the
squares add up (Choquette-Choo et al. 2023, arXiv:2306.08153). In n steps a unit is in k = ⌈n / b⌉ of them at
most, and the columns at the end are shorter, so that in clip norms the change is no longer than Δ,

    Δ² = (k − 1) ‖c‖² + Σ_(i < n − (k−1) b) c_i² ≤ k ‖c‖²,

which a unit of the first block reaches. Neighbours differ by one unit, added or removed: where a unit is, is
a function of its own id and a key, so that nobody else moves. Nothing is sampled, and nothing amplified.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Final

import numpy as np

from wardround.core.packed import Array

MOST_BANDS: Final = 100_000


@lru_cache(maxsize=64)
def coefficients(bands: int) -> Array:
    """c, (bands,) float64, read-only: the first column of C.

    Args:
        bands: b.
    """
    column = np.ones(bands)
    for place in range(1, bands):
        column[place] = column[place - 1] * (2 * place - 1) / (2 * place)
    column.flags.writeable = False
    return column


def sensitivity(bands: int, steps: int) -> float:
    """Δ: how far one unit moves C x over so many steps, in clip norms.

    Args:
        bands: b; a unit is in every b-th step.
        steps: n, of the whole run.
    """
    times = -(-steps // bands)
    squares = [float(c) ** 2 for c in coefficients(min(bands, steps))]
    rest = steps - (times - 1) * bands
    return math.sqrt((times - 1) * math.fsum(squares) + math.fsum(squares[:rest]))


@lru_cache(maxsize=64)
def inverse(bands: int, steps: int) -> Array:
    """The first column of C⁻¹, (steps,) float64, read-only: w_t = Σ_(i ≤ t) inverse_i z_(t−i)."""
    column, c = np.zeros(steps), coefficients(min(bands, steps))
    column[0] = 1.0
    for step in range(1, steps):
        reach = min(step, len(c) - 1)
        column[step] = -float(np.einsum("i,i->", c[1 : reach + 1], column[step - reach : step][::-1]))
    column.flags.writeable = False
    return column


@lru_cache(maxsize=64)
def variances(bands: int, steps: int) -> Array:
    """Variance of w_t for t = 0, …, over that of z, (steps,) float64, read-only."""
    found = np.cumsum(np.square(inverse(bands, steps)))
    found.flags.writeable = False
    return found


def error_of_sums(bands: int, steps: int) -> float:
    """Root mean square, over the steps, of the noise on prefix sums of what is released, over that of z."""
    of_sums = np.cumsum(inverse(bands, steps))
    return math.sqrt(float(np.cumsum(np.square(of_sums)).mean()))
