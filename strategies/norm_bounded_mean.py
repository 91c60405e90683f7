"""The mean of updates none of which is longer than the median one.

Sun, Kairouz, Suresh and McMahan, "Can You Really Backdoor Federated Learning?", 2019, arXiv:1911.07963,
section 4.1 (norm thresholding), with the bound that the sites' own norms give:

    M = median(‖d_1‖, …, ‖d_n‖), or a bound of the plan's
    x ← x + Σ w_i d_i min(1, M/‖d_i‖) / Σ w_i

So no site moves the mean by more than its share of the weight times M, whatever it sends, and with less than
half of them hostile M is no longer than the longest honest update. It bounds what a hostile site does; it
does not outvote it. Norms are L2, of the whole adapter's update in its own coordinates. Among
honest sites a bound that is known before needs no individuals: `encoding.norm` shortens at the site.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, final

import numpy as np
from pydantic import BaseModel, Field

from wardround.core.packed import Array
from wardround.strategies._individuals import RobustMean, RobustOptions, distances_from, weighted
from wardround.strategies.contract import SumStrategy


class NormBoundedOptions(RobustOptions):
    """Options of the norm-bounded mean."""

    bound: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """M in the adapter's units; null: the median of the norms of the round's updates."""


@final
class NormBoundedMean(RobustMean[NormBoundedOptions]):
    """The weighted mean of the shortened updates."""

    Options: ClassVar[type[BaseModel]] = NormBoundedOptions
    over_sums = "strategy=fedavg with encoding.norm as the bound"

    def needed(self) -> int:
        """As the options say."""
        return self.options.least_sites

    def aggregate(self, updates: Sequence[Array], weights: Array) -> Array:
        """N of (d,), (n,) → (d,)."""
        norms = distances_from(np.zeros(updates[0].size), updates)
        bound = self.options.bound or float(np.median(norms))
        factors = np.ones(len(updates))
        np.divide(bound, norms, out=factors, where=norms > bound)
        shortened = [update * factor for update, factor in zip(updates, factors, strict=True)]
        return weighted(shortened, weights)


STRATEGY: type[SumStrategy] = NormBoundedMean
