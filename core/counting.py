"""The counter lane of a reply: weight, training sums and the validation part's metric numerators."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from wardround.core.metrics import METRICS
from wardround.core.metrics.contract import LARGEST_LOSS, LOSS_UNIT, Scores
from wardround.core.packed import Array, Counters, Layout, TensorSpec, zeros
from wardround.core.plan import TrainingPlan

WEIGHT = "weight"
TRAIN_LOSS = "train.loss"
TRAIN_TARGETS = "train.targets"
VALIDATION = "validation."
MOST_COUNT = 2**51
"""Of one counter of one site: the sums of `MOST_SITES` sites stay within 64 bits. In a loss counter it is
2^31 nats."""
MOST_SITES = 2**12 - 1
"""Sites whose counters may each be `MOST_COUNT`; of more sites each has to send less (`most_count`)."""


def metric_layout(plan: TrainingPlan) -> Layout:
    """Counters of the plan's metric family alone."""
    return METRICS.get(plan.task.metrics).layout(plan.data.labels, plan.task.options)


def reply_layout(plan: TrainingPlan) -> Layout:
    """Layout of a reply's counters; the same at every site and at the server."""
    own = tuple(TensorSpec(name=name, role="counter") for name in (WEIGHT, TRAIN_LOSS, TRAIN_TARGETS))
    validation = tuple(
        spec.model_copy(update={"name": VALIDATION + spec.name}) for spec in metric_layout(plan).tensors
    )
    return Layout(tensors=own + validation)


def fill_counters(
    layout: Layout,
    *,
    weight: int = 0,
    loss_sum: float = 0.0,
    targets: int = 0,
    validation: Mapping[str, Array] | None = None,
) -> Counters:
    """Counters of one site; what is not given stays zero, and what exceeds `MOST_COUNT` counts as that.

    Only the loss of a model gone astray does: it stays a bad figure, and the site stays in the round.
    `loss_sum` is in nats, and counted as no more than `LARGEST_LOSS` a target.
    """
    counters = zeros(layout, np.int64)
    counters[WEIGHT][...] = weight
    counters[TRAIN_LOSS][...] = min(MOST_COUNT, round(min(loss_sum, LARGEST_LOSS * targets) / LOSS_UNIT))
    counters[TRAIN_TARGETS][...] = targets
    for name, array in (validation or {}).items():
        counters[VALIDATION + name][...] = np.minimum(array, MOST_COUNT)
    return counters


def most_count(sites: int) -> int:
    """Largest counter that one of so many sites may send, so that no sum leaves int64."""
    return min(MOST_COUNT, (2**63 - 1) // max(1, sites))


def train_loss(counters: Counters) -> float | None:
    """Mean training loss in nats a target, or None where nothing was trained."""
    targets = int(counters[TRAIN_TARGETS])
    return float(counters[TRAIN_LOSS]) * LOSS_UNIT / targets if targets else None


def validation_scores(plan: TrainingPlan, counters: Counters) -> Scores:
    """Metrics of the validation parts, computed once from the summed counters."""
    layout = metric_layout(plan)
    vector = np.concatenate(
        [counters[VALIDATION + spec.name].reshape(-1) for spec in layout.tensors], dtype=np.int64
    )
    return scores(plan, Counters(layout, vector))


def scores(plan: TrainingPlan, counters: Counters) -> Scores:
    """Metrics from counters of the plan's metric family."""
    return METRICS.get(plan.task.metrics).compute(counters, plan.data.labels, plan.task.options)
