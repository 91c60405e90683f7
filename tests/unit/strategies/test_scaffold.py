"""SCAFFOLD's control variates: what they are, what they do where sites differ, what the ring takes."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from site_plans import site_plan

from wardround.core.checked import parse_options
from wardround.core.errors import ConfigError, PeerError
from wardround.core.packed import Array, Layout, Packed, TensorSpec, zeros
from wardround.core.plan import StrategySpec, TrainingPlan
from wardround.privacy.quantisation import dequantise, quantise, scale_for
from wardround.privacy.secagg.total import centred
from wardround.strategies._controls import CONTROL
from wardround.strategies.contract import LocalUpdate, ServerState, SiteMemory, SumStrategy
from wardround.strategies.fedavg import FedAvg
from wardround.strategies.scaffold import Scaffold, ScaffoldOptions
from wardround.training.plan_strategy import bind_strategy

LAYOUT = Layout(tensors=(TensorSpec(name="a", shape=(2, 3)), TensorSpec(name="b", shape=(2,))))
START = Packed(LAYOUT, np.linspace(-1, 1, 8, dtype=np.float32))
WIDE = {"largest_change": 1e3}


@dataclass
class Quadratic:
    """A site whose loss is ½ Σ curvature · (y − optimum)²; it steps by plain SGD on exact gradients."""

    curvature: Array
    optimum: Array
    weight: int = 1
    memory: SiteMemory = field(default_factory=SiteMemory)

    def gradient(self, y: Array) -> Array:
        """∇ at y."""
        return self.curvature * (y - self.optimum)

    def train(self, strategy: SumStrategy, broadcast: Packed, round: int, steps: int, rate: float) -> Packed:
        """Its weighted statistics, float64."""
        before = strategy.adapter_of(broadcast)
        rules = strategy.local_rules(broadcast, self.memory, round)
        offset = 0.0 if rules.gradient_offset is None else rules.gradient_offset.vector.astype(np.float64)
        y, mean = before.vector.astype(np.float64), np.zeros(LAYOUT.size)
        for _ in range(steps):
            g = self.gradient(y)
            mean += g / steps
            y = y - rate * (g + offset)
        local = LocalUpdate(
            before, before.with_vector(y.astype(np.float32)), Packed(LAYOUT, mean.astype(np.float32))
        )
        statistics, self.memory = strategy.contribute(broadcast, local, self.memory, round, 0)
        return statistics


def different(seed: int, count: int) -> list[Quadratic]:
    """Sites of unlike curvatures and optima."""
    rng = np.random.default_rng(seed)
    return [
        Quadratic(rng.uniform(0.2, 2.0, LAYOUT.size), rng.normal(size=LAYOUT.size) * 3) for _ in range(count)
    ]


def best(sites: list[Quadratic]) -> Array:
    """Where the summed loss is least."""
    return sum(s.curvature * s.optimum for s in sites) / sum(s.curvature for s in sites)  # type: ignore[no-any-return]  # of arrays


def run(
    strategy: SumStrategy, sites: list[Quadratic], rounds: int, *, share: float = 1.0, bits: int | None = None
) -> ServerState:
    """Rounds of ten local steps; through a ring of so many bits where one is given."""
    rng, state = np.random.default_rng(5), strategy.begin(START)
    for round in range(1, rounds + 1):
        asked = rng.choice(len(sites), max(1, round_half(share * len(sites))), replace=False)
        broadcast = strategy.broadcast(state, round, 0)
        sent = [(sites[i].train(strategy, broadcast, round, 10, 0.1), sites[i].weight) for i in asked]
        layout = strategy.statistics_layout(0)
        if bits is None:
            total = sum(w * s.vector.astype(np.float64) for s, w in sent)
        else:
            scale = scale_for(bits=bits, largest=LARGEST, most_weight=1, sites=len(asked))  # type: ignore[arg-type]  # one of them
            words = [quantise(s.vector, w, scale, rng).integers.astype(np.uint64) for s, w in sent]
            total = dequantise(centred(np.sum(words, axis=0) % 2**bits, bits), scale)  # type: ignore[arg-type]  # one of them
        state = strategy.fold(state, Packed(layout, np.asarray(total)), float(sum(w for _, w in sent)), 0)
    return state


LARGEST = 10.0


def round_half(value: float) -> int:
    """To the nearest, halves up."""
    return int(value + 0.5)


def error(state: ServerState, sites: list[Quadratic]) -> float:
    """Distance from the optimum of the summed loss."""
    return float(np.linalg.norm(state.adapter.vector - best(sites)))


def scaffold(**options: float) -> Scaffold:
    """Bound to the layout of this file."""
    return Scaffold(ScaffoldOptions(**{**WIDE, **options}), LAYOUT)  # type: ignore[arg-type]  # all of them numbers


def test_it_reaches_the_optimum_where_fedavg_stays_away() -> None:
    """Ten local steps a round on four unlike quadratics: FedAvg's fixed point is another one."""
    found = error(run(scaffold(), different(0, 4), 400), different(0, 4))
    plain = error(run(FedAvg(FedAvg.Options(), LAYOUT), different(0, 4), 400), different(0, 4))
    assert plain > 0.1
    assert found < 1e-5


def test_it_reaches_the_optimum_with_half_of_the_sites_a_round() -> None:
    """Sampling leaves no noise behind: c is the mean of all c_i, also of those that are not asked."""
    found = error(run(scaffold(participation=0.5), different(0, 4), 1500, share=0.5), different(0, 4))
    plain = error(run(FedAvg(FedAvg.Options(), LAYOUT), different(0, 4), 1500, share=0.5), different(0, 4))
    assert plain > 0.1
    assert found < 1e-4


def test_through_a_narrow_ring_it_stays_near_the_optimum() -> None:
    """16 bits: the rounding of the sums is all that is left, far below what FedAvg is off by."""
    strategy = Scaffold(ScaffoldOptions(largest_change=20.0, largest_update=LARGEST), LAYOUT)
    assert strategy.controls.unit == 0.5
    assert error(run(strategy, different(0, 4), 400, bits=16), different(0, 4)) < 0.01


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 1000), share=st.sampled_from([1.0, 0.5]), rounds=st.integers(1, 4))
def test_the_kept_variate_is_option_two_of_the_paper(seed: int, share: float, rounds: int) -> None:
    """Under plain SGD c_i⁺ = c_i − c + (x − y_i)/(K η); c moves by p times the mean of c_i⁺ − c_i."""
    sites, strategy = different(seed, 4), scaffold(participation=share)
    rng, state = np.random.default_rng(seed), strategy.begin(START)
    for round in range(1, rounds + 1):
        asked = rng.choice(4, int(4 * share), replace=False)
        broadcast = strategy.broadcast(state, round, 0)
        x, c = START.vector * 0 + strategy.adapter_of(broadcast).vector, state.slots[CONTROL].vector
        kept = [kept_at(site) for site in sites]
        sent = [sites[i].train(strategy, broadcast, round, 10, 0.1).vector for i in asked]
        for i, statistics in zip(asked, sent, strict=True):
            y = x + statistics[: LAYOUT.size]
            second = kept[i] - c + (x - y) / (10 * 0.1)
            np.testing.assert_allclose(kept_at(sites[i]), second, rtol=1e-4, atol=2e-5)
        total = Packed(strategy.statistics_layout(0), np.sum(sent, axis=0))
        state = strategy.fold(state, total, float(len(asked)), 0)
        change = sum(kept_at(sites[i]) - kept[i] for i in asked) / len(asked)
        np.testing.assert_allclose(state.slots[CONTROL].vector, c + share * change, rtol=1e-4, atol=1e-5)
    everybody = np.mean([kept_at(site) for site in sites], axis=0)
    np.testing.assert_allclose(state.slots[CONTROL].vector, everybody, rtol=1e-4, atol=1e-5)


def kept_at(site: Quadratic) -> Array:
    """c_i in float64."""
    slot = site.memory.slots.get(CONTROL)
    return np.zeros(LAYOUT.size) if slot is None else slot.vector.astype(np.float64)


@pytest.mark.parametrize("share", [1.0, 0.5])
def test_what_is_beyond_the_largest_change_is_cut_at_the_site_as_well(share: float) -> None:
    """That c and the mean of the c_i stay one, and a longer change follows in later rounds where p < 1."""
    sites = different(3, 2)
    strategy = scaffold(largest_change=0.25, largest_update=0.05, participation=share)
    state = strategy.begin(START)
    for round in (1, 2, 3):
        broadcast = strategy.broadcast(state, round, 0)
        sent = [site.train(strategy, broadcast, round, 1, 0.1).vector for site in sites]
        assert max(np.abs(s[LAYOUT.size :]).max() for s in sent) <= 0.05
        total = Packed(strategy.statistics_layout(0), np.sum(sent, axis=0))
        state = strategy.fold(state, total, 2.0, 0)
        mean = np.mean([kept_at(site) for site in sites], axis=0)
        np.testing.assert_allclose(state.slots[CONTROL].vector, share * mean, rtol=1e-6, atol=1e-6)
        assert np.abs(kept_at(sites[0])).max() <= 0.25 * round + 1e-6


def test_the_mean_is_weighted_as_fedavgs() -> None:
    """A site of weight three is three sites of weight one, in c as well."""
    heavy, light = different(7, 2)
    heavy.weight = 3
    copies = [Quadratic(heavy.curvature, heavy.optimum) for _ in range(3)]
    one = run(scaffold(), [heavy, Quadratic(light.curvature, light.optimum)], 5)
    two = run(scaffold(), [*copies, light], 5)
    np.testing.assert_allclose(one.adapter.vector, two.adapter.vector, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(one.slots[CONTROL].vector, two.slots[CONTROL].vector, rtol=1e-5, atol=1e-6)


def test_what_the_broadcast_tells_is_all_that_the_server_keeps() -> None:
    """As it is sent, in float32, it is c: a site that missed a round goes on from what it is sent."""
    strategy = scaffold()
    state = run(strategy, different(1, 3), 2)
    broadcast = strategy.broadcast(state, 3, 0)
    assert broadcast.layout.digest == strategy.broadcast_layout(0).digest
    np.testing.assert_array_equal(broadcast[CONTROL].astype(np.float64), state.slots[CONTROL].vector)
    np.testing.assert_array_equal(strategy.adapter_of(broadcast).vector, state.adapter.vector)
    assert state.slots.keys() == {CONTROL}


@pytest.mark.parametrize(
    ("gradient", "message"),
    [
        (None, "no mean gradient"),
        (zeros(Layout(tensors=(TensorSpec(name="a", shape=(8,)),))), "layout"),
        (Packed(LAYOUT, np.full(8, np.nan, np.float32)), "not finite"),
    ],
)
def test_a_gradient_that_is_none_is_refused(gradient: Packed | None, message: str) -> None:
    """Missing, of another layout, not a number."""
    strategy = scaffold()
    broadcast = strategy.broadcast(strategy.begin(START), 1, 0)
    with pytest.raises(PeerError, match=message):
        strategy.contribute(broadcast, LocalUpdate(START, START, gradient), SiteMemory(), 1, 0)


def plan_with(**options: object) -> TrainingPlan:
    """A plan without privacy that trains by SCAFFOLD."""
    plan = site_plan().model_copy(update={"privacy": None})
    spec = StrategySpec(name="scaffold", options=dict(options))
    rounds = plan.rounds.model_copy(update={"participation": 0.25})
    encoding = plan.encoding.model_copy(update={"norm": None, "largest": 0.5})
    return plan.model_copy(update={"strategy": spec, "rounds": rounds, "encoding": encoding})


def test_what_is_left_null_comes_from_the_plan_and_changes_no_digest() -> None:
    """Participation, the bound of an update and of a change; what is written wins."""
    plan = plan_with()
    digest = plan.digest
    bound = bind_strategy(plan)
    assert isinstance(bound, Scaffold)
    grad = plan.local.max_grad_norm or 1.0
    assert (bound.controls.participation, bound.controls.largest_change) == (0.25, grad / 4)
    assert bound.controls.unit == pytest.approx(0.5 / (grad / 4))
    assert plan.digest == digest == plan_with().digest
    assert plan.strategy.options == {}
    written = bind_strategy(plan_with(participation=0.5, largest_change=2.0, largest_update=1.0))
    assert isinstance(written, Scaffold)
    assert (written.controls.participation, written.controls.unit) == (0.5, 0.5)


def test_a_plan_that_shortens_contributions_is_refused() -> None:
    """The server would get a shorter change than the site keeps."""
    plan = plan_with()
    plan = plan.model_copy(update={"encoding": plan.encoding.model_copy(update={"norm": 1.0})})
    with pytest.raises(ConfigError, match=r"encoding\.norm"):
        bind_strategy(plan)


def test_privacy_is_refused_with_what_works_instead() -> None:
    """Of a whole site or of its rows."""
    plan = site_plan()
    assert plan.privacy is not None
    with pytest.raises(ConfigError, match="fedprox"):
        bind_strategy(
            plan.model_copy(update={"strategy": StrategySpec(name="scaffold", weighting="uniform")})
        )


def test_options_name_what_is_wrong() -> None:
    """No share above one, no bound of zero."""
    for options in ({"participation": 1.5}, {"largest_change": 0.0}, {"largest_update": -1.0}):
        with pytest.raises(ConfigError):
            parse_options(ScaffoldOptions, options, "scaffold")
