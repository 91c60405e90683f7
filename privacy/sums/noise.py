"""Noise in the ring: what a plan with distributed or central noise adds to a sum of contributions, and where.

    clip → round to the ring's integers → a discrete Gaussian on every coordinate → reduce

Distributed: every site adds a share before it masks. Central: the server adds all of it to what it opened.
Nothing is clipped or refused after the noise, so that the ring keeps room for it: sites clip coordinates to
less than the ring could hold.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from wardround.core.errors import ConfigError
from wardround.core.packed import Array
from wardround.core.plan import TrainingPlan
from wardround.core.privacy_rules import PrivacyRules
from wardround.core.schedules import single_rate
from wardround.privacy.accounting.account import Account, Epsilon
from wardround.privacy.accounting.mechanisms import SampledDiscreteGaussians
from wardround.privacy.accounting.of_plan import joint_length, sigma_of_sums
from wardround.privacy.noise.discrete import discrete_gaussian
from wardround.privacy.noise.shares import (
    honest_shares,
    rounded_sensitivity,
    share_variance,
    wrap_probability,
)
from wardround.privacy.noise.source import RandomSource
from wardround.privacy.packing import word_of
from wardround.privacy.quantisation import Scale
from wardround.privacy.secagg.policy import default_threshold
from wardround.privacy.secagg.total import Sum
from wardround.privacy.sums.offers import scale_of

NOISE_TAIL: Final = 9.0
"""Standard deviations of the whole noise that the ring has room for; of 10⁹ coordinates one wraps with a
probability below 10⁻⁸."""
_LONGER: Final = 1 + 1e-6
"""What float64 may add to a clipped length on its way into the ring."""


@dataclass(frozen=True)
class RingNoise:
    """What is added to one sum of contributions.

    Attributes:
        signal: At which sites clip and round: its coordinates leave room for the noise.
        variance: Of one share, in squares of ring units.
        shares: So many are sure to be in the sum and known to no attacker; 1 where the server adds it all.
        sigma: Over what one unit can change after rounding: what is accounted for.
        sample_rate: q of units; 1 where all of them are in the sum.
        coordinates: d.
        wraps: Bound on the probability that any coordinate leaves the ring.
        longest: All noise of a sum together is hardly ever longer (L2), in ring units.
    """

    signal: Scale
    variance: float
    shares: int
    sigma: float
    sample_rate: float
    coordinates: int
    wraps: float
    longest: float

    @property
    def mechanism(self) -> SampledDiscreteGaussians:
        """What one sum does to a unit."""
        return SampledDiscreteGaussians(
            sample_rate=self.sample_rate, sigma=self.sigma, share_sigma=math.sqrt(self.variance),
            shares=self.shares, coordinates=self.coordinates,
        )  # fmt: skip

    def added_to(self, integers: Array, source: RandomSource) -> Array:
        """A contribution with a share of the noise, as words of the ring.

        Args:
            integers: (d,) of the ring's word; not changed.
            source: Random words.
        """
        word = word_of(self.signal.bits)
        share = discrete_gaussian(source, integers.size, self.variance).astype(
            word
        )  # wraps, as the ring does
        return np.asarray(integers + share)

    def added_to_sum(self, total: Sum, source: RandomSource) -> Sum:
        """An opened sum with the noise, centred in the ring again."""
        noise = discrete_gaussian(source, total.coordinates.size, self.variance)
        half = np.int64(1) << np.int64(self.signal.bits - 1)
        noised = total.coordinates + noise  # int64 wraps as a ring of 64 bits does
        if self.signal.bits < 64:  # noqa: PLR2004 - the word's own width
            noised = ((noised + half) & (2 * half - 1)) - half
        return replace(total, coordinates=noised)


def ring_noise(plan: TrainingPlan, *, cohort: int, coordinates: int, round: int) -> RingNoise | None:
    """The noise of a round's sum; None where none is added to sums.

    Args:
        plan: Its privacy, its encoding and its learning rate.
        cohort: Sites that are asked; the fewest that can be opened decide what is guaranteed.
        coordinates: d.
        round: Its learning rate decides what one unit's gradient can change in an update.

    Raises:
        ConfigError: No share would be left, the ring is too narrow for the noise, or what is left of it would
            clip a site's part of the count of adaptive clipping; names the remedy.
    """
    rules = plan.privacy
    if rules is None or rules.noise == "local":
        return None
    sigma = sigma_of_sums(rules, plan.rounds.rounds)
    scale = scale_of(plan.encoding, cohort)
    if rules.unit == "site":
        length, q = rules.clip_norm, 1.0
    else:
        local = plan.local
        step = single_rate(local, round=round, rounds=plan.rounds.rounds)
        length, q = step * rules.clip_norm / local.batch_size, rules.sample_rate or 1.0
    most = rounded_sensitivity(length * scale.integers_per_unit * _LONGER, coordinates)
    shares, total = 1, 1
    if rules.noise == "central":
        variance = (sigma * most) ** 2
    else:
        least = least_survivors(plan, cohort)
        shares = honest_shares(least_survivors=least, colluders=rules.colluders, site_is_adversary=True)
        total = cohort
        variance = share_variance(
            sigma * most, least_survivors=least, colluders=rules.colluders, site_is_adversary=True
        )
    room = NOISE_TAIL * math.sqrt(total * variance)  # of the whole sum
    largest = scale.largest - (room / cohort + 1) * scale.quantum
    if not largest > 0:
        raise ConfigError(
            "the ring has no room for the noise", found=f"noise of {room / NOISE_TAIL:.3g} units of it",
            expected=f"less than {2.0 ** (scale.bits - 1) / NOISE_TAIL:.3g}, with room for the sum beside it",
            remedy="raise encoding.largest or encoding.bits, or leave encoding.largest to auto",
        )  # fmt: skip
    if rules.adapts_to_sites and 2 * largest < joint_length(rules, plan.rounds.rounds).count:
        raise ConfigError(
            "the count of adaptive clipping would be clipped", found=f"coordinates of at most {largest:.3g}",
            expected=f"at least {joint_length(rules, plan.rounds.rounds).count / 2:.3g} beside the noise",
            remedy="raise encoding.largest, or leave it to auto",
        )  # fmt: skip
    inside = cohort * (largest * scale.integers_per_unit + 1)
    wraps = wrap_probability(
        bits=scale.bits, variance=total * variance, largest=inside, coordinates=coordinates
    )
    longest = math.sqrt(total * variance) * (math.sqrt(coordinates) + NOISE_TAIL)
    return RingNoise(replace(scale, largest=largest), variance, shares, sigma, q, coordinates, wraps, longest)


def account_of_sums(plan: TrainingPlan, *, cohort: int, coordinates: int, rounds: int) -> Account:
    """What so many rounds with noise in the sums do to a unit, whichever sites were asked in which.

    Which sites are asked amplifies nothing: the server and the sites see it.

    Raises:
        ConfigError: As `ring_noise`, or the plan has no such noise.
    """
    rules = _rules_of_sums(plan)
    noises = [
        ring_noise(plan, cohort=cohort, coordinates=coordinates, round=round)
        for round in range(1, rounds + 1)
    ]
    mechanisms = tuple(noise.mechanism for noise in noises if noise is not None)
    return Account(unit=rules.unit, mechanisms=mechanisms)


def epsilon_of_sums(plan: TrainingPlan, *, units: int, cohort: int, coordinates: int, rounds: int) -> Epsilon:
    """ε of `account_of_sums`, as it is reserved, by Rényi DP.

    Raises:
        PolicyError: δ ≥ 1/units.
        ConfigError: As `account_of_sums`.
    """
    account = account_of_sums(plan, cohort=cohort, coordinates=coordinates, rounds=rounds)
    return account.epsilon(_rules_of_sums(plan).delta, units=units)


def _rules_of_sums(plan: TrainingPlan) -> PrivacyRules:
    if plan.privacy is None or plan.privacy.noise == "local":
        raise ConfigError("the plan has no noise in its sums")
    return plan.privacy


def require_target(plan: TrainingPlan, *, units: int, cohort: int, coordinates: int) -> None:
    """Refuse a ring in which the planned noise misses the target.

    Rounding to the ring costs a little beyond the Gaussian that σ was found for: nothing in a wide ring.

    Raises:
        ConfigError: It costs more than the margin that σ has, or as `ring_noise`.
        PolicyError: δ ≥ 1/units.
    """
    rules, rounds = plan.privacy, plan.rounds.rounds
    if rules is None or rules.noise == "local":
        return
    cost = epsilon_of_sums(plan, units=units, cohort=cohort, coordinates=coordinates, rounds=rounds)
    if rules.epsilon is not None and cost.value > rules.epsilon:
        raise ConfigError(
            "the ring is too narrow to keep the target", found=f"ε = {cost.value:.6g} with this ring",
            expected=f"at most {rules.epsilon:g}", remedy="raise encoding.bits",
        )  # fmt: skip


def least_survivors(plan: TrainingPlan, cohort: int) -> int:
    """So many contributions are in any sum that is opened: whoever confirms is in it."""
    return plan.secure.threshold or default_threshold(cohort)
