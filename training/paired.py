"""Compares adapters on the same rows: metrics of each, and paired bootstrap intervals of their differences.

Rows of one unit (a patient) are not independent: whole units are drawn. Efron and Tibshirani, "An
Introduction to the Bootstrap", 1993, section 13.3 (percentile interval); a draw counts for both adapters at
once, so that what is hard about a unit falls out of the difference.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from wardround.core.counting import metric_layout, scores
from wardround.core.metrics.contract import Scores
from wardround.core.packed import Adapter, Array, Packed
from wardround.core.plan import TrainingPlan
from wardround.training.evaluation import evaluate
from wardround.training.tasks.contract import Encoded
from wardround.training.workbench import Workbench

DRAWS: Final = 1000
"""Of the bootstrap."""
LEVEL: Final = 0.95
LEAST_GROUPS: Final = 10
"""Units below which no interval is given: so few say nothing of how they were drawn."""
MOST_GROUPS: Final = 1000
AT_ONCE: Final = 32
"""Draws whose sums are held at once."""
MOST_NUMBERS: Final = 2**24
"""Counters that are held at once, 128 MB: of many classes units are put together."""


@dataclass(frozen=True)
class Interval:
    """A difference of a metric between two adapters.

    Attributes:
        difference: First minus second, on the rows as they are.
        low: Lower end of the interval at LEVEL; None with too few units.
        high: Upper end.
    """

    difference: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Counted:
    """Counters of one adapter, a line for each group of units.

    Attributes:
        plan: Whose metric family they are of.
        lines: (groups, counters), int64.
    """

    plan: TrainingPlan
    lines: Array

    @property
    def scores(self) -> Scores:
        """Of all rows."""
        return next(self.weighed(np.ones((1, len(self.lines)))))

    def weighed(self, weights: Array) -> Iterator[Scores]:
        """Of rows whose groups count so often, a line of `weights` (draws, groups) after the other."""
        layout, lines = metric_layout(self.plan), self.lines.astype(np.float64)
        for start in range(0, len(weights), AT_ONCE):
            for total in np.rint(weights[start : start + AT_ONCE] @ lines).astype(np.int64):
                yield scores(self.plan, Packed(layout, total))


def grouped(plan: TrainingPlan, units: Sequence[str]) -> list[list[int]]:
    """Places of the rows of each unit, in order of appearance; more units than can be held share a group."""
    places: dict[str, list[int]] = {}
    for place, unit in enumerate(units):
        places.setdefault(unit, []).append(place)
    whole = list(places.values())
    most = max(LEAST_GROUPS, min(MOST_GROUPS, MOST_NUMBERS // max(1, metric_layout(plan).size)))
    if len(whole) <= most:
        return whole
    return [list(itertools.chain.from_iterable(whole[start::most])) for start in range(most)]


def count(
    bench: Workbench,
    plan: TrainingPlan,
    adapter: Adapter,
    encoded: Sequence[Encoded],
    groups: Sequence[Sequence[int]],
) -> Counted:
    """Metric numerators of an adapter, group by group."""
    bench.load_adapter(adapter)
    lines = [
        evaluate(
            bench.model, bench.task, plan.task, plan.data, [encoded[place] for place in group],
            batch_size=bench.machine.evaluation_batch_size, device=bench.device, tokenizer=bench.tokenizer,
        ).vector
        for group in groups
    ]  # fmt: skip
    return Counted(plan, np.stack(lines))


def differences(first: Counted, second: Counted, seed: int = 0) -> Mapping[str, Interval]:
    """Metric → first minus second, with its interval; metrics that one of them lacks are left out."""
    ours, theirs, size = first.scores.values, second.scores.values, len(first.lines)
    names = [name for name in ours if name in theirs]
    drawn: dict[str, list[float]] = {name: [] for name in names}
    if size >= LEAST_GROUPS:
        weights = np.random.default_rng(seed).multinomial(size, np.full(size, 1 / size), size=DRAWS)
        for one, other in zip(first.weighed(weights), second.weighed(weights), strict=True):
            for name in names:
                if name in one.values and name in other.values:
                    drawn[name].append(one.values[name] - other.values[name])
    tail = (1 - LEVEL) / 2
    found = {}
    for name in names:
        ends = np.quantile(drawn[name], [tail, 1 - tail]).tolist() if _enough(drawn[name]) else [None, None]
        found[name] = Interval(ours[name] - theirs[name], *ends)
    return found


def _enough(values: Sequence[float]) -> bool:
    """A metric that many draws lack (no row of a class in them) has no interval."""
    return len(values) >= LEVEL * DRAWS
