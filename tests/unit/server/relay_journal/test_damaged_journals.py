"""A journal that a kill tore, or that was damaged: dropped, or refused with its name and the remedy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from wardround.core.errors import InternalError, QuorumError, StorageError
from wardround.privacy.secagg.messages import (
    encode,
)
from wardround.privacy.secagg.offer import SignedOffer
from wardround.privacy.secagg.phases import ADVERTISE, CONFIRM, DEAL, MASK, UNMASK
from wardround.privacy.secagg.relay import Relay
from wardround.server.relay_journal import _Records, begin, offered

TORN = {
    "an advertisement": (ADVERTISE, 2, ADVERTISE),
    "the mark of phase 1": (DEAL, 0, ADVERTISE),
    "the sums": (CONFIRM, 0, MASK),
    "the mark of phase 4": (UNMASK, 0, CONFIRM),
    "an unmask answer": (UNMASK, 2, UNMASK),
}
"""What is torn → the phase that is reached, messages taken in it, the phase that is left without it."""


@pytest.mark.parametrize("what", TORN)
def test_a_write_that_a_kill_tore_at_any_byte_did_not_happen(journals: Any, what: str) -> None:
    """The relay stands as before it, and the journal goes on as if nothing had been written."""
    reached, messages, left = TORN[what]
    group, offer, path = journals.fresh(5)
    journal = journals.run_until(group, offer, journals.started(group, offer, path), reached)
    for name in (list(journal.outgoing) or list(offer.cohort))[:messages]:
        journal.accept(journals.answer(group, offer, reached, name, journal.outgoing.get(name, b"")))
    whole, start = path.read_bytes(), journals.bounds(path)[-2]
    records = len(list(_Records(path).read()))
    for cut in range(start, len(whole)):
        path.write_bytes(whole[:cut])
        assert len(list(_Records(path).read())) == records - 1
        if cut % 16 and cut not in (start, start + 40, start + 41, start + 42, len(whole) - 1):
            continue  # every byte is read, what it leads to is tried at some: near head and end, and between
        if left == MASK:
            with pytest.raises(QuorumError):
                journals.trusting(group, offer, path)
            continue
        restored = journals.trusting(group, offer, path)
        assert restored.phase == left
        assert len(restored.heard) == (messages - 1 if messages else 5)
        assert path.read_bytes() == whole[:start]
    if left != MASK:
        restored._records.append(b"m", b"goes on", sync=False)
        assert [body for _, body in _Records(path).read()][-1] == b"goes on"


def test_a_bit_turned_anywhere_is_noticed(journals: Any) -> None:
    """In the frame of any record and within; the error names the file and what to do."""
    group, offer, path = journals.fresh(5)
    whole = journals.last_phase(group, offer, path)
    frames, start = set[int](), 0
    for piece in journals.records_of(path):
        end = start + len(piece)
        frames |= {*range(start, start + 41), *range(end - 32, end)}  # kind, length, digest; digest
        start = end
    assert start == len(whole)
    for place in sorted(frames | set(range(0, len(whole), 29))):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << place % 8
        path.write_bytes(damaged)
        with pytest.raises(StorageError, match="attempt is damaged"):
            list(_Records(path).read())
        if place % 290 == 0:
            with pytest.raises(StorageError, match="another attempt is safe") as refusal:
                journals.again(group, offer, path)
            assert str(path) in str(refusal.value)
        assert path.read_bytes() == damaged


@pytest.mark.parametrize("accident", ["lost", "twice", "swapped"])
def test_a_record_that_is_lost_doubled_or_moved_is_noticed(journals: Any, accident: str) -> None:
    """Each is whole by itself; the digests chain them."""
    group, offer, path = journals.fresh(5)
    journals.last_phase(group, offer, path)
    pieces = journals.records_of(path)
    assert len(pieces) > 20
    assert b"".join(pieces) == path.read_bytes()
    for place in range(len(pieces) - 1):
        changed = list(pieces)
        match accident:
            case "lost":
                del changed[place]
            case "twice":
                changed.insert(place, changed[place])
            case _:
                changed[place : place + 2] = changed[place : place + 2][::-1]
        path.write_bytes(b"".join(changed))
        with pytest.raises(StorageError, match="is damaged"):
            journals.trusting(group, offer, path)


@pytest.mark.parametrize(
    ("kind", "body", "phase"),
    [
        (b"o", b"", ADVERTISE),
        (b"x", b"", ADVERTISE),
        (b"c", b"deal", ADVERTISE),
        (b"c", b"advertise", ADVERTISE),  # nobody advertised
        (b"c", b"mask", MASK),
        (b"c", b"unmask", UNMASK),
        (b"m", b"no message", ADVERTISE),
        (b"m", b"no message", MASK),
        (b"s", b"[]\n", ADVERTISE),
        (b"s", b"no line", MASK),
        (b"s", b'["site_00"]\n' + bytes(64), MASK),
        (b"s", b'["site_00", "site_01", "site_02", "site_03", "stranger"]\n' + bytes(64), MASK),
        (b"s", b'["site_00", "site_01", "site_02", "site_03"]\n' + bytes(63), MASK),
    ],
)
def test_a_whole_record_where_it_does_not_belong_is_refused(
    journals: Any, kind: bytes, body: bytes, phase: str
) -> None:
    """Another version, or an error of ours: what does not replay is not believed."""
    group, offer, path = journals.fresh(5)
    journal = journals.run_until(group, offer, journals.started(group, offer, path), phase)
    journal._records.append(kind, body, sync=False)
    with pytest.raises(StorageError, match="is damaged"):
        journals.again(group, offer, path)


def test_a_journalled_message_that_nobody_signed_is_not_believed(
    journals: Any, consortium: Any, tmp_path: Path
) -> None:
    """The journal is no authority: signatures are checked again."""
    group = consortium(5)
    offer = group.offer()
    journal = journals.started(group, offer, tmp_path / "attempt")
    message = group.advertise("site_00", offer).model_copy(update={"ledger_head": b"other"})
    journal._records.append(b"m", encode(message), sync=False)
    with pytest.raises(StorageError, match="is damaged") as refusal:
        journals.again(group, offer, tmp_path / "attempt")
    assert "signature" in str(refusal.value)


def test_the_journal_of_another_offer_is_refused(journals: Any, consortium: Any, tmp_path: Path) -> None:
    """Another attempt, another round, or no journal at all; nothing is changed."""
    group = consortium(5)
    offer = group.offer(attempt=1)
    path = tmp_path / "attempt"
    journals.started(group, offer, path)
    kept = path.read_bytes()
    for other in (group.offer(), group.offer(attempt=2), group.offer(round=2, attempt=1)):
        with pytest.raises(StorageError, match="of another offer") as refusal:
            journals.again(group, other, path)
        assert str((1, 0, 1)) in str(refusal.value)
    assert path.read_bytes() == kept
    with pytest.raises(StorageError, match="no offer"):
        journals.again(group, offer, tmp_path / "nothing")
    with pytest.raises(StorageError, match="there already"):
        journals.started(group, group.offer(attempt=2), path)
    with pytest.raises(InternalError, match="not its own"):
        begin(tmp_path / "new", SignedOffer.by(group.server, offer), Relay(group.offer(), group.roster))
    assert not (tmp_path / "new").exists()


def test_the_offer_of_a_journal_can_be_read_alone(journals: Any, consortium: Any, tmp_path: Path) -> None:
    """It says which attempt a server left; a journal torn in its first record belongs to no offer yet."""
    group = consortium(5)
    offer = group.offer(attempt=3)
    path = tmp_path / "attempt"
    journals.started(group, offer, path)
    found = offered(path)
    assert found is not None
    assert found.check(group.server.public) == offer
    whole = path.read_bytes()
    for cut in range(len(whole)):
        path.write_bytes(whole[:cut])
        assert offered(path) is None
    journals.started(group, offer, path)
    assert offered(path) == found
    path.write_bytes(b"")
    _Records(path).append(b"o", b"of another version", sync=False)
    with pytest.raises(StorageError, match="is damaged"):
        offered(path)
