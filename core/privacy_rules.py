"""What a plan demands of differential privacy: whom it protects, how well, and where the noise is drawn.

Everything here is a constant of the plan. What follows from it and from the number of a site's units (rate,
noise, steps) is `privacy/accounting/of_plan.py`'s; what is spent stands in the site's own ledger.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, Self, TypeAlias

from pydantic import Field, model_validator

from wardround.core.checked import Frozen

Noise: TypeAlias = Literal["local", "distributed", "central"]
Steps: TypeAlias = Literal["poisson", "banded"]


class AdaptiveClipping(Frozen):
    """Clip norm that follows a quantile of the units' norms: Andrew et al. 2021, arXiv:1905.03871."""

    quantile: float = Field(default=0.5, gt=0, lt=1)
    """Share of the units that are to stay unclipped."""
    rate: float = Field(default=0.2, gt=0)
    """η_C: C ← C · exp(−η_C (share − quantile))."""
    count_noise: float = Field(default=10.0, gt=0)
    """σ_b: standard deviation of the noise on the count of unclipped units."""
    smallest: float = Field(default=1e-6, ge=1e-30)
    """C never goes below."""
    largest: float = Field(default=1e6, le=1e30)
    """C never goes above; of whole sites' updates, a site refuses a larger one."""


class PrivacyRules(Frozen):
    """Differential privacy of a run: (ε, δ) per unit and site, under adding or removing one unit.

    Local noise: every step adds some at the site. Distributed: each site adds a share to its one
    clipped sum, and the sum over the sites has the wanted noise. Central: the server adds it to the opened
    sum, and has to be trusted to.
    """

    unit: Literal["patient", "example", "site"]
    """Whom one neighbour lacks: all rows of a patient, one row, or a whole site."""
    noise: Noise = "local"
    epsilon: float | None = Field(default=None, gt=0)
    """Target over the whole planned run, at each site; the noise follows."""
    sigma: float | None = Field(default=None, gt=0)
    """Instead of a target: standard deviation of the noise over the clip norm."""
    delta: float = Field(default=1e-5, gt=0, lt=1)
    """Every site needs fewer than 1/δ units."""
    clip_norm: float = Field(default=1.0, gt=0)
    """C: no unit moves a sum further (of a site as unit: no update is longer)."""
    clipping: Literal["flat", "per_layer", "automatic", "adaptive"] = "flat"
    adaptive: AdaptiveClipping = AdaptiveClipping()
    """Read under clipping=adaptive alone."""
    sample_rate: float | None = Field(default=None, gt=0, le=1)
    """q: each step takes each unit with this probability. None: local.batch_size over the site's units."""
    most_examples: int | None = Field(default=None, ge=1)
    """K: a step reads at most so many rows of a unit; None reads all. Under unit=example the owner of K rows
    is accounted for."""
    mechanism: Steps = "poisson"
    """Of local noise: `poisson` samples the units of each step, and its noise is its own; `banded` takes
    fixed blocks of them in turn, with noise that is correlated over the run's steps: one mechanism."""
    bands: int | None = Field(default=None, ge=1, le=100_000)
    """b, under mechanism=banded: so many blocks, each unit in one of them and so in every b-th step; and so
    many bands has the matrix of the noise. None: a site's units over local.batch_size."""

    colluders: int = Field(default=1, ge=0)
    """Under distributed noise: sites assumed to tell the server their shares of it."""

    @model_validator(mode="after")
    def _goes_together(self) -> Self:
        if (self.epsilon is None) == (self.sigma is None):
            raise ValueError("give exactly one of epsilon (a target for the whole run) and sigma")
        for fault in self._of_bands():
            raise ValueError(fault)
        allowed: dict[str, tuple[Noise, ...]] = {
            "patient": ("local", "distributed"),
            "example": ("local",),
            "site": ("central",),
        }  # fmt: skip
        if self.noise not in allowed[self.unit]:
            raise ValueError(
                f"unit={self.unit} cannot be protected by noise={self.noise}: "
                f"set noise to {' or '.join(allowed[self.unit])}"
            )
        if self.clipping != "flat" and self.noise != "local" and not self.adapts_to_sites:
            raise ValueError(f"clipping={self.clipping} goes with local noise alone: set clipping to flat")
        if self.adaptive != AdaptiveClipping() and self.clipping != "adaptive":
            raise ValueError(f"adaptive has no effect under clipping={self.clipping}: leave it out")
        limits = self.adaptive
        if self.clipping == "adaptive" and not limits.smallest <= self.clip_norm <= limits.largest:
            raise ValueError(
                f"clip_norm={self.clip_norm:g} is beyond the limits of adaptive clipping: "
                "set adaptive.smallest and adaptive.largest around it"
            )
        if self.clipping == "adaptive" and self.sigma is not None and 2 * limits.count_noise <= self.sigma:
            raise ValueError(
                f"adaptive.count_noise={limits.count_noise:g} costs more than all of sigma={self.sigma:g}: "
                f"set it above {self.sigma / 2:g}"
            )
        if self.unit == "site" and (self.sample_rate is not None or self.most_examples is not None):
            raise ValueError("under unit=site nothing is sampled: leave sample_rate and most_examples out")
        if self.unit != "site" and self.noise == "distributed" and self.sample_rate is None:
            raise ValueError(
                "distributed noise is one for all sites, and so is their sample rate: give sample_rate"
            )
        return self

    def _of_bands(self) -> Iterator[str]:
        """What does not go with the mechanism."""
        if self.mechanism == "poisson":
            if self.bands is not None:
                yield (
                    f"bands={self.bands} has no effect under mechanism=poisson: leave it out, or set "
                    "mechanism to banded"
                )
            return
        if self.unit != "patient":
            yield (
                f"mechanism=banded gives every patient a block of steps, and unit={self.unit} has none: set "
                "unit to patient, or mechanism to poisson"
            )
        if self.noise != "local":
            yield (
                f"mechanism=banded correlates the noise of a site's own steps, and noise={self.noise} is "
                "drawn once a round: set noise to local, or mechanism to poisson"
            )
        if self.clipping == "adaptive":
            yield (
                "mechanism=banded has one noise for the whole run, and clipping=adaptive would scale it anew "
                "in every step: set clipping to flat, per_layer or automatic"
            )
        if self.sample_rate is not None:
            yield (
                "nothing is sampled under mechanism=banded: leave sample_rate out, and set bands to its "
                "reciprocal"
            )

    @property
    def trains_privately(self) -> bool:
        """Whether the gradients of single units are clipped while a site trains."""
        return self.unit != "site"

    @property
    def adapts_to_sites(self) -> bool:
        """Whether the server moves the norm to which whole sites' updates are clipped."""
        return self.unit == "site" and self.clipping == "adaptive"
