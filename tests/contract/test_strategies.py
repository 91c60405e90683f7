"""The sum contract, held by every registered strategy; a new file in strategies/ is covered by being there.

`DEFINITIONS` has each method as its paper writes it, on the individual sites, tensor by tensor and
in plain loops. A strategy without one fails here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from individual_definitions import INDIVIDUALS
from pydantic import ValidationError

from wardround.core.checked import parse_options
from wardround.core.errors import ConfigError, PeerError
from wardround.core.packed import Layout, Packed, TensorSpec, zeros
from wardround.core.ranks import beside
from wardround.strategies import STRATEGIES
from wardround.strategies.contract import (
    IndividualStrategy,
    LocalUpdate,
    ProductStrategy,
    ServerState,
    SiteMemory,
    StartingStrategy,
    SumStrategy,
)

NAMES = STRATEGIES.names()
EVERY = pytest.mark.parametrize("name", NAMES)

Tensors = dict[str, np.ndarray[Any, Any]]
Moments = dict[str, Tensors]
A, B, SCALING = "m.lora_A.weight", "m.lora_B.weight", 2.0
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
    """Which tensors move: those of a role, and the dense ones."""
    return lambda name: not name.startswith("m.") or name == role


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
    new = moved_means(x, sites, lambda name: not name.startswith("m."))
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
        new = moved_means(x, sites, lambda name: not name.startswith("m."))
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
    dense = {name: tensor for name, tensor in x.items() if not name.startswith("m.")}
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
    new = moved_means(x, sites, lambda name: not name.startswith("m."))
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
OPTIONS: dict[str, dict[str, Any]] = {
    "fedavg": {},
    "fedprox": {"mu": 0.3},
    "fedavgm": {"momentum": 0.7, "server_learning_rate": 0.5},
    "fedadagrad": {"beta1": 0.4, "server_learning_rate": 0.3, "tau": 0.01},
    "fedyogi": {"beta1": 0.8, "beta2": 0.7, "server_learning_rate": 0.3, "tau": 0.01},
    "fedadam": {"beta1": 0.8, "beta2": 0.7, "server_learning_rate": 0.3, "tau": 0.01},
    "dual_adapter": {"global_rank": 1},
    "flora": {"site_rank": 2, "largest_update": 0.1},
    "fedex": {"trained_rank": 1},
    "coordinate_median": {"least_sites": 1},
    "trimmed_mean": {"trim": None, "share": 0.3},
    "multi_krum": {"attackers": 0, "selected": 1},
    "geometric_median": {"least_sites": 1, "smoothing": 1e-3, "iterations": 40},
    "norm_bounded_mean": {"least_sites": 1},
}
"""Not the defaults, so that every option is seen to act; a new strategy starts from its defaults."""
MEANS = [name for name in NAMES if DEFINITIONS.get(name) is mean_of_models or name in INDIVIDUALS]
"""Methods whose step is the mean update itself."""


VOTES = {"coordinate_median", "trimmed_mean", "multi_krum", "norm_bounded_mean"}
"""Methods in which a site that comes in two halves counts twice."""


@dataclass(frozen=True)
class Case:
    """A layout, an adapter, and rounds of sites with weights."""

    layout: Layout
    adapter: Packed
    rounds: tuple[tuple[tuple[int, Packed], ...], ...]


FLOATS = st.floats(-4.0, 4.0, width=32, allow_subnormal=False)


@st.composite
def cases(draw: st.DrawFn, rounds: int = 3, most_sites: int = 4) -> Case:
    """Layouts of one to three dense tensors, scalars and empty dimensions included, and two factors."""
    shapes = draw(st.lists(st.lists(st.integers(0, 3), max_size=2).map(tuple), min_size=1, max_size=3))
    dense = (TensorSpec(name=f"t{i}", shape=shape) for i, shape in enumerate(shapes))
    sizes = (draw(st.integers(least, most)) for least, most in ((2, 3), (1, 4), (1, 4)))
    layout = Layout(tensors=(*dense, *factors(*sizes)))

    def packed() -> Packed:
        values = draw(st.lists(FLOATS, min_size=layout.size, max_size=layout.size))
        return Packed(layout, np.array(values, dtype=np.float32))

    def sites() -> tuple[tuple[int, Packed], ...]:
        count = draw(st.integers(1, most_sites))
        return tuple((draw(st.integers(1, 500)), packed()) for _ in range(count))

    return Case(layout, packed(), tuple(sites() for _ in range(draw(st.integers(1, rounds)))))


def factors(rank: int, d_out: int, d_in: int) -> tuple[TensorSpec, TensorSpec]:
    """A and B of one module."""
    return (
        TensorSpec(name=A, shape=(rank, d_in), role="lora_a", module="m", scaling=SCALING),
        TensorSpec(name=B, shape=(d_out, rank), role="lora_b", module="m", scaling=SCALING),
    )


def made(name: str, layout: Layout) -> SumStrategy:
    """The strategy with the options of this file."""
    strategy = STRATEGIES.get(name)
    return strategy(parse_options(strategy.Options, OPTIONS.get(name, {}), name), layout)


def folded(strategy: SumStrategy, state: ServerState, sites: Any) -> ServerState:
    """One round as the server sees it: the sums of each stage only."""
    round, before = state.round + 1, state.adapter
    if isinstance(strategy, IndividualStrategy):
        alone = []
        for w, after in enough(strategy, sites):
            local = trained(strategy, before, after)
            update, _ = strategy.contribute(state.adapter, local, SiteMemory(), round, 0)
            alone.append((update.with_vector(w * update.vector.astype(np.float64)), float(w)))
        return strategy.fold(state, *strategy.combine_individuals(state, alone), 0)
    for stage in range(strategy.stages):
        broadcast = strategy.broadcast(state, round, stage)
        assert broadcast.layout.digest == strategy.broadcast_layout(stage).digest
        before = strategy.adapter_of(broadcast) if stage == 0 else before
        total = zeros(strategy.statistics_layout(stage), np.float64)
        weight = 0.0
        for w, after in sites:
            local = LocalUpdate(before, after, before.with_vector(before.vector - after.vector))
            statistics, _ = strategy.contribute(broadcast, local, SiteMemory(), round, stage)
            assert statistics.layout.digest == strategy.statistics_layout(stage).digest
            total = total.with_vector(total.vector + w * statistics.vector.astype(np.float64))
            weight += w
        state = strategy.fold(state, total, weight, stage)
    return state


def trained(strategy: SumStrategy, before: Packed, after: Packed) -> LocalUpdate:
    """A site's training; where the strategy says what trains, that moves as far as its tensors went here."""
    if not isinstance(strategy, StartingStrategy):
        return LocalUpdate(before, after)
    start = strategy.start(before, None, np.random.default_rng(int(after.digest[:8], 16)))
    moved = start.trained.with_vector(start.trained.vector.copy())
    for name, tensor in moved.tensors().items():
        block = tuple(slice(size) for size in tensor.shape)
        tensor[...] += (after[name] - before[name])[block]
    return LocalUpdate(beside(start.trained, start.rest), beside(moved, start.rest))


def require_equal(strategy: SumStrategy, found: Packed, expected: Tensors) -> None:
    """Tensor by tensor, and of a method over products the products."""
    tensors = found.tensors()
    if isinstance(strategy, ProductStrategy):
        tensors, expected = products_of(wide(found)), products_of(expected)
    for tensor, value in tensors.items():
        # one rounding to float32; sums of another order; √ near 0 enlarges what is left of both
        np.testing.assert_allclose(value, expected[tensor], rtol=2e-6, atol=1e-5 if tensor == "m" else 2e-6)


def require_same(strategy: SumStrategy, one: Packed, two: Packed) -> None:
    """Equal but for rounding."""
    if isinstance(strategy, ProductStrategy):
        np.testing.assert_allclose(strategy.difference(one, two), 0.0, atol=2e-6)
    else:
        np.testing.assert_allclose(one.vector, two.vector, rtol=1e-6, atol=1e-6)


def products_of(tensors: Tensors) -> Tensors:
    """The product in place of its factors."""
    rest = {name: array for name, array in tensors.items() if name not in (A, B)}
    return {**rest, "m": SCALING * tensors[B] @ tensors[A]}


def enough(strategy: SumStrategy, sites: Any) -> list[Any]:
    """The sites, the first ones again where the strategy wants more."""
    least = strategy.least_sites if isinstance(strategy, IndividualStrategy) else 1
    return [sites[index % len(sites)] for index in range(max(least, len(sites)))]


def wide(packed: Packed) -> Tensors:
    """Tensors by name, float64."""
    return {name: array.astype(np.float64) for name, array in packed.tensors().items()}


def small() -> tuple[Layout, Packed]:
    """A layout of two dense tensors and two factors, and an adapter."""
    layout = Layout(
        tensors=(
            TensorSpec(name="a", shape=(2, 3)),
            TensorSpec(name="b", shape=(2,)),
            *factors(2, 2, 3),
        )
    )
    return layout, Packed(layout, np.linspace(-1, 1, layout.size, dtype=np.float32))


def at_the_last_stage(strategy: SumStrategy, adapter: Packed) -> tuple[ServerState, int]:
    """The state before the last stage of round 1, where no site had moved before."""
    state = strategy.begin(adapter)
    for stage in range(strategy.stages - 1):
        state = strategy.fold(state, zeros(strategy.statistics_layout(stage), np.float64), 1.0, stage)
    return state, strategy.stages - 1


@EVERY
def test_has_a_definition(name: str) -> None:
    """Every strategy of the folder is held against its paper's definition."""
    assert name in DEFINITIONS, f"write {name} as its paper does into DEFINITIONS of this file"


@EVERY
@settings(max_examples=40, deadline=None)
@given(case=cases())
def test_folding_sums_is_the_definition(name: str, case: Case) -> None:
    """Over several rounds, folds of sums give what the paper's pseudo-code gives on the individuals."""
    strategy = made(name, case.layout)
    state = strategy.begin(case.adapter)
    options = parse_options(strategy.Options, OPTIONS.get(name, {}), name)
    x, moments = wide(case.adapter), Moments()
    for sites in case.rounds:
        individuals = [
            (w, wide(trained(strategy, state.adapter, y).after)) for w, y in enough(strategy, sites)
        ]
        state = folded(strategy, state, sites)
        x, moments = DEFINITIONS[name](options, x, individuals, moments)
        require_equal(strategy, state.adapter, x)
        x = wide(state.adapter)  # rounding does not pile up in the comparison
    assert state.round == len(case.rounds)
    assert state.adapter.vector.dtype == np.float32


@EVERY
@settings(max_examples=25, deadline=None)
@given(case=cases(rounds=1), data=st.data())
def test_order_of_sites_does_not_matter(name: str, case: Case, data: st.DataObject) -> None:
    """Permuted sites give the same state, up to the float64 rounding of the sum."""
    strategy = made(name, case.layout)
    state = strategy.begin(case.adapter)
    these = enough(strategy, case.rounds[0])
    other = data.draw(st.permutations(these))
    one, two = (folded(strategy, state, sites).adapter for sites in (these, other))
    require_same(strategy, one, two)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in VOTES])
@settings(max_examples=25, deadline=None)
@given(case=cases(rounds=1))
def test_a_site_in_two_halves_is_the_site(name: str, case: Case) -> None:
    """A site that answers twice with half its weight changes nothing."""
    strategy = made(name, case.layout)
    state = strategy.begin(case.adapter)
    (weight, after), *others = case.rounds[0]
    halves = [(weight / 2, after), *others, (weight / 2, after)]
    one, two = (folded(strategy, state, sites).adapter for sites in (case.rounds[0], halves))
    require_same(strategy, one, two)


@pytest.mark.parametrize("name", MEANS)
@settings(max_examples=25, deadline=None)
@given(case=cases(rounds=1, most_sites=1))
def test_one_site_alone_gets_its_own_model(name: str, case: Case) -> None:
    """With one site the global adapter becomes what that site trained, to the last bits of float32."""
    strategy = made(name, case.layout)
    after = case.rounds[0][0][1]
    state = folded(strategy, strategy.begin(case.adapter), case.rounds[0])
    # a float64 mean of numbers up to 4 that cancel
    np.testing.assert_allclose(state.adapter.vector, after.vector, rtol=1.2e-7, atol=1e-14)


@EVERY
@settings(max_examples=25, deadline=None)
@given(case=cases(rounds=1))
def test_no_update_leaves_the_adapter_as_it_was(name: str, case: Case) -> None:
    """With fresh moments, sites that did not move do not move the adapter, bit for bit."""
    strategy = made(name, case.layout)
    sites = [(w, case.adapter) for w, _ in case.rounds[0]]
    state = folded(strategy, strategy.begin(case.adapter), sites)
    np.testing.assert_array_equal(state.adapter.vector, case.adapter.vector)
    assert state.round == 1


@EVERY
def test_fold_is_pure(name: str) -> None:
    """Folding twice from one state gives one result; state and sums are left as they were."""
    layout, adapter = small()
    strategy = made(name, layout)
    after = adapter.with_vector(adapter.vector + np.float32(0.5))
    state = folded(strategy, strategy.begin(adapter), [(3, after)])
    before = (state.adapter.digest, {k: v.digest for k, v in state.slots.items()})
    one, two = (folded(strategy, state, [(2, adapter), (1, after)]) for _ in range(2))
    assert one.adapter.digest == two.adapter.digest
    assert {k: v.digest for k, v in one.slots.items()} == {k: v.digest for k, v in two.slots.items()}
    assert before == (state.adapter.digest, {k: v.digest for k, v in state.slots.items()})
    assert all(slot.vector.dtype == np.float64 for slot in one.slots.values())


@EVERY
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused_by_name(name: str, value: float) -> None:
    """A tensor with NaN or infinity is named, at the site and at the server."""
    layout, adapter = small()
    strategy = made(name, layout)
    broken = adapter.vector.copy()
    broken[7] = value
    state, stage = at_the_last_stage(strategy, adapter)
    total = zeros(strategy.statistics_layout(stage), np.float64)
    with pytest.raises(PeerError, match="'b'"):
        strategy.contribute(
            strategy.broadcast(state, 1, 0), LocalUpdate(adapter, adapter.with_vector(broken), adapter),
            SiteMemory(), 1, 0,
        )  # fmt: skip
    total["b"][1] = value
    with pytest.raises(PeerError, match="'b'"):
        strategy.fold(state, total, 1.0, stage)


@EVERY
def test_foreign_layouts_and_shapes_are_refused(name: str) -> None:
    """Another name, another order and another length: each is refused."""
    layout, adapter = small()
    strategy = made(name, layout)
    first, second, *rest = layout.tensors
    renamed = Layout(tensors=(first, TensorSpec(name="c", shape=(2,)), *rest))
    swapped = Layout(tensors=layout.tensors[::-1])
    transposed = Layout(tensors=(TensorSpec(name="a", shape=(3, 2)), second, *rest))
    longer = Layout(tensors=(*layout.tensors, TensorSpec(name="c")))
    for foreign in (renamed, swapped, transposed, longer):
        other = zeros(foreign, np.float32)
        broadcast = strategy.broadcast(strategy.begin(adapter), 1, 0)
        with pytest.raises(PeerError, match="layout"):
            strategy.contribute(broadcast, LocalUpdate(adapter, other, adapter), SiteMemory(), 1, 0)
        with pytest.raises(PeerError, match="layout"):
            strategy.fold(strategy.begin(adapter), zeros(foreign, np.float64), 1.0, 0)
        with pytest.raises(PeerError, match="layout"):
            strategy.begin(other)


@EVERY
@pytest.mark.parametrize("weight", [0.0, -1.0, np.nan, np.inf])
def test_a_weight_that_is_no_weight_is_refused(name: str, weight: float) -> None:
    """Nothing is divided by zero, by less, or by what is no number."""
    layout, adapter = small()
    strategy = made(name, layout)
    with pytest.raises(PeerError, match="weight"):
        strategy.fold(strategy.begin(adapter), zeros(strategy.statistics_layout(0), np.float64), weight, 0)


@EVERY
def test_a_step_beyond_float32_is_refused(name: str) -> None:
    """A mean update that float32 or the moments cannot hold ends in an error, never in infinity."""
    layout, adapter = small()
    strategy = made(name, layout)
    state, stage = at_the_last_stage(strategy, adapter)
    total = zeros(strategy.statistics_layout(stage), np.float64)
    for value in total.tensors().values():
        value[...] = 1e300
    with pytest.raises(PeerError, match="not finite"):
        strategy.fold(state, total, 1.0, stage)


@EVERY
def test_a_stage_that_is_not_there_is_refused(name: str) -> None:
    """Asking for a further pass is an error, not a second fold."""
    layout, adapter = small()
    strategy = made(name, layout)
    with pytest.raises(PeerError, match="stage"):
        strategy.fold(
            strategy.begin(adapter), zeros(strategy.statistics_layout(0), np.float64), 1.0, strategy.stages
        )
    with pytest.raises(PeerError, match="stage"):
        strategy.broadcast(strategy.begin(adapter), 1, strategy.stages)
    with pytest.raises(PeerError, match="stage"):
        strategy.broadcast_layout(strategy.stages)


@EVERY
def test_options_are_frozen_and_know_their_keys(name: str) -> None:
    """An unknown option is a ConfigError; a set one cannot be changed."""
    strategy = STRATEGIES.get(name)
    with pytest.raises(ConfigError, match="no_such_option"):
        parse_options(strategy.Options, {"no_such_option": 1}, name)
    options = strategy.Options()
    with pytest.raises((ValidationError, AttributeError, ValueError)):
        options.anything = 1  # type: ignore[attr-defined]  # that it fails is the test
    with pytest.raises(ConfigError, match="another type"):
        strategy({}, small()[0])


def test_only_fedprox_asks_for_a_proximal_term() -> None:
    """μ reaches local training, and only from FedProx."""
    layout, adapter = small()
    rules = {}
    for name in DEFINITIONS:
        strategy = made(name, layout)
        broadcast = strategy.broadcast(strategy.begin(adapter), 1, 0)
        rules[name] = strategy.local_rules(broadcast, SiteMemory(), 1)
    assert rules["fedprox"].proximal == 0.3
    assert all(rule.proximal == 0 for name, rule in rules.items() if name != "fedprox")
