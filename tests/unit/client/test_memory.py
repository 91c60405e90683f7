"""What a site keeps between rounds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from wardround.client.memory import Figures, Kept, SiteStore, Trained
from wardround.core.errors import StorageError
from wardround.core.packed import Layout, Packed, TensorSpec
from wardround.strategies.contract import SiteMemory


def kept(value: float) -> Kept:
    """An optimiser's state that can be told from another."""
    return Kept(optimiser_state={"m": np.full(3, value, dtype=np.float32)})


def value(store: SiteStore, before_round: int) -> float | None:
    """Which state is loaded."""
    state = store.load(before_round=before_round).optimiser_state
    return None if state is None else float(state["m"][0])


def test_a_round_that_is_asked_again_starts_from_what_was_known_before_it(tmp_path: Path) -> None:
    """However long ago that was: with partial participation rounds 1 and 7 may follow each other."""
    store = SiteStore(tmp_path)
    store.save(kept(1), round=1)
    assert value(store, 7) == 1
    store.save(kept(7), round=7)
    assert value(store, 7) == 1  # the server was killed before it folded round 7, and asks again
    store.save(kept(7), round=7)
    assert (value(store, 7), value(store, 8)) == (1, 7)


def test_only_the_last_two_states_are_kept(tmp_path: Path) -> None:
    """A run of many rounds fills no disk."""
    store = SiteStore(tmp_path)
    for round in (1, 2, 5, 9):
        store.save(kept(round), round=round)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "round-00005.safetensors",
        "round-00009.safetensors",
    ]


def test_what_was_not_sent_comes_back_bit_for_bit(tmp_path: Path) -> None:
    """Of the last round before; none where none is kept. A forgotten round leaves the one before it."""
    store, rest = SiteStore(tmp_path), np.array([1e-40, -0.0, 1 / 3], dtype=np.float32)
    store.save(Kept(rest=rest), round=1)
    store.save(Kept(rest=2 * rest), round=2)
    found = store.load(before_round=2).rest
    assert found is not None
    assert (found.dtype, found.tobytes()) == (np.float32, rest.tobytes())
    store.forget(round=2)
    found = store.load(before_round=3).rest
    assert found is not None
    assert found.tobytes() == rest.tobytes()
    assert store.load(before_round=1).rest is None


def test_nothing_to_keep_writes_nothing(tmp_path: Path) -> None:
    """Most strategies and plans keep nothing."""
    SiteStore(tmp_path / "site").save(Kept(), round=1)
    assert not (tmp_path / "site").exists()


def test_a_stage_leaves_its_training_to_the_next_one(tmp_path: Path) -> None:
    """Adapters, figures, memory and optimiser come back bit for bit; what other rounds left goes."""
    layout = Layout(tensors=(TensorSpec(name="a", shape=(2,)),))
    before, after = (Packed(layout, np.array([x, x / 3], dtype=np.float32)) for x in (1.0, 2.0))
    trained = Trained("digest", before, after, Figures(3, 4, 5, 6, 1 / 3), {"m": np.ones(2, np.float32)})
    trained = replace(trained, gradient=after.with_vector(after.vector * 7))
    memory = SiteMemory({"slot": after})
    store = SiteStore(tmp_path)
    assert store.load_stage(round=2, stage=0) is None
    store.save(kept(1), round=1)
    store.save_stage(trained, memory, round=1, stage=0)
    store.save_stage(trained, memory, round=2, stage=0)
    found = store.load_stage(round=2, stage=0)
    assert found is not None
    assert (found[0].broadcast, found[0].figures) == ("digest", trained.figures)
    assert (found[0].before.digest, found[0].after.digest) == (before.digest, after.digest)
    assert found[0].gradient is not None
    np.testing.assert_array_equal(found[0].gradient.vector, after.vector * 7)
    assert found[1].memory.slots["slot"].digest == after.digest
    for state in (found[0].optimiser_state, found[1].optimiser_state):
        assert state is not None
        np.testing.assert_array_equal(state["m"], np.ones(2))
    assert store.load_stage(round=1, stage=0) is None
    assert store.load_stage(round=2, stage=1) is None
    assert value(store, 3) == 1  # a stage is not a round that has ended


def test_a_stage_that_holds_something_else_is_said(tmp_path: Path) -> None:
    """Another file under its name is a StorageError, not a guess."""
    store = SiteStore(tmp_path)
    store.save(kept(1), round=1)
    (tmp_path / "round-00001.safetensors").rename(tmp_path / "stage-00001-0.safetensors")
    with pytest.raises(StorageError, match="holds no trained stage"):
        store.load_stage(round=1, stage=0)
