"""Laws of the anchored one-pass sketch on matrices that are large enough for them to mean something."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wardround.core import lora
from wardround.core.checked import parse_options
from wardround.core.packed import Layout, Packed, TensorSpec, pack, zeros
from wardround.strategies import STRATEGIES
from wardround.strategies.contract import LocalUpdate, SiteMemory, SumStrategy

R, D_OUT, D_IN, SCALING = 3, 40, 32, 2.0
A, B = "m.lora_A.weight", "m.lora_B.weight"
Matrix = np.ndarray[Any, Any]
Site = tuple[Packed, Packed]


def layout_of(rank: int, scaling: float = SCALING) -> Layout:
    """One module."""
    return Layout(
        tensors=(
            TensorSpec(name=A, shape=(rank, D_IN), role="lora_a", module="m", scaling=scaling),
            TensorSpec(name=B, shape=(D_OUT, rank), role="lora_b", module="m", scaling=scaling),
        )
    )


LAYOUT = layout_of(R)


def adapter_of(b: Matrix, a: Matrix, scaling: float = SCALING) -> Packed:
    """In float64, so that only the algebra is seen."""
    return pack(layout_of(a.shape[0], scaling), {A: a, B: b}, np.float64)


def dense(adapter: Packed) -> Matrix:
    """The module's s · B A."""
    return lora.product(adapter, lora.pairs(adapter.layout)[0]).dense()


def start(seed: int = 0) -> Packed:
    """Balanced factors of a random product, as every fold leaves them."""
    draw = np.random.default_rng(seed)
    found = lora.Factored(draw.standard_normal((D_OUT, R)), draw.standard_normal((R, D_IN))).truncated(R)
    return adapter_of(*lora.balanced(found, zeros(LAYOUT, np.float64), lora.pairs(LAYOUT)[0]))


def made(name: str = "one_pass", **options: Any) -> SumStrategy:
    """The strategy."""
    strategy = STRATEGIES.get(name)
    return strategy(parse_options(strategy.Options, options, name), LAYOUT)


def sites(seed: int, ranks: tuple[int, ...], size: float = 0.1) -> list[Site]:
    """Before and after of sites that train the global directions, and further ones of a larger rank."""
    draw, found, begin = np.random.default_rng(seed), [], start()
    for rank in ranks:
        more = rank - R
        before = adapter_of(
            np.hstack([begin[B], np.zeros((D_OUT, more))]),
            np.vstack([begin[A], draw.uniform(-1, 1, (more, D_IN)) / np.sqrt(D_IN)]),
        )
        step = size * draw.uniform(-1, 1, before.vector.size)
        found.append((before, before.with_vector(before.vector + step)))
    return found


def sent(strategy: SumStrategy, site: Site, broadcast: Packed, round: int = 1) -> Packed:
    """A site's statistics."""
    return strategy.contribute(broadcast, LocalUpdate(*site), SiteMemory(), round, 0)[0]


def folded(strategy: SumStrategy, of: list[Site], round: int = 1) -> Matrix:
    """The product after a round."""
    begin = start()
    total = sum(sent(strategy, site, begin, round).vector for site in of)
    state = strategy.begin(begin)
    for burnt in range(1, round):
        state = type(state)(burnt, begin)
    return dense(
        strategy.fold(state, Packed(strategy.statistics_layout(0), np.asarray(total)), len(of), 0).adapter
    )


def exact(of: list[Site]) -> Matrix:
    """T_r(G + D)."""
    mean = sum((dense(after) - dense(before)) / len(of) for before, after in of)
    u, values, vt = np.linalg.svd(dense(start()) + mean)
    return np.asarray((u[:, :R] * values[:R]) @ vt[:R])


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), ranks=st.sampled_from([(3,), (3, 3), (5,), (4, 3), (6,)]))
def test_a_sketch_that_is_wide_enough_gives_the_exact_result(seed: int, ranks: tuple[int, ...]) -> None:
    """Outside the tangent space a site's update has its rank at most; with room for all, T_r(G + D)."""
    of = sites(seed, ranks)
    found = folded(made(columns=sum(ranks)), of)
    assert np.linalg.norm(found - exact(of)) < 1e-6 * np.linalg.norm(found)
    assert np.linalg.norm(folded(made("tangent"), of) - exact(of)) > 1e-5 * np.linalg.norm(found)


def test_a_narrow_sketch_is_better_than_none() -> None:
    """Eight sites of a higher rank, with one direction of theirs in common."""
    common = np.random.default_rng(1)
    left, right = common.standard_normal(D_OUT), common.standard_normal(D_IN) / np.sqrt(D_IN)
    of = []
    for before, after in sites(2, (5,) * 8, size=0.02):
        after[B][:, -1] += 0.5 * left
        before[A][-1] = after[A][-1] = right
        of.append((before, after))
    wrong = np.linalg.norm(folded(made("tangent"), of) - exact(of))
    assert np.linalg.norm(folded(made(columns=3), of) - exact(of)) < 0.3 * wrong


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), scaling=st.sampled_from([0.25, 1.0, 16.0]))
def test_only_the_product_counts(seed: int, scaling: float) -> None:
    """B → B R, A → R⁻¹ A, another scaling, zero columns beside: the message is the same."""
    draw, strategy, begin = np.random.default_rng(seed), made(), start()
    b, a = draw.standard_normal((D_OUT, 5)), draw.standard_normal((5, D_IN))
    gauge = draw.standard_normal((5, 5)) + 3 * np.eye(5)
    trained = (
        adapter_of(b, a, 1.0),
        adapter_of(b @ gauge / scaling, np.linalg.solve(gauge, a), scaling),
        adapter_of(np.hstack([b, np.zeros((D_OUT, 2))]), np.vstack([a, np.zeros((2, D_IN))]), 1.0),
    )
    messages = [
        sent(strategy, (after.with_vector(np.zeros(after.layout.size)), after), begin).vector
        for after in trained
    ]
    for other in messages[1:]:
        assert np.linalg.norm(other - messages[0]) < 1e-9 * np.linalg.norm(messages[0]) * np.linalg.cond(
            gauge
        )


@pytest.mark.parametrize("round", [1, 2, 7])
def test_every_round_has_test_matrices_of_its_own(round: int) -> None:
    """Server and sites draw the same ones, in every round others; of one round the messages are linear."""
    of, strategy = sites(3, (4, 3)), made(columns=7)
    assert np.linalg.norm(folded(strategy, of, round) - exact(of)) < 1e-6 * np.linalg.norm(exact(of))
    one, other = (sent(strategy, of[0], start(), number) for number in (round, round + 1))
    assert (one["m.tangent_columns"] == other["m.tangent_columns"]).all()
    assert not np.isclose(one["m.outside_columns"], other["m.outside_columns"]).any()


@pytest.mark.parametrize("rank", [3, 6, 12])
def test_hardly_a_coordinate_is_beyond_the_bound(rank: int) -> None:
    """Where no coordinate of B or A moves by more than L, one in a thousand of a message may be larger."""
    size = 0.01
    strategy = made(columns=4)
    vectors = [sent(strategy, site, start()).vector for site in sites(4, (rank,) * 10, size)]
    assert (np.abs(vectors) > size).mean() < 1e-3
    assert (np.abs(vectors) > size / 64).mean() > 0.01, "so small that the ring would be of no use"


def test_a_fresh_adapter_takes_further_directions() -> None:
    """B = 0: A is frozen, and what a site of a higher rank learnt beside it comes in by the sketch."""
    draw, strategy = np.random.default_rng(6), made(columns=4)
    begin = adapter_of(np.zeros((D_OUT, R)), draw.standard_normal((R, D_IN)) / np.sqrt(D_IN))
    begin = begin.with_vector(begin.vector.astype(np.float32))
    assert strategy.local_rules(begin, SiteMemory(), 1).frozen == {A}
    before = adapter_of(
        np.zeros((D_OUT, 5)), np.vstack([begin[A], draw.standard_normal((2, D_IN)) / np.sqrt(D_IN)])
    )
    after = before.with_vector(before.vector.copy())
    after[B][...] = draw.standard_normal((D_OUT, 5)) * [0.1, 0.1, 0.1, 3, 3]
    state = strategy.fold(strategy.begin(begin), sent(strategy, (before, after), begin), 1.0, 0)
    u, values, vt = np.linalg.svd(dense(after))
    expected = (u[:, :R] * values[:R]) @ vt[:R]
    assert np.linalg.norm(dense(state.adapter) - expected) < 1e-5 * np.linalg.norm(expected)
    assert 0 < state.figures["discarded_energy"] < 0.2
