"""A server that is killed anywhere in an attempt goes on with it, and with the same sum."""

from __future__ import annotations

import pickle
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from wardround.core.errors import InternalError, PeerError, QuorumError
from wardround.privacy.packing import packed_size
from wardround.privacy.secagg.messages import (
    Confirmed,
    Message,
    decode,
    encode,
)
from wardround.privacy.secagg.phases import ADVERTISE, CONFIRM, DEAL, MASK, OPEN, UNMASK
from wardround.server import relay_journal
from wardround.server.relay_journal import JournalledRelay, discard, offered

ALL_BUT_MASK = (ADVERTISE, OPEN, DEAL, CONFIRM, UNMASK)


@pytest.mark.parametrize("bits", [8, 12, 16, 20, 24, 32, 64])
def test_a_server_killed_after_every_message_and_every_closing(
    journals: Any, consortium: Any, tmp_path: Path, bits: int
) -> None:
    """Each time the journal alone is left; two sites are lost on the way; the sum is exact in every ring."""
    group = consortium(7)
    offer = group.offer(bits=bits, coordinates=21)
    path = tmp_path / "attempt"
    kill = journals.killing(group, offer, path, *ALL_BUT_MASK)
    journal = journals.run_until(
        group, offer, journals.started(group, offer, path), lost={"site_01": DEAL, "site_04": MASK},
        after_message=kill, after_closing=kill,
    )  # fmt: skip
    total = journals.opened(journal)
    assert set(total.survivors) == set(group.names) - {"site_01", "site_04"}
    group.check(total, offer)


def test_in_a_regular_graph(journals: Any, consortium: Any, tmp_path: Path) -> None:
    """The draw of the graph is a phase of its own; after each closing, and at one message of each phase."""
    group = consortium(12)
    group.policy = group.policy.model_copy(update={"most_exposure": 1.0})
    group.restart()
    offer = group.offer(degree=6, share_threshold=5)
    path = tmp_path / "attempt"
    kill = journals.killing(group, offer, path, *ALL_BUT_MASK)
    seen: list[str] = []

    def sometimes(journal: JournalledRelay) -> JournalledRelay:
        seen.append(journal.phase)
        return kill(journal) if len(journal.heard) == 5 else journal

    journal = journals.run_until(
        group, offer, journals.started(group, offer, path), lost={"site_03": MASK, "site_08": UNMASK},
        after_message=sometimes, after_closing=kill,
    )  # fmt: skip
    assert set(seen) == {*ALL_BUT_MASK, MASK}
    group.check(journals.opened(journal), offer)


@pytest.mark.parametrize("masked", range(7))
def test_a_server_killed_while_vectors_come_in_begins_another_attempt(
    journals: Any, consortium: Any, tmp_path: Path, masked: int
) -> None:
    """After none, some, or all of them: the sites' kept contributions are masked anew, under fresh keys."""
    group = consortium(6)
    first, second = group.offer(), group.offer(attempt=1)
    journal = journals.run_until(group, first, journals.started(group, first, tmp_path / "0"), MASK)
    for name in list(journal.outgoing)[:masked]:
        journal.accept(journals.answer(group, first, MASK, name, journal.outgoing[name]))
    del journal
    with pytest.raises(QuorumError, match="a new attempt"):
        journals.again(group, first, tmp_path / "0")
    journal = journals.started(group, second, tmp_path / "1")
    discard(tmp_path / "0")
    assert offered(tmp_path / "0") is None
    group.check(journals.opened(journals.run_until(group, second, journal)), second)


@pytest.mark.parametrize("journalled", range(6))
def test_sites_repeat_word_for_word_what_a_server_killed_while_unmasking_lost(
    journals: Any, journalled: int
) -> None:
    """All had answered, and lost what they knew but their record; some answers never reached the journal."""
    group, offer, path = journals.fresh(5)
    journal = journals.run_until(group, offer, journals.started(group, offer, path), UNMASK)
    answers = {
        name: journals.answer(group, offer, UNMASK, name, journal.outgoing[name]) for name in journal.outgoing
    }
    for name in list(answers)[:journalled]:
        journal.accept(answers[name])
    before = journals.opened(journal) if journalled == 5 else None
    del journal
    group.restart()
    journal = journals.again(group, offer, path)
    assert journal.heard == set(list(answers)[:journalled])
    for name in set(journal.outgoing) - journal.heard:
        confirmed = decode(journal.outgoing[name], Confirmed)
        repeated = group.sites[name].repeat(confirmed.confirmations[0].survived)
        assert encode(repeated) == encode(answers[name])
        journal.accept(repeated)
    total = journals.opened(journal)
    group.check(total, offer)
    assert before is None or before.coordinates.tolist() == total.coordinates.tolist()


def test_the_journal_holds_no_vector_and_one_pair_of_sums(
    journals: Any, consortium: Any, tmp_path: Path
) -> None:
    """Nothing is written while vectors come in; the closing writes as much as one of them takes."""
    group = consortium(5)
    offer = group.offer(bits=24, coordinates=1001)
    path = tmp_path / "attempt"
    journal = journals.run_until(group, offer, journals.started(group, offer, path), MASK)
    before = path.read_bytes()
    for name, sent in journal.outgoing.items():
        journal.accept(journals.answer(group, offer, MASK, name, sent))
        assert path.read_bytes() == before
    journal.close()
    names = len('["site_00", "site_01", "site_02", "site_03", "site_04"]\n')
    framing = len(encode_of_record(b"s"))
    lanes = packed_size(1001, 24) + packed_size(3, 64)
    assert len(path.read_bytes()) - len(before) == names + lanes + framing


def encode_of_record(kind: bytes) -> bytes:
    """An empty record."""
    return b"".join(relay_journal._frame(relay_journal._START, kind, 0))


def test_late_refused_and_foreign_messages_leave_relay_and_journal_as_they_were(journals: Any) -> None:
    """Late, twice or unsigned; a phase without quorum stays open, and the last is not closed."""
    group, offer, path = journals.fresh(5)
    journal = journals.started(group, offer, path)
    first = [group.advertise(name, offer) for name in group.names]
    journal.accept(first[0])
    before = path.read_bytes()
    with pytest.raises(PeerError, match="twice"):
        journal.accept(first[0])
    with pytest.raises(PeerError, match="signature"):
        journal.accept(first[1].model_copy(update={"ledger_head": b"other"}))
    with pytest.raises(QuorumError):
        journal.close()
    assert path.read_bytes() == before
    assert (journal.phase, journal.heard) == (ADVERTISE, {"site_00"})
    for message in first[1:4]:
        journal.accept(message)
    journal.close()
    before = path.read_bytes()
    with pytest.raises(PeerError, match="of another phase"):
        journal.accept(first[4])
    assert path.read_bytes() == before
    assert set(journal.outgoing) == set(group.names[:4])
    group.sites["site_04"] = None
    journal = journals.run_until(group, offer, journal)
    with pytest.raises(InternalError, match="open the sum"):
        journal.close()
    group.check(journals.opened(journal), offer)


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
        journal.accept(messages.decode(data, model, signed.offer))
    if journal.phase == UNMASK:
        break
    journal.close()
print("not killed")
"""


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize(("at", "phase"), [(4, DEAL), (5, MASK), (6, CONFIRM), (7, UNMASK), (10, UNMASK)])
def test_a_process_that_is_really_killed_in_a_sync(
    journals: Any, consortium: Any, tmp_path: Path, at: int, phase: str, when: str
) -> None:
    """The sites and their answers live on; a new process takes those that the dead one had not written."""
    group = consortium(5)
    offer = group.offer()
    journal = journals.started(group, offer, tmp_path / "undisturbed")
    given: dict[str, Any] = {
        "signed": encode(journals.journal_offer(tmp_path)),
        "keys": dict(group.roster.keys),
    }
    heard: dict[str, list[Message]] = {}
    while not given.get(UNMASK):
        names = list(journal.outgoing) or list(offer.cohort)
        heard[journal.phase] = [
            journals.answer(group, offer, journal.phase, name, journal.outgoing.get(name, b""))
            for name in names
        ]
        given[journal.phase] = [encode(message) for message in heard[journal.phase]]
        for message in heard[journal.phase]:
            journal.accept(message)
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
            journals.again(group, offer, path)
        return
    restored = journals.again(group, offer, path)
    assert restored.phase == phase
    while True:
        for message in heard[restored.phase]:
            if message.site not in restored.heard:
                restored.accept(message)
        if restored.phase == UNMASK:
            break
        restored.close()
    total = journals.opened(restored)
    group.check(total, offer)
    assert total.coordinates.tolist() == journals.opened(journal).coordinates.tolist()
