"""What a site keeps between rounds."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from wardround.client.memory import Kept, SiteStore


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


def test_nothing_to_keep_writes_nothing(tmp_path: Path) -> None:
    """Most strategies and plans keep nothing."""
    SiteStore(tmp_path / "site").save(Kept(), round=1)
    assert not (tmp_path / "site").exists()
