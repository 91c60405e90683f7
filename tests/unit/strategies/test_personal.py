"""Methods that leave a part of the adapter at each site: what is shared, what stays, what each ends with."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wardround.core.checked import parse_options
from wardround.core.errors import ConfigError, PeerError
from wardround.core.packed import Array, Layout, Packed, TensorSpec
from wardround.strategies import STRATEGIES
from wardround.strategies._personal import OWN, PartlyShared
from wardround.strategies.contract import (
    LocalUpdate,
    PersonalStrategy,
    RememberingStrategy,
    SiteMemory,
    adapter_at,
)

RANK, GLOBAL = 3, 2
LAYOUT = Layout(
    tensors=(
        TensorSpec(name="q.A", shape=(RANK, 4), role="lora_a", module="q", scaling=2.0),
        TensorSpec(name="q.B", shape=(5, RANK), role="lora_b", module="q", scaling=2.0),
        TensorSpec(name="head", shape=(2, 2)),
        TensorSpec(name="v.B", shape=(3, RANK), role="lora_b", module="v"),
        TensorSpec(name="v.A", shape=(RANK, 2), role="lora_a", module="v"),
    )
)
OPTIONS = {"fedsa": {}, "dual_adapter": {"global_rank": GLOBAL}}
PERSONAL = pytest.mark.parametrize("name", sorted(OPTIONS))


def made(name: str, layout: Layout = LAYOUT, **options: object) -> PartlyShared[object]:  # type: ignore[type-var]  # any options
    """The strategy with this file's options."""
    strategy = STRATEGIES.get(name)
    return strategy(parse_options(strategy.Options, OPTIONS[name] | options, name), layout)  # type: ignore[return-value]  # one of them


def is_shared(name: str, spec: TensorSpec, index: tuple[int, ...]) -> bool:
    """The paper's choice, entry by entry."""
    if name == "fedsa":
        return spec.role != "lora_b"
    direction = {"lora_a": index[0], "lora_b": index[-1]}.get(spec.role, 0)
    return direction < GLOBAL


def adapters(seed: int, count: int) -> list[Packed]:
    """Random ones."""
    rng = np.random.default_rng(seed)
    return [Packed(LAYOUT, rng.normal(size=LAYOUT.size).astype(np.float32)) for _ in range(count)]


def test_every_personal_strategy_is_held_here() -> None:
    """Who keeps a part at the site stands in this file, and is refused under privacy by its kind."""
    found = []
    for name in STRATEGIES.names():
        strategy = STRATEGIES.get(name)
        bound = strategy(strategy.Options(), Layout(tensors=()))
        if isinstance(bound, PersonalStrategy):
            assert isinstance(bound, RememberingStrategy)
            found.append(name)
    assert found == sorted(OPTIONS)


@PERSONAL
@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 10_000), count=st.integers(1, 4), rounds=st.integers(1, 3), data=st.data())
def test_rounds_are_the_papers_on_the_individuals(
    name: str, seed: int, count: int, rounds: int, data: st.DataObject
) -> None:
    """Entry by entry: what is shared becomes the mean of the sites', the rest is what each one trained."""
    strategy = made(name)
    initial, *trained = adapters(seed, 1 + count * rounds)
    weights = [data.draw(st.integers(1, 50)) for _ in range(count)]
    state, memories = strategy.begin(initial), [SiteMemory() for _ in range(count)]
    own = [{spec.name: initial[spec.name].astype(np.float64) for spec in LAYOUT.tensors}] * count
    common = {spec.name: initial[spec.name].astype(np.float64) for spec in LAYOUT.tensors}
    for round in range(1, rounds + 1):
        broadcast = strategy.broadcast(state, round, 0)
        afters = trained[(round - 1) * count : round * count]
        total = np.zeros(strategy.statistics_layout(0).size)
        for i, after in enumerate(afters):
            before = adapter_at(strategy, broadcast, memories[i])
            for spec in LAYOUT.tensors:
                for index in np.ndindex(spec.shape):
                    expected = (common if is_shared(name, spec, index) else own[i])[spec.name][index]
                    assert before[spec.name][index] == pytest.approx(expected, rel=2e-6, abs=2e-6)
            sent, memories[i] = strategy.contribute(
                broadcast, LocalUpdate(before, after), memories[i], round, 0
            )
            total += weights[i] * sent.vector
        state = strategy.fold(state, Packed(strategy.statistics_layout(0), total), float(sum(weights)), 0)
        own = [{spec.name: a[spec.name].astype(np.float64) for spec in LAYOUT.tensors} for a in afters]
        for spec in LAYOUT.tensors:
            for index in np.ndindex(spec.shape):
                if is_shared(name, spec, index):
                    mean = sum(w * a[spec.name][index] for w, a in zip(weights, afters, strict=True))
                    common[spec.name][index] = mean / sum(weights)
                else:  # what nobody is sent anew
                    assert state.adapter[spec.name][index] == initial[spec.name][index]
                    continue
                assert state.adapter[spec.name][index] == pytest.approx(
                    common[spec.name][index], rel=2e-6, abs=2e-6
                )


@PERSONAL
def test_only_the_shared_part_leaves(name: str) -> None:
    """Statistics have its names and shapes; whatever a site's own part is, they are the same."""
    strategy = made(name)
    shapes = {spec.name: spec.shape for spec in strategy.statistics_layout(0).tensors}
    assert (
        shapes
        == {
            "fedsa": {"q.A": (3, 4), "head": (2, 2), "v.A": (3, 2)},
            "dual_adapter": {"q.A": (2, 4), "q.B": (5, 2), "head": (2, 2), "v.B": (3, 2), "v.A": (2, 2)},
        }[name]
    )
    before, after = adapters(1, 2)
    other = after.vector.copy()
    for spec_name, (start, spec) in LAYOUT.offsets.items():
        for place, index in enumerate(np.ndindex(spec.shape)):
            if not is_shared(name, LAYOUT.offsets[spec_name][1], index):
                other[start + place] += 100.0
    sent = [
        strategy.contribute(before, LocalUpdate(before, a), SiteMemory(), 1, 0)
        for a in (after, after.with_vector(other))
    ]
    np.testing.assert_array_equal(sent[0][0].vector, sent[1][0].vector)
    kept: list[Array] = [memory.slots[OWN].vector for _, memory in sent]
    assert (kept[1] - kept[0] > 99).all()
    assert kept[0].size + sent[0][0].vector.size == LAYOUT.size


@PERSONAL
def test_what_was_kept_of_another_adapter_is_refused(name: str) -> None:
    """It would fill the wrong entries."""
    strategy = made(name)
    (start,) = adapters(1, 1)
    foreign = Packed(Layout(tensors=(TensorSpec(name=OWN, shape=(3,)),)), np.zeros(3, np.float32))
    with pytest.raises(PeerError, match="layout"):
        strategy.own_adapter(start, SiteMemory({OWN: foreign}))


def test_a_server_optimiser_steps_along_the_shared_part_alone() -> None:
    """Moments have the layout of the statistics."""
    strategy = made("fedsa", server={"optimiser": "momentum", "momentum": 0.5})
    before, after = adapters(2, 2)
    sent, _ = strategy.contribute(before, LocalUpdate(before, after), SiteMemory(), 1, 0)
    state = strategy.fold(strategy.begin(before), sent, 1.0, 0)
    assert state.slots["m"].layout.digest == strategy.statistics_layout(0).digest
    twice = strategy.fold(state, sent, 1.0, 0)
    np.testing.assert_allclose(twice.adapter["q.A"] - state.adapter["q.A"], 1.5 * sent["q.A"], atol=1e-5)
    np.testing.assert_array_equal(twice.adapter["q.B"], before["q.B"])


@pytest.mark.parametrize("rank", [RANK, RANK + 5])
def test_a_dual_adapter_leaves_each_module_a_direction_of_the_sites(rank: int) -> None:
    """Named with the module's tensor."""
    with pytest.raises(ConfigError, match=r"'q\.A'.*"):
        made("dual_adapter", global_rank=rank)


@PERSONAL
def test_an_adapter_without_factors_has_nothing_to_leave_at_a_site(name: str) -> None:
    """A head alone, or cores between frozen factors: all of it would be shared, and nobody's own."""
    with pytest.raises(ConfigError, match=r"(?s)one of the two is empty.*strategy.name=fedavg"):
        made(name, Layout(tensors=(TensorSpec(name="head", shape=(2, 2)),)))
