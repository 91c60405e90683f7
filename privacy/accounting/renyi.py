"""Rényi DP of mechanisms at a grid of orders, and what it means as (ε, δ).

A mechanism is (α, ρ(α))-RDP where D_α(P‖Q) ≤ ρ(α) for neighbours, both ways round (Mironov 2017,
arXiv:1702.07476); ρ adds up under composition, order by order. ρ of the sampled Gaussian is that of
Mironov, Talwar & Zhang 2019, arXiv:1908.10530, section 3.3, from `dp_accounting`.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Final

import numpy as np

from wardround.core.packed import Array

ORDERS: Final = (
    *(1 + i / 10 for i in range(1, 100)), *map(float, range(11, 64)), 128.0, 256.0, 512.0, 1024.0,
)  # fmt: skip
"""α: the grid of `dp_accounting`, written down here so that a stored order keeps its meaning."""
SLACK: Final = 1e-12
"""Added to ρ of every sampled step: what float64 and the cut-off series may hide. Without it, a rate and a
noise for which log(1 + tiny) rounds to 0 would cost nothing in however many steps; 10⁵ steps pay 10⁻⁷."""


@lru_cache(maxsize=4096)
def rdp_of_step(sample_rate: float, sigma: float) -> Array:
    """ρ(α) of one step of the sampled Gaussian, (len(ORDERS),) float64, read-only.

    Infinite where `dp_accounting` finds no bound (its series does not converge): such an order is never the
    best.

    Args:
        sample_rate: q, in (0, 1]; 1 is the plain Gaussian, ρ(α) = α / (2 σ²).
        sigma: σ.
    """
    rdp = _rdp(ORDERS, sample_rate, sigma)
    rdp.flags.writeable = False
    return rdp


@lru_cache(maxsize=65_536)
def rdp_of_step_at(order: float, sample_rate: float, sigma: float) -> float:
    """`rdp_of_step` at one order alone, a hundred times quicker; the same bits."""
    return float(_rdp((order,), sample_rate, sigma)[0])


def _rdp(at: Sequence[float], sample_rate: float, sigma: float) -> Array:
    orders = np.array(at)
    if sample_rate == 1:
        with np.errstate(over="ignore", divide="ignore"):
            rdp = orders / (2 * np.square(np.float64(sigma)))
    else:
        from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent
        from dp_accounting.rdp import RdpAccountant

        accountant = RdpAccountant(at)
        logger = logging.getLogger("absl")
        told, logger.disabled = logger.disabled, True  # of orders without a bound, which are never the best
        try:
            accountant.compose(PoissonSampledDpEvent(sample_rate, GaussianDpEvent(sigma)))
            rdp = np.maximum(accountant.rdp, 0.0) + SLACK
        except (OverflowError, ZeroDivisionError):  # a σ so small that its square is 0: no bound
            rdp = np.full(orders.shape, np.inf)
        finally:
            logger.disabled = told
        rdp[np.isnan(rdp)] = np.inf
    return np.asarray(rdp)


def total_rdp(steps: Mapping[tuple[float, float], int]) -> Array:
    """Σ steps · ρ(α) over (q, σ) → steps, (len(ORDERS),) float64; the same bits in any order."""
    total = np.zeros(len(ORDERS))
    for (sample_rate, sigma), count in sorted(steps.items()):
        total += count * rdp_of_step(sample_rate, sigma)
    return total


def epsilon_at(order: float, rdp: float, delta: float) -> float:
    """The ε at δ that (α, ρ)-RDP implies: ρ + log(1 − 1/α) − log(δ α) / (α − 1), and never below 0.

    Canonne, Kamath & Steinke 2020, arXiv:2004.00010, proposition 12. Where ρ is so small that
    δ ≥ √(1 − exp(−KL)) already (Bretagnolle-Huber; KL ≤ ρ), ε is 0.
    """
    if delta * delta + math.expm1(-rdp) >= 0:
        return 0.0
    return max(0.0, rdp + math.log1p(-1 / order) - math.log(delta * order) / (order - 1))


def budget_at(order: float, epsilon: float, delta: float) -> float:
    """The largest ρ at an order for which `epsilon_at` stays at or under ε; negative where no ρ does."""
    return epsilon - math.log1p(-1 / order) + math.log(delta * order) / (order - 1)


def best_epsilon(rdp: Array, delta: float) -> tuple[float, float]:
    """(ε, α): the least ε over the orders. A bound only where ρ does not depend on what came out before.

    Args:
        rdp: ρ, (len(ORDERS),) float64.
        delta: δ, in (0, 1).
    """
    return min((epsilon_at(order, float(r), delta), order) for order, r in zip(ORDERS, rdp, strict=True))
