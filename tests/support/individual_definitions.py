"""Methods that see individuals as their papers write them: tensor by tensor, site by site, in plain loops."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

Tensors = dict[str, np.ndarray[Any, Any]]
Sites = list[tuple[float, Tensors]]
Vote = Callable[[Any, list[list[float]], list[float]], list[float]]


def vote(made: Vote) -> Callable[..., Any]:
    """A definition on flat updates, as one on models: x ← x + what it makes of them."""

    def definition(options: Any, x: Tensors, sites: Sites, moments: Any) -> Any:
        updates = [[float(v) for name in x for v in (y[name] - x[name]).ravel()] for _, y in sites]
        step, start, new = made(options, updates, [w for w, _ in sites]), 0, {}
        for name, before in x.items():
            new[name] = before + np.array(step[start : start + before.size]).reshape(before.shape)
            start += before.size
        return new, moments

    return definition


def median(values: list[float]) -> float:
    """The value in the middle, or the mean of the two."""
    ordered, middle = sorted(values), len(values) // 2
    return ordered[middle] if len(values) % 2 else (ordered[middle - 1] + ordered[middle]) / 2


def balance(values: list[float], weights: list[float]) -> float:
    """The weighted median: the middle of all points with no more than half of the weight on either side."""
    half, pairs = math.fsum(weights) / 2, list(zip(values, weights, strict=True))
    inside = [
        v for v in values
        if math.fsum(w for u, w in pairs if u < v) <= half and math.fsum(w for u, w in pairs if u > v) <= half
    ]  # fmt: skip
    return (min(inside) + max(inside)) / 2


def distance(one: list[float], two: list[float]) -> float:
    """L2."""
    return math.sqrt(math.fsum((a - b) ** 2 for a, b in zip(one, two, strict=True)))


def mean(updates: list[list[float]], weights: list[float]) -> list[float]:
    """Σ w d / Σ w."""
    total = math.fsum(weights)
    return [
        math.fsum(w * v for w, v in zip(weights, column, strict=True)) / total
        for column in zip(*updates, strict=True)
    ]


@vote
def coordinate_median(options: Any, updates: list[list[float]], weights: list[float]) -> list[float]:
    """Yin et al. 2018, definition 1."""
    return [median(list(column)) for column in zip(*updates, strict=True)]


@vote
def trimmed_mean(options: Any, updates: list[list[float]], weights: list[float]) -> list[float]:
    """Yin et al. 2018, definition 2: a share β of each end removed, rounded up while anything is left."""
    n = len(updates)
    trim = options.trim
    if trim is None:
        trim = next(k for k in range(n) if k >= options.share * n - 1e-9 or n - 2 * (k + 1) < 1)
    kept = [sorted(column)[trim : n - trim] for column in zip(*updates, strict=True)]
    return [math.fsum(values) / len(values) for values in kept]


@vote
def multi_krum(options: Any, updates: list[list[float]], weights: list[float]) -> list[float]:
    """Blanchard et al. 2017: scores over the n − f − 2 nearest, mean of the m best."""
    n, near = len(updates), len(updates) - options.attackers - 2
    scores = [
        math.fsum(sorted(distance(updates[i], updates[j]) ** 2 for j in range(n) if j != i)[:near])
        for i in range(n)
    ]
    last = sorted(scores)[(options.selected or near) - 1]
    best = [u for u, score in zip(updates, scores, strict=True) if score <= last * (1 + 1e-11)]
    return mean(best, [1.0] * len(best))


@vote
def geometric_median(options: Any, updates: list[list[float]], weights: list[float]) -> list[float]:
    """Pillutla et al. 2022, Algorithm 2, all iterations of it."""
    z = [balance(list(column), weights) for column in zip(*updates, strict=True)]
    for _ in range(options.iterations):
        pulls = [w / max(options.smoothing * math.fsum(weights), distance(z, u) * math.fsum(weights))
                 for w, u in zip(weights, updates, strict=True)]  # fmt: skip
        z = mean(updates, pulls)
    return z


@vote
def norm_bounded_mean(options: Any, updates: list[list[float]], weights: list[float]) -> list[float]:
    """Sun et al. 2019: no update longer than the bound."""
    norms = [distance(update, [0.0] * len(update)) for update in updates]
    bound = options.bound or median(norms)
    short = [[v * min(1.0, bound / n) if n else v for v in u] for u, n in zip(updates, norms, strict=True)]
    return mean(short, weights)


INDIVIDUALS: dict[str, Any] = {
    "coordinate_median": coordinate_median,
    "trimmed_mean": trimmed_mean,
    "multi_krum": multi_krum,
    "geometric_median": geometric_median,
    "norm_bounded_mean": norm_bounded_mean,
}
