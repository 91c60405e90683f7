"""Which round's adapter is released, and when to stop: pure functions over the scores so far.

A score is a figure over the validation parts of the sites that answered. Two scores are compared only where
the same sites are missing from both, as a rule none: a round would otherwise look better for want of the site
that finds the task hardest.

The release is chosen among the rounds of the largest such group; of groups of one size the one from which
fewer sites are missing, then the one that was there first, decides. So a site that is late once takes that
round out of the choice, and a site that has left for good does not pin the release to the rounds before.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from wardround.core.plan import ReleaseRule

Score = tuple[int, float]
"""Round and value."""
Missing = tuple[str, ...]
"""Sites that were asked for a score and are not in it, sorted."""


@dataclass(frozen=True)
class Selection:
    """Scores of the released metric so far.

    Attributes:
        rule: Metric, direction, patience.
        scores: (round, value) in order of evaluation; only finite values.
        missing: Beside each score, the sites that are not in it; shorter than `scores` means nobody.
    """

    rule: ReleaseRule
    scores: tuple[Score, ...] = ()
    missing: tuple[Missing, ...] = ()

    def add(self, round: int, value: float | None, missing: Missing = ()) -> Selection:
        """With one more evaluation; a value that is missing or not finite changes nothing."""
        if value is None or not math.isfinite(value) or any(known == round for known, _ in self.scores):
            return self
        padded = tuple(absent for _, absent in self._evaluations())
        return Selection(self.rule, (*self.scores, (round, value)), (*padded, missing))

    @property
    def best(self) -> Score | None:
        """Best score of the group that decides; the earliest of those within the least improvement."""
        groups = self._groups()
        if not groups:
            return None
        # of equals max takes the first, that is the group that was there first
        deciding = max(groups, key=lambda missing: (len(groups[missing]), -len(missing)))
        return self._best_of(groups[deciding])

    @property
    def contenders(self) -> frozenset[int]:
        """Rounds of which one is the best now, or may be once another group is the largest."""
        return frozenset(self._best_of(group)[0] for group in self._groups().values())

    @property
    def exhausted(self) -> bool:
        """Whether `patience` evaluations in a row brought no improvement, now or at any time before.

        Each is held against the best before it in its own group; the first of a group says nothing.
        The adapter of the last round is scored after the run has stopped; should it be the best one, a
        resumed run must not go on from it.
        """
        if self.rule.patience is None:
            return False
        best: dict[Missing, float] = {}
        since = 0
        for (_, value), missing in self._evaluations():
            if missing not in best:
                best[missing] = value
            elif self._better(value, best[missing]):
                best[missing], since = value, 0
            else:
                since += 1
            if since >= self.rule.patience:
                return True
        return False

    def _evaluations(self) -> list[tuple[Score, Missing]]:
        nobody: list[Missing] = [()] * (len(self.scores) - len(self.missing))
        return list(zip(self.scores, (*self.missing, *nobody), strict=True))

    def _groups(self) -> dict[Missing, list[Score]]:
        """Missing sites → the scores that they are missing from, in order of evaluation."""
        groups: dict[Missing, list[Score]] = {}
        for score, missing in self._evaluations():
            groups.setdefault(missing, []).append(score)
        return groups

    def _best_of(self, group: list[Score]) -> Score:
        best = group[0]
        for candidate in group[1:]:
            if self._better(candidate[1], best[1]):
                best = candidate
        return best

    def _better(self, value: float, best: float) -> bool:
        gain = value - best if self.rule.direction == "max" else best - value
        return gain > self.rule.least_improvement
