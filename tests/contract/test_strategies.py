"""The sum contract, held by every registered strategy; a new file in strategies/ is covered by being there.

`strategy_definitions.py` has each method as its paper writes it. A strategy without one fails here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from individual_definitions import INDIVIDUALS
from pydantic import ValidationError
from strategy_definitions import DEFINITIONS, MAGNITUDE, SCALING, A, B, Moments, Tensors, mean_of_models

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
    is_bounded_by_update,
)

NAMES = STRATEGIES.names()
EVERY = pytest.mark.parametrize("name", NAMES)

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
    """One to three dense tensors, scalars and empty dimensions among them, and a module, with DoRA or not."""
    shapes = draw(st.lists(st.lists(st.integers(0, 3), max_size=2).map(tuple), min_size=1, max_size=3))
    dense = (TensorSpec(name=f"t{i}", shape=shape) for i, shape in enumerate(shapes))
    sizes = (draw(st.integers(least, most)) for least, most in ((2, 3), (1, 4), (1, 4)))
    layout = Layout(tensors=(*dense, *module(*sizes, dora=draw(st.booleans()))))

    def packed() -> Packed:
        values = draw(st.lists(FLOATS, min_size=layout.size, max_size=layout.size))
        return Packed(layout, np.array(values, dtype=np.float32))

    def sites() -> tuple[tuple[int, Packed], ...]:
        count = draw(st.integers(1, most_sites))
        return tuple((draw(st.integers(1, 500)), packed()) for _ in range(count))

    return Case(layout, packed(), tuple(sites() for _ in range(draw(st.integers(1, rounds)))))


def module(rank: int, d_out: int, d_in: int, *, dora: bool = True) -> tuple[TensorSpec, ...]:
    """A and B of one module, and its magnitudes."""
    return (
        TensorSpec(name=A, shape=(rank, d_in), role="lora_a", module="m", scaling=SCALING),
        TensorSpec(name=B, shape=(d_out, rank), role="lora_b", module="m", scaling=SCALING),
        *[TensorSpec(name=MAGNITUDE, shape=(d_out,), role="magnitude", module="m")] * dora,
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
    """A layout of two dense tensors and a module with magnitudes, and an adapter."""
    layout = Layout(
        tensors=(
            TensorSpec(name="a", shape=(2, 3)),
            TensorSpec(name="b", shape=(2,)),
            *module(2, 2, 3),
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


BOUNDED = [name for name in NAMES if vars(STRATEGIES.get(name)).get("bounded_by_update")]
"""Those that say that noise which is sized for an update covers what they send."""


def test_who_is_bounded_by_the_update() -> None:
    """No one else gets shares of noise; a name that is added here has to pass the two laws below."""
    assert set(BOUNDED) == {
        "fedavg", "fedprox", "fedavgm", "fedadagrad", "fedadam", "fedyogi", "ffa_lora", "rolora", "fedsvd",
    }  # fmt: skip


@pytest.mark.parametrize("name", BOUNDED)
@settings(max_examples=40, deadline=None)
@given(case=cases(rounds=1), round=st.integers(1, 4), factor=st.floats(-1e3, 1e3))
def test_what_says_so_is_linear_and_no_longer_than_the_update(
    name: str, case: Case, round: int, factor: float
) -> None:
    """As a site with shares of noise contributes: float64, from zero, in any round and from any broadcast."""
    strategy = made(name, case.layout)
    assert is_bounded_by_update(strategy)
    assert strategy.stages == 1
    state = folded(strategy, strategy.begin(case.adapter), case.rounds[0])

    def sent(update: np.ndarray, whole: ServerState = state) -> np.ndarray:
        local = LocalUpdate(zeros(case.layout, np.float64), Packed(case.layout, update))
        broadcast = strategy.broadcast(whole, round, 0)
        statistics, memory = strategy.contribute(broadcast, local, SiteMemory(), round, 0)
        assert memory == SiteMemory()
        return statistics.vector

    one, two = (case.rounds[0][place][1].vector.astype(np.float64) for place in (0, -1))
    for update in (one, factor * two):
        assert np.linalg.norm(sent(update)) <= np.linalg.norm(update) * (1 + 1e-12)
    np.testing.assert_allclose(sent(one + factor * two), sent(one) + factor * sent(two), rtol=1e-9, atol=1e-9)
    np.testing.assert_array_equal(sent(one), sent(one, strategy.begin(case.adapter)))


def test_it_is_not_inherited() -> None:
    """A class that is derived from such a one may send anything."""
    layout, _ = small()
    plain = made("fedavg", layout)

    class Louder(type(plain)):  # type: ignore[misc]  # of a class that is only known here
        """Sends its update three times as long."""

    louder = Louder(plain.options, layout)  # type: ignore[attr-defined]  # as of fedavg
    assert louder.bounded_by_update
    assert not is_bounded_by_update(louder)


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
