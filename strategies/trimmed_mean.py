"""The coordinate-wise trimmed mean of single updates.

Yin, Chen, Ramchandran and Bartlett, "Byzantine-Robust Distributed Learning: Towards Optimal Statistical
Rates", ICML 2018, arXiv:1803.01498, definition 2:

    x_k ← x_k + mean of d_1k, …, d_nk without the t largest and the t smallest        for each coordinate k

with t a number, or t = ⌈β n⌉ of a share β. With at most t hostile sites each coordinate stays between the
smallest and the largest of the honest ones. Weights do not count. Over sums of groups it is
`group_trimmed_mean.py`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar, Self, final

import numpy as np
from pydantic import BaseModel, Field, model_validator

from wardround.core.packed import Array
from wardround.strategies._individuals import RobustMean, by_coordinate
from wardround.strategies._server_optimisers import ComposedOptions
from wardround.strategies.contract import SumStrategy


class TrimmedMeanOptions(ComposedOptions):
    """Options of the trimmed mean: a number, or a share."""

    trim: int | None = Field(default=1, ge=0)
    """t: so many of a coordinate's largest values, and of its smallest, do not count; takes 2t + 1 sites."""
    share: float | None = Field(default=None, gt=0, lt=0.5)
    """β: in place of t, a share of the sites that contribute, rounded up; one site is always left."""

    @model_validator(mode="after")
    def _one_of_them(self) -> Self:
        if (self.trim is None) == (self.share is None):
            raise ValueError("give one of trim and share, and set the other to null")
        return self


@final
class TrimmedMean(RobustMean[TrimmedMeanOptions]):
    """Of each coordinate the mean of what is left without its largest and smallest values."""

    Options: ClassVar[type[BaseModel]] = TrimmedMeanOptions
    over_sums = "strategy=group_trimmed_mean"

    def needed(self) -> int:
        """So many that one is left: 2t + 1; of a share three, of which one can be trimmed at each end."""
        return 3 if self.options.trim is None else 2 * self.options.trim + 1

    def aggregate(self, updates: Sequence[Array], weights: Array) -> Array:  # noqa: ARG002 - one site, one vote
        """N of (d,) → (d,)."""
        trim, last = self.trimmed(len(updates)), len(updates)
        return by_coordinate(
            updates, lambda rows: np.asarray(np.sort(rows, axis=0)[trim : last - trim].mean(axis=0))
        )

    def trimmed(self, sites: int) -> int:
        """How many are trimmed at each end, of so many sites."""
        if self.options.trim is not None:
            return self.options.trim
        share = self.options.share or 0.0
        return min(math.ceil(share * sites - 1e-9), (sites - 1) // 2)  # 0.1 · 30 is a little above 3


STRATEGY: type[SumStrategy] = TrimmedMean
