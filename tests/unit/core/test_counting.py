"""The counter lane of a reply."""

from __future__ import annotations

import pytest

from wardround.core.counting import TRAIN_LOSS, TRAIN_TARGETS, WEIGHT, fill_counters, train_loss
from wardround.core.metrics.contract import LARGEST_LOSS, LOSS_UNIT
from wardround.core.packed import Layout, TensorSpec

LANE = Layout(
    tensors=tuple(TensorSpec(name=name, role="counter") for name in (WEIGHT, TRAIN_LOSS, TRAIN_TARGETS))
)


def test_the_mean_training_loss_is_that_of_the_sums() -> None:
    """In nats a target, to the counter's unit; nothing where nothing was trained."""
    counters = fill_counters(LANE, weight=4, loss_sum=12.5, targets=5)
    assert train_loss(counters) == pytest.approx(2.5, abs=LOSS_UNIT)
    assert train_loss(fill_counters(LANE)) is None


def test_a_loss_beyond_all_measure_is_counted_as_the_largest() -> None:
    """A finite loss of a model gone astray is a bad figure and no overflow that ends the run."""
    assert train_loss(fill_counters(LANE, weight=1, loss_sum=1e30, targets=8)) == LARGEST_LOSS
