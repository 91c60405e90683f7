"""The relay's journal: a server killed anywhere goes on to the very same sum, or to another attempt."""

from __future__ import annotations

import errno
import importlib.util
import itertools
import os
import pickle
import resource
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from wardround.core.errors import InternalError, PeerError, QuorumError, StorageError
from wardround.privacy.packing import packed_size
from wardround.privacy.secagg.dummy import TrustingRoster
from wardround.privacy.secagg.messages import (
    Advertised,
    Confirmation,
    Confirmed,
    Delivery,
    Message,
    Opened,
    Survivors,
    decode,
    encode,
)
from wardround.privacy.secagg.offer import SignedOffer
from wardround.privacy.secagg.phases import ADVERTISE, CONFIRM, DEAL, MASK, OPEN, UNMASK
from wardround.privacy.secagg.relay import Relay
from wardround.privacy.secagg.total import Sum
from wardround.runtime import _durable
from wardround.server import relay_journal
from wardround.server.relay_journal import JournalledRelay, _Records, begin, discard, offered, restore

PRIVACY_TESTS = Path(__file__).resolve().parents[1] / "privacy" / "conftest.py"


@pytest.fixture(scope="module")
def consortium() -> Any:
    """Makes consortia; it is that of the protocol's own tests."""
    spec = importlib.util.spec_from_file_location("secure_consortium", PRIVACY_TESTS)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module.Consortium


def started(group: Any, offer: Any, path: Path) -> JournalledRelay:
    """The journal of a new attempt."""
    return begin(path, SignedOffer.by(group.server, offer), Relay(offer, group.roster))


def again(group: Any, offer: Any, path: Path) -> JournalledRelay:
    """What a new server process makes of a journal."""
    return restore(path, Relay(offer, group.roster))


def trusting(group: Any, offer: Any, path: Path) -> JournalledRelay:
    """The same without the time that signatures take, for tests that restore thousands of times."""
    return restore(path, Relay(offer, TrustingRoster(group.roster.keys)))


def answer(group: Any, offer: Any, phase: str, name: str, sent: bytes) -> Message:
    """What a site says to what it was sent."""
    site = group.sites[name]
    found: Message
    match phase:
        case "advertise":
            found = group.advertise(name, offer)
        case "open":
            found = site.open_graph(decode(sent, Advertised))
        case "deal":
            found = site.deal(decode(sent, Opened if offer.degree else Advertised))
        case "mask":
            found = site.mask(decode(sent, Delivery), *group.inputs(offer, name))
        case "confirm":
            found = site.confirm(decode(sent, Survivors))
        case _:
            found = site.unmask(decode(sent, Confirmed))
    return found


Hook = Callable[[JournalledRelay], JournalledRelay]


def run_until(
    group: Any,
    offer: Any,
    journal: JournalledRelay,
    end: str = "",
    *,
    lost: Mapping[str, str] | None = None,
    after_message: Hook = lambda journal: journal,
    after_closing: Hook = lambda journal: journal,
) -> JournalledRelay:
    """Go on until the phase `end` is reached, or all have answered in the last one.

    Args:
        group: The consortium.
        offer: Of the attempt.
        journal: Where it stands.
        end: A phase.
        lost: Site → the phase from which on it says nothing.
        after_message: May replace the journal by a restored one after each message.
        after_closing: Likewise after each closing.
    """
    gone: set[str] = set()
    while True:
        gone |= {site for site, phase in (lost or {}).items() if phase == journal.phase}
        if journal.phase == end:
            return journal
        for name in list(journal.outgoing) or offer.cohort:
            if name not in gone and name not in journal.heard:
                journal.take(answer(group, offer, journal.phase, name, journal.outgoing.get(name, b"")))
                journal = after_message(journal)
        if journal.phase == UNMASK:
            return journal
        journal.close()
        journal = after_closing(journal)


def killing(group: Any, offer: Any, path: Path, *phases: str) -> Hook:
    """Drop the server's objects in these phases; what comes back has to stand where they stood."""

    def kill(journal: JournalledRelay) -> JournalledRelay:
        if journal.phase not in phases:
            return journal
        before = journal.phase, set(journal.heard), dict(journal.outgoing)
        del journal
        restored = again(group, offer, path)
        assert (restored.phase, restored.heard, dict(restored.outgoing)) == before
        return restored

    return kill


def opened(journal: JournalledRelay) -> Sum:
    """The sum."""
    assert journal.relay.openable
    return journal.relay.open()


ALL_BUT_MASK = (ADVERTISE, OPEN, DEAL, CONFIRM, UNMASK)


@pytest.mark.parametrize("bits", [16, 20, 24, 32, 64])
def test_a_server_killed_after_every_message_and_every_closing(
    consortium: Any, tmp_path: Path, bits: int
) -> None:
    """Each time the journal alone is left; two sites are lost on the way; the sum is exact in every ring."""
    group = consortium(7)
    offer = group.offer(bits=bits, coordinates=21)
    path = tmp_path / "attempt"
    kill = killing(group, offer, path, *ALL_BUT_MASK)
    journal = run_until(
        group, offer, started(group, offer, path), lost={"site_01": DEAL, "site_04": MASK},
        after_message=kill, after_closing=kill,
    )  # fmt: skip
    total = opened(journal)
    assert set(total.survivors) == set(group.names) - {"site_01", "site_04"}
    group.check(total, offer)


def test_in_a_regular_graph(consortium: Any, tmp_path: Path) -> None:
    """The draw of the graph is a phase of its own; after each closing, and at one message of each phase."""
    group = consortium(12)
    group.policy = group.policy.model_copy(update={"most_exposure": 1.0})
    group.restart()
    offer = group.offer(degree=6, share_threshold=5)
    path = tmp_path / "attempt"
    kill = killing(group, offer, path, *ALL_BUT_MASK)
    seen: list[str] = []

    def sometimes(journal: JournalledRelay) -> JournalledRelay:
        seen.append(journal.phase)
        return kill(journal) if len(journal.heard) == 5 else journal

    journal = run_until(
        group, offer, started(group, offer, path), lost={"site_03": MASK, "site_08": UNMASK},
        after_message=sometimes, after_closing=kill,
    )  # fmt: skip
    assert set(seen) == {*ALL_BUT_MASK, MASK}
    group.check(opened(journal), offer)


@pytest.mark.parametrize("masked", range(7))
def test_a_server_killed_while_vectors_come_in_begins_another_attempt(
    consortium: Any, tmp_path: Path, masked: int
) -> None:
    """After none, some, or all of them: the sites' kept contributions are masked anew, under fresh keys."""
    group = consortium(6)
    first, second = group.offer(), group.offer(attempt=1)
    journal = run_until(group, first, started(group, first, tmp_path / "0"), MASK)
    for name in list(journal.outgoing)[:masked]:
        journal.take(answer(group, first, MASK, name, journal.outgoing[name]))
    del journal
    with pytest.raises(QuorumError, match="a new attempt"):
        again(group, first, tmp_path / "0")
    journal = started(group, second, tmp_path / "1")
    discard(tmp_path / "0")
    assert offered(tmp_path / "0") is None
    group.check(opened(run_until(group, second, journal)), second)


@pytest.mark.parametrize("journalled", range(6))
def test_sites_repeat_word_for_word_what_a_server_killed_while_unmasking_lost(
    consortium: Any, tmp_path: Path, journalled: int
) -> None:
    """All had answered, and lost what they knew but their record; some answers never reached the journal."""
    group = consortium(5)
    offer = group.offer()
    path = tmp_path / "attempt"
    journal = run_until(group, offer, started(group, offer, path), UNMASK)
    answers = {name: answer(group, offer, UNMASK, name, journal.outgoing[name]) for name in journal.outgoing}
    for name in list(answers)[:journalled]:
        journal.take(answers[name])
    before = opened(journal) if journalled == 5 else None
    del journal
    group.restart()
    journal = again(group, offer, path)
    assert journal.heard == set(list(answers)[:journalled])
    for name in set(journal.outgoing) - journal.heard:
        confirmed = decode(journal.outgoing[name], Confirmed)
        repeated = group.sites[name].repeat(confirmed.confirmations[0].survived)
        assert encode(repeated) == encode(answers[name])
        journal.take(repeated)
    total = opened(journal)
    group.check(total, offer)
    assert before is None or before.coordinates.tolist() == total.coordinates.tolist()


def test_the_journal_holds_no_vector_and_one_pair_of_sums(consortium: Any, tmp_path: Path) -> None:
    """Nothing is written while vectors come in; the closing writes as much as one of them takes."""
    group = consortium(5)
    offer = group.offer(bits=24, coordinates=1001)
    path = tmp_path / "attempt"
    journal = run_until(group, offer, started(group, offer, path), MASK)
    before = path.read_bytes()
    for name, sent in journal.outgoing.items():
        journal.take(answer(group, offer, MASK, name, sent))
        assert path.read_bytes() == before
    journal.close()
    names = len('["site_00", "site_01", "site_02", "site_03", "site_04"]\n')
    framing = len(encode_of_record(b"s"))
    lanes = packed_size(1001, 24) + packed_size(3, 64)
    assert len(path.read_bytes()) - len(before) == names + lanes + framing


def encode_of_record(kind: bytes) -> bytes:
    """An empty record."""
    return b"".join(relay_journal._frame(relay_journal._START, kind, 0))


def bounds(path: Path) -> list[int]:
    """Where the records begin, and where the last one ends."""
    records = _Records(path)
    return [*(records.size for _ in records.read()), records.size]


TORN = {
    "an advertisement": (ADVERTISE, 2, ADVERTISE),
    "the mark of phase 1": (DEAL, 0, ADVERTISE),
    "the sums": (CONFIRM, 0, MASK),
    "the mark of phase 4": (UNMASK, 0, CONFIRM),
    "an unmask answer": (UNMASK, 2, UNMASK),
}
"""What is torn → the phase that is reached, messages taken in it, the phase that is left without it."""


@pytest.mark.parametrize("what", TORN)
def test_a_write_that_a_kill_tore_at_any_byte_did_not_happen(
    consortium: Any, tmp_path: Path, what: str
) -> None:
    """The relay stands as before it, and the journal goes on as if nothing had been written."""
    reached, messages, left = TORN[what]
    group = consortium(5)
    offer = group.offer()
    path = tmp_path / "attempt"
    journal = run_until(group, offer, started(group, offer, path), reached)
    for name in (list(journal.outgoing) or list(offer.cohort))[:messages]:
        journal.take(answer(group, offer, reached, name, journal.outgoing.get(name, b"")))
    whole, start = path.read_bytes(), bounds(path)[-2]
    records = len(list(_Records(path).read()))
    for cut in range(start, len(whole)):
        path.write_bytes(whole[:cut])
        assert len(list(_Records(path).read())) == records - 1
        if cut % 16 and cut not in (start, start + 40, start + 41, start + 42, len(whole) - 1):
            continue  # every byte is read, what it leads to is tried at some: near head and end, and between
        if left == MASK:
            with pytest.raises(QuorumError):
                trusting(group, offer, path)
            continue
        restored = trusting(group, offer, path)
        assert restored.phase == left
        assert len(restored.heard) == (messages - 1 if messages else 5)
        assert path.read_bytes() == whole[:start]
    if left != MASK:
        restored._records.append(b"m", b"goes on", sync=False)
        assert [body for _, body in _Records(path).read()][-1] == b"goes on"


def last_phase(group: Any, offer: Any, path: Path) -> bytes:
    """A journal with records of every kind; its bytes."""
    journal = run_until(group, offer, started(group, offer, path))
    assert journal.relay.openable
    return path.read_bytes()


def test_a_bit_turned_anywhere_is_noticed(consortium: Any, tmp_path: Path) -> None:
    """In the frame of any record and within; the error names the file and what to do."""
    group = consortium(5)
    offer = group.offer()
    path = tmp_path / "attempt"
    whole = last_phase(group, offer, path)
    frames, start = set[int](), 0
    for piece in records_of(path):
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
                again(group, offer, path)
            assert str(path) in str(refusal.value)
        assert path.read_bytes() == damaged


def records_of(path: Path) -> list[bytes]:
    """The records as bytes."""
    return [path.read_bytes()[start:end] for start, end in itertools.pairwise(bounds(path))]


@pytest.mark.parametrize("accident", ["lost", "twice", "swapped"])
def test_a_record_that_is_lost_doubled_or_moved_is_noticed(
    consortium: Any, tmp_path: Path, accident: str
) -> None:
    """Each is whole by itself; the digests chain them."""
    group = consortium(5)
    offer = group.offer()
    path = tmp_path / "attempt"
    last_phase(group, offer, path)
    pieces = records_of(path)
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
            trusting(group, offer, path)


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
    consortium: Any, tmp_path: Path, kind: bytes, body: bytes, phase: str
) -> None:
    """Another version, or an error of ours: what does not replay is not believed."""
    group = consortium(5)
    offer = group.offer()
    path = tmp_path / "attempt"
    journal = run_until(group, offer, started(group, offer, path), phase)
    journal._records.append(kind, body, sync=False)
    with pytest.raises(StorageError, match="is damaged"):
        again(group, offer, path)


def test_a_journalled_message_that_nobody_signed_is_not_believed(consortium: Any, tmp_path: Path) -> None:
    """The journal is no authority: signatures are checked again."""
    group = consortium(5)
    offer = group.offer()
    journal = started(group, offer, tmp_path / "attempt")
    message = group.advertise("site_00", offer).model_copy(update={"ledger_head": b"other"})
    journal._records.append(b"m", encode(message), sync=False)
    with pytest.raises(StorageError, match="is damaged") as refusal:
        again(group, offer, tmp_path / "attempt")
    assert "signature" in str(refusal.value)


def test_the_journal_of_another_offer_is_refused(consortium: Any, tmp_path: Path) -> None:
    """Another attempt, another round, or no journal at all; nothing is changed."""
    group = consortium(5)
    offer = group.offer(attempt=1)
    path = tmp_path / "attempt"
    started(group, offer, path)
    kept = path.read_bytes()
    for other in (group.offer(), group.offer(attempt=2), group.offer(round=2, attempt=1)):
        with pytest.raises(StorageError, match="of another offer") as refusal:
            again(group, other, path)
        assert str((1, 0, 1)) in str(refusal.value)
    assert path.read_bytes() == kept
    with pytest.raises(StorageError, match="no offer"):
        again(group, offer, tmp_path / "nothing")
    with pytest.raises(StorageError, match="there already"):
        started(group, group.offer(attempt=2), path)
    with pytest.raises(InternalError, match="not its own"):
        begin(tmp_path / "new", SignedOffer.by(group.server, offer), Relay(group.offer(), group.roster))
    assert not (tmp_path / "new").exists()


def test_the_offer_of_a_journal_can_be_read_alone(consortium: Any, tmp_path: Path) -> None:
    """It says which attempt a server left; a journal torn in its first record belongs to no offer yet."""
    group = consortium(5)
    offer = group.offer(attempt=3)
    path = tmp_path / "attempt"
    started(group, offer, path)
    found = offered(path)
    assert found is not None
    assert found.check(group.server.public) == offer
    whole = path.read_bytes()
    for cut in range(len(whole)):
        path.write_bytes(whole[:cut])
        assert offered(path) is None
    started(group, offer, path)
    assert offered(path) == found
    path.write_bytes(b"")
    _Records(path).append(b"o", b"of another version", sync=False)
    with pytest.raises(StorageError, match="is damaged"):
        offered(path)


def test_late_refused_and_foreign_messages_leave_relay_and_journal_as_they_were(
    consortium: Any, tmp_path: Path
) -> None:
    """Late, twice or unsigned; a phase without quorum stays open, and the last is not closed."""
    group = consortium(5)
    offer = group.offer()
    path = tmp_path / "attempt"
    journal = started(group, offer, path)
    first = [group.advertise(name, offer) for name in group.names]
    journal.take(first[0])
    before = path.read_bytes()
    with pytest.raises(PeerError, match="twice"):
        journal.take(first[0])
    with pytest.raises(PeerError, match="signature"):
        journal.take(first[1].model_copy(update={"ledger_head": b"other"}))
    with pytest.raises(QuorumError):
        journal.close()
    assert path.read_bytes() == before
    assert (journal.phase, journal.heard) == (ADVERTISE, {"site_00"})
    for message in first[1:4]:
        journal.take(message)
    journal.close()
    before = path.read_bytes()
    with pytest.raises(PeerError, match="of another phase"):
        journal.take(first[4])
    assert path.read_bytes() == before
    assert set(journal.outgoing) == set(group.names[:4])
    group.sites["site_04"] = None
    journal = run_until(group, offer, journal)
    with pytest.raises(InternalError, match="open the sum"):
        journal.close()
    group.check(opened(journal), offer)


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
    consortium: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One sync a closing, none a message, but for the answers that cannot be asked for twice."""
    group = consortium(5)
    offer = group.offer()
    path = tmp_path / "attempt"
    journal = started(group, offer, path)
    synced = counting(monkeypatch)
    sizes: list[tuple[str, list[int], int]] = []

    def note(journal: JournalledRelay) -> JournalledRelay:
        sizes.append((journal.phase, list(synced), path.stat().st_size))
        synced.clear()
        return journal

    run_until(group, offer, journal, after_message=note, after_closing=note)
    by_closing = [size for phase, syncs, size in sizes if syncs and phase != UNMASK]
    assert len(by_closing) == 3  # of phases 1 to 3
    last = [(syncs, size) for phase, syncs, size in sizes if phase == UNMASK]
    assert len(last) == 6  # the closing of phase 4, and five answers
    assert all(syncs == [size] for phase, syncs, size in sizes if syncs)
    assert all(syncs for syncs, _ in last)


PHASES_CLOSED = (ADVERTISE, DEAL, MASK, CONFIRM)


@pytest.mark.parametrize("phase", PHASES_CLOSED)
def test_a_disk_that_fails_at_a_closing_lets_nothing_out(
    consortium: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, phase: str
) -> None:
    """Nothing is returned, the object is done with; a restored one, or another attempt, gives the sum."""
    group = consortium(5)
    offer = group.offer()
    path = tmp_path / "attempt"
    journal = run_until(group, offer, started(group, offer, path), phase)
    names = list(journal.outgoing) or list(offer.cohort)
    for name in names:
        journal.take(answer(group, offer, phase, name, journal.outgoing.get(name, b"")))
    outgoing = journal.outgoing

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(StorageError, match="free space"):
            journal.close()
    assert journal.outgoing is outgoing
    for refused in (journal.close, lambda: journal.take(Confirmation(site="site_00", survived=bytes(32)))):
        with pytest.raises(StorageError, match="not hold all that its relay accepted"):
            refused()
    if phase == DEAL:  # the mark may be on the disk, and then nobody knows whether boxes went out
        with pytest.raises(QuorumError, match="a new attempt"):
            again(group, offer, path)
        offer = group.offer(attempt=1)
        journal = started(group, offer, tmp_path / "next")
    else:
        journal = again(group, offer, path)
    group.check(opened(run_until(group, offer, journal)), offer)


@pytest.mark.parametrize("phase", [ADVERTISE, DEAL, CONFIRM, UNMASK])
def test_a_disk_that_is_full_in_the_middle_of_a_message(consortium: Any, tmp_path: Path, phase: str) -> None:
    """A real short write: what is half there is not trusted, nor is the relay that is ahead of the file."""
    group = consortium(6)
    offer = group.offer()
    path = tmp_path / "attempt"
    journal = run_until(group, offer, started(group, offer, path), phase)
    names = list(journal.outgoing) or list(offer.cohort)
    journal.take(answer(group, offer, phase, names[0], journal.outgoing.get(names[0], b"")))
    message = answer(group, offer, phase, names[1], journal.outgoing.get(names[1], b""))
    whole = path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(whole) + 100, hard))
    try:
        with pytest.raises(StorageError, match="attempt"):
            journal.take(message)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert len(path.read_bytes()) == len(whole) + 100
    with pytest.raises(StorageError, match="not hold all that its relay accepted"):
        journal.close()
    journal = again(group, offer, path)
    assert path.read_bytes() == whole
    assert journal.heard == {names[0]}
    journal.take(message)  # a site that has this message still may send it again
    group.check(opened(run_until(group, offer, journal)), offer)


def test_a_full_disk_at_the_beginning_leaves_no_offer(
    consortium: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No attempt is under way, and the same one can begin."""
    group = consortium(5)
    offer = group.offer()
    path = tmp_path / "attempt"

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(StorageError, match="free space"):
            started(group, offer, path)
    assert offered(path) is None
    group.check(opened(run_until(group, offer, started(group, offer, path))), offer)


def test_what_a_failed_sync_left_is_written_anew_before_it_is_believed(
    consortium: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A restored journal is another file: the kernel may hold pages for clean that never reached the disk."""
    group = consortium(5)
    offer = group.offer()
    path = tmp_path / "attempt"
    run_until(group, offer, started(group, offer, path), DEAL)
    before = path.stat().st_ino, path.read_bytes()
    synced = counting(monkeypatch)
    again(group, offer, path)
    assert path.stat().st_ino != before[0]
    assert path.read_bytes() == before[1]
    assert len(before[1]) in synced
    assert _durable.os.fsync is os.fsync


def test_two_servers_do_not_write_to_one_journal(consortium: Any, tmp_path: Path) -> None:
    """The second one that writes is refused, and what the first wrote stays."""
    group = consortium(5)
    offer = group.offer()
    path = tmp_path / "attempt"
    one = started(group, offer, path)
    two = again(group, offer, path)
    one.take(group.advertise("site_00", offer))
    kept = path.read_bytes()
    with pytest.raises(StorageError, match="another process"):
        two.take(group.advertise("site_01", offer))
    assert path.read_bytes() == kept
    path.unlink()
    with pytest.raises(StorageError):
        one.take(group.advertise("site_02", offer))
    assert not path.exists()


def test_discarding_and_who_may_read(consortium: Any, tmp_path: Path) -> None:
    """The file is its owner's alone, also after a restore; discarding removes it, once or twice."""
    group = consortium(5)
    offer = group.offer()
    path = tmp_path / "deep" / "attempt"
    started(group, offer, path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    again(group, offer, path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    discard(path)
    discard(path)
    assert list(tmp_path.rglob("*")) == [path.parent]


def test_a_journal_that_cannot_be_read_says_so(
    consortium: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fault of the disk while reading is named, with the file."""
    group = consortium(5)
    offer = group.offer()
    path = tmp_path / "attempt"
    started(group, offer, path)

    def broken(path: Path) -> bytes:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(Path, "read_bytes", broken)
    with pytest.raises(StorageError, match=r"cannot read .*attempt"):
        again(group, offer, path)


KILLED = """
import os, pickle, signal, sys
from pathlib import Path
from wardround.privacy.secagg import messages
from wardround.privacy.secagg.identity import Roster
from wardround.privacy.secagg.offer import SignedOffer
from wardround.privacy.secagg.phases import UNMASK
from wardround.privacy.secagg.relay import Relay
from wardround.server.relay_journal import begin

path, at, when = Path(sys.argv[1]), int(sys.argv[3]), sys.argv[4]
given = pickle.loads(Path(sys.argv[2]).read_bytes())
signed = messages.decode(given["signed"], SignedOffer)
real, calls = os.fsync, 0

def fsync(descriptor):
    global calls
    calls += 1
    if when == "before" and calls == at:
        os.kill(os.getpid(), signal.SIGKILL)
    real(descriptor)
    if calls == at:
        os.kill(os.getpid(), signal.SIGKILL)

os.fsync = fsync
journal = begin(path, signed, Relay(signed.offer, Roster(given["keys"])))
while True:
    model = journal._phases.due
    for data in given[journal.phase]:
        journal.take(messages.decode(data, model, signed.offer))
    if journal.phase == UNMASK:
        break
    journal.close()
print("not killed")
"""


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize(("at", "phase"), [(4, DEAL), (5, MASK), (6, CONFIRM), (7, UNMASK), (10, UNMASK)])
def test_a_process_that_is_really_killed_in_a_sync(
    consortium: Any, tmp_path: Path, at: int, phase: str, when: str
) -> None:
    """The sites and their answers live on; a new process takes those that the dead one had not written."""
    group = consortium(5)
    offer = group.offer()
    journal = started(group, offer, tmp_path / "undisturbed")
    given: dict[str, Any] = {"signed": encode(journal_offer(tmp_path)), "keys": dict(group.roster.keys)}
    heard: dict[str, list[Message]] = {}
    while not given.get(UNMASK):
        names = list(journal.outgoing) or list(offer.cohort)
        heard[journal.phase] = [
            answer(group, offer, journal.phase, name, journal.outgoing.get(name, b"")) for name in names
        ]
        given[journal.phase] = [encode(message) for message in heard[journal.phase]]
        for message in heard[journal.phase]:
            journal.take(message)
        if journal.phase != UNMASK:
            journal.close()
    (tmp_path / "given").write_bytes(pickle.dumps(given))
    path = tmp_path / "attempt"
    done = subprocess.run(
        [sys.executable, "-c", KILLED, path, tmp_path / "given", str(at), when],
        check=False, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == -signal.SIGKILL, done.stderr
    if phase == MASK:
        with pytest.raises(QuorumError):
            again(group, offer, path)
        return
    restored = again(group, offer, path)
    assert restored.phase == phase
    while True:
        for message in heard[restored.phase]:
            if message.site not in restored.heard:
                restored.take(message)
        if restored.phase == UNMASK:
            break
        restored.close()
    total = opened(restored)
    group.check(total, offer)
    assert total.coordinates.tolist() == opened(journal).coordinates.tolist()


def journal_offer(folder: Path) -> SignedOffer:
    """What the undisturbed server proposed."""
    found = offered(folder / "undisturbed")
    assert found is not None
    return found
