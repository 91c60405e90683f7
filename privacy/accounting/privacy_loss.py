"""Privacy loss distributions: the tight epsilon of a schedule that was fixed beforehand.

The loss of a composition is the sum of the losses, so that their distributions convolve (Koskela, Jälkö &
Honkela 2020, arXiv:1906.03049). `dp_accounting` discretises them pessimistically ("connect the dots",
Doroshenko et al. 2022, arXiv:2207.04380): ε is an upper bound at every grid. None of it holds where a
mechanism was chosen after looking at what came out before. Sums of discrete Gaussians have no distribution
here: Gaussians with a little less noise dominate them, up to a correction of ε and δ (`lattice.py`).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Final

from wardround.core.errors import InternalError
from wardround.privacy.accounting.lattice import dominating
from wardround.privacy.accounting.mechanisms import (
    BoundedMixture,
    Gaussian,
    Mechanism,
    NoPrivacy,
    SampledDiscreteGaussians,
    SampledGaussian,
)
from wardround.privacy.accounting.renyi import best_epsilon, total_rdp

FINEST: Final = 1e-4
"""Least width of a cell of the grid, in units of ε."""
_CELLS: Final = 2**17
_CELLS_MIXED: Final = 2**15
"""About so many cells reach to ε, and to the largest loss of one step; a mixture's cost ten times more."""
MOST_REACH: Final = 1e5
"""Beyond it ε says nothing, and the result is infinity."""


def composed_epsilon(steps: Mapping[Mechanism, int], delta: float) -> float:
    """ε at δ of all of them together; infinite where one of them has no privacy, or no grid reaches so far.

    About a second; what was composed before is remembered, since the sites of a run often have one schedule.

    Args:
        steps: Mechanism, with one step of its own, → how often.
        delta: δ, in (0, 1).
    """
    return _composed(frozenset(steps.items()), delta)


@lru_cache(maxsize=256)
def _composed(counted: frozenset[tuple[Mechanism, int]], delta: float) -> float:
    if any(isinstance(mechanism, NoPrivacy) for mechanism, _ in counted):
        return math.inf
    steps, excess = _dominated(dict(counted))
    delta *= math.exp(-excess)
    if not delta > 0:
        return math.inf
    interval = _interval(steps, delta)
    if interval is None:
        return math.inf
    from dp_accounting.pld import PLDAccountant

    accountant = PLDAccountant(value_discretization_interval=interval)
    for mechanism, count in sorted(steps.items(), key=lambda item: repr(item[0])):
        accountant.compose(_event(mechanism), count)
    return max(0.0, float(accountant.get_epsilon(delta))) + 2 * excess


def _dominated(steps: Mapping[Mechanism, int]) -> tuple[dict[Mechanism, int], float]:
    """(steps with sums of discrete Gaussians as the Gaussians that dominate them, Σ A'): `lattice.py`, 3."""
    gaussians: Counter[Mechanism] = Counter()
    excess = 0.0
    for mechanism, count in steps.items():
        if isinstance(mechanism, SampledDiscreteGaussians):
            q, multiple, share_sigma, shares, coordinates = mechanism.step()
            sigma, excess_of_step = dominating(multiple, share_sigma, shares, coordinates)
            excess += count * excess_of_step
            plain = Gaussian(sigma=sigma) if q == 1 else SampledGaussian(sample_rate=q, sigma=sigma)
            gaussians[plain] += count
        else:
            gaussians[mechanism] += count
    return gaussians, excess


def _interval(steps: Mapping[Mechanism, int], delta: float) -> float | None:
    """Width of a cell: decides how tight ε is and what it costs, never whether it holds; None: none does."""
    rough: Counter[tuple[float, float]] = Counter()
    farthest = 0.0
    for mechanism, count in steps.items():
        match mechanism:
            case SampledGaussian(sample_rate=q, sigma=sigma):
                rough[q, sigma] += count
                shift = 1 / sigma
            case Gaussian(sigma=sigma):
                rough[1.0, sigma] += count
                shift = 1 / sigma
            case BoundedMixture(sample_rate=q, sigma=sigma, most_examples=K):
                # Most of the steps that take any of the unit's examples take few.
                rough[-math.expm1(K * math.log1p(-q)) if q < 1 else 1.0, sigma / (1 + (K - 1) * q)] += count
                shift = K / sigma
            case _:
                return None
        farthest = max(farthest, shift * shift / 2 + 8 * shift)
    reach = max(best_epsilon(total_rdp(rough), delta)[0], farthest)
    if not reach < MOST_REACH:
        return None
    mixed = any(isinstance(mechanism, BoundedMixture) for mechanism in steps)
    # Rounding costs about (steps · width²) / 10 in ε: few steps can do without a fine grid.
    finest = max(FINEST, min(10 * FINEST, 0.03 / math.sqrt(sum(steps.values())))) if mixed else FINEST
    needed = reach / (_CELLS_MIXED if mixed else _CELLS)
    # Powers of two, so that accounts of like size share a grid.
    return finest * 2.0 ** max(0, math.ceil(math.log2(needed / finest)))


def _event(mechanism: Mechanism) -> Any:
    """One step of a mechanism as `dp_accounting` spells it."""
    from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent
    from dp_accounting.dp_event import MixtureOfGaussiansDpEvent

    match mechanism:
        case SampledGaussian(sample_rate=q, sigma=sigma):
            return PoissonSampledDpEvent(q, GaussianDpEvent(sigma))
        case Gaussian(sigma=sigma):
            return GaussianDpEvent(sigma)
        case BoundedMixture(sigma=sigma):
            probabilities = mechanism.probabilities()
            taken = [(float(j), p) for j, p in enumerate(probabilities) if p > 0]
            return MixtureOfGaussiansDpEvent(sigma, [j for j, _ in taken], [p for _, p in taken])
    raise InternalError("no privacy loss distribution of this mechanism", found=mechanism.kind)
