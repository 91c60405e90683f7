"""Checks every reply before it is folded, and folds it as it comes: memory does not grow with the sites."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from wardround.core.counting import (
    TRAIN_LOSS,
    TRAIN_TARGETS,
    VALIDATION,
    WEIGHT,
    most_count,
    reply_layout,
)
from wardround.core.errors import PeerError
from wardround.core.messages import Reply, Request
from wardround.core.packed import Array, Counters, Layout, zeros
from wardround.core.plan import TrainingPlan
from wardround.privacy.ring import MOST_WEIGHT, add


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
        scored: Sites whose validation counters are in the sum.
        settled: Every site that has answered, in whatever way.
    """

    plan: TrainingPlan
    requests: dict[str, Request]
    statistics_layout: Layout
    total: Array = field(init=False)
    counters: Counters = field(init=False)
    survivors: list[str] = field(default_factory=list)
    scored: set[str] = field(default_factory=set)
    settled: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.total = np.zeros(self.statistics_layout.size, dtype=np.int64)
        self.counters = zeros(reply_layout(self.plan), np.int64)

    @property
    def waiting(self) -> list[str]:
        """Sites that have not answered yet."""
        return sorted(set(self.requests) - self.settled)

    @property
    def unscored(self) -> tuple[str, ...]:
        """Sites that were asked to score the broadcast and whose counters are not in the sum, sorted."""
        asked = {site for site, request in self.requests.items() if request.evaluate}
        return tuple(sorted(asked - self.scored))

    def take(self, reply: Reply) -> bool:
        """Check and fold one reply; False where it belongs to another exchange or came twice.

        A site that has failed contributes nothing, but what it measured before it failed counts.

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
        if reply.status != "ok" and reply.counters is None and reply.statistics is None:
            return True
        contributes = request.train and reply.status == "ok"
        counters = self._checked_counters(reply, request, contributes=contributes)
        if contributes:
            add(self.total, self._checked_statistics(reply))
            self.survivors.append(reply.site)
        elif reply.statistics is not None:
            raise PeerError("a reply without training carries a contribution", expected="no statistics")
        add(self.counters.vector, counters.vector)
        if request.evaluate:
            self.scored.add(reply.site)
        return True

    def _checked_counters(self, reply: Reply, request: Request, *, contributes: bool) -> Counters:
        """Counts within bounds, and none that was not asked for: every one of them is added to the sum."""
        if reply.plan_digest != self.plan.digest:
            raise PeerError(
                "the reply follows another plan", found=reply.plan_digest[:12], expected=self.plan.digest[:12]
            )
        counters = reply.counters
        if counters is None or counters.layout.digest != self.counters.layout.digest:
            raise PeerError(
                "the reply's counters have another layout", expected=self.counters.layout.digest[:12]
            )
        vector, most = counters.vector, most_count(len(self.requests))
        if vector.dtype != np.int64 or vector.min(initial=0) < 0 or vector.max(initial=0) > most:
            raise PeerError(
                "the reply's counters are not counts",
                found=vector.dtype,
                expected=f"int64 from 0 to {most}",
            )
        weight = int(counters[WEIGHT])
        if contributes and not 1 <= weight <= MOST_WEIGHT:
            raise PeerError(
                "the reply's weight is out of bounds", found=weight, expected=f"1 to {MOST_WEIGHT}"
            )
        if not contributes and weight:
            # it would be in the sum that the update is divided by
            raise PeerError("a reply without training carries a weight", expected="weight 0")
        trained = contributes and request.stage == 0
        if not trained and (counters[TRAIN_LOSS] or counters[TRAIN_TARGETS]):
            raise PeerError("a reply without training carries training sums", expected="zeros")
        if not request.evaluate and any(
            array.any() for name, array in counters.tensors().items() if name.startswith(VALIDATION)
        ):
            raise PeerError("a reply without evaluation carries validation counters", expected="zeros")
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
