"""The twin's part for whole sites under the server's noise: clipping, count, noise and norm, written out.

Andrew et al. 2021, arXiv:1905.03871v5, Algorithm 1, where the clip norm adapts. From the code that it is
compared with come σ of the whole run, what rounding adds to a sensitivity, and the draw of the noise.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from wardround.core.plan import TrainingPlan
from wardround.core.privacy_rules import PrivacyRules
from wardround.core.seeds import Purpose
from wardround.privacy.accounting.of_plan import sigma_of_sums
from wardround.privacy.noise.discrete import discrete_gaussian
from wardround.privacy.noise.shares import rounded_sensitivity
from wardround.privacy.noise.source import RepeatableSource


@dataclass
class Central:
    """What the server of a plan with central noise does in a round, and asks of sites.

    Attributes:
        rules: The plan's.
        sigma: z, of the whole run.
        norm: C of the round.
    """

    rules: PrivacyRules
    sigma: float
    norm: float

    @staticmethod
    def of(plan: TrainingPlan) -> Central | None:
        """None where the plan has no central noise."""
        rules = plan.privacy
        if rules is None or rules.noise != "central":
            return None
        return Central(rules, sigma_of_sums(rules, plan.rounds.rounds), float(np.float32(rules.clip_norm)))

    @property
    def update_sigma(self) -> float:
        """z_Δ."""
        return float(1 / math.sqrt(self.sigma**-2 - (2 * self.rules.adaptive.count_noise) ** -2))

    def sent(self, delta: np.ndarray) -> tuple[np.ndarray, float]:
        """What a site puts into the ring, and the factor that the ring shortens it by."""
        length, first = math.sqrt(float(np.einsum("i,i->", delta, delta))), self.rules.clip_norm
        if self.rules.clipping == "flat":
            return delta, first * (1 - 1e-4) / length if length > first else 1.0
        short = min(1.0, self.norm * (1 - 2**-20) / max(length, 1e-300))
        clipped = delta * (short * (first * self.sigma / self.update_sigma / self.norm))
        whole = first * self.sigma / self.rules.adaptive.count_noise
        return np.append(clipped, (0.5 if length <= self.norm else -0.5) * whole), 1.0

    def variance(self, scale: float, size: int) -> float:
        """Of the noise on each coordinate of a sum, in squares of ring units."""
        return (self.sigma * rounded_sensitivity(self.rules.clip_norm * scale * (1 + 1e-6), size)) ** 2

    def noise(self, seed: int, round: int, scale: float, size: int) -> np.ndarray:
        """As the server draws it in a simulation."""
        source = RepeatableSource(seed, Purpose.NOISE, round=round, site="")
        return discrete_gaussian(source, size, self.variance(scale, size))

    def folded(self, total: np.ndarray, sites: int) -> np.ndarray:
        """The sum of clipped updates, from what was opened; C moves."""
        rules = self.rules.adaptive
        if self.rules.clipping == "flat":
            return total
        part = self.rules.clip_norm * self.sigma
        share = 0.5 + float(total[-1]) / (part / rules.count_noise) / sites
        updates = total[:-1] * (self.norm / (part / self.update_sigma))
        moved = self.norm * math.exp(-rules.rate * (share - rules.quantile))
        self.norm = float(np.float32(min(max(moved, rules.smallest), rules.largest)))
        return np.asarray(updates)
