"""The counter lanes of a round's two sums: what training counted, and numerators of validation metrics."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np

from wardround.core.metrics import METRICS
from wardround.core.metrics.contract import LARGEST_LOSS, LOSS_UNIT, Scores
from wardround.core.packed import Array, Counters, Layout, TensorSpec, zeros
from wardround.core.plan import TrainingPlan

WEIGHT = "weight"
TRAIN_LOSS = "train.loss"
TRAIN_TARGETS = "train.targets"
TRAINING_LAYOUT: Final = Layout(
    tensors=tuple(TensorSpec(name=name, role="counter") for name in (WEIGHT, TRAIN_LOSS, TRAIN_TARGETS))
)
"""Counters that ride beside a contribution; the loss and the targets in stage 0 alone."""
MOST_COUNT = 2**51
"""Of one counter of one site: the sums of `MOST_SITES` sites stay within 64 bits. In a loss counter it is
2^31 nats."""
MOST_SITES = 2**12 - 1
"""Sites whose counters may each be `MOST_COUNT`; of more sites each has to send less (`most_count`)."""


def metric_layout(plan: TrainingPlan) -> Layout:
    """Counters of the plan's metric family: the same at every site and at the server."""
    return METRICS.get(plan.task.metrics).layout(plan.data.labels, plan.task.options)


def training_counters(*, weight: int, loss_sum: float = 0.0, targets: int = 0) -> Counters:
    """Counters of one contribution.

    What exceeds `MOST_COUNT` counts as that. Only the loss of a model gone astray does: it stays a bad
    figure, and the site stays in the round. `loss_sum` is in nats, and counted as no more than `LARGEST_LOSS`
    a target.
    """
    counters = zeros(TRAINING_LAYOUT, np.int64)
    counters[WEIGHT][...] = weight
    counters[TRAIN_LOSS][...] = min(MOST_COUNT, round(min(loss_sum, LARGEST_LOSS * targets) / LOSS_UNIT))
    counters[TRAIN_TARGETS][...] = targets
    return counters


def metric_counters(plan: TrainingPlan, counted: Mapping[str, Array] | None) -> Counters:
    """Metric numerators of one site's validation part, zero where it has none; at most `MOST_COUNT` each."""
    counters = zeros(metric_layout(plan), np.int64)
    for name, array in (counted or {}).items():
        counters[name][...] = np.minimum(array, MOST_COUNT)
    return counters


def most_count(sites: int) -> int:
    """Largest counter that one of so many sites may send, so that no sum leaves int64."""
    return min(MOST_COUNT, (2**63 - 1) // max(1, sites))


def train_loss(counters: Counters) -> float | None:
    """Mean training loss in nats a target, or None where nothing was trained."""
    targets = int(counters[TRAIN_TARGETS])
    return float(counters[TRAIN_LOSS]) * LOSS_UNIT / targets if targets else None


def scores(plan: TrainingPlan, counters: Counters) -> Scores:
    """Metrics, computed once from summed counters of the plan's metric family."""
    return METRICS.get(plan.task.metrics).compute(counters, plan.data.labels, plan.task.options)
