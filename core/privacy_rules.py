"""What a plan demands of differential privacy: whom it protects, how well, and where the noise is drawn.

Everything here is a constant of the plan. What follows from it and from the number of a site's units (rate,
noise, steps) is `privacy/accounting/of_plan.py`'s; what is spent stands in the site's own ledger.
"""

from __future__ import annotations

from typing import Literal, Self, TypeAlias

from pydantic import Field, model_validator

from wardround.core.checked import Frozen

Noise: TypeAlias = Literal["local", "distributed", "central"]


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

    Local noise: every step of DP-SGD adds its own at the site. Distributed: each site adds a share to its one
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

    colluders: int = Field(default=1, ge=0)
    """Under distributed noise: sites assumed to tell the server their shares of it."""

    @model_validator(mode="after")
    def _goes_together(self) -> Self:
        if (self.epsilon is None) == (self.sigma is None):
            raise ValueError("give exactly one of epsilon (a target for the whole run) and sigma")
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

    @property
    def trains_privately(self) -> bool:
        """Whether the gradients of single units are clipped while a site trains."""
        return self.unit != "site"

    @property
    def adapts_to_sites(self) -> bool:
        """Whether the server moves the norm to which whole sites' updates are clipped."""
        return self.unit == "site" and self.clipping == "adaptive"
