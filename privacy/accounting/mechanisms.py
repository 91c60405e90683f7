"""Mechanisms: what was done to a unit, as frozen values that say all of their mathematics.

An accountant can interpret a mechanism without having seen the code that ran it. A kind is never removed
and never means something else later, since ledgers keep it for years; what is new gets a kind of its own.

Below, C is the clip norm of one contribution, and z ~ N(0, (σ C)² I) the noise added to a sum of them. What
a sum is divided by later is a constant of the plan, and changes nothing here.
"""

from __future__ import annotations

import math
from typing import Annotated, Final, Literal, TypeAlias

from pydantic import Field

from wardround.core.checked import Frozen

MOST_STEPS: Final = 10**9
MOST_EXAMPLES: Final = 1_000
"""Larger bounds on a unit's contribution have a mixture that nobody would release."""

Rate: TypeAlias = Annotated[float, Field(gt=0, le=1)]
Sigma: TypeAlias = Annotated[float, Field(gt=0)]
Steps: TypeAlias = Annotated[int, Field(ge=1, le=MOST_STEPS, strict=True)]


class SampledGaussian(Frozen):
    """Poisson-subsampled Gaussian: each step takes each unit with probability q, apart from all others.

    Releases Σ_(i in the sample) clip_C(v_i) + z. Mironov, Talwar & Zhang 2019, arXiv:1908.10530, section 3.

    Guarantee: neighbours differ by one unit (added or removed) whose contribution to a step is clipped
        *once*, to C. Where a unit has several examples that are clipped apart, it is a `BoundedMixture`.
        The sample is a real Poisson draw and nobody learns it; a shuffled epoch is none.
    """

    kind: Literal["sampled_gaussian"] = "sampled_gaussian"
    sample_rate: Rate
    """q, in (0, 1]: of units, not of examples."""
    sigma: Sigma
    """σ: standard deviation of the noise over C."""
    steps: Steps = 1


class Gaussian(Frozen):
    """Gaussian mechanism on all units: releases Σ_i clip_C(v_i) + z, so many times.

    Dwork & Roth 2014, appendix A; exact epsilon in Balle & Wang 2018, arXiv:1805.06530, theorem 8.

    Guarantee: neighbours differ by one unit (added or removed), clipped once to C in each release.
    """

    kind: Literal["gaussian"] = "gaussian"
    sigma: Sigma
    """σ: standard deviation of the noise over C."""
    count: Steps = 1


class BoundedMixture(Frozen):
    """Gaussian mechanism on a Poisson sample of *examples*, of which a unit owns at most K.

    Each step takes each example with probability q; the taken examples are clipped to C apart from each
    other. A unit then moves the sum by at most j C, j ~ Binomial(K, q), and N(0, σ²) against Σ_j P(j) N(j,
    σ²) dominates what it can do: mixtures of Gaussians, Choquette-Choo et al. 2024, arXiv:2310.15526,
    section 4 (vectors are dominated by their norms, and a unit with fewer examples by one with K).

    Guarantee: neighbours differ by one unit (added or removed) with all of its examples, at most K of them.
    """

    kind: Literal["bounded_mixture"] = "bounded_mixture"
    sample_rate: Rate
    """q, in (0, 1]: of examples."""
    sigma: Sigma
    """σ: standard deviation of the noise over the clip norm C of *one example*."""
    most_examples: Annotated[int, Field(ge=1, le=MOST_EXAMPLES, strict=True)]
    """K: no unit has more examples in the part that is sampled."""
    steps: Steps = 1

    def probabilities(self) -> tuple[float, ...]:
        """P(j) for j = 0, …, K: that a step takes j examples of the unit."""
        K, q = self.most_examples, self.sample_rate
        if q == 1:
            return (0.0,) * K + (1.0,)
        # In logarithms: a binomial coefficient of 1,000 overflows no float, but its powers of q vanish.
        return tuple(
            math.exp(
                math.lgamma(K + 1) - math.lgamma(j + 1) - math.lgamma(K - j + 1)
                + j * math.log(q) + (K - j) * math.log1p(-q)
            )
            for j in range(K + 1)
        )  # fmt: skip


class NoPrivacy(Frozen):
    """A release without noise, or one whose mathematics nobody knows: ε is infinite from here on."""

    kind: Literal["no_privacy"] = "no_privacy"


Mechanism: TypeAlias = Annotated[
    SampledGaussian | Gaussian | BoundedMixture | NoPrivacy, Field(discriminator="kind")
]
