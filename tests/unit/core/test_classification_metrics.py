"""Classification figures from counters, on cases that can be worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from wardround.core.errors import InternalError
from wardround.core.metrics import METRICS
from wardround.core.metrics.classification import (
    SCORE_BINS,
    auroc,
    calibration_error,
    count_rows,
)
from wardround.core.metrics.contract import LARGEST_LOSS, LOSS_UNIT, Scores
from wardround.core.packed import Counters, zeros

FAMILY = METRICS.get("classification")


def counters_of(probabilities: list[list[float]], labels: list[int]) -> Counters:
    """Counters of the rows, laid out by the family's own layout."""
    table = np.array(probabilities, dtype=np.float64)
    true = np.array(labels, dtype=np.int64)
    losses = -np.log(table[np.arange(len(true)), true])
    names = tuple(f"class {index}" for index in range(table.shape[1]))
    counters = zeros(FAMILY.layout(names, {}), np.int64)
    for name, array in count_rows(table, true, losses).items():
        counters[name][...] = array
    return counters


def scores_of(probabilities: list[list[float]], labels: list[int]) -> Scores:
    """Figures of the rows."""
    names = tuple(f"class {index}" for index in range(len(probabilities[0])))
    return FAMILY.compute(counters_of(probabilities, labels), names, {})


def test_counters_fill_exactly_the_layout() -> None:
    """`count_rows` gives every counter of the layout in its shape, and no other."""
    given = count_rows(np.array([[0.2, 0.3, 0.5]]), np.array([2]), np.array([0.7]))
    layout = FAMILY.layout(("a", "b", "c"), {})
    assert {name: array.shape for name, array in given.items()} == {
        spec.name: spec.shape for spec in layout.tensors
    }
    assert all(array.dtype == np.int64 for array in given.values())
    assert {spec.role for spec in layout.tensors} == {"counter"}


def test_figures_of_four_rows() -> None:
    """Every figure of a small binary case, by hand."""
    scores = scores_of([[0.9, 0.1], [0.4, 0.6], [0.3, 0.7], [0.2, 0.8]], [0, 0, 1, 1])
    # predicted 0 1 1 1; true 0 0 1 1: class 0 precision 1, recall 1/2; class 1 precision 2/3, recall 1
    assert scores.by_class["class 0"] == pytest.approx(
        {"support": 2, "precision": 1, "recall": 0.5, "f1": 2 / 3, "auroc": 1}
    )
    assert scores.by_class["class 1"] == pytest.approx(
        {"support": 2, "precision": 2 / 3, "recall": 1, "f1": 0.8, "auroc": 1}
    )
    loss = -np.log([0.9, 0.4, 0.7, 0.8]).mean()
    # bins of width 1/15: 0.9, 0.6, 0.7 and 0.8 fall into four different ones
    ece = (0.1 + 0.6 + 0.3 + 0.2) / 4
    assert scores.values == pytest.approx(
        {
            "loss": loss,
            "accuracy": 0.75,
            "macro_f1": (2 / 3 + 0.8) / 2,
            "weighted_f1": (2 / 3 + 0.8) / 2,
            "auroc": 1.0,
            "ece": ece,
        },
        abs=1e-6,
    )
    assert scores.support == dict.fromkeys(scores.values, 4)
    assert scores.directions == {name: FAMILY.directions[name] for name in scores.values}
    assert scores.directions["loss"] == scores.directions["ece"] == "min"


def test_confusion_rows_are_true_classes() -> None:
    """Rows of the confusion matrix are true classes, columns predicted ones."""
    counters = counters_of([[0.1, 0.9], [0.2, 0.8], [0.7, 0.3]], [0, 0, 0])
    assert counters["confusion"].tolist() == [[1, 2], [0, 0]]


def test_binary_auroc_is_that_of_class_one() -> None:
    """With two classes the figure is the area of class 1, reversed scores give 0, and a tie counts half."""
    assert scores_of([[0.2, 0.8], [0.6, 0.4]], [1, 0]).values["auroc"] == 1.0
    assert scores_of([[0.2, 0.8], [0.6, 0.4]], [0, 1]).values["auroc"] == 0.0
    assert scores_of([[0.5, 0.5], [0.5, 0.5]], [0, 1]).values["auroc"] == 0.5


def test_no_rows_give_no_figures() -> None:
    """Zeros say nothing, and are not a score of 0."""
    names = ("a", "b")
    assert FAMILY.compute(zeros(FAMILY.layout(names, {}), np.int64), names, {}) == Scores({}, {}, {})
    empty = count_rows(np.empty((0, 2)), np.empty(0, np.int64), np.empty(0))
    assert not any(array.any() for array in empty.values())


def test_one_true_class_gives_no_auroc() -> None:
    """Without a row of either kind there is no area; nothing is NaN and nothing is made up."""
    scores = scores_of([[0.9, 0.1], [0.4, 0.6]], [0, 0])
    assert "auroc" not in scores.values
    assert "auroc" not in scores.by_class["class 0"]
    assert np.isfinite(list(scores.values.values())).all()


def test_classes_without_rows_do_not_pull_the_macro_mean() -> None:
    """A class nobody has is in neither mean, even where it was predicted; its own line says so."""
    scores = scores_of([[0.8, 0.1, 0.1], [0.1, 0.8, 0.1], [0.1, 0.1, 0.8]], [0, 1, 1])
    assert scores.values["macro_f1"] == pytest.approx((1 + 2 / 3) / 2)
    assert scores.by_class["class 2"] == {"support": 0.0, "precision": 0.0}
    areas = [scores.by_class[name]["auroc"] for name in ("class 0", "class 1")]
    assert scores.values["auroc"] == pytest.approx(sum(areas) / 2)


def test_a_class_never_predicted_has_no_precision_but_an_f1_of_zero() -> None:
    """Missed altogether is a fact: recall and f1 are 0, while precision has nothing behind it."""
    assert scores_of([[0.9, 0.1], [0.8, 0.2]], [0, 1]).by_class["class 1"] == {
        "support": 1.0, "recall": 0.0, "f1": 0.0, "auroc": 1.0,
    }  # fmt: skip


def test_certain_probabilities_are_counted_at_the_ends() -> None:
    """Probabilities of exactly 0 and 1, or rounded just above 1, fall into the outermost bins."""
    above = np.nextafter(1.0, 2.0)
    given = count_rows(np.array([[0.0, 1.0], [above, 0.0]]), np.array([1, 0]), np.zeros(2))
    assert given["score_positives"][1, SCORE_BINS - 1] == given["score_negatives"][1, 0] == 1
    assert given["score_positives"][0, SCORE_BINS - 1] == given["score_negatives"][0, 0] == 1
    assert given["calibration"][:2, -1].tolist() == [2, 2]


@pytest.mark.parametrize(("low", "high"), [(0.9990, 0.9995), (0.5000, 0.5009)])
def test_close_scores_are_told_apart(low: float, high: float) -> None:
    """Scores rank close to 1 and close to chance, although they differ by less than a 1024th."""
    assert scores_of([[1 - high, high], [1 - low, low]], [1, 0]).values["auroc"] == 1.0


def test_chance_of_many_classes_is_finely_binned() -> None:
    """Untrained scores of ten classes lie close to a tenth, and still rank."""
    table = [[0.1] * 8 + [0.1005, 0.0995], [0.1] * 8 + [0.0995, 0.1005]]
    assert scores_of(table, [8, 9]).by_class["class 8"]["auroc"] == 1.0


def test_a_loss_gone_astray_cannot_overflow() -> None:
    """A row counts at most LARGEST_LOSS nats, also for a million sites with such rows."""
    given = count_rows(np.array([[1.0, 0.0]]), np.array([1]), np.array([1e30]))
    assert given["loss"] * LOSS_UNIT == LARGEST_LOSS
    assert int(given["loss"]) * 1_000_000 < np.iinfo(np.int64).max


@pytest.mark.parametrize("label", [-1, 2])
def test_a_row_without_a_class_is_refused(label: int) -> None:
    """An index of −1 would otherwise be counted for the last class."""
    with pytest.raises(InternalError, match="no class"):
        count_rows(np.array([[0.5, 0.5]]), np.array([label]), np.array([0.7]))


@pytest.mark.parametrize(("probability", "loss"), [(float("nan"), 0.7), (0.5, float("inf"))])
def test_what_is_not_finite_is_refused(probability: float, loss: float) -> None:
    """NaN and infinity have no place in integer counters."""
    with pytest.raises(InternalError, match="not finite"):
        count_rows(np.array([[probability, 0.5]]), np.array([0]), np.array([loss]))


def test_auroc_of_histograms() -> None:
    """Pairs in one bin count half; an empty side gives None."""
    assert auroc(np.array([0, 1, 1]), np.array([1, 1, 0])) == pytest.approx(3.5 / 4)
    assert auroc(np.array([0, 0]), np.array([1, 2])) is None
    assert auroc(np.array([1, 2]), np.array([0, 0])) is None


def test_large_counts_keep_the_area_exact() -> None:
    """Ten to the nine rows a side do not overflow the products."""
    many = 10**9
    assert auroc(np.array([0, many]), np.array([many, 0])) == 1.0
    assert auroc(np.array([many, 0]), np.array([many, 0])) == 0.5


def test_a_calibrated_bin_has_no_error() -> None:
    """Eight of ten right at confidence 0.8 is calibrated; five of ten is off by 0.3."""
    unit = 2.0**-20
    summed = round(8.0 / unit)
    assert calibration_error(np.array([[10], [8], [summed]])) == pytest.approx(0, abs=1e-6)
    assert calibration_error(np.array([[10], [5], [summed]])) == pytest.approx(0.3, abs=1e-6)
