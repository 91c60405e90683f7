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
from wardround.privacy.accounting.banded import MOST_BANDS, sensitivity
from wardround.privacy.accounting.lattice import LEAST_SHARE_SIGMA

MOST_STEPS: Final = 10**9
MOST_EXAMPLES: Final = 1_000
"""Larger bounds on a unit's contribution have a mixture that nobody would release."""
MOST_SHARES: Final = 10**6
MOST_COORDINATES: Final = 10**12

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


class SampledDiscreteGaussians(Frozen):
    """Poisson-subsampled sum of integer vectors under a sum of discrete Gaussian shares.

    Each step takes each unit with probability q, apart from all others, and releases a sum of integer
    vectors + Z: Z is the sum of m independent shares, in each of d coordinates a discrete Gaussian
    P(z) ∝ exp(−z² / 2 σ_1²). More shares in the sum, and reducing it modulo a ring, are post-processing.
    Kairouz, Liu & Steinke 2021, arXiv:2102.06387; what it costs is in `lattice.py`.

    Guarantee: neighbours differ by one unit (added or removed) that moves the sum of integers of a step by at
        most √m σ_1 / σ (L2): clipped *once*, and rounded (`noise/shares.py:rounded_sensitivity`). The sample
        is a real Poisson draw and nobody learns it. At least m of the shares are known to nobody who looks at
        the sum: whoever colludes, and whose own share that is, is not among them.
    """

    kind: Literal["sampled_discrete_gaussians"] = "sampled_discrete_gaussians"
    sample_rate: Rate
    """q, in (0, 1]: of units, not of examples."""
    sigma: Sigma
    """σ: standard deviation of the m shares' sum, √m σ_1, over the sensitivity after rounding."""
    share_sigma: Annotated[float, Field(ge=LEAST_SHARE_SIGMA)]
    """σ_1: of one share, in units of the integers."""
    shares: Annotated[int, Field(ge=1, le=MOST_SHARES, strict=True)]
    """m: the least that nobody who attacks knows."""
    coordinates: Annotated[int, Field(ge=1, le=MOST_COORDINATES, strict=True)]
    """d: of the vector."""
    steps: Steps = 1

    def step(self) -> tuple[float, float, float, int, int]:
        """What decides the cost of one step: the arguments of `lattice.rdp_of_lattice_step`."""
        return self.sample_rate, self.sigma, self.share_sigma, self.shares, self.coordinates


class BandedGaussian(Frozen):
    """Banded matrix factorisation over a whole run: sums of blocks in turn, with noise correlated over steps.

    Step t = 0, …, n − 1 releases Σ_(i in block t mod b) clip_C(v_i) + w_t, where w solves C w = z for the
    matrix of `banded.py`: lower triangular, b bands of the square root of the prefix sums, 1 on its diagonal.

    Guarantee: neighbours differ by one unit (added or removed), clipped once to C in each of its steps. Its
        block follows from itself alone, and it is in no step of another block. Less of the run (its first
        steps, or some of them without being shown) costs no more.
    """

    kind: Literal["banded_gaussian"] = "banded_gaussian"
    sigma: Sigma
    """σ: standard deviation of z over C."""
    bands: Annotated[int, Field(ge=1, le=MOST_BANDS, strict=True)]
    """b: of the matrix, and as many blocks."""
    steps: Steps
    """n: of the whole run, all rounds together."""

    @property
    def whole(self) -> Gaussian:
        """The one Gaussian mechanism that it is: σ over what a unit moves all of it by."""
        return Gaussian(sigma=self.sigma / sensitivity(self.bands, self.steps))


class NoPrivacy(Frozen):
    """A release without noise, or one whose mathematics nobody knows: ε is infinite from here on."""

    kind: Literal["no_privacy"] = "no_privacy"


Mechanism: TypeAlias = Annotated[
    SampledGaussian | Gaussian | BoundedMixture | SampledDiscreteGaussians | BandedGaussian | NoPrivacy,
    Field(discriminator="kind"),
]
