"""Figures from counters, held against scikit-learn and against sums by hand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from sklearn import metrics as sk
from wardround.core.metrics import METRICS
from wardround.core.metrics.classification import auroc, count_rows
from wardround.core.metrics.contract import LOSS_UNIT
from wardround.core.packed import Counters, pack

CLASSIFICATION = METRICS.get("classification")
LANGUAGE = METRICS.get("language")


def rows_of(seed: int, rows: int, classes: int, sharpness: float) -> tuple[Any, Any, Any]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, rows)
    logits = rng.normal(size=(rows, classes)) * sharpness
    logits[np.arange(rows), labels] += 0.6 * sharpness
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities = shifted / shifted.sum(axis=1, keepdims=True)
    return probabilities, labels, -np.log(probabilities[np.arange(rows), labels])


def counters_of(probabilities: Any, labels: Any, losses: Any, names: tuple[str, ...]) -> Counters:
    return pack(CLASSIFICATION.layout(names, {}), count_rows(probabilities, labels, losses), np.int64)


@pytest.mark.parametrize("sharpness", [0.2, 1.0, 4.0, 12.0])
@pytest.mark.parametrize("classes", [2, 3, 7])
def test_classification_agrees_with_scikit_learn(classes: int, sharpness: float) -> None:
    """Accuracy, F1, precision and recall to rounding; AUROC to the width of its bins, however confident."""
    probabilities, labels, losses = rows_of(classes, 900, classes, sharpness)
    names = tuple(f"c{k}" for k in range(classes))
    scores = CLASSIFICATION.compute(counters_of(probabilities, labels, losses, names), names, {})
    predicted = probabilities.argmax(axis=1)
    values = scores.values
    assert values["accuracy"] == pytest.approx(sk.accuracy_score(labels, predicted))
    assert values["macro_f1"] == pytest.approx(sk.f1_score(labels, predicted, average="macro"))
    assert values["weighted_f1"] == pytest.approx(sk.f1_score(labels, predicted, average="weighted"))
    assert values["loss"] == pytest.approx(sk.log_loss(labels, probabilities), abs=LOSS_UNIT)
    exact = (
        sk.roc_auc_score(labels, probabilities[:, 1])
        if classes == 2
        else sk.roc_auc_score(labels, probabilities, multi_class="ovr")
    )
    assert values["auroc"] == pytest.approx(exact, abs=1e-3)
    precision, recall, f1, support = sk.precision_recall_fscore_support(labels, predicted)
    for k, name in enumerate(names):
        figures = scores.by_class[name]
        assert figures["precision"] == pytest.approx(precision[k])
        assert figures["recall"] == pytest.approx(recall[k])
        assert figures["f1"] == pytest.approx(f1[k])
        assert figures["support"] == support[k]
        assert figures["auroc"] == pytest.approx(
            sk.roc_auc_score(labels == k, probabilities[:, k]), abs=1e-3
        )
    assert set(values) == set(scores.directions) == set(scores.support) == set(CLASSIFICATION.directions)
    assert set(scores.support.values()) == {900}


def test_confident_scores_are_still_told_apart() -> None:
    """Where every probability is above 0.999, bins of equal probability would see only ties."""
    rng = np.random.default_rng(0)
    odds = np.sort(rng.uniform(7, 11, 400))
    first = 1 / (1 + np.exp(-odds))
    probabilities = np.stack([1 - first, first], axis=1)
    labels = (np.arange(400) >= 200).astype(np.int64)
    counts = count_rows(probabilities, labels, np.zeros(400))
    area = auroc(counts["score_positives"][1], counts["score_negatives"][1])
    assert area == pytest.approx(1.0, abs=1e-3)


def test_calibration_error_by_a_slow_twin() -> None:
    """Bin by bin: |mean confidence − accuracy|, weighted by rows."""
    probabilities, labels, losses = rows_of(1, 700, 4, 2.0)
    names = ("a", "b", "c", "d")
    confidence, hit = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    error = 0.0
    for index in range(15):
        inside = (confidence >= index / 15) & ((confidence < (index + 1) / 15) | (index == 14))
        if inside.any():
            error += inside.sum() / 700 * abs(confidence[inside].mean() - hit[inside].mean())
    scores = CLASSIFICATION.compute(counters_of(probabilities, labels, losses, names), names, {})
    assert scores.values["ece"] == pytest.approx(error, abs=1e-5)


def test_classes_without_rows_say_nothing() -> None:
    """They drop out of macro-F1 and AUROC, and have no recall; a wrong guess for one is a precision of 0."""
    probabilities = np.array([[0.8, 0.1, 0.1], [0.1, 0.2, 0.7], [0.3, 0.6, 0.1]])
    labels = np.array([0, 0, 1])
    names = ("a", "b", "c")
    scores = CLASSIFICATION.compute(counters_of(probabilities, labels, np.zeros(3), names), names, {})
    assert scores.values["macro_f1"] == pytest.approx((2 / 3 + 1) / 2)
    assert scores.by_class["c"] == {"support": 0.0, "precision": 0.0}
    assert "auroc" in scores.by_class["a"]
    one_class = CLASSIFICATION.compute(
        counters_of(probabilities[:2], labels[:2], np.zeros(2), names), names, {}
    )
    assert "auroc" not in one_class.values
    assert "auroc" not in one_class.support


def test_probabilities_of_exactly_zero_and_one_are_counted() -> None:
    """They fall into the outermost bins, without a warning."""
    counts = count_rows(np.array([[0.0, 1.0], [1.0, 0.0]]), np.array([1, 0]), np.zeros(2))
    assert auroc(counts["score_positives"][1], counts["score_negatives"][1]) == 1.0
    assert counts["calibration"][0].sum() == 2


def test_no_rows_give_no_figures() -> None:
    """Absent, and neither 0 nor NaN."""
    names = ("a", "b")
    counts = count_rows(np.zeros((0, 2)), np.zeros(0, np.int64), np.zeros(0))
    scores = CLASSIFICATION.compute(pack(CLASSIFICATION.layout(names, {}), counts, np.int64), names, {})
    assert scores.values == {}
    assert scores.support == {}


def language(**counts: int) -> Any:
    known = dict.fromkeys(("loss", "tokens", "bytes", "correct_tokens"), 0) | counts
    return pack(LANGUAGE.layout((), {}), {k: np.asarray(v, np.int64) for k, v in known.items()}, np.int64)


def test_language_figures_by_hand() -> None:
    """10 tokens of 40 bytes at 2 ln 2 nats each: 2 bits a token, half a bit a byte, perplexity 4."""
    counters = language(
        loss=round(20 * math.log(2) / LOSS_UNIT), tokens=10, bytes=40, correct_tokens=3
    )
    scores = LANGUAGE.compute(counters, (), {})
    assert scores.values["loss"] == pytest.approx(2 * math.log(2), abs=1e-6)
    assert scores.values["perplexity"] == pytest.approx(4, abs=1e-5)
    assert scores.values["bits_per_byte"] == pytest.approx(0.5, abs=1e-6)
    assert scores.values["token_accuracy"] == pytest.approx(0.3)
    assert scores.support == {"loss": 10, "perplexity": 10, "token_accuracy": 10, "bits_per_byte": 40}
    assert scores.directions["bits_per_byte"] == "min"


def test_a_hopeless_model_has_a_finite_perplexity() -> None:
    """A report stays valid JSON."""
    scores = LANGUAGE.compute(language(loss=round(5000 / LOSS_UNIT), tokens=1, bytes=1), (), {})
    assert math.isfinite(scores.values["perplexity"])


def test_answers_by_hand() -> None:
    """Exact match and ROUGE-L are means over the answers."""
    options = {"generate": 4}
    layout = LANGUAGE.layout((), options)
    counts = {
        "loss": 0, "tokens": 0, "bytes": 0, "correct_tokens": 0,
        "answers": 4, "exact_answers": 1, "rouge_l": 3 << 19,
    }  # fmt: skip
    counters = pack(layout, {name: np.asarray(value, np.int64) for name, value in counts.items()}, np.int64)
    scores = LANGUAGE.compute(counters, (), options)
    assert scores.values == {"exact_match": 0.25, "rouge_l": 0.375}
    assert scores.support == {"exact_match": 4, "rouge_l": 4}
