"""The classification figures against scikit-learn, and the calibration error against its definition."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.metrics import (
    accuracy_score,
    confusion_matrix,
    f1_score,
    log_loss,
    precision_recall_fscore_support,
    roc_auc_score,
)

from wardround.core.metrics import METRICS
from wardround.core.metrics.classification import (
    FINE_LOG_ODDS,
    LARGEST_LOG_ODDS,
    SCORE_BINS,
    count_rows,
)
from wardround.core.metrics.contract import Scores
from wardround.core.packed import Counters, zeros

FAMILY = METRICS.get("classification")
Table = NDArray[np.float64]
Labels = NDArray[np.int64]

# Rows, classes, sharpness of the scores, share of class 0, share of rows whose scores say nothing.
CASES = [
    pytest.param(2000, 2, 1.0, 0.5, 0.3, id="binary"),
    pytest.param(2000, 2, 8.0, 0.94, 0.2, id="binary, imbalanced and confident"),
    pytest.param(2000, 3, 0.02, 0.4, 0.3, id="three classes, as flat as before training"),
    pytest.param(3000, 5, 2.0, 0.2, 0.4, id="five classes"),
    pytest.param(1500, 16, 6.0, 0.5, 0.5, id="sixteen classes, confident"),
]
LEAST = np.finfo(np.float64).tiny


def made(rows: int, classes: int, sharpness: float, first: float, noise: float) -> tuple[Table, Labels]:
    """Probabilities and labels."""
    rng = np.random.default_rng(rows + classes)
    shares = np.array([first] + [(1 - first) / (classes - 1)] * (classes - 1))
    labels = rng.choice(classes, size=rows, p=shares).astype(np.int64)
    labels[:classes] = np.arange(classes)
    logits = rng.normal(size=(rows, classes))
    logits[np.arange(rows), labels] += np.where(rng.random(rows) < noise, 0.0, 1.5)
    powers = np.exp(sharpness * logits)
    return powers / powers.sum(axis=1, keepdims=True), labels


def scored(probabilities: Table, labels: Labels) -> tuple[Scores, Counters]:
    """Our figures, and the counters behind them."""
    names = tuple(str(index) for index in range(probabilities.shape[1]))
    losses = -np.log(probabilities[np.arange(len(labels)), labels])
    counters = zeros(FAMILY.layout(names, {}), np.int64)
    for name, array in count_rows(probabilities, labels, losses).items():
        counters[name][...] = array
    return FAMILY.compute(counters, names, {}), counters


def areas(scores: Table, labels: Labels) -> list[float]:
    """Each class's area by scikit-learn."""
    return [float(roc_auc_score(labels == index, scores[:, index])) for index in range(scores.shape[1])]


parameters = pytest.mark.parametrize(("rows", "classes", "sharpness", "first", "noise"), CASES)


@parameters
def test_decisions_and_loss_equal_scikit_learns(
    rows: int, classes: int, sharpness: float, first: float, noise: float
) -> None:
    """Confusion, accuracy, F1 (macro, weighted), precision, recall and log loss agree."""
    probabilities, labels = made(rows, classes, sharpness, first, noise)
    scores, counters = scored(probabilities, labels)
    predicted = probabilities.argmax(axis=1)
    np.testing.assert_array_equal(counters["confusion"], confusion_matrix(labels, predicted))
    assert scores.values["accuracy"] == pytest.approx(accuracy_score(labels, predicted))
    assert scores.values["macro_f1"] == pytest.approx(f1_score(labels, predicted, average="macro"))
    assert scores.values["weighted_f1"] == pytest.approx(f1_score(labels, predicted, average="weighted"))
    assert scores.values["loss"] == pytest.approx(log_loss(labels, probabilities), abs=2.0**-20)
    theirs = precision_recall_fscore_support(labels, predicted, zero_division=0)
    for index in range(classes):
        own = scores.by_class[str(index)]
        figures = [own.get(name, 0.0) for name in ("precision", "recall", "f1", "support")]
        assert figures == pytest.approx([float(column[index]) for column in theirs])


def test_macro_f1_without_some_classes_equals_scikit_learns_over_those_present() -> None:
    """Where a class has no row, scikit-learn's mean has to be told the classes that do."""
    probabilities, labels = made(400, 5, 2.0, 0.2, 0.4)
    kept = labels < 3
    scores, _ = scored(probabilities[kept], labels[kept])
    predicted = probabilities[kept].argmax(axis=1)
    assert (predicted >= 3).any()
    expected = f1_score(labels[kept], predicted, average="macro", labels=[0, 1, 2])
    assert scores.values["macro_f1"] == pytest.approx(expected)


@parameters
def test_auroc_is_close_to_scikit_learns(
    rows: int, classes: int, sharpness: float, first: float, noise: float
) -> None:
    """Each class's area, and the mean (class 1 of two), within 0.002 of those of unbinned scores."""
    probabilities, labels = made(rows, classes, sharpness, first, noise)
    scores, _ = scored(probabilities, labels)
    expected = areas(probabilities, labels)
    own = [scores.by_class[str(index)]["auroc"] for index in range(classes)]
    assert own == pytest.approx(expected, abs=2e-3)
    whole = expected[1] if classes == 2 else sum(expected) / classes
    assert scores.values["auroc"] == pytest.approx(whole, abs=2e-3)


@parameters
def test_auroc_of_binned_scores_is_exact(
    rows: int, classes: int, sharpness: float, first: float, noise: float
) -> None:
    """Binning is the only difference: on scores rounded down to their bins the areas are equal."""
    probabilities, labels = made(rows, classes, sharpness, first, noise)
    scores, _ = scored(probabilities, labels)
    # Bins are found from their edges here, probabilities that belong to the edges of the arsinh scale.
    widest = np.arcsinh(LARGEST_LOG_ODDS / FINE_LOG_ODDS)
    over_chance = FINE_LOG_ODDS * np.sinh(np.linspace(-widest, widest, SCORE_BINS + 1)[1:-1])
    odds = probabilities / np.maximum(1 - probabilities, LEAST) * (classes - 1)
    binned = np.searchsorted(over_chance, np.log(np.maximum(odds, LEAST)), side="right")
    own = [scores.by_class[str(index)]["auroc"] for index in range(classes)]
    assert own == pytest.approx(areas(binned.astype(np.float64), labels), abs=1e-6)


@parameters
def test_calibration_error_equals_its_definition(
    rows: int, classes: int, sharpness: float, first: float, noise: float
) -> None:
    """Guo et al. 2017, equation 3, written out bin by bin."""
    probabilities, labels = made(rows, classes, sharpness, first, noise)
    scores, _ = scored(probabilities, labels)
    expected = 0.0
    for place in range(15):
        lower, upper = place / 15, (place + 1) / 15
        inside = [
            (float(row.max()), bool(row.argmax() == label))
            for row, label in zip(probabilities, labels, strict=True)
            if lower <= row.max() < upper or (place == 14 and row.max() >= upper)
        ]
        if inside:
            accuracy = sum(right for _, right in inside) / len(inside)
            confidence = sum(sure for sure, _ in inside) / len(inside)
            expected += len(inside) / rows * abs(accuracy - confidence)
    assert scores.values["ece"] == pytest.approx(expected, abs=1e-6)
