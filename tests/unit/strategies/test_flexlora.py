"""FlexLoRA against its definition on dense matrices: mean of products, SVD, rank r."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wardround.core.errors import PeerError
from wardround.core.lora import pairs
from wardround.core.packed import Layout, Packed, TensorSpec
from wardround.strategies import STRATEGIES
from wardround.strategies.contract import LocalUpdate, ServerState, SiteMemory

RANK, D_OUT, D_IN, SCALING = 3, 11, 8, 2.0
LAYOUT = Layout(
    tensors=(
        TensorSpec(name="q.a", shape=(RANK, D_IN), role="lora_a", module="q", scaling=SCALING),
        TensorSpec(name="q.b", shape=(D_OUT, RANK), role="lora_b", module="q", scaling=SCALING),
        TensorSpec(name="head", shape=(5,)),
        TensorSpec(name="v.a", shape=(2, 4), role="lora_a", module="v", scaling=0.5),
        TensorSpec(name="v.b", shape=(6, 2), role="lora_b", module="v", scaling=0.5),
    )
)
STRATEGY: Any = STRATEGIES.get("flexlora")


def made() -> Any:
    """The strategy, bound."""
    return STRATEGY(STRATEGY.Options(), LAYOUT)


def adapter(seed: int, *, usual_start: bool = False) -> Packed:
    """Random factors; the usual start has B = 0."""
    packed = Packed(LAYOUT, np.random.default_rng(seed).normal(size=LAYOUT.size).astype(np.float32))
    if usual_start:
        for pair in pairs(LAYOUT):
            packed[pair.b.name][...] = 0
    return packed


def dense(packed: Packed) -> dict[str, np.ndarray]:
    """Module → s · B A; and the head."""
    made = {"head": packed["head"].astype(np.float64)}
    for pair in pairs(LAYOUT):
        b, a = (packed[spec.name].astype(np.float64) for spec in (pair.b, pair.a))
        made[pair.module] = pair.scaling * b @ a
    return made


def folded(state: ServerState, sites: list[tuple[float, Packed]]) -> ServerState:
    """One round, from each site's own contribution."""
    strategy, alone = made(), []
    for weight, after in sites:
        sent, _ = strategy.contribute(
            state.adapter, LocalUpdate(state.adapter, after), SiteMemory(), state.round + 1, 0
        )
        alone.append((sent.with_vector(sent.vector * weight), weight))
    found: ServerState = strategy.fold(state, *strategy.combine_individuals(state, alone), 0)
    return found


def truncated(matrix: np.ndarray, rank: int) -> np.ndarray:
    """By a dense SVD."""
    u, s, vt = np.linalg.svd(matrix)
    return np.asarray((u[:, :rank] * s[:rank]) @ vt[:rank])


def expected(sites: list[tuple[float, Packed]]) -> dict[str, np.ndarray]:
    """The paper's: Σ p_i s B_i A_i as a matrix, its SVD, r of it."""
    total, result = sum(weight for weight, _ in sites), {}
    for name in ("q", "v", "head"):
        mean = sum(weight / total * dense(after)[name] for weight, after in sites)
        result[name] = mean if name == "head" else truncated(mean, {"q": RANK, "v": 2}[name])
    return result


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 10_000),
    weights=st.lists(st.integers(1, 200), min_size=1, max_size=6),
    start=st.booleans(),
)
def test_the_fold_is_the_papers(seed: int, weights: list[int], start: bool) -> None:
    """Also from LoRA's usual start, and where all inner sizes together are above the matrix's own."""
    before = adapter(seed, usual_start=start)
    sites = [(float(weight), adapter(seed + 1 + index)) for index, weight in enumerate(weights)]
    state = folded(made().begin(before), sites)
    for name, matrix in expected(sites).items():
        error = np.linalg.norm(dense(state.adapter)[name] - matrix)
        assert error <= 1e-5 * np.linalg.norm(matrix), name
    assert state.round == 1


def test_a_mean_of_factors_is_another() -> None:
    """So the test above can fail."""
    sites = [(1.0, adapter(1)), (1.0, adapter(2))]
    mean = Packed(LAYOUT, (adapter(1).vector + adapter(2).vector) / 2)
    matrix = expected(sites)["q"]
    assert np.linalg.norm(dense(mean)["q"] - matrix) > 0.1 * np.linalg.norm(matrix)


def test_the_factors_are_even() -> None:
    """√σ on each side, s taken out, the largest first."""
    state = folded(made().begin(adapter(0)), [(1.0, adapter(1)), (2.0, adapter(2))])
    b, a = state.adapter["q.b"], state.adapter["q.a"]
    np.testing.assert_allclose(np.linalg.norm(b, axis=0), np.linalg.norm(a, axis=1), rtol=1e-5)
    assert (np.diff(np.linalg.norm(b, axis=0)) < 0).all()


def test_one_site_alone_gets_its_own_products() -> None:
    """And its own head."""
    state = folded(made().begin(adapter(0)), [(3.0, adapter(1))])
    for name, matrix in dense(adapter(1)).items():
        np.testing.assert_allclose(dense(state.adapter)[name], matrix, rtol=1e-4, atol=1e-5)


def test_turned_factors_are_the_same_site() -> None:
    """B R and R⁻¹ A stand for one product."""
    turn = np.random.default_rng(9).normal(size=(RANK, RANK))
    plain = adapter(1)
    turned = Packed(LAYOUT, plain.vector.copy())
    turned["q.b"][...] = plain["q.b"] @ turn
    turned["q.a"][...] = np.linalg.solve(turn, plain["q.a"])
    begun = made().begin(adapter(0))
    one, two = (folded(begun, [(1.0, site), (2.0, adapter(2))]) for site in (plain, turned))
    np.testing.assert_allclose(dense(one.adapter)["q"], dense(two.adapter)["q"], rtol=1e-3, atol=1e-4)
    assert made().difference(one.adapter, two.adapter) < 1e-5
    assert made().difference(one.adapter, adapter(3)) > 0.1


def test_a_site_of_a_lower_rank_counts_with_what_it_has() -> None:
    """Zeros in the columns that it does not train add nothing, whatever stands opposite them in A."""
    low = adapter(1)
    low["q.b"][:, 1:] = 0
    other = adapter(2)
    state = folded(made().begin(adapter(0)), [(1.0, low), (1.0, other)])
    own = SCALING * np.outer(low["q.b"][:, 0], low["q.a"][0])
    matrix = truncated((own + dense(other)["q"]) / 2, RANK)
    np.testing.assert_allclose(dense(state.adapter)["q"], matrix, rtol=1e-4, atol=1e-4)


def test_modules_that_nobody_moved_keep_their_factors() -> None:
    """Bit for bit; the others are new."""
    before = adapter(0)
    after = Packed(LAYOUT, before.vector.copy())
    after["v.b"][...] += 0.5
    state = folded(made().begin(before), [(1.0, after), (1.0, before)])
    for name in ("q.a", "q.b", "head"):
        np.testing.assert_array_equal(state.adapter[name], before[name])
    assert not np.array_equal(state.adapter["v.b"], before["v.b"])


def test_what_cannot_be_folded_is_refused() -> None:
    """Nothing, and what is not finite, by name."""
    state = made().begin(adapter(0))
    with pytest.raises(PeerError, match="too few sites"):
        made().combine_individuals(state, [])
    bad = np.zeros(LAYOUT.size)
    bad[-1] = np.nan
    with pytest.raises(PeerError, match=r"v\.b"):
        made().combine_individuals(state, [(Packed(LAYOUT, bad), 1.0)])
