"""What a restarted site knows of the server's state: as much as one that was never restarted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fold_server import EVERY, SITES, Server, asked, moved
from hypothesis import given, settings
from hypothesis import strategies as st

from wardround.client.fold_check import FoldCheck
from wardround.client.fold_memory import FILE, Known, SealedFolds
from wardround.client.sealed_files import Owner
from wardround.core.errors import PeerError, StorageError
from wardround.core.packed import Layout, Packed, TensorSpec
from wardround.privacy.secagg.secret import Secret
from wardround.privacy.sums.opened import opened
from wardround.strategies.contract import ServerState

OWNER = Owner(run_id="run1", plan=b"p" * 32, site="ward")
KEY = Secret.fresh()
LAYOUT = Layout(tensors=(TensorSpec(name="a", shape=(3,)), TensorSpec(name="b")))


def memory_in(folder: Path, key: Secret = KEY) -> SealedFolds:
    """The site's file."""
    return SealedFolds(folder, OWNER, key)


def restarted(server: Server, folder: Path) -> FoldCheck:
    """A new process over what the old one kept."""
    return FoldCheck.remembered(server.plan, server.strategy, memory_in(folder))


STEPS: dict[str, Callable[[Server], dict[str, Any]]] = {
    "honest": lambda _: {},
    "another adapter": lambda server: {"broadcast": moved(server.broadcast, 1e-3)},
    "of an earlier round": lambda server: {"round": max(1, server.round - 1), "opened": ()},
    "said to be burnt": lambda _: {"opened": (), "confirmed": {}},
    "of other survivors": lambda _: {"confirmed": {0: SITES[:-1]}},
    "another sum": lambda server: {
        "opened": (opened(server.total(), round=max(1, server.round), stage=0, cohort=5, bits=16),)
    },
}
"""What a server sends, as changes of what an honest one would."""


def verdict(site: FoldCheck, server: Server, step: str) -> str:
    """What the site says to it."""
    try:
        return str(asked(site, server, **STEPS[step](server)))
    except PeerError as error:
        return error.what


@EVERY
@given(
    steps=st.lists(st.tuples(st.sampled_from(sorted(STEPS)), st.sampled_from(["fold", "burn", "", "miss"])),
                   max_size=7)
)  # fmt: skip
@settings(max_examples=40, deadline=None)
def test_the_verdicts_of_a_restarted_site_are_an_undisturbed_ones(
    tmp_path_factory: pytest.TempPathFactory, name: str, steps: list[tuple[str, str]]
) -> None:
    """Restarted before each broadcast, whatever is sent; burnt, repeated and missed rounds as well."""
    folder, server = tmp_path_factory.mktemp("folds"), Server(name)
    undisturbed = server.site()
    for step, after in [("honest", "fold"), *steps, ("another adapter", "")]:
        site = restarted(server, folder)
        assert verdict(site, server, step) == verdict(undisturbed, server, step)
        assert site.broken == undisturbed.broken
        if after == "burn":
            server.burn()
        elif after:
            server.fold()
        if after == "miss" and server.round < 9:
            server.fold()


@EVERY
def test_a_restarted_site_refuses_what_is_not_the_fold(tmp_path: Path, name: str) -> None:
    """And is no more let in by a restart, nor by a round 1 that is sent again."""
    server = Server(name)
    first = server.broadcast
    for _ in range(3):
        assert asked(restarted(server, tmp_path), server) is True
        server.fold()
    with pytest.raises(PeerError, match="an earlier round"):
        asked(restarted(server, tmp_path), server, round=1, broadcast=first, opened=())
    with pytest.raises(PeerError, match="not the fold of the last sum"):
        asked(restarted(server, tmp_path), server, broadcast=moved(server.broadcast, 1e-3))
    with pytest.raises(PeerError, match="an earlier broadcast"):
        asked(restarted(server, tmp_path), server)


def test_all_of_it_is_read_again(tmp_path: Path) -> None:
    """Float32 and float64, slots of other layouts, no state at all, the groups; to the bit."""
    slots = {
        "m": Packed(LAYOUT, np.array([1e-300, 2.0, np.pi, -0.0])),
        "empty": Packed(Layout(tensors=()), np.zeros(0)),
    }
    state = ServerState(7, Packed(LAYOUT, np.array([1, 2, 3, 4], dtype=np.float32) / 3), slots)
    memory = memory_in(tmp_path)
    assert memory.load() == Known()
    memory.save(Known(None, True, (("a", "b"), ("c",))))
    assert memory.load() == Known(None, True, (("a", "b"), ("c",)))
    memory.save(Known(state))
    found = memory.load().state
    assert found is not None
    assert (found.round, found.adapter.digest) == (7, state.adapter.digest)
    assert {name: slot.digest for name, slot in found.slots.items()} == {
        n: s.digest for n, s in slots.items()
    }


def test_what_lies_there_is_sealed_and_what_was_there_before_is_gone(tmp_path: Path) -> None:
    """Neither the adapter's bytes nor the file of the round before open with the storage key."""
    memory, adapter = memory_in(tmp_path), Packed(LAYOUT, np.array([1, 2, 3, 4], dtype=np.float32) / 7)
    memory.save(Known(ServerState(1, adapter)))
    path = tmp_path / FILE
    assert adapter.vector.tobytes() not in path.read_bytes()
    held = path.open("rb")  # the file of round 1, under no name any more
    memory.save(Known(ServerState(2, adapter)))
    before = held.read()
    held.close()
    path.write_bytes(before)
    with pytest.raises(StorageError):
        memory.load()


def test_a_damaged_file_is_refused_and_not_begun_afresh(tmp_path: Path) -> None:
    """For ever: a server could send what it likes otherwise. So is one that another key sealed."""
    server = Server()
    assert asked(restarted(server, tmp_path), server)
    path = tmp_path / FILE
    whole = path.read_bytes()
    path.write_bytes(whole[:-40] + bytes(8) + whole[-32:])
    with pytest.raises(StorageError, match="damaged"):
        restarted(server, tmp_path)
    path.write_bytes(whole)
    with pytest.raises(StorageError, match="another storage key"):
        memory_in(tmp_path, Secret.fresh()).load()
    assert asked(restarted(server, tmp_path), server)


def test_nothing_is_known_that_is_not_kept(tmp_path: Path) -> None:
    """Where the disk fails the broadcast is not answered, and asked again it is judged as it was."""

    class Full:
        fails = False

        def load(self) -> Known:
            return Known()

        def save(self, known: Known) -> None:
            if self.fails:
                raise StorageError("the disk is full")
            memory_in(tmp_path).save(known)

    server, disk = Server(), Full()
    site = FoldCheck.remembered(server.plan, server.strategy, disk)
    assert asked(site, server)
    server.fold()
    disk.fails = True
    with pytest.raises(StorageError):
        asked(site, server)
    disk.fails = False
    assert asked(site, server)
    assert asked(restarted(server, tmp_path), server)
