"""A tally: a running account, which takes one mechanism more in constant time and can be lowered again.

An `Account` lists what was done; a site's ledger has a hundred thousand such entries, and few kinds of them.
Here each kind is counted. Counts are integers, so that what was lowered is gone to the last bit, and the
order of the entries changes nothing.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple, assert_never

import numpy as np

from wardround.core.errors import BudgetError, InternalError
from wardround.core.packed import Array
from wardround.privacy.accounting.account import Account, Unit
from wardround.privacy.accounting.lattice import rdp_of_lattice_step
from wardround.privacy.accounting.mechanisms import (
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
        case NoPrivacy():
            return None
        case _:
            assert_never(mechanism)


@dataclass
class Tally:
    """Steps that were made, by kind.

    Attributes:
        steps: Kind → how many.
        released: Something in it had no privacy.
    """

    steps: Counter[Step] = field(default_factory=Counter)
    released: bool = False

    def add(self, mechanism: Mechanism) -> None:
        """One mechanism more."""
        self.count(*(steps_of(mechanism) or (None, 1)))

    def count(self, step: Step | None, count: int) -> None:
        """So many steps more; None is a release without privacy."""
        if step is None:
            self.released = True
        else:
            self.steps[step] += count

    def lower(self, step: Step, count: int) -> None:
        """So many steps less, of those that were counted.

        Raises:
            InternalError: There are not so many.
        """
        if not 0 <= count <= self.steps[step]:
            raise InternalError(
                "more steps are taken back than were counted", found=count, expected=self.steps[step]
            )
        self.steps[step] -= count
        if not self.steps[step]:
            del self.steps[step]

    @property
    def needs_losses(self) -> bool:
        """Whether something in it has no Rényi bound."""
        return any(step.most_examples > 1 for step in self.steps)

    def rdp_at(self, order: float) -> float:
        """Σ ρ(α) at one of `renyi.ORDERS`, of what had privacy; the same bits in any order.

        Raises:
            BudgetError: A mixture is in it.
        """
        self._renyi()
        return math.fsum(count * step.rdp_at(order) for step, count in self.steps.items())

    def rdp(self) -> Array:
        """Σ ρ(α) at `renyi.ORDERS`, float64, of what had privacy.

        Raises:
            BudgetError: A mixture is in it.
        """
        self._renyi()
        total = np.zeros(len(ORDERS))
        for step, count in sorted(self.steps.items()):
            total += count * step.rdp()
        return total

    def account(self, unit: Unit = "patient") -> Account:
        """Everything in it, as mechanisms."""
        made: list[Mechanism] = [NoPrivacy()] if self.released else []
        made += [step.mechanism(count) for step, count in sorted(self.steps.items())]
        return Account(unit=unit, mechanisms=tuple(made))

    @staticmethod
    def total(parts: Iterable[Tally]) -> Tally:
        """All of them together."""
        whole = Tally()
        for part in parts:
            whole.steps.update(part.steps)
            whole.released |= part.released
        return whole

    def _renyi(self) -> None:
        if self.needs_losses:
            raise BudgetError(
                "this tally has no Rényi bound", found="a bounded mixture",
                expected="sampled or plain Gaussians",
                remedy="clip once per patient, or fix the schedule beforehand and ask for losses",
            )  # fmt: skip
