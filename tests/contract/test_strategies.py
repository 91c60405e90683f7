"""The sum contract, held by every registered strategy; a new file in strategies/ is covered by being there.

`strategy_definitions.py` has each method as its paper writes it. A strategy without one fails here.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from strategy_cases import (
    EVERY,
    MEANS,
    NAMES,
    OPTIONS,
    VOTES,
    Case,
    at_the_last_stage,
    cases,
    enough,
    folded,
    made,
    require_equal,
    require_same,
    small,
    trained,
    wide,
)
from strategy_definitions import DEFINITIONS, Moments

from wardround.core.checked import parse_options
from wardround.core.errors import ConfigError, PeerError
from wardround.core.packed import Layout, TensorSpec, zeros
from wardround.strategies import STRATEGIES
from wardround.strategies.contract import (
    LocalUpdate,
    SiteMemory,
)


@EVERY
def test_has_a_definition(name: str) -> None:
    """Every strategy of the folder is held against its paper's definition."""
    assert name in DEFINITIONS, f"write {name} as its paper does into strategy_definitions.py"


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
            strategy.contribute(broadcast, LocalUpdate(other, other, other), SiteMemory(), 1, 0)
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
