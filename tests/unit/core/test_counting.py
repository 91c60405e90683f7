"""The counter lanes of the two sums."""

from __future__ import annotations

import numpy as np
import pytest
from toy_plans import toy_plan

from wardround.core.counting import (
    MOST_COUNT,
    MOST_SITES,
    TRAIN_LOSS,
    TRAIN_TARGETS,
    TRAINING_LAYOUT,
    WEIGHT,
    metric_counters,
    metric_layout,
    most_count,
    scores,
    train_loss,
    training_counters,
)
from wardround.core.metrics.contract import LARGEST_LOSS, LOSS_UNIT
from wardround.core.plan import (
    DataContract,
    Encoding,
    RoundRules,
)

PLAN = toy_plan(
    data=DataContract(columns={"text": "t", "label": "l"}, labels=("no", "yes")),
    encoding=Encoding(largest=1.0, most_weight=1),
    rounds=RoundRules(rounds=1),
)


def test_the_mean_training_loss_is_that_of_the_sums() -> None:
    """In nats a target, to the counter's unit; nothing where nothing was trained."""
    counters = training_counters(weight=4, loss_sum=12.5, targets=5)
    assert train_loss(counters) == pytest.approx(2.5, abs=LOSS_UNIT)
    assert train_loss(training_counters(weight=4)) is None


def test_a_loss_beyond_all_measure_is_counted_as_the_largest() -> None:
    """A finite loss of a model gone astray is a bad figure and no overflow that ends the run."""
    assert train_loss(training_counters(weight=1, loss_sum=1e30, targets=8)) == LARGEST_LOSS
    assert int(training_counters(weight=1, loss_sum=1e30, targets=2**40)[TRAIN_LOSS]) == MOST_COUNT


def test_what_rides_beside_a_contribution_is_its_weight_loss_and_targets() -> None:
    """In this order: the weight is the first counter, which the plain collector bounds by itself."""
    assert [spec.name for spec in TRAINING_LAYOUT.tensors] == [WEIGHT, TRAIN_LOSS, TRAIN_TARGETS]
    counters = training_counters(weight=4, loss_sum=2 * LOSS_UNIT, targets=5)
    assert counters.vector.tolist() == [4, 2, 5]
    assert counters.vector.dtype == np.int64


def test_a_site_without_a_validation_part_adds_zeros() -> None:
    """In the layout of the plan's metric family, like everybody; so no figure comes of it."""
    counters = metric_counters(PLAN, None)
    assert counters.layout == metric_layout(PLAN)
    assert not counters.vector.any()
    assert scores(PLAN, counters).values == {}


def test_a_metric_counter_is_capped_at_what_the_sum_has_room_for() -> None:
    """And what is below it stays as it is."""
    counted = {"examples": np.int64(3), "loss": np.int64(MOST_COUNT + 5)}
    counters = metric_counters(PLAN, counted)
    assert int(counters["examples"]) == 3
    assert int(counters["loss"]) == MOST_COUNT


def test_no_sum_of_largest_counters_leaves_64_bits() -> None:
    """Whatever the number of sites; up to `MOST_SITES` each may send `MOST_COUNT`."""
    assert MOST_COUNT * MOST_SITES < 2**63 <= MOST_COUNT * (MOST_SITES + 1)
    assert most_count(MOST_SITES) == MOST_COUNT
    assert all(most_count(sites) * sites < 2**63 for sites in (1, MOST_SITES, MOST_SITES + 1, 10**6))
