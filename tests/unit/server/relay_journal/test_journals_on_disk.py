"""What reaches the disk before anything follows from it, and what a disk that fails does."""

from __future__ import annotations

import errno
import os
import resource
import stat
from pathlib import Path
from typing import Any

import pytest

from wardround.core.errors import QuorumError, StorageError
from wardround.privacy.secagg.messages import (
    Confirmation,
)
from wardround.privacy.secagg.phases import ADVERTISE, CONFIRM, DEAL, MASK, UNMASK
from wardround.runtime import _durable
from wardround.server.relay_journal import JournalledRelay, discard, offered


def counting(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sizes of what is synced, as it is synced."""
    synced: list[int] = []
    real = os.fsync

    def fsync(descriptor: int) -> None:
        real(descriptor)
        synced.append(os.fstat(descriptor).st_size)

    monkeypatch.setattr(os, "fsync", fsync)
    return synced


def test_each_closing_and_each_unmask_answer_is_synced(
    journals: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One sync a closing, none a message, but for the answers that cannot be asked for twice."""
    group, offer, path = journals.fresh(5)
    journal = journals.started(group, offer, path)
    synced = counting(monkeypatch)
    sizes: list[tuple[str, list[int], int]] = []

    def note(journal: JournalledRelay) -> JournalledRelay:
        sizes.append((journal.phase, list(synced), path.stat().st_size))
        synced.clear()
        return journal

    journals.run_until(group, offer, journal, after_message=note, after_closing=note)
    by_closing = [size for phase, syncs, size in sizes if syncs and phase != UNMASK]
    assert len(by_closing) == 3  # of phases 1 to 3
    last = [(syncs, size) for phase, syncs, size in sizes if phase == UNMASK]
    assert len(last) == 6  # the closing of phase 4, and five answers
    assert all(syncs == [size] for phase, syncs, size in sizes if syncs)
    assert all(syncs for syncs, _ in last)


PHASES_CLOSED = (ADVERTISE, DEAL, MASK, CONFIRM)


@pytest.mark.parametrize("phase", PHASES_CLOSED)
def test_a_disk_that_fails_at_a_closing_lets_nothing_out(
    journals: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, phase: str
) -> None:
    """Nothing is returned, the object is done with; a restored one, or another attempt, gives the sum."""
    group, offer, path = journals.fresh(5)
    journal = journals.run_until(group, offer, journals.started(group, offer, path), phase)
    names = list(journal.outgoing) or list(offer.cohort)
    for name in names:
        journal.accept(journals.answer(group, offer, phase, name, journal.outgoing.get(name, b"")))
    outgoing = journal.outgoing

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(StorageError, match="free space"):
            journal.close()
    assert journal.outgoing is outgoing
    for refused in (journal.close, lambda: journal.accept(Confirmation(site="site_00", survived=bytes(32)))):
        with pytest.raises(StorageError, match="not hold all that its relay accepted"):
            refused()
    if phase == DEAL:  # the mark may be on the disk, and then nobody knows whether boxes went out
        with pytest.raises(QuorumError, match="a new attempt"):
            journals.again(group, offer, path)
        offer = group.offer(attempt=1)
        journal = journals.started(group, offer, tmp_path / "next")
    else:
        journal = journals.again(group, offer, path)
    group.check(journals.opened(journals.run_until(group, offer, journal)), offer)


@pytest.mark.parametrize("phase", [ADVERTISE, DEAL, CONFIRM, UNMASK])
def test_a_disk_that_is_full_in_the_middle_of_a_message(journals: Any, phase: str) -> None:
    """A real short write: what is half there is not trusted, nor is the relay that is ahead of the file."""
    group, offer, path = journals.fresh(6)
    journal = journals.run_until(group, offer, journals.started(group, offer, path), phase)
    names = list(journal.outgoing) or list(offer.cohort)
    journal.accept(journals.answer(group, offer, phase, names[0], journal.outgoing.get(names[0], b"")))
    message = journals.answer(group, offer, phase, names[1], journal.outgoing.get(names[1], b""))
    whole = path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(whole) + 100, hard))
    try:
        with pytest.raises(StorageError, match="attempt"):
            journal.accept(message)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert len(path.read_bytes()) == len(whole) + 100
    with pytest.raises(StorageError, match="not hold all that its relay accepted"):
        journal.close()
    journal = journals.again(group, offer, path)
    assert path.read_bytes() == whole
    assert journal.heard == {names[0]}
    journal.accept(message)  # a site that has this message still may send it again
    group.check(journals.opened(journals.run_until(group, offer, journal)), offer)


def test_a_full_disk_at_the_beginning_leaves_no_offer(journals: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """No attempt is under way, and the same one can begin."""
    group, offer, path = journals.fresh(5)

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(StorageError, match="free space"):
            journals.started(group, offer, path)
    assert offered(path) is None
    group.check(
        journals.opened(journals.run_until(group, offer, journals.started(group, offer, path))), offer
    )


def test_what_a_failed_sync_left_is_written_anew_before_it_is_believed(
    journals: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A restored journal is another file: the kernel may hold pages for clean that never reached the disk."""
    group, offer, path = journals.fresh(5)
    journals.run_until(group, offer, journals.started(group, offer, path), DEAL)
    before = path.stat().st_ino, path.read_bytes()
    synced = counting(monkeypatch)
    journals.again(group, offer, path)
    assert path.stat().st_ino != before[0]
    assert path.read_bytes() == before[1]
    assert len(before[1]) in synced
    assert _durable.os.fsync is os.fsync


def test_two_servers_do_not_write_to_one_journal(journals: Any) -> None:
    """The second one that writes is refused, and what the first wrote stays."""
    group, offer, path = journals.fresh(5)
    one = journals.started(group, offer, path)
    two = journals.again(group, offer, path)
    one.accept(group.advertise("site_00", offer))
    kept = path.read_bytes()
    with pytest.raises(StorageError, match="another process"):
        two.accept(group.advertise("site_01", offer))
    assert path.read_bytes() == kept
    path.unlink()
    with pytest.raises(StorageError):
        one.accept(group.advertise("site_02", offer))
    assert not path.exists()


def test_discarding_and_who_may_read(journals: Any, consortium: Any, tmp_path: Path) -> None:
    """The file is its owner's alone, also after a restore; discarding removes it, once or twice."""
    group = consortium(5)
    offer = group.offer()
    path = tmp_path / "deep" / "attempt"
    journals.started(group, offer, path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    journals.again(group, offer, path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    discard(path)
    discard(path)
    assert list(tmp_path.rglob("*")) == [path.parent]


def test_a_journal_that_cannot_be_read_says_so(journals: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fault of the disk while reading is named, with the file."""
    group, offer, path = journals.fresh(5)
    journals.started(group, offer, path)

    def broken(path: Path) -> bytes:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(Path, "read_bytes", broken)
    with pytest.raises(StorageError, match=r"cannot read .*attempt"):
        journals.again(group, offer, path)
