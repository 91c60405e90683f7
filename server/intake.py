"""Checks every reply before it is folded, and folds it as it comes: memory does not grow with the sites."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from wardround.core.counting import WEIGHT, reply_layout
from wardround.core.errors import PeerError
from wardround.core.messages import Reply, Request
from wardround.core.packed import Array, Counters, Layout, zeros
from wardround.core.plan import TrainingPlan
from wardround.privacy.ring import MOST_WEIGHT, add

MOST_COUNT = 2**48
"""Of one counter of one site: sums of thousands of sites stay far from wrapping."""


@dataclass
class Intake:
    """Collects one exchange.

    Attributes:
        plan: The plan that replies have to follow.
        requests: What was asked, by site.
        statistics_layout: Layout that contributions have to follow.
        total: Σ of the contributions' ring integers.
        counters: Σ of the counters.
        survivors: Sites whose contribution is in the sum.
        settled: Every site that has answered, in whatever way.
    """

    plan: TrainingPlan
    requests: dict[str, Request]
    statistics_layout: Layout
    total: Array = field(init=False)
    counters: Counters = field(init=False)
    survivors: list[str] = field(default_factory=list)
    settled: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.total = np.zeros(self.statistics_layout.size, dtype=np.int64)
        self.counters = zeros(reply_layout(self.plan), np.int64)

    @property
    def waiting(self) -> list[str]:
        """Sites that have not answered yet."""
        return sorted(set(self.requests) - self.settled)

    def take(self, reply: Reply) -> bool:
        """Check and fold one reply; False where it belongs to another exchange or came twice.

        Raises:
            PeerError: The reply is malformed or out of bounds; the site is settled without being folded.
        """
        request = self.requests.get(reply.site)
        if request is None or reply.site in self.settled:
            return False
        if (reply.run_id, reply.round, reply.stage, reply.attempt) != (
            request.run_id,
            request.round,
            request.stage,
            request.attempt,
        ):
            return False
        self.settled.add(reply.site)
        if reply.status != "ok":
            return True
        counters = self._checked_counters(reply, request)
        if request.train:
            add(self.total, self._checked_statistics(reply))
            self.survivors.append(reply.site)
        add(self.counters.vector, counters.vector)
        return True

    def _checked_counters(self, reply: Reply, request: Request) -> Counters:
        if reply.plan_digest != self.plan.digest:
            raise PeerError(
                "the reply follows another plan", found=reply.plan_digest[:12], expected=self.plan.digest[:12]
            )
        counters = reply.counters
        if counters is None or counters.layout.digest != self.counters.layout.digest:
            raise PeerError(
                "the reply's counters have another layout", expected=self.counters.layout.digest[:12]
            )
        vector = counters.vector
        if vector.dtype != np.int64 or vector.min(initial=0) < 0 or vector.max(initial=0) > MOST_COUNT:
            raise PeerError(
                "the reply's counters are not counts",
                found=vector.dtype,
                expected=f"int64 from 0 to {MOST_COUNT}",
            )
        weight = int(counters[WEIGHT])
        least = 1 if request.train else 0
        if not least <= weight <= MOST_WEIGHT:
            raise PeerError(
                "the reply's weight is out of bounds", found=weight, expected=f"{least} to {MOST_WEIGHT}"
            )
        return counters

    def _checked_statistics(self, reply: Reply) -> Array:
        statistics = reply.statistics
        if statistics is None or reply.statistics_layout_digest != self.statistics_layout.digest:
            raise PeerError(
                "the contribution has another layout", expected=self.statistics_layout.digest[:12]
            )
        if statistics.shape != self.total.shape or statistics.dtype != np.int64:
            raise PeerError(
                "the contribution has the wrong shape or type",
                found=f"{statistics.dtype} {statistics.shape}",
                expected=f"int64 {self.total.shape}",
            )
        bound = 2**63 // max(1, sum(request.train for request in self.requests.values()))
        if statistics.max(initial=0) >= bound or statistics.min(initial=0) <= -bound:
            raise PeerError(
                "the contribution is out of the ring's bounds: the sum could wrap",
                expected=f"ring integers below {bound} in size",
            )
        return statistics


def quorum_of(plan: TrainingPlan, cohort: int) -> int:
    """Least number of contributions for a round of `cohort` sites to count; at least one."""
    return max(1, math.ceil(plan.rounds.quorum * cohort))
