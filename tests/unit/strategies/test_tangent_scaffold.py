"""SCAFFOLD over products: what its variates do where sites differ, and how they move with the factors."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest

from wardround.core import lora
from wardround.core.errors import PeerError
from wardround.core.packed import Adapter, Array, Layout, Packed, Statistics, TensorSpec, pack
from wardround.strategies._controls import CONTROL
from wardround.strategies.contract import LocalUpdate, ServerState, SiteMemory, SumStrategy
from wardround.strategies.tangent import Tangent
from wardround.strategies.tangent_scaffold import FRAME, TangentScaffold, moved_with
from wardround.training.plan_strategy import product_strategy

SIZE, RANK = 4, 4
"""As many directions as the weight has: every optimum is in reach."""
A, B = (
    TensorSpec(name=f"m.{role}", shape=(SIZE, RANK), role=role, module="m", scaling=1.0)  # type: ignore[arg-type]  # one of its literals
    for role in ("lora_a", "lora_b")
)
LAYOUT = Layout(tensors=(TensorSpec(name="head", shape=(2,)), A, B))


@dataclass
class Quadratic:
    """A site whose loss is ½ Σ curvature · (B A − optimum)²; plain gradient descent on both factors."""

    curvature: Array
    optimum: Array
    memory: SiteMemory = field(default_factory=SiteMemory)

    def gradient(self, y: Packed) -> Array:
        """∇ at y, in the adapter's order; the head has a quadratic of its own, around a fixed place."""
        b, a = y[B.name], y[A.name]
        by_weight = self.curvature * (b @ a - self.optimum)
        parts = {"head": y["head"] - self.optimum[0, :2], A.name: b.T @ by_weight, B.name: by_weight @ a.T}
        return pack(LAYOUT, parts, np.float64).vector

    def train(self, strategy: SumStrategy, broadcast: Packed, round: int, rate: float) -> Statistics:
        """Ten steps; what it sends, float64."""
        before = strategy.adapter_of(broadcast)
        rules = strategy.local_rules(broadcast, self.memory, round)
        moving = np.ones(LAYOUT.size)
        for name in rules.frozen:
            Packed(LAYOUT, moving)[name][...] = 0
        offset = 0.0 if rules.gradient_offset is None else rules.gradient_offset.vector.astype(np.float64)
        y, mean = before.with_vector(before.vector.astype(np.float64)), np.zeros(LAYOUT.size)
        for _ in range(10):
            g = self.gradient(y) * moving
            mean += g / 10
            y = y.with_vector(y.vector - rate * (g + offset) * moving)
        after = before.with_vector(y.vector.astype(np.float32))
        local = LocalUpdate(before, after, Packed(LAYOUT, mean.astype(np.float32)))
        statistics, self.memory = strategy.contribute(broadcast, local, self.memory, round, 0)
        return statistics


def start() -> Adapter:
    """B is nothing, as LoRA begins."""
    draw = np.random.default_rng(1)
    parts = {"head": np.zeros(2), B.name: np.zeros(B.shape), A.name: draw.standard_normal(A.shape)}
    return pack(LAYOUT, parts, np.float32)


def different(count: int) -> list[Quadratic]:
    """Sites of unlike curvatures and optima."""
    draw = np.random.default_rng(2)
    shape = (SIZE, SIZE)
    return [Quadratic(draw.uniform(0.2, 2.0, shape), draw.standard_normal(shape)) for _ in range(count)]


def advanced(strategy: SumStrategy, state: ServerState, sites: list[Quadratic]) -> ServerState:
    """One round of all of these."""
    broadcast, layout = strategy.broadcast(state, state.round + 1, 0), strategy.statistics_layout(0)
    total = sum(site.train(strategy, broadcast, state.round + 1, 0.03).vector for site in sites)
    return strategy.fold(state, Packed(layout, np.asarray(total)), float(len(sites)), 0)


def scaffold(**options: float) -> TangentScaffold:
    """Wide enough that nothing is cut."""
    return TangentScaffold(TangentScaffold.Options(**{"largest_change": 1e3, **options}), LAYOUT)  # type: ignore[arg-type]  # of that class


def gradient_norm(state: ServerState, sites: list[Quadratic]) -> float:
    """Length of the summed loss's derivative by the weight: zero where it is least."""
    product = state.adapter[B.name].astype(np.float64) @ state.adapter[A.name].astype(np.float64)
    return float(np.linalg.norm(sum(s.curvature * (product - s.optimum) for s in sites)))


def test_it_reaches_the_optimum_where_tangent_aggregation_stays_away() -> None:
    """Ten local steps a round on four unlike quadratics of one weight."""
    found: dict[str, float] = {}
    for name, strategy in (("own", scaffold()), ("plain", Tangent(Tangent.Options(), LAYOUT))):
        sites, state = different(4), strategy.begin(start())
        for _ in range(400):
            state = advanced(strategy, state, sites)
        found[name] = gradient_norm(state, sites)
    assert found["plain"] > 0.05
    assert found["own"] < found["plain"] / 100


def test_the_servers_variate_is_the_mean_of_the_sites_at_every_adapter() -> None:
    """While all are asked, moved to the factors of each fold; and it is worth something."""
    strategy, sites = scaffold(), different(3)
    state = strategy.begin(start())
    for _ in range(5):
        state = advanced(strategy, state, sites)
        own = [
            moved_with(site.memory.slots[CONTROL].vector, site.memory.slots[FRAME], state.adapter)
            for site in sites
        ]
        control = state.slots[CONTROL].vector
        np.testing.assert_allclose(control, np.mean(own, axis=0), atol=1e-5)
        assert np.linalg.norm(control) > 1e-3


def test_a_variate_at_the_same_product_is_the_derivative_along_its_factors() -> None:
    """In any gauge, the head's part as it was; and bit for bit the same where nothing turned."""
    draw = np.random.default_rng(3)
    b, a, gauge, by_weight = (draw.standard_normal((SIZE, SIZE)) for _ in range(4))

    def of(b: Array, a: Array, dtype: type[np.floating[np.typing.NBitBase]] = np.float64) -> Packed:
        return pack(LAYOUT, {"head": np.ones(2), B.name: b, A.name: a}, dtype)

    def variate(b: Array, a: Array) -> Array:
        return of(by_weight @ a.T, b.T @ by_weight).vector

    other = b @ gauge, np.linalg.solve(gauge, a)
    found = moved_with(variate(b, a), of(b, a), of(*other))
    np.testing.assert_allclose(found, variate(*other), rtol=1e-7, atol=1e-8)
    np.testing.assert_array_equal(moved_with(variate(b, a), of(b, a), of(b, a)), variate(b, a))
    assert lora.difference(of(b, a), of(*other)) < 1e-10


@pytest.mark.parametrize("share", [1.0, 0.5])
def test_a_sites_variate_is_moved_to_the_broadcast_that_it_is_sent(share: float) -> None:
    """From the one that it last trained from, rounds ago: in its gradients, and in what it sends."""
    strategy, sites = scaffold(participation=share), different(3)
    state = strategy.begin(start())
    for _ in range(3):
        state = advanced(strategy, state, sites)
    absent, (frame, own) = sites[0], (sites[0].memory.slots[FRAME], sites[0].memory.slots[CONTROL].vector)
    for _ in range(3):
        state = advanced(strategy, state, sites[1:])
    moved = moved_with(own, frame, state.adapter).astype(np.float32)
    assert np.linalg.norm(moved - own) > 1e-3
    broadcast = strategy.broadcast(state, 7, 0)
    rules = strategy.local_rules(broadcast, absent.memory, 7)
    assert rules.gradient_offset is not None
    control = state.slots[CONTROL].vector.astype(np.float32)
    np.testing.assert_allclose(rules.gradient_offset.vector, control - moved, atol=1e-6)
    sent = absent.train(strategy, broadcast, 7, 0.03).vector[-LAYOUT.size :] / strategy.controls.unit
    before = control if share == 1 else moved
    np.testing.assert_allclose(sent, absent.memory.slots[CONTROL].vector - before, atol=1e-4)


def test_it_is_a_method_over_products_with_a_memory() -> None:
    """So plans hold its broadcasts against products, and keep it away from privacy and other ranks."""
    strategy = scaffold()
    assert product_strategy(strategy) is strategy
    assert strategy.private_alternative == "tangent"


def test_a_variate_of_another_adapter_is_refused() -> None:
    """What a site kept has to be of this plan."""
    strategy = scaffold()
    broadcast = strategy.broadcast(strategy.begin(start()), 1, 0)
    foreign = Packed(Layout(tensors=(TensorSpec(name="x", shape=(3,)),)), np.zeros(3, np.float32))
    for slots in ({CONTROL: foreign}, {CONTROL: strategy.controls.zero(), FRAME: foreign}):
        with pytest.raises(PeerError, match="control variate"):
            strategy.local_rules(broadcast, SiteMemory(slots), 1)
