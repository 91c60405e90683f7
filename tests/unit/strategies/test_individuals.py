"""Robust means of single updates: what a hostile minority can do to them, and what their options mean."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wardround.core.checked import parse_options
from wardround.core.errors import ConfigError, PeerError
from wardround.core.packed import Layout, Packed, TensorSpec
from wardround.strategies import STRATEGIES, _individuals
from wardround.strategies.contract import IndividualStrategy, SiteMemory, SumStrategy

SIZE = 6
LAYOUT = Layout(tensors=(TensorSpec(name="a", shape=(SIZE,)),))
START = Packed(LAYOUT, np.linspace(-1, 1, SIZE, dtype=np.float32))
NAMES = ("coordinate_median", "trimmed_mean", "multi_krum", "geometric_median", "norm_bounded_mean")
EVERY = pytest.mark.parametrize("name", NAMES)
SUMMED = ("fedavg", "fedadam", "group_median")


def made(name: str, **options: Any) -> Any:
    """The strategy, bound."""
    strategy = STRATEGIES.get(name)
    return strategy(parse_options(strategy.Options, options, name), LAYOUT)


def against(name: str, attackers: int) -> Any:
    """The strategy, told how many hostile sites there may be where it asks."""
    asked = {"trimmed_mean": {"trim": attackers}, "multi_krum": {"attackers": attackers}}
    return made(name, **asked.get(name, {}))


def step_of(strategy: Any, updates: Sequence[Any], weights: Sequence[float] | None = None) -> np.ndarray:
    """The update that takes the place of the mean."""
    each = [1.0] * len(updates) if weights is None else weights
    sums = [(Packed(LAYOUT, np.asarray(u, float) * w), float(w)) for u, w in zip(updates, each, strict=True)]
    total, weight = strategy.combine_individuals(strategy.begin(START), sums)
    assert weight == sum(each)
    return np.asarray(total.vector / weight)


def test_which_strategies_see_individuals() -> None:
    """By their type: these and FlexLoRA, and none that has a sum."""
    for name in (*NAMES, "flexlora"):
        assert isinstance(made(name), IndividualStrategy), name
    for name in SUMMED:
        strategy: SumStrategy = made(name)
        assert not isinstance(strategy, IndividualStrategy), name


@st.composite
def attacks(draw: st.DrawFn) -> tuple[np.ndarray, list[np.ndarray], int]:
    """Honest updates, hostile ones, and the most that there can be: scaled by −10, huge, or anything."""
    attackers = draw(st.integers(1, 3))
    honest = draw(st.integers(attackers + 3, attackers + 5))
    seed, spread = draw(st.integers(0, 2**32 - 1)), draw(st.sampled_from([0.01, 0.3, 3.0]))
    rng = np.random.default_rng(seed)
    mean = rng.normal(size=SIZE)
    updates = mean + spread * rng.normal(size=(honest, SIZE))
    kind = draw(st.sampled_from(["scaled", "huge", "any", "equal"]))
    hostile = {
        "scaled": lambda: -10 * mean,
        "huge": lambda: rng.normal(size=SIZE) * 10.0 ** draw(st.integers(3, 200)),
        "any": lambda: rng.normal(size=SIZE) * 10 * spread,
        "equal": lambda: mean + 5 * spread,
    }[kind]
    return updates, [hostile() for _ in range(attackers)], attackers


@EVERY
@settings(deadline=None)
@given(case=attacks())
def test_a_hostile_minority_leaves_the_step_within_the_honest_spread(name: str, case: Any) -> None:
    """As far as each of them promises: coordinates, distances, or lengths of the honest updates."""
    honest, hostile, attackers = case
    found = step_of(against(name, attackers), [*hostile, *honest])
    n, centre = len(honest) + attackers, honest.mean(axis=0)
    farthest = max(float(np.linalg.norm(update - centre)) for update in honest)
    if name in ("coordinate_median", "trimmed_mean"):
        slack = 1e-12 * np.abs(honest).max()
        assert (found >= honest.min(axis=0) - slack).all()
        assert (found <= honest.max(axis=0) + slack).all()
    elif name == "geometric_median":  # Minsker 2015, lemma 2.1; Pillutla et al. 2022, lemma 3
        share = attackers / n
        assert np.linalg.norm(found - centre) <= 2 * (1 - share) / (1 - 2 * share) * farthest * (1 + 1e-6)
    elif name == "multi_krum":  # a hostile one is chosen only where it lies as near as honest ones do
        apart = max(float(np.linalg.norm(u - v)) for u in honest for v in honest)
        assert np.linalg.norm(found - centre) <= farthest + math.sqrt(n) * apart
    else:
        longest = max(float(np.linalg.norm(update)) for update in honest)
        assert np.linalg.norm(found) <= longest * (1 + 1e-9)
        others = max(float(np.linalg.norm(update - centre)) for update in honest)
        assert np.linalg.norm(found - centre) <= 2 * longest + others


@EVERY
def test_two_of_seven_sites_turn_the_mean_and_none_of_these(name: str) -> None:
    """Scaled by −10 the mean goes backwards; a thousand times as long it goes anywhere."""
    rng = np.random.default_rng(3)
    direction = np.ones(SIZE)
    honest = [direction + 0.1 * rng.normal(size=SIZE) for _ in range(5)]
    for hostile in ([-10 * direction] * 2, [1e3 * rng.normal(size=SIZE) for _ in range(2)]):
        updates = [*honest[:2], *hostile, *honest[2:]]
        mean, found = np.mean(updates, axis=0), step_of(against(name, 2), updates)
        bounded = name == "norm_bounded_mean"  # it shortens, and outvotes nobody
        assert np.linalg.norm(mean - direction) > 5
        assert np.linalg.norm(found - direction) < (2.0 if bounded else 0.35)
        assert found @ direction > 0


@EVERY
def test_fewer_sites_than_it_takes_are_refused(name: str) -> None:
    """By their number, at the server; and with as many it goes."""
    strategy = against(name, 2)
    least = {"trimmed_mean": 5, "multi_krum": 7}.get(name, 3)
    assert strategy.least_sites == least
    updates = np.random.default_rng(0).normal(size=(least, SIZE))
    assert np.isfinite(step_of(strategy, updates)).all()
    with pytest.raises(
        PeerError, match=f"(?s)too few sites contributed.*found: {least - 1}.*at least {least}"
    ):
        step_of(strategy, updates[1:])


@EVERY
def test_a_contribution_that_is_none_is_refused(name: str) -> None:
    """Not finite, of another layout, of no weight: the same as of a sum."""
    strategy, state = made(name), made(name).begin(START)
    good = Packed(LAYOUT, np.zeros(SIZE)), 1.0
    foreign = Layout(tensors=(TensorSpec(name="b", shape=(SIZE,)),))
    for bad, reason in (
        ((Packed(LAYOUT, np.full(SIZE, np.nan)), 1.0), "not finite"),
        ((Packed(LAYOUT, np.full(SIZE, np.inf)), 1.0), "not finite"),
        ((Packed(foreign, np.zeros(SIZE)), 1.0), "layout"),
        ((Packed(LAYOUT, np.zeros(SIZE)), 0.0), "weight"),
    ):
        with pytest.raises(PeerError, match=reason):
            strategy.combine_individuals(state, [good, good, bad, good, good])


@EVERY
def test_many_chunks_are_one(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Coordinates are read piece by piece; the result is that of one piece."""
    updates = np.random.default_rng(5).normal(size=(7, SIZE))
    weights = [1, 2, 3, 4, 5, 6, 7]
    whole = step_of(made(name), updates, weights)
    monkeypatch.setattr(_individuals, "CHUNK", 4)
    np.testing.assert_allclose(step_of(made(name), updates, weights), whole, rtol=1e-9)


@EVERY
def test_a_proximal_term_and_a_server_optimiser_go_with_each(name: str) -> None:
    """μ reaches the sites; momentum adds to the step."""
    strategy = made(name, proximal=0.2, server={"optimiser": "momentum", "momentum": 0.5})
    assert strategy.local_rules(START, SiteMemory(), 1).proximal == 0.2
    update = np.linspace(0, 1, SIZE)
    sums = [(Packed(LAYOUT, update), 1.0)] * 7
    state = strategy.begin(START)
    for expected in (1.0, 1.0 + 1.5):
        state = strategy.fold(state, *strategy.combine_individuals(state, sums), 0)
        moved = state.adapter.vector - START.vector
        np.testing.assert_allclose(moved, expected * update, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["coordinate_median", "trimmed_mean", "multi_krum"])
def test_weight_buys_no_votes(name: str) -> None:
    """Whatever a site says to weigh."""
    updates = np.random.default_rng(8).normal(size=(7, SIZE))
    one, other = (step_of(made(name), updates, [first, *[1] * 6]) for first in (1, 64))
    np.testing.assert_allclose(one, other, rtol=1e-12)


def test_weights_pull_where_the_paper_has_them() -> None:
    """The heavier side of two has the geometric median, and the larger part of the mean."""
    updates = [[0.0] * SIZE, [1.0] * SIZE, [1.0] * SIZE]
    heavy = [5, 1, 1]
    np.testing.assert_allclose(step_of(made("geometric_median"), updates, heavy), 0.0, atol=1e-5)
    np.testing.assert_allclose(step_of(made("geometric_median"), updates), 1.0, atol=1e-5)
    np.testing.assert_allclose(step_of(made("norm_bounded_mean"), updates, heavy), 2 / 7)


def test_the_geometric_median_is_where_no_direction_is_nearer() -> None:
    """The sum of distances is least there, seen from all sides."""
    rng = np.random.default_rng(2)
    updates = rng.normal(size=(7, SIZE)) * np.array([1, 1, 1, 1, 1, 9, 30])[:, None]
    found = step_of(made("geometric_median"), updates)

    def cost(z: np.ndarray) -> float:
        return float(np.linalg.norm(updates - z, axis=1).sum())

    for _ in range(200):
        assert cost(found) <= cost(found + 1e-3 * rng.normal(size=SIZE))


def test_krum_itself_chooses_one_and_all_that_tie_with_it() -> None:
    """M = 1 gives a site's own update; equal sites are one choice, in any order."""
    updates = np.array([[0.0], [0.1], [0.25], [3.0], [9.0]]) * np.ones(SIZE)
    np.testing.assert_array_equal(step_of(made("multi_krum", selected=1), updates), updates[1])
    twins = np.array([[0.0], [2.0], [1.0], [-7.0], [9.0]]) * np.ones(SIZE)
    one = made("multi_krum", selected=1)
    assert one.chosen(list(twins)).tolist() == [False, False, True, False, False]
    pairs = np.array([[0.0], [1.0], [10.0], [11.0], [99.0]]) * np.ones(SIZE)
    for order in ([0, 1, 2, 3, 4], [3, 4, 1, 0, 2]):
        np.testing.assert_allclose(step_of(made("multi_krum", attackers=1, selected=1), pairs[order]), 5.5)


def test_krum_takes_the_sites_that_its_arithmetic_asks_for() -> None:
    """N ≥ 2f + 3, and m ≤ n − f − 2."""
    assert made("multi_krum", attackers=0).least_sites == 3
    assert made("multi_krum", attackers=3).least_sites == 9
    assert made("multi_krum", attackers=1, selected=6).least_sites == 9


@pytest.mark.parametrize(
    ("options", "sites", "trimmed"),
    [({"trim": 0}, 4, 0), ({"trim": 2}, 9, 2), ({"trim": None, "share": 0.1}, 30, 3),
     ({"trim": None, "share": 0.1}, 9, 1), ({"trim": None, "share": 0.49}, 3, 1),
     ({"trim": None, "share": 0.4}, 4, 1)],
)  # fmt: skip
def test_how_many_are_trimmed(options: dict[str, Any], sites: int, trimmed: int) -> None:
    """A number, or a share rounded up, as long as one is left."""
    assert made("trimmed_mean", **options).trimmed(sites) == trimmed


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("trimmed_mean", {"trim": 1, "share": 0.1}),
        ("trimmed_mean", {"trim": None}),
        ("trimmed_mean", {"trim": None, "share": 0.5}),
        ("multi_krum", {"attackers": -1}),
        ("multi_krum", {"selected": 0}),
        ("geometric_median", {"smoothing": 0}),
        ("geometric_median", {"iterations": 0}),
        ("norm_bounded_mean", {"bound": 0}),
        ("coordinate_median", {"least_sites": 0}),
        ("flexlora", {"server": {"optimiser": "momentum"}}),
    ],
)
def test_options_that_mean_nothing_are_refused(name: str, options: dict[str, Any]) -> None:
    """Before anything is bound."""
    with pytest.raises(ConfigError):
        made(name, **options)


def test_a_bound_of_the_plan_shortens_to_it() -> None:
    """In place of the median norm; shorter updates stay as they are."""
    updates = np.eye(SIZE)[:3] * np.array([[0.5], [2.0], [50.0]])
    found = step_of(made("norm_bounded_mean", bound=1.0), updates)
    np.testing.assert_allclose(found[:3], [0.5 / 3, 1 / 3, 1 / 3])
    found = step_of(made("norm_bounded_mean"), updates)
    np.testing.assert_allclose(found[:3], [0.5 / 3, 2 / 3, 2 / 3])
