"""An adapter at a site's own rank, and whole again."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wardround.core.lora import difference, pairs
from wardround.core.packed import Layout, Packed, TensorSpec
from wardround.core.ranks import at_rank, beside, first_directions, fresh_beside, layout_at

LAYOUT = Layout(
    tensors=(
        TensorSpec(name="head", shape=(3,)),
        TensorSpec(name="m.lora_A", shape=(4, 7), role="lora_a", module="m", scaling=2.0),
        TensorSpec(name="m.lora_B", shape=(5, 4), role="lora_b", module="m", scaling=2.0),
    )
)
ADAPTER = Packed(LAYOUT, np.random.default_rng(0).standard_normal(LAYOUT.size).astype(np.float32))


@settings(deadline=None)
@given(rank=st.integers(1, 9))
def test_a_site_of_any_rank_begins_with_the_same_function(rank: int) -> None:
    """Trained and frozen directions together are the global adapter's products; dense tensors ride along."""
    found = at_rank(ADAPTER, rank, np.random.default_rng(1))
    assert pairs(found.trained.layout)[0].rank == rank
    assert (found.rest is None) == (rank >= 4)
    whole = beside(found.trained, found.rest)
    assert difference(ADAPTER, whole) < 1e-7
    if rank <= 4:
        assert whole.digest == ADAPTER.digest, "bit for bit, layout included"
    assert found.trained.layout.digest == layout_at(LAYOUT, rank).digest
    assert found.trained.vector.dtype == np.float32


def test_further_directions_begin_as_lora_does_and_differ_between_sites() -> None:
    """B is zero there; A, from the site's own draw, is as long as the adapter's in the mean."""
    one, two = (at_rank(ADAPTER, 30, np.random.default_rng(seed)).trained for seed in (1, 2))
    assert not one["m.lora_B"][:, 4:].any()
    fresh = one["m.lora_A"][4:]
    lengths = [float(np.sqrt(np.mean(np.sum(rows**2, axis=1)))) for rows in (fresh, ADAPTER["m.lora_A"])]
    assert lengths[0] == pytest.approx(lengths[1], rel=0.15)
    assert np.abs(fresh).max() <= lengths[1] * np.sqrt(3 / 7) * 1.001, "uniform"
    assert not np.allclose(fresh, two["m.lora_A"][4:])


@pytest.mark.parametrize("rank", [1, 3, 4])
def test_what_a_site_trained_is_put_back_in_its_place(rank: int) -> None:
    """The first directions moved, the others did not."""
    found = at_rank(ADAPTER, rank, np.random.default_rng(1))
    after = beside(found.trained.with_vector(found.trained.vector + 1), found.rest)
    np.testing.assert_array_equal(after["m.lora_A"][:rank], ADAPTER["m.lora_A"][:rank] + 1)
    np.testing.assert_array_equal(after["m.lora_A"][rank:], ADAPTER["m.lora_A"][rank:])
    np.testing.assert_array_equal(after["m.lora_B"][:, rank:], ADAPTER["m.lora_B"][:, rank:])
    np.testing.assert_array_equal(after["head"], ADAPTER["head"] + 1)


@pytest.mark.parametrize("rank", [1, 4, 9])
def test_new_directions_change_nothing_at_first(rank: int) -> None:
    """B is zero, A drawn as for further directions, but for their length; the adapter stands frozen."""
    found = fresh_beside(ADAPTER, rank, np.random.default_rng(1))
    assert found.rest is not None
    assert pairs(found.trained.layout)[0].rank == rank
    assert not found.trained["m.lora_B"].any()
    further = at_rank(ADAPTER, 4 + rank, np.random.default_rng(1)).trained["m.lora_A"][4:]
    factor = further[0, 0] / found.trained["m.lora_A"][0, 0]
    np.testing.assert_allclose(factor * found.trained["m.lora_A"], further, rtol=1e-5)
    assert np.abs(found.trained["m.lora_A"]).max() <= 1 / np.sqrt(7), "of LoRA's usual length, whatever G's"
    whole = beside(found.trained, found.rest)
    np.testing.assert_array_equal(whole["m.lora_A"][rank:], ADAPTER["m.lora_A"])
    np.testing.assert_array_equal(whole["m.lora_B"][:, rank:], ADAPTER["m.lora_B"])
    np.testing.assert_array_equal(whole["head"], ADAPTER["head"])
    assert difference(ADAPTER, whole) < 1e-7


def test_first_directions_and_the_others_are_the_adapter() -> None:
    """Bit for bit; nothing stands frozen where all train."""
    found = first_directions(ADAPTER, 3)
    assert beside(found.trained, found.rest).digest == ADAPTER.digest
    assert first_directions(ADAPTER, 4).rest is None


def test_a_layout_never_grows_where_it_may_not() -> None:
    """`beyond=False` is the plan's rank at most."""
    assert layout_at(LAYOUT, 9, beyond=False).digest == LAYOUT.digest
    assert layout_at(LAYOUT, 2, beyond=False).digest == layout_at(LAYOUT, 2).digest
