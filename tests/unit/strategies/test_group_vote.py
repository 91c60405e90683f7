"""The vote over groups: what it is, and that a minority of hostile groups cannot leave the others' range."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from wardround.core.errors import PeerError
from wardround.core.packed import Layout, Packed, TensorSpec
from wardround.strategies import STRATEGIES
from wardround.strategies.contract import GroupStrategy, combined

LAYOUT = Layout(tensors=(TensorSpec(name="a", shape=(3,)),))
EVERY = pytest.mark.parametrize("name", ["group_median", "group_trimmed_mean"])
VALUES = st.floats(-1e3, 1e3, allow_subnormal=False)


def made(name: str, attackers: int = 1) -> Any:
    """The strategy, bound."""
    strategy = STRATEGIES.get(name)
    return strategy(strategy.Options(attackers=attackers, group_size=4), LAYOUT)


def sums_of(means: list[list[float]], weights: list[int]) -> list[tuple[Packed, float]]:
    """Groups' sums with these means."""
    return [(Packed(LAYOUT, np.array(mean) * w), float(w)) for mean, w in zip(means, weights, strict=True)]


def by_hand(name: str, column: list[float], attackers: int) -> float:
    """One coordinate, as the paper writes it."""
    ordered = sorted(column)
    if name == "group_trimmed_mean":
        kept = ordered[attackers : len(ordered) - attackers]
        return sum(kept) / len(kept)
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2


@EVERY
@given(st.data())
def test_the_vote_is_the_papers(name: str, data: st.DataObject) -> None:
    """Coordinate by coordinate; the fold takes its step along it, whatever the groups weigh."""
    attackers = data.draw(st.integers(1, 2))
    groups = data.draw(st.integers(2 * attackers + 1, 8))
    means = [data.draw(st.lists(VALUES, min_size=3, max_size=3)) for _ in range(groups)]
    weights = [data.draw(st.integers(1, 500)) for _ in range(groups)]
    strategy = made(name, attackers)
    total, weight = combined(strategy, sums_of(means, weights))
    assert weight == sum(weights)
    state = strategy.begin(Packed(LAYOUT, np.zeros(3, dtype=np.float32)))
    found = strategy.fold(state, total, weight, 0).adapter.vector
    expected = [by_hand(name, [mean[i] for mean in means], attackers) for i in range(3)]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-4)


@EVERY
@given(st.data())
def test_hostile_groups_cannot_leave_the_range_of_the_others(name: str, data: st.DataObject) -> None:
    """A of 2a + 1 groups or more send whatever they like, at whatever weight."""
    attackers = data.draw(st.integers(1, 2))
    honest = data.draw(st.integers(attackers + 1, 6))
    means = [data.draw(st.lists(VALUES, min_size=3, max_size=3)) for _ in range(honest)]
    hostile = [data.draw(st.lists(st.floats(-1e12, 1e12), min_size=3, max_size=3)) for _ in range(attackers)]
    weights = [data.draw(st.integers(1, 500)) for _ in range(honest + attackers)]
    total, weight = combined(made(name, attackers), sums_of([*hostile, *means], weights))
    found, others = total.vector / weight, np.array(means)
    slack = 1e-9 * (1 + np.abs(others).max())
    assert (found >= others.min(axis=0) - slack).all()
    assert (found <= others.max(axis=0) + slack).all()


@EVERY
def test_one_group_more_breaks_it(name: str) -> None:
    """A + 1 hostile groups of 2a + 1 have the majority: nothing is claimed there."""
    total, weight = combined(made(name), sums_of([[9e9] * 3, [9e9] * 3, [0.1] * 3], [1, 1, 1]))
    assert (total.vector / weight > 1e8).all()


@EVERY
def test_too_few_groups_are_refused(name: str) -> None:
    """Two cannot outvote one."""
    with pytest.raises(PeerError, match="too few groups are left"):
        combined(made(name), sums_of([[1.0] * 3] * 2, [1, 1]))


@EVERY
def test_a_group_without_weight_is_refused(name: str) -> None:
    """Its mean would be of nobody."""
    with pytest.raises(PeerError, match="summed weight"):
        combined(made(name), sums_of([[1.0] * 3] * 3, [1, 1, 0]))


def test_only_these_have_groups() -> None:
    """Every other strategy gets one sum, and refuses more."""
    for name in STRATEGIES.names():
        strategy = STRATEGIES.get(name)
        bound = strategy(strategy.Options(), Layout(tensors=()))
        assert isinstance(bound, GroupStrategy) == name.startswith("group_")
    fedavg = STRATEGIES.get("fedavg")
    bound = fedavg(fedavg.Options(), LAYOUT)
    for sums in ([], sums_of([[1.0] * 3] * 2, [1, 1])):
        with pytest.raises(PeerError, match="not one sum"):
            combined(bound, sums)


@pytest.mark.parametrize("options", [{"attackers": 0}, {"group_size": 2}, {"attackers": -1}, {"sites": 3}])
def test_options_that_protect_nobody_are_refused(options: dict[str, Any]) -> None:
    """A vote that outvotes nobody is a mean; a group of two shows each member the other's update."""
    with pytest.raises(ValidationError):
        STRATEGIES.get("group_median").Options(**options)
