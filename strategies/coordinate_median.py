"""The coordinate-wise median of single updates.

Yin, Chen, Ramchandran and Bartlett, "Byzantine-Robust Distributed Learning: Towards Optimal Statistical
Rates", ICML 2018, arXiv:1803.01498, definition 1:

    x_k ← x_k + med(d_1k, …, d_nk)        for each coordinate k of the adapter

With fewer than half of the sites hostile, each coordinate of the step stays between the smallest and the
largest of the honest ones. Weights do not count: whoever could claim a large one would have many votes. Over
sums of groups it is `group_median.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, final

import numpy as np
from pydantic import BaseModel

from wardround.core.packed import Array
from wardround.strategies._individuals import RobustMean, RobustOptions, by_coordinate
from wardround.strategies.contract import SumStrategy


@final
class CoordinateMedian(RobustMean[RobustOptions]):
    """The median of each coordinate; of an even number of sites the mean of the two in the middle."""

    Options: ClassVar[type[BaseModel]] = RobustOptions

    def needed(self) -> int:
        """As the options say."""
        return self.options.least_sites

    def aggregate(self, updates: Sequence[Array], weights: Array) -> Array:  # noqa: ARG002 - one site, one vote
        """N of (d,) → (d,)."""
        return by_coordinate(updates, lambda rows: np.asarray(np.median(rows, axis=0)))


STRATEGY: type[SumStrategy] = CoordinateMedian
