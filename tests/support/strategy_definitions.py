"""Each method as its paper writes it, on the individual sites, tensor by tensor and in plain loops.

The definitions that `tests/contract/test_strategies.py` holds every strategy against; those of methods that
see single contributions: `individual_definitions.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from hypothesis import assume
from individual_definitions import INDIVIDUALS

Tensors = dict[str, np.ndarray[Any, Any]]
Moments = dict[str, Tensors]
A, B, SCALING = "m.lora_A.weight", "m.lora_B.weight", 2.0
MAGNITUDE = "m.lora_magnitude_vector"
"""Of DoRA: it rides along, as dense tensors do."""
Definition = Callable[[Any, Tensors, list[tuple[float, Tensors]], Moments], tuple[Tensors, Moments]]


def mean_of_models(options: Any, x: Tensors, sites: list[tuple[float, Tensors]], moments: Moments) -> Any:
    """McMahan et al. 2017, Algorithm 1: x ← Σ n_k/n y_k, on the parameters themselves."""
    n = sum(w for w, _ in sites)
    return {name: sum(w / n * y[name] for w, y in sites) for name in x}, moments


def pseudo_gradient(x: Tensors, sites: list[tuple[float, Tensors]]) -> Tensors:
    """Mean of the updates, one site after the other."""
    n = sum(w for w, _ in sites)
    mean = {name: np.zeros_like(x[name]) for name in x}
    for w, y in sites:
        for name in x:
            mean[name] = mean[name] + (w / n) * (y[name] - x[name])
    return mean


def server_momentum(options: Any, x: Tensors, sites: list[tuple[float, Tensors]], moments: Moments) -> Any:
    """Hsu et al. 2019: v ← β v + Δw; w ← w − v with Δw = −mean update; a rate before v."""
    d = pseudo_gradient(x, sites)
    v = {k: options.momentum * moments.get("v", {}).get(k, np.zeros_like(x[k])) + (-d[k]) for k in x}
    return {k: x[k] - options.server_learning_rate * v[k] for k in x}, {"v": v}


def adaptive(second: Callable[[float, float, Any], float]) -> Definition:
    """Reddi et al. 2021, Algorithm 2, coordinate by coordinate."""

    def definition(
        options: Any, x: Tensors, sites: list[tuple[float, Tensors]], moments: Moments
    ) -> tuple[Tensors, Moments]:
        d = pseudo_gradient(x, sites)
        new, m, v = ({k: np.empty_like(x[k]) for k in x} for _ in range(3))
        for k in x:
            for i in np.ndindex(x[k].shape):
                m_before = float(moments["m"][k][i]) if moments else 0.0
                v_before = float(moments["v"][k][i]) if moments else options.tau**2
                m[k][i] = options.beta1 * m_before + (1 - options.beta1) * d[k][i]
                v[k][i] = second(v_before, float(d[k][i]), options)
                new[k][i] = x[k][i] + options.server_learning_rate * m[k][i] / (v[k][i] ** 0.5 + options.tau)
        return new, {"m": m, "v": v}

    return definition


def sign(value: float) -> int:
    """1, 0 or −1."""
    return 1 if value > 0 else -1 if value < 0 else 0


def exact_half(role: str) -> Callable[[str], bool]:
    """Which tensors move: a factor, and what rides along."""
    return lambda name: rides_along(name) or name == role


def rides_along(name: str) -> bool:
    """Whether it is no factor."""
    return name not in (A, B)


def moved_means(x: Tensors, sites: list[tuple[float, Tensors]], moves: Callable[[str], bool]) -> Tensors:
    """The mean update added, where a tensor moves."""
    d = pseudo_gradient(x, sites)
    return {name: x[name] + d[name] if moves(name) else x[name] for name in x}


def frozen_a(options: Any, x: Tensors, sites: list[tuple[float, Tensors]], moments: Moments) -> Any:
    """Sun et al. 2024: B alone is averaged."""
    return moved_means(x, sites, exact_half(B)), moments


def of_part(moves: Callable[[str], bool]) -> Definition:
    """Some tensors are averaged, the others are each site's own."""
    return lambda options, x, sites, moments: (moved_means(x, sites, moves), moments)


def first_directions(
    options: Any, x: Tensors, sites: list[tuple[float, Tensors]], moments: Moments
) -> tuple[Tensors, Moments]:
    """The first directions of each module are averaged; the others are each site's own."""
    new = moved_means(x, sites, lambda name: True)
    shared = options.global_rank
    new[A][shared:], new[B][:, shared:] = x[A][shared:], x[B][:, shared:]
    return new, moments


def by_norm(
    options: Any, x: Tensors, sites: list[tuple[float, Tensors]], moments: Moments
) -> tuple[Tensors, Moments]:
    """Cho et al. 2024: weights of the factors are norms of the products that sites trained, up to a bound."""
    rank, d_in = x[A].shape
    rows = np.linalg.svd(x[A], compute_uv=False)[0] + np.sqrt(d_in)
    most = SCALING * rows * (np.linalg.norm(x[B]) + np.sqrt(x[B].size))
    weighted = []
    for w, y in sites:
        product = np.zeros((x[B].shape[0], d_in))
        for k in range(rank):
            if (y[B][:, k] != x[B][:, k]).any() or (y[A][k] != x[A][k]).any():
                product += SCALING * np.outer(y[B][:, k], y[A][k])
        weighted.append((w * min(most, np.linalg.norm(product)), y))
    new = moved_means(x, sites, rides_along)
    if sum(weight for weight, _ in weighted) > 0:
        factors_of = {name: x[name] for name in (A, B)}
        new |= moved_means(factors_of, weighted, lambda name: True)
    return new, moments


def factored_anew(
    options: Any, x: Tensors, sites: list[tuple[float, Tensors]], moments: Moments
) -> tuple[Tensors, Moments]:
    """Lee et al. 2025: B is averaged; then B A = U Σ Vᵀ, A is Vᵀ and B is U Σ, here c to 1/c."""
    new = moved_means(x, sites, exact_half(B))
    if np.array_equal(new[B], x[B]):
        return new, moments
    u, values, vt = np.linalg.svd(new[B] @ x[A], full_matrices=False)
    new[B], new[A] = np.zeros_like(x[B]), np.zeros_like(x[A])
    kept = min(len(values), len(x[A]))
    new[B][:, :kept], new[A][:kept] = u[:, :kept] * values[:kept], vt[:kept]
    return new, moments


def in_turn(options: Any, x: Tensors, sites: list[tuple[float, Tensors]], moments: Moments) -> Any:
    """Chen et al. 2025, Algorithm 1: B in odd rounds, A in even ones."""
    count = moments.get("round", {"n": np.zeros(1)})["n"] + 1
    moves = exact_half(B if count[0] % 2 else A)
    return moved_means(x, sites, moves), {"round": {"n": count}}


def span(columns: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The projector on what the columns span, however short one is."""
    lengths = np.linalg.norm(columns, axis=0)
    u, values, _ = np.linalg.svd(columns / np.where(lengths > 0, lengths, 1), full_matrices=False)
    kept = u[:, values > 1e-6 * max(values.max(initial=0.0), 1e-300)]
    return np.asarray(kept @ kept.T)


def of_products(approximate: Callable[[Any, Tensors, Any], Any]) -> Definition:
    """T_r(G + what a method makes of the mean of the dense products), on d_out × d_in matrices."""

    def definition(
        options: Any, x: Tensors, sites: list[tuple[float, Tensors]], moments: Moments
    ) -> tuple[Tensors, Moments]:
        n = sum(w for w, _ in sites)
        g = SCALING * x[B] @ x[A]
        mean = sum(w / n * (SCALING * y[B] @ y[A] - g) for w, y in sites)
        new = moved_means(x, sites, rides_along)
        new[B], new[A] = best_of_rank(g + approximate(options, x, mean), x[A].shape[0])
        return new, moments

    return definition


def best_of_rank(matrix: np.ndarray[Any, Any], r: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """T_r as B (d_out, r) and A (r, d_in), σ in B, the scaling taken out."""
    u, values, vt = np.linalg.svd(matrix, full_matrices=False)
    if len(values) > r and values[r] > 1e-9 * values[0]:
        assume(values[r - 1] - values[r] > 1e-3 * values[0])  # else T_r is not unique
    b, a = np.zeros((len(u), r)), np.zeros((r, vt.shape[1]))
    kept = min(r, len(values))  # a thin module has fewer directions than the adapter
    b[:, :kept], a[:kept] = u[:, :kept] * values[:kept] / SCALING, vt[:kept]
    return b, a


def stacked(options: Any, x: Tensors, sites: list[tuple[float, Tensors]], moments: Moments) -> Any:
    """Wang et al. 2024: the shares and the sites' new factors beside each other, added; a base of rank R."""
    n = sum(w for w, _ in sites)
    dense = {name: tensor for name, tensor in x.items() if rides_along(name)}
    new = moved_means(dense, sites, lambda name: True)
    left, right = [], []
    for w, y in sites:
        k = y[A].shape[0] - x[A].shape[0]  # what stands frozen comes after them
        left.append(w / n * y[B][:, :k])
        right.append(y[A][:k])
    total = SCALING * (x[B] @ x[A] + np.hstack(left) @ np.vstack(right))
    new[B], new[A] = best_of_rank(total, x[A].shape[0])
    return new, moments


def with_residual(options: Any, x: Tensors, sites: list[tuple[float, Tensors]], moments: Moments) -> Any:
    """Singhal et al. 2024: B, A averaged; mean(B_i A_i) − mean(B_i) mean(A_i) into the other directions."""
    n, t = sum(w for w, _ in sites), options.trained_rank
    new = moved_means(x, sites, rides_along)
    b = sum(w / n * y[B][:, :t] for w, y in sites)
    a = sum(w / n * y[A][:t] for w, y in sites)
    residual = sum(w / n * y[B][:, :t] @ y[A][:t] for w, y in sites) - b @ a
    rest = x[B][:, t:] @ x[A][t:] + residual
    other_b, other_a = best_of_rank(SCALING * rest, x[A].shape[0] - t)
    new[B], new[A] = np.hstack([b, other_b]), np.vstack([a, other_a])
    return new, moments


def projected(options: Any, x: Tensors, mean: Any) -> Any:
    """P_T(D) = D − (I − U Uᵀ) D (I − P Pᵀ)."""
    u, p = span(x[B]), span(x[A].T)
    return mean - (np.eye(len(u)) - u) @ mean @ (np.eye(len(p)) - p)


def itself(options: Any, x: Tensors, mean: Any) -> Any:
    """D: as these modules are no wider than the sketch, the two passes find all of it."""
    return mean


DEFINITIONS: dict[str, Definition] = {
    "fedavg": mean_of_models,
    "fedprox": mean_of_models,
    "scaffold": mean_of_models,  # of the adapter; the control variates: tests/unit/strategies
    "fedsa": of_part(exact_half(A)),
    "dual_adapter": first_directions,
    "group_median": mean_of_models,  # of one group; the vote: tests/unit/strategies
    "group_trimmed_mean": mean_of_models,
    "ffa_lora": frozen_a,
    "fedsvd": factored_anew,
    "hetlora": by_norm,
    "rolora": in_turn,
    "tangent": of_products(projected),
    "tangent_scaffold": of_products(projected),  # of the adapter; its variates: tests/unit/strategies
    "one_pass": of_products(itself),
    "two_pass": of_products(itself),
    "flexlora": of_products(itself),
    "flora": stacked,
    "fedex": with_residual,
    "fedavgm": server_momentum,
    "fedadagrad": adaptive(lambda v, d, o: v + d * d),
    "fedyogi": adaptive(lambda v, d, o: v - (1 - o.beta2) * d * d * sign(v - d * d)),
    "fedadam": adaptive(lambda v, d, o: o.beta2 * v + (1 - o.beta2) * d * d),
    **INDIVIDUALS,
}
