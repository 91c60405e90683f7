"""Which round's adapter is released, and when to stop: pure functions over the scores so far."""

from __future__ import annotations

import math
from dataclasses import dataclass

from wardround.core.plan import ReleaseRule


@dataclass(frozen=True)
class Selection:
    """Scores of the released metric so far.

    Attributes:
        rule: Metric, direction, patience.
        scores: (round, value) in order of evaluation; only finite values.
    """

    rule: ReleaseRule
    scores: tuple[tuple[int, float], ...] = ()

    def add(self, round: int, value: float | None) -> Selection:
        """With one more evaluation; a value that is missing or not finite changes nothing."""
        if value is None or not math.isfinite(value) or any(known == round for known, _ in self.scores):
            return self
        return Selection(self.rule, (*self.scores, (round, value)))

    @property
    def best(self) -> tuple[int, float] | None:
        """(round, value) of the best evaluation; the earliest of those within the least improvement."""
        best: tuple[int, float] | None = None
        for candidate in self.scores:
            if best is None or self._better(candidate[1], best[1]):
                best = candidate
        return best

    @property
    def exhausted(self) -> bool:
        """Whether `patience` evaluations in a row brought no improvement, now or at any time before.

        The adapter of the last round is scored after the run has stopped; should it be the best one, a
        resumed run must not go on from it.
        """
        if self.rule.patience is None:
            return False
        best, since = None, 0
        for _, value in self.scores:
            if best is None or self._better(value, best):
                best, since = value, 0
            else:
                since += 1
            if since >= self.rule.patience:
                return True
        return False

    def _better(self, value: float, best: float) -> bool:
        gain = value - best if self.rule.direction == "max" else best - value
        return gain > self.rule.least_improvement
