"""What a site keeps between rounds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from wardround.client.memory import Figures, Kept, SiteStore, Trained
from wardround.client.sealed_files import Owner, storage_key
from wardround.core.errors import StorageError
from wardround.core.packed import Layout, Packed, TensorSpec
from wardround.strategies.contract import SiteMemory

OWNER = Owner(run_id="run", plan=bytes(32), site="north")


def sealed_store(folder: Path) -> SiteStore:
    """What a real site keeps, sealed under a key that lies beside it."""
    return SiteStore.sealed(folder, OWNER, storage_key(folder.parent / "keys"))


@pytest.fixture(params=["plain", "sealed"])
def store_in(request: pytest.FixtureRequest) -> Callable[[Path], SiteStore]:
    """A simulated site's store, and a real one's."""
    return SiteStore if request.param == "plain" else sealed_store


def kept(value: float) -> Kept:
    """An optimiser's state that can be told from another."""
    return Kept(optimiser_state={"m": np.full(3, value, dtype=np.float32)})


def value(store: SiteStore, before_round: int) -> float | None:
    """Which state is loaded."""
    state = store.load(before_round=before_round).optimiser_state
    return None if state is None else float(state["m"][0])


def test_a_round_that_is_asked_again_starts_from_what_was_known_before_it(
    tmp_path: Path, store_in: Callable[[Path], SiteStore]
) -> None:
    """However long ago that was: with partial participation rounds 1 and 7 may follow each other."""
    store = store_in(tmp_path / "memory")
    assert store.last(before_round=7) is None
    store.save(kept(1), round=1)
    assert value(store, 7) == 1
    store.save(kept(7), round=7)
    assert value(store, 7) == 1  # the server was killed before it folded round 7, and asks again
    store.save(kept(7), round=7)
    assert (value(store, 7), value(store, 8)) == (1, 7)
    assert (store.last(before_round=7), store.last(before_round=8)) == (1, 7)
    store.forget(round=7)
    store.forget(round=7)
    assert value(store, 8) == 1


def test_only_the_last_two_states_are_kept(tmp_path: Path, store_in: Callable[[Path], SiteStore]) -> None:
    """A run of many rounds fills no disk."""
    store = store_in(tmp_path / "memory")
    for round in (1, 2, 5, 9):
        store.save(kept(round), round=round)
    assert sorted(path.stem for path in store.folder.iterdir()) == ["round-00005", "round-00009"]


def test_what_was_not_sent_comes_back_bit_for_bit(
    tmp_path: Path, store_in: Callable[[Path], SiteStore]
) -> None:
    """Of the last round before; none where none is kept. A forgotten round leaves the one before it."""
    store, rest = store_in(tmp_path / "memory"), np.array([1e-40, -0.0, 1 / 3], dtype=np.float32)
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


def test_nothing_to_keep_writes_nothing(tmp_path: Path, store_in: Callable[[Path], SiteStore]) -> None:
    """Most strategies and plans keep nothing."""
    store_in(tmp_path / "site").save(Kept(), round=1)
    assert not (tmp_path / "site").exists()


def test_a_stage_leaves_its_training_to_the_next_one(
    tmp_path: Path, store_in: Callable[[Path], SiteStore]
) -> None:
    """Adapters, figures, memory and optimiser come back bit for bit; what other rounds left goes."""
    layout = Layout(tensors=(TensorSpec(name="a", shape=(2,)),))
    before, after = (Packed(layout, np.array([x, x / 3], dtype=np.float32)) for x in (1.0, 2.0))
    trained = Trained("digest", before, after, Figures(3, 4, 5, 6, 1 / 3), {"m": np.ones(2, np.float32)})
    trained = replace(trained, gradient=after.with_vector(after.vector * 7))
    memory = SiteMemory({"slot": after})
    store = store_in(tmp_path / "memory")
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
    store.forget_stages(round=1)
    assert store.load_stage(round=2, stage=0) is not None
    store.forget_stages(round=2)
    assert store.load_stage(round=2, stage=0) is None
    assert value(store, 3) == 1


def test_a_stage_that_holds_something_else_is_said(tmp_path: Path) -> None:
    """Another file under its name is a StorageError, not a guess."""
    store = SiteStore(tmp_path)
    store.save(kept(1), round=1)
    (tmp_path / "round-00001.safetensors").rename(tmp_path / "stage-00001-0.safetensors")
    with pytest.raises(StorageError, match="holds no trained stage"):
        store.load_stage(round=1, stage=0)


def trained_kept() -> Kept:
    """A site's own part, moments and clipping norm, each of another type."""
    own = Packed(Layout(tensors=(TensorSpec(name="own", shape=(5,)),)), np.arange(5, dtype=np.float32) / 3)
    moments = {"step": np.array(7, np.int64), "m": np.full((2, 3), 1 / 3)}
    return Kept(SiteMemory({"own": own}), moments, 0.1)


def require_equal(one: Kept, other: Kept) -> None:
    """Bit for bit."""
    assert one.clip_norm == other.clip_norm
    assert {n: p.digest for n, p in one.memory.slots.items()} == {
        n: p.digest for n, p in other.memory.slots.items()
    }
    assert one.optimiser_state is not None
    assert other.optimiser_state is not None
    assert one.optimiser_state.keys() == other.optimiser_state.keys()
    for name, array in one.optimiser_state.items():
        assert (array.dtype, array.shape) == (
            other.optimiser_state[name].dtype, other.optimiser_state[name].shape,
        )  # fmt: skip
        np.testing.assert_array_equal(array, other.optimiser_state[name])


def test_sealed_it_comes_back_and_nobody_reads_it_without_the_key(tmp_path: Path) -> None:
    """Neither its numbers nor their names stand in the file; another key does not open it."""
    store, kept = sealed_store(tmp_path / "memory"), trained_kept()
    store.save(kept, round=3)
    require_equal(store.load(before_round=4), kept)
    (file,) = store.folder.iterdir()
    content = file.read_bytes()
    assert kept.memory.slots["own"].vector.tobytes() not in content
    assert b"optimiser" not in content
    assert file.stat().st_mode & 0o077 == 0
    other = SiteStore.sealed(store.folder, OWNER, storage_key(tmp_path / "other"))
    with pytest.raises(StorageError, match="another storage key"):
        other.load(before_round=4)


@pytest.mark.parametrize("name", ["round-00004.sealed", "stage-00003-0.sealed"])
def test_a_sealed_state_under_another_name_is_said(tmp_path: Path, name: str) -> None:
    """A file of round 3 is not that of round 4, nor one of its stages."""
    store = sealed_store(tmp_path / "memory")
    store.save(trained_kept(), round=3)
    (store.folder / "round-00003.sealed").rename(store.folder / name)
    with pytest.raises(StorageError, match="another round or stage"):
        store.load(before_round=5) if name.startswith("round") else store.load_stage(round=3, stage=0)


def test_what_an_earlier_version_left_unsealed_is_sealed_when_it_is_opened(tmp_path: Path) -> None:
    """A run goes on at a site that was brought up to date: nothing is lost, nothing stays in the clear."""
    plain, kept = SiteStore(tmp_path / "memory"), trained_kept()
    for round in (2, 3):
        plain.save(kept, round=round)
    (plain.folder / "notes.safetensors").write_bytes(b"not ours")
    store = sealed_store(plain.folder)
    require_equal(store.load(before_round=4), kept)
    names = sorted(path.name for path in plain.folder.iterdir())
    assert names == ["notes.safetensors", "round-00002.sealed", "round-00003.sealed"]
    require_equal(sealed_store(plain.folder).load(before_round=3), kept)


def test_an_unsealed_state_that_is_damaged_is_said_and_stays(tmp_path: Path) -> None:
    """It is not taken for nothing kept."""
    plain = SiteStore(tmp_path / "memory")
    plain.save(trained_kept(), round=2)
    (file,) = plain.folder.iterdir()
    file.write_bytes(file.read_bytes()[:-3])
    with pytest.raises(StorageError, match="cannot read"):
        sealed_store(plain.folder)
    assert file.exists()
