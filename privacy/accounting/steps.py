"""Mechanisms counted: each as one step of its kind and how often, so that equal ones are looked up once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import NamedTuple, assert_never

import numpy as np

from wardround.core.errors import BudgetError
from wardround.core.packed import Array
from wardround.privacy.accounting.lattice import rdp_of_lattice_step
from wardround.privacy.accounting.mechanisms import (
    BandedGaussian,
    BoundedMixture,
    Gaussian,
    Mechanism,
    NoPrivacy,
    SampledDiscreteGaussians,
    SampledGaussian,
)
from wardround.privacy.accounting.renyi import ORDERS, rdp_of_step, rdp_of_step_at


class Step(NamedTuple):
    """One step of a mechanism with noise.

    Attributes:
        sample_rate: q; 1 is the plain Gaussian.
        sigma: σ, over the clip norm of one contribution.
        most_examples: K of a mixture; 1 where a unit is clipped once.
        shares: Of a sum of discrete Gaussians: their number, σ of one and the coordinates; none otherwise.
    """

    sample_rate: float
    sigma: float
    most_examples: int = 1
    shares: tuple[int, float, int] = (0, 0.0, 0)

    def rdp(self) -> Array:
        """ρ(α) at `renyi.ORDERS`, float64; of no mixture."""
        if self.shares[0]:
            shares, share_sigma, coordinates = self.shares
            return rdp_of_lattice_step(self.sample_rate, self.sigma, share_sigma, shares, coordinates)
        return rdp_of_step(self.sample_rate, self.sigma)

    def rdp_at(self, order: float) -> float:
        """The same at one order of the grid."""
        if self.shares[0]:
            return float(self.rdp()[ORDERS.index(order)])
        return rdp_of_step_at(order, self.sample_rate, self.sigma)

    def mechanism(self, count: int) -> Mechanism:
        """So many of these steps."""
        q, sigma = self.sample_rate, self.sigma
        if self.shares[0]:
            return self._discrete(count)
        if self.most_examples > 1:
            return BoundedMixture(sample_rate=q, sigma=sigma, most_examples=self.most_examples, steps=count)
        if q == 1:
            return Gaussian(sigma=sigma, count=count)
        return SampledGaussian(sample_rate=q, sigma=sigma, steps=count)

    def _discrete(self, count: int) -> SampledDiscreteGaussians:
        shares, share_sigma, coordinates = self.shares
        return SampledDiscreteGaussians(
            sample_rate=self.sample_rate, sigma=self.sigma, share_sigma=share_sigma, shares=shares,
            coordinates=coordinates, steps=count,
        )  # fmt: skip


def steps_of(mechanism: Mechanism) -> tuple[Step, int] | None:
    """A mechanism as one step of it and how often it was made; None without privacy.

    A mixture with K = 1 is the sampled Gaussian. One that samples every example moves the sum by K C each
    time: it is the Gaussian at σ / K. Both then have a Rényi bound.
    """
    match mechanism:
        case SampledGaussian(sample_rate=q, sigma=sigma, steps=count):
            return Step(q, sigma), count
        case Gaussian(sigma=sigma, count=count):
            return Step(1.0, sigma), count
        case BoundedMixture(sample_rate=q, sigma=sigma, most_examples=K, steps=count):
            return (Step(1.0, sigma / K) if q == 1 else Step(q, sigma, K)), count
        case SampledDiscreteGaussians(sample_rate=q, sigma=sigma, steps=count):
            parts = (mechanism.shares, mechanism.share_sigma, mechanism.coordinates)
            return Step(q, sigma, shares=parts), count
        case BandedGaussian():
            return Step(1.0, mechanism.whole.sigma), 1
        case NoPrivacy():
            return None
        case _:
            assert_never(mechanism)


def counted(mechanisms: Iterable[Mechanism]) -> Counter[Step]:
    """Kind → how often, of all that has privacy."""
    steps: Counter[Step] = Counter()
    for mechanism in mechanisms:
        found = steps_of(mechanism)
        if found is not None:
            steps[found[0]] += found[1]
    return steps


def without_renyi(what: str) -> BudgetError:
    """What is said where a mixture is among the steps."""
    return BudgetError(
        f"this {what} has no Rényi bound", found="a bounded mixture",
        expected="sampled or plain Gaussians, or sums of discrete ones",
        remedy="clip once per patient, or fix the schedule beforehand and ask for losses",
    )  # fmt: skip


def rdp_of(steps: Mapping[Step, int]) -> Array:
    """Σ count · ρ(α) at `renyi.ORDERS`, float64; the same bits in any order. Of no mixtures."""
    total = np.zeros(len(ORDERS))
    for step, count in sorted(steps.items()):
        total += count * step.rdp()
    return total
