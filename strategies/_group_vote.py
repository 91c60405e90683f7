"""A vote over groups: what the coordinate-wise median and the trimmed mean of group means share.

Under secure aggregation nobody sees a single site's update, so the vote is among means over groups:

    m_g = Σ_{i in g} w_i d_i / Σ_{i in g} w_i        x ← x + vote(m_1, …, m_G)

One hostile site makes its whole group hostile. With a of them at most a groups are, and 2a + 1 groups outvote
them; so n ≥ g (2a + 1) sites are needed. The vote is coordinate by coordinate (Yin, Chen, Ramchandran and
Bartlett, "Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates", ICML 2018,
arXiv:1803.01498, definitions 1 and 2); means of groups as its voters: Karimireddy, He and Jaggi,
"Byzantine-Robust Learning on Heterogeneous Datasets via Bucketing", ICLR 2022, arXiv:2006.09365.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from pydantic import BaseModel, Field

from wardround.core.checked import Frozen
from wardround.core.errors import PeerError
from wardround.core.packed import Array, Layout, Packed, Statistics
from wardround.strategies._mean_update import MeanUpdate, mean_update
from wardround.strategies.contract import Broadcast, LocalRules, SiteMemory


class GroupVoteOptions(Frozen):
    """Options of a vote over groups."""

    group_size: int = Field(default=5, ge=3)
    """Least number of sites in a group; a site's policy demands a least cohort of it."""
    attackers: int = Field(default=1, ge=1)
    """a: so many hostile sites are outvoted. It takes group_size · (2a + 1) sites."""


class GroupVote(MeanUpdate[GroupVoteOptions]):
    """The vote over the groups' means is the step; the server keeps nothing else."""

    Options: ClassVar[type[BaseModel]] = GroupVoteOptions

    def __init__(self, options: GroupVoteOptions, layout: Layout) -> None:
        super().__init__(options, layout)
        self.group_size = options.group_size
        self.least_groups = 2 * options.attackers + 1

    @abstractmethod
    def vote(self, means: Array) -> Array:
        """(G, d) → (d,)."""

    def combine(self, sums: Sequence[tuple[Statistics, float]]) -> tuple[Statistics, float]:
        """The vote over the groups' means as a sum of all weights, which `fold` divides by again.

        Raises:
            PeerError: Fewer groups than outvote the attackers; as `mean_update`.
        """
        if len(sums) < self.least_groups:
            raise PeerError(
                "too few groups are left for a vote",
                found=len(sums),
                expected=f"at least {self.least_groups}",
            )
        means = np.stack([mean_update(self.layout, total, weight).vector for total, weight in sums])
        weight = float(sum(weight for _, weight in sums))
        return Packed(self.layout, self.vote(means) * weight), weight

    def local_rules(self, broadcast: Broadcast, memory: SiteMemory, round: int) -> LocalRules:  # noqa: ARG002 - no rules
        """None."""
        return LocalRules()

    def step(self, mean: Statistics, slots: Mapping[str, Packed]) -> tuple[Packed, dict[str, Any]]:
        """What the vote gave."""
        return mean, dict(slots)
