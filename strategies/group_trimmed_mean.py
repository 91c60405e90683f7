"""The coordinate-wise trimmed mean of group means.

Yin, Chen, Ramchandran and Bartlett, "Byzantine-Robust Distributed Learning: Towards Optimal Statistical
Rates", ICML 2018, arXiv:1803.01498, definition 2, over means of groups (`_group_vote.py`).
"""

from __future__ import annotations

from typing import final

import numpy as np

from wardround.core.packed import Array
from wardround.strategies._group_vote import GroupVote
from wardround.strategies.contract import SumStrategy


@final
class GroupTrimmedMean(GroupVote):
    """Of each coordinate the mean of what is left without its `attackers` largest and smallest values."""

    def vote(self, means: Array) -> Array:
        """(G, d) → (d,)."""
        trim = self.options.attackers
        return np.asarray(np.sort(means, axis=0)[trim : len(means) - trim].mean(axis=0))


STRATEGY: type[SumStrategy] = GroupTrimmedMean
