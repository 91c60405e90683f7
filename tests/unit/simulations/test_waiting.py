"""Contributions that wait on disk are those that wait in memory."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from wardround.client.parties import ContributionsInMemory
from wardround.core.errors import StorageError
from wardround.core.packed import Layout, TensorSpec
from wardround.core.plan import Encoding
from wardround.privacy.sums.contract import EVALUATION, TRAINING, Lanes
from wardround.simulations.waiting import ContributionsOnDisk, contributions_of
from wardround.strategies import STRATEGIES

LAYOUT = Layout(tensors=(TensorSpec(name="x", shape=(1000,)),))
COUNTERS = np.arange(3, dtype=np.uint64)


def lanes(start: int, dtype: Any = np.uint16) -> Lanes:
    """A thousand coordinates."""
    return Lanes(np.arange(start, start + 1000, dtype=dtype), COUNTERS)


def strategy() -> Any:
    """One of one stage."""
    made = STRATEGIES.get("fedavg")
    return made(made.Options(), LAYOUT)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.uint32, np.uint64])
def test_what_lies_on_disk_is_what_was_kept(tmp_path: Path, dtype: Any) -> None:
    """Place, bits and type; and it takes no memory that the system could not take back."""
    disk, memory = ContributionsOnDisk(tmp_path / "site"), ContributionsInMemory()
    assert not (tmp_path / "site").exists(), "nothing is made before there is anything"
    for kept in (disk, memory):
        kept[TRAINING] = (3, 0, b"digest"), lanes(7, dtype)
        kept[EVALUATION] = (3, 0, b"digest"), Lanes(np.zeros(0, np.uint64), COUNTERS)
    assert set(disk) == set(memory) == {TRAINING, EVALUATION}
    for name, (place, expected) in memory.items():
        assert disk[name][0] == place
        for found in (disk[name][1], disk.light(name, expected)):
            np.testing.assert_array_equal(found.coordinates, expected.coordinates)
            assert found.coordinates.dtype == expected.coordinates.dtype
            np.testing.assert_array_equal(found.counters, expected.counters)
    assert isinstance(disk.light(TRAINING, lanes(7, dtype)).coordinates, np.memmap)
    assert memory.light(TRAINING, memory[TRAINING][1]) is memory[TRAINING][1]
    assert not disk[TRAINING][1].coordinates.flags.writeable


def test_who_still_reads_the_one_before_reads_that_one(tmp_path: Path) -> None:
    """An attempt that is being masked is not torn by the next round's contribution."""
    kept = ContributionsOnDisk(tmp_path)
    kept[TRAINING] = (1, 0, b""), lanes(0)
    before = kept[TRAINING][1].coordinates
    kept[TRAINING] = (2, 0, b""), lanes(500)
    np.testing.assert_array_equal(before, lanes(0).coordinates)
    np.testing.assert_array_equal(kept[TRAINING][1].coordinates, lanes(500).coordinates)


def test_what_is_forgotten_leaves_no_file(tmp_path: Path) -> None:
    """Of the round that was verified, and of those before; a later one stays."""
    kept = ContributionsOnDisk(tmp_path)
    kept[TRAINING] = (1, 0, b""), lanes(0)
    kept.forget(round=0)
    assert list(kept) == [TRAINING]
    kept.forget(round=1)
    assert list(kept) == []
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(KeyError):
        kept[TRAINING]


def test_a_full_disk_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing half-written is taken for a contribution."""
    kept = ContributionsOnDisk(tmp_path)
    kept[TRAINING] = (1, 0, b""), lanes(0)

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "unlink", full)
    with pytest.raises(StorageError, match="room for 2000 bytes") as raised:
        kept[TRAINING] = (2, 0, b""), lanes(9)
    assert "resume" in str(raised.value)
    assert TRAINING not in kept


@pytest.mark.parametrize(("sites", "on_disk"), [(10, False), (11, True)])
def test_the_disk_is_used_where_memory_would_grow_with_the_sites(
    tmp_path: Path, sites: int, on_disk: bool
) -> None:
    """Ten sites of 1,000 coordinates of 16 bits are 20,000 bytes."""
    narrow, wide = (Encoding(bits=bits, largest=1.0, most_weight=1) for bits in (16, 32))
    found = contributions_of(strategy(), narrow, sites, tmp_path, most=20_000)
    assert isinstance(found, ContributionsOnDisk) == on_disk
    assert isinstance(contributions_of(strategy(), wide, 6, tmp_path, most=20_000), ContributionsOnDisk)
