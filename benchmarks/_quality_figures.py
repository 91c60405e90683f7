"""The figures of the quality benchmark: from answers to a score, from two scores to a ratio."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

LEAST_SUPPORT = 30
"""Test rows of a class below which it is not counted."""
DRAWS = 2000
"""Of the bootstrap."""


def numerators(record: dict[str, Any], truth: NDArray[Any]) -> NDArray[np.float64]:
    """(rows, k): what each test row adds to the sums that a figure is made of.

    For a classifier, of each counted class the hits, the guesses and the true rows; else nats and bytes.
    """
    if "nats" in record:
        return np.array([record["nats"], record["bytes"]], dtype=np.float64).T
    counted = np.flatnonzero(np.bincount(truth) >= LEAST_SUPPORT)
    guessed = np.array(record["guesses"])[:, None] == counted
    true = truth[:, None] == counted
    return np.concatenate([guessed & true, guessed, true], axis=1).astype(np.float64)


def figure(sums: NDArray[np.float64], *, language: bool) -> NDArray[np.float64]:
    """(..., k) sums → bits per byte, or macro-F1: F1 = 2 hits / (guesses + true rows), 0 without either."""
    if language:
        return np.asarray(sums[..., 0] / sums[..., 1] / math.log(2))
    hits, guesses, true = np.split(sums, 3, axis=-1)
    return np.asarray((2 * hits / np.maximum(guesses + true, 1)).mean(axis=-1))


def figure_of(record: dict[str, Any], truth: NDArray[Any]) -> float:
    """The figure of one arm over all test rows."""
    return float(figure(numerators(record, truth).sum(axis=0), language="nats" in record))


def ratio(federated: dict[str, Any], other: dict[str, Any], truth: NDArray[Any]) -> list[float]:
    """The ratio (above 1: federated is better) and its 95 % paired-bootstrap interval over the test rows."""
    return ratio_of_means([(federated, other)], truth)


def ratio_of_means(
    pairs: Sequence[tuple[dict[str, Any], dict[str, Any]]], truth: NDArray[Any]
) -> list[float]:
    """The same of the means over several seeds; in a draw all seeds answer the same rows."""
    language = "nats" in pairs[0][0]
    both = [[numerators(run, truth) for run in pair] for pair in pairs]
    size = len(both[0][0])
    drawn = np.random.default_rng(0).multinomial(size, np.full(size, 1 / size), size=DRAWS)

    def of(weights: NDArray[Any]) -> NDArray[np.float64]:
        found = np.array([[figure(weights @ rows, language=language) for rows in pair] for pair in both])
        ours, theirs = found.mean(axis=0)
        return np.asarray(theirs / ours if language else ours / theirs)

    low, high = np.quantile(of(drawn), [0.025, 0.975])
    return [float(of(np.ones((1, size)))[0]), float(low), float(high)]
