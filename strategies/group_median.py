"""The coordinate-wise median of group means.

Yin, Chen, Ramchandran and Bartlett, "Byzantine-Robust Distributed Learning: Towards Optimal Statistical
Rates", ICML 2018, arXiv:1803.01498, definition 1, over means of groups (`_group_vote.py`).
"""

from __future__ import annotations

from typing import final

import numpy as np

from wardround.core.packed import Array
from wardround.strategies._group_vote import GroupVote
from wardround.strategies.contract import SumStrategy


@final
class GroupMedian(GroupVote):
    """The median of each coordinate; of an even number of groups the mean of the two in the middle."""

    def vote(self, means: Array) -> Array:
        """(G, d) → (d,)."""
        return np.asarray(np.median(means, axis=0))


STRATEGY: type[SumStrategy] = GroupMedian
