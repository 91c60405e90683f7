"""Metrics of a classifier from counts that add up: confusion matrix, score histograms, calibration bins.

AUROC is the probability that a positive outscores a negative, ties counted half (Hanley and McNeil 1982),
here from histograms of the scores, so that two scores in one bin are a tie. The bins are equally wide in
arsinh of the log-odds over chance, and not in probability: a confident model puts nearly all of its scores
close to 0 and 1, an untrained one all of them close to chance, and bins of equal probability could tell
neither apart. The area is off by half of the share of pairs that fall into one bin, at most: on synthetic
scores of either kind by 0.004, where 1024 bins of equal probability are off by 0.06 (tests/reference). Scores
that all lie within a hundredth of one log-odds far from chance (a rare class that the model cannot yet tell
from the rest) share a bin, and the area goes to 1/2.

Calibration: expected calibration error over 15 bins of equal width of the confidence in the predicted
class (Guo et al. 2017, arXiv:1706.04599, equation 3).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from wardround.core.cells import Cells
from wardround.core.errors import InternalError
from wardround.core.metrics.contract import LARGEST_LOSS, LOSS_UNIT, Scores
from wardround.core.packed import Array, Counters, Layout, TensorSpec, zeros

SCORE_BINS = 1024
LARGEST_LOG_ODDS = 36.0
"""Over chance; scores beyond fall into the outermost bins. A double holds no probability closer to 1."""
FINE_LOG_ODDS = 0.3
"""Up to about here the bins are equally wide in log-odds (0.003), from there in their logarithm."""
CONFIDENCE_BINS = 15
CONFIDENCE_UNIT = 2.0**-20
"""One step of a summed confidence."""


def count_rows(
    probabilities: NDArray[np.float64], labels: NDArray[np.int64], losses: NDArray[np.float64]
) -> dict[str, NDArray[np.int64]]:
    """Counters of some rows; those of a whole are the sums over any split of it.

    Args:
        probabilities: (rows, classes), finite, each row sums to one.
        labels: (rows,), true class indices.
        losses: (rows,), finite, in nats. Rounded row by row, so that batching changes nothing.

    Raises:
        InternalError: A label is no class, or a figure is not finite: counted, it would be a lie.
    """
    rows, classes = probabilities.shape
    if not (np.isfinite(probabilities).all() and np.isfinite(losses).all()):
        raise InternalError("a probability or a loss to be counted is not finite")
    if rows and not 0 <= labels.min() <= labels.max() < classes:
        raise InternalError("a row to be counted has no class", expected=f"labels from 0 to {classes - 1}")
    predicted = probabilities.argmax(axis=1)
    confusion = np.zeros((classes, classes), np.int64)
    np.add.at(confusion, (labels, predicted), 1)

    with np.errstate(divide="ignore"):  # a probability of exactly 0 or 1 goes into an outermost bin
        chances = probabilities.clip(0, 1)  # rounding may leave a probability a hair above 1
        log_odds = np.log(chances) - np.log1p(-chances)
    over_chance = log_odds + np.log(max(classes - 1, 1))
    place = np.arcsinh(over_chance / FINE_LOG_ODDS) / np.arcsinh(LARGEST_LOG_ODDS / FINE_LOG_ODDS)
    bins = np.clip((place + 1) / 2 * SCORE_BINS, 0, SCORE_BINS - 1).astype(np.int64)
    truth = np.zeros((rows, classes), bool)
    truth[np.arange(rows), labels] = True
    column = np.broadcast_to(np.arange(classes), (rows, classes))
    positives = np.zeros((classes, SCORE_BINS), np.int64)
    negatives = np.zeros((classes, SCORE_BINS), np.int64)
    np.add.at(positives, (column[truth], bins[truth]), 1)
    np.add.at(negatives, (column[~truth], bins[~truth]), 1)

    confidence = probabilities.max(axis=1) if rows else np.zeros(0)
    slot = np.minimum((confidence * CONFIDENCE_BINS).astype(np.int64), CONFIDENCE_BINS - 1)
    calibration = np.zeros((3, CONFIDENCE_BINS), np.int64)
    np.add.at(calibration[0], slot, 1)
    np.add.at(calibration[1], slot, (predicted == labels).astype(np.int64))
    np.add.at(calibration[2], slot, np.rint(confidence / CONFIDENCE_UNIT).astype(np.int64))
    return {
        "examples": np.asarray(rows, np.int64),
        "loss": np.rint(np.minimum(losses, LARGEST_LOSS) / LOSS_UNIT).astype(np.int64).sum(),
        "confusion": confusion,
        "score_positives": positives,
        "score_negatives": negatives,
        "calibration": calibration,
    }


def auroc(positives: Array, negatives: Array) -> float | None:
    """Area under the ROC curve from two histograms over the same rising bins; None without both kinds."""
    pairs = float(positives.sum()) * float(negatives.sum())
    if not pairs:
        return None
    below = np.cumsum(negatives) - negatives
    # Halves are doubled to stay in integers; float64 holds these products to one part in 1e15.
    return float((positives.astype(np.float64) * (2 * below + negatives)).sum() / (2 * pairs))


def calibration_error(calibration: Array) -> float:
    """Expected calibration error from rows (count, correct, summed confidence) over the bins."""
    count, correct, confidence = calibration
    gaps = np.abs(correct - confidence * CONFIDENCE_UNIT)
    return float(gaps.sum() / count.sum())


def class_figures(counters: Counters, labels: tuple[str, ...]) -> dict[str, dict[str, float]]:
    """Label → precision, recall, f1, auroc and support; a figure that has nothing behind it is absent."""
    confusion = counters["confusion"]
    table: dict[str, dict[str, float]] = {}
    for index, label in enumerate(labels):
        hits = int(confusion[index, index])
        support = int(confusion[index].sum())
        predicted = int(confusion[:, index].sum())
        figures = {"support": float(support)}
        if predicted:
            figures["precision"] = hits / predicted
        if support:
            figures["recall"] = hits / support
            figures["f1"] = 2 * hits / (support + predicted)
        area = auroc(counters["score_positives"][index], counters["score_negatives"][index])
        if area is not None:
            figures["auroc"] = area
        table[label] = figures
    return table


def _coarse_confusion(confusion: Array, cells: Cells) -> Array:
    right = np.eye(len(confusion), dtype=bool)
    found = np.zeros_like(confusion)
    table = cells.table(np.concatenate([confusion[right], confusion[~right]]))
    found[right], found[~right] = np.split(table, [len(confusion)])
    return found


def _coarse_calibration(calibration: Array, cells: Cells) -> Array:
    """A bin of fewer rows than the smallest cell leaves with the confidence of its middle."""
    count, correct, confidence = calibration
    table = cells.table(np.stack([correct, count - correct], axis=1))
    rounded = table.sum(axis=1)
    middle = (np.arange(CONFIDENCE_BINS) + 0.5) / CONFIDENCE_BINS / CONFIDENCE_UNIT
    mean = np.where(count < cells.smallest, middle, confidence / np.maximum(count, 1))
    return np.stack([rounded, table[:, 0], np.rint(mean * rounded).astype(np.int64)])


class Classification:
    """Figures of a single-label classifier.

    `macro_f1` is the mean over the classes that have rows (a class without any says nothing),
    `weighted_f1` weighs them by their rows. `auroc` is that of class 1 where there are two classes, else
    the mean of one-against-the-rest over the classes that have rows for both sides.
    """

    directions: dict[str, str] = {  # noqa: RUF012 - the protocol asks for a plain attribute; never written to
        "loss": "min",
        "accuracy": "max",
        "macro_f1": "max",
        "weighted_f1": "max",
        "auroc": "max",
        "ece": "min",
    }

    def left_out(self, options: dict[str, Any]) -> dict[str, str]:
        """None: every figure comes from the same counters."""
        del options
        return {}

    def layout(self, labels: tuple[str, ...], options: dict[str, Any]) -> Layout:
        """K×K confusion (rows are true), K×1024 score histograms, 3×15 calibration, two scalars."""
        del options
        classes = len(labels)
        shapes: dict[str, tuple[int, ...]] = {
            "examples": (),
            "loss": (),
            "confusion": (classes, classes),
            "score_positives": (classes, SCORE_BINS),
            "score_negatives": (classes, SCORE_BINS),
            "calibration": (3, CONFIDENCE_BINS),
        }
        return Layout(
            tensors=tuple(
                TensorSpec(name=name, shape=shape, role="counter") for name, shape in shapes.items()
            )
        )

    def coarse(self, counters: Counters, cells: Cells, rows: int) -> Counters:
        """Cells of one site: what is right first, so that accuracy is off by less than one smallest cell."""
        del rows
        found, examples = zeros(counters.layout, np.int64), int(counters["examples"])
        found["examples"][...] = cells.rows(examples)
        found["loss"][...] = cells.scaled(int(counters["loss"]), examples)
        found["confusion"][...] = _coarse_confusion(counters["confusion"], cells)
        for name in ("score_positives", "score_negatives"):
            for index, histogram in enumerate(counters[name]):
                found[name][index] = cells.grouped(histogram)
        found["calibration"][...] = _coarse_calibration(counters["calibration"], cells)
        return found

    def compute(self, counters: Counters, labels: tuple[str, ...], options: dict[str, Any]) -> Scores:
        """Figures from summed counters; loss in nats a row."""
        del options
        examples = int(counters["examples"])
        if not examples:
            return Scores({}, {}, {})
        by_class = class_figures(counters, labels)
        seen = [figures for figures in by_class.values() if figures["support"]]
        areas = [figures["auroc"] for figures in by_class.values() if "auroc" in figures]
        values = {
            "loss": float(counters["loss"]) * LOSS_UNIT / examples,
            "accuracy": int(np.trace(counters["confusion"])) / examples,
            "macro_f1": sum(figures["f1"] for figures in seen) / len(seen),
            "weighted_f1": sum(figures["f1"] * figures["support"] for figures in seen) / examples,
            "ece": calibration_error(counters["calibration"]),
        }
        if areas:
            values["auroc"] = by_class[labels[1]]["auroc"] if len(labels) == 2 else sum(areas) / len(areas)  # noqa: PLR2004 - two classes
        return Scores(
            values,
            dict.fromkeys(values, examples),
            {name: self.directions[name] for name in values},
            by_class,
        )


METRICS = Classification()
