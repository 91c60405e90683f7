"""What a plan's privacy means at one site: its sample rate, the noise of a step, and what a round costs.

Plan and number of units decide everything, so that a site, its ledger and whoever reads its card come to the
same figures. The number of units is taken as public: the expected size of a batch tells it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Final, Literal

from wardround.core.errors import ConfigError
from wardround.core.plan import LocalWork, RoundRules, TrainingPlan
from wardround.core.privacy_rules import PrivacyRules
from wardround.privacy.accounting.account import Account, Epsilon
from wardround.privacy.accounting.banded import sensitivity, variances
from wardround.privacy.accounting.calibrate import least_noise, sample_rate
from wardround.privacy.accounting.mechanisms import BandedGaussian, SampledGaussian
from wardround.privacy.clip_norm import JointLength, vector_sigma

RING_MARGIN: Final = 1e-4
"""Of a target, for what rounding to the ring costs beyond the noise."""


@dataclass(frozen=True)
class RoundCost:
    """One site's steps under a plan.

    Attributes:
        units: Units that may be sampled at the site, N.
        sample_rate: q; under bands the share of the units that a step takes.
        sigma: Standard deviation of the noise over the clip norm; under bands of what is fresh in a step.
        steps: Of one round.
        rounds: Of the whole run.
        delta: δ.
        unit: Whom a neighbour lacks.
        bands: b, where the whole run is one mechanism with correlated noise; 0 where every step has its own.
    """

    units: int
    sample_rate: float
    sigma: float
    steps: int
    rounds: int
    delta: float
    unit: Literal["patient", "example"]
    bands: int = 0

    @property
    def mechanism(self) -> SampledGaussian | BandedGaussian:
        """What one round does to a unit; where the noise is in the ring, what that stands for.

        Under bands what the whole run does: it is reserved before the first round, and never again.
        """
        return self.banded or SampledGaussian(
            sample_rate=self.sample_rate, sigma=self.sigma, steps=self.steps
        )

    @property
    def banded(self) -> BandedGaussian | None:
        """The whole run's one mechanism; None where every round has its own."""
        if not self.bands:
            return None
        return BandedGaussian(sigma=self.sigma, bands=self.bands, steps=self.steps * self.rounds)

    @property
    def widest(self) -> float:
        """The largest standard deviation of a step's noise over the clip norm."""
        if not self.bands:
            return self.sigma
        return self.sigma * math.sqrt(float(variances(self.bands, self.steps * self.rounds)[-1]))

    def after(self, done: int) -> RoundCost:
        """What is left of a round once so many of its steps are done; all, where the run is one mechanism.

        Raises:
            ConfigError: Nothing would be left.
        """
        if not 0 <= done < self.steps:
            raise ConfigError(
                "no step of the round is left", found=f"{done} done", expected=f"fewer than {self.steps}"
            )
        return self if self.bands else replace(self, steps=self.steps - done)

    def account(self, rounds: int) -> Account:
        """What so many rounds do to a unit; the first one as much as all, where the run is one mechanism."""
        times = min(rounds, 1) if self.bands else rounds
        return Account(unit=self.unit, mechanisms=(self.mechanism,) * times)

    def epsilon(self, rounds: int | None = None) -> Epsilon:
        """ε after so many rounds; None: after the whole run. As it is reserved, by Rényi DP.

        Raises:
            PolicyError: δ ≥ 1/units.
        """
        return self.account(self.rounds if rounds is None else rounds).epsilon(self.delta, units=self.units)


@lru_cache(maxsize=64)
def sigma_of_sums(rules: PrivacyRules, rounds: int) -> float:
    """σ of noise that is added to sums, over what one unit can change: one for all sites.

    Raises:
        ConfigError: A target that no noise meets, or that the count of adaptive clipping leaves nothing of.
    """
    sigma = rules.sigma
    if sigma is None:
        target = (rules.epsilon or 0.0) * (1 - RING_MARGIN)
        sigma = least_noise(target, rules.delta, units=1, sample_rate=rules.sample_rate or 1.0, steps=rounds)
    _require_count(rules, sigma)
    return sigma


def joint_length(rules: PrivacyRules, rounds: int) -> JointLength:
    """How a site's contribution holds its clipped update and its part of the count of unclipped sites.

    Raises:
        ConfigError: As `sigma_of_sums`.
    """
    return JointLength.of(rules.clip_norm, sigma_of_sums(rules, rounds), rules.adaptive.count_noise)


def _require_count(rules: PrivacyRules, sigma: float) -> None:
    """Refuse a count that alone would cost what the whole release may.

    Raises:
        ConfigError: As `vector_sigma`.
    """
    if rules.clipping == "adaptive":
        vector_sigma(sigma, rules.adaptive.count_noise)


def round_cost(plan: TrainingPlan, units: int) -> RoundCost | None:
    """What one round costs at a site of so many units; None where its training has no noise of its own.

    Raises:
        ConfigError: A batch larger than the site, a target that no noise meets, or as `sigma_of_sums`.
        PolicyError: δ ≥ 1/units.
    """
    rules = plan.privacy
    if rules is None or not rules.trains_privately:
        return None
    return cost_of(rules, plan.local, plan.rounds, units)


@lru_cache(maxsize=1024)
def cost_of(rules: PrivacyRules, local: LocalWork, rounds: RoundRules, units: int) -> RoundCost:
    """As `round_cost`, from the parts of the plan that decide it."""
    if rules.mechanism == "banded":
        return _banded(rules, local, rounds, units)
    rate = rules.sample_rate or sample_rate(local.batch_size, units)
    steps = local.steps or max(1, math.floor((local.epochs or 0.0) / rate + 0.5))
    sigma = rules.sigma if rules.noise == "local" else sigma_of_sums(rules, rounds.rounds)
    if sigma is None:
        if rules.epsilon is None:
            raise ConfigError("a plan's privacy has neither a target nor a noise", expected="one of them")
        sigma = least_noise(
            rules.epsilon, rules.delta, units=units, sample_rate=rate, steps=steps * rounds.rounds
        )
    _require_count(rules, sigma)
    cost = RoundCost(
        units, rate, sigma, steps, rounds.rounds, rules.delta,
        "example" if rules.unit == "example" else "patient",
    )  # fmt: skip
    cost.epsilon()  # names a δ that is too large for so few units
    return cost


def _banded(rules: PrivacyRules, local: LocalWork, rounds: RoundRules, units: int) -> RoundCost:
    """Blocks in turn: the noise of the one Gaussian mechanism, times what a unit moves the whole run by."""
    bands = rules.bands or max(1, math.floor(1 / sample_rate(local.batch_size, units) + 0.5))
    if bands > units:
        raise ConfigError(
            "there are more blocks than units to be in them", found=f"{bands} bands, {units} units",
            expected=f"at most {units}", remedy="set privacy.bands to less, or to null",
        )  # fmt: skip
    steps = local.steps or max(1, math.floor((local.epochs or 0.0) * bands + 0.5))
    sigma = rules.sigma
    if sigma is None:
        if rules.epsilon is None:
            raise ConfigError("a plan's privacy has neither a target nor a noise", expected="one of them")
        whole = least_noise(rules.epsilon, rules.delta, units=units, sample_rate=1.0, steps=1)
        sigma = whole * sensitivity(bands, steps * rounds.rounds)
    cost = RoundCost(
        units, 1 / bands, sigma, steps, rounds.rounds, rules.delta, "patient", bands
    )  # fmt: skip
    cost.epsilon()  # names a δ that is too large for so few units
    return cost
