"""One attempt of secure aggregation on disk, so that a server killed while unmasking loses nothing.

A file holds the signed offer, every message that the relay accepted, in order, and a mark where a phase was
closed. A closing is synced before it is handed out: what was not yet journalled was not yet acted upon. So a
restored relay stands where the lost one stood, or earlier in the same phase.

    phases 1, 2, 4   written as they come, synced at the closing: a killed process loses none, a machine
                     without power at most those of the phase under way, whose sites then count as lost
    phase 3          n vectors are not written; at the closing both masked sums are, and the survivors. If the
                     server dies before, another attempt begins: nobody was asked to unmask, so that is safe
    phase 5          synced one by one, since a site that is lost later cannot repeat its answer

A record is kind and length, a digest of both, the body, and a digest of the whole, each on top of the one
before. What a kill left of the last record is dropped; anything else that is not right is refused. That is
against accidents, not against whoever writes to the file: what sites sign, and refuse to do twice, is.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from wardround.core.errors import InternalError, PeerError, QuorumError, StorageError
from wardround.privacy.packing import pack, packed_size, unpack
from wardround.privacy.secagg.messages import Message, decode, encode
from wardround.privacy.secagg.offer import SignedOffer
from wardround.privacy.secagg.phases import MASK, UNMASK, Phases
from wardround.privacy.secagg.relay import Relay
from wardround.runtime.files import storing, write_atomic

_OFFER, _MESSAGE, _CLOSED, _SUMS = b"o", b"m", b"c", b"s"
_HEAD: Final = struct.Struct("<cQ")
_DIGEST_BYTES: Final = 32
_START: Final = b"wardround relay journal 1"
_REMEDY: Final = (
    "put a whole copy back, or discard it: before any site was asked to unmask another attempt is safe; "
    "after that the round is lost, and the next one trains afresh"
)


def begin(path: Path, signed: SignedOffer, relay: Relay) -> JournalledRelay:
    """The journal of a new attempt, durable before its offer goes out; `relay` is a fresh one for that offer.

    Let each attempt have its own path, and discard the earlier one only after this: a server that forgets how
    often it tried makes offers that sites refuse.

    Raises:
        StorageError: There is a journal already, or it cannot be written.
    """
    if relay.offer != signed.offer:
        raise InternalError("a relay is journalled under an offer that is not its own")
    if offered(path) is not None:
        raise StorageError(f"{path} is there already", remedy="restore it, or discard it if it is done with")
    records = _Records(path)
    records.rewrite(b"")
    records.append(_OFFER, encode(signed), sync=True)
    return JournalledRelay(relay, records)


def offered(path: Path) -> SignedOffer | None:
    """The offer that a journal is about; None where there is none, as no offer was made yet.

    Raises:
        StorageError: It does not begin with an offer.
    """
    kind, body = next(_Records(path).read(), (b"", b"")) if path.exists() else (b"", b"")
    try:
        return decode(body, SignedOffer) if kind else None
    except PeerError as error:
        raise _damaged(path, error.what) from error


def restore(path: Path, relay: Relay) -> JournalledRelay:
    """The relay as it stood, by the journalled messages, each checked as when it came.

    Args:
        path: Of the journal.
        relay: A fresh one for the offer that the server goes on with; useless where this raises.

    Raises:
        StorageError: The journal is damaged, of another offer, or missing.
        QuorumError: The server died in phase 3, and sites do not mask twice: another attempt has to begin.
    """
    found = offered(path)
    if found is None or found.offer != relay.offer:
        raise StorageError(
            f"{path} is the journal of another offer" if found else f"{path} holds no offer",
            found=found and f"round, stage, attempt {found.offer.place}", expected=relay.offer.place,
            remedy="go on with the offer that it is about, or discard it and begin another attempt",
        )  # fmt: skip
    records = _Records(path)
    journal = JournalledRelay(relay, records)
    for kind, body in records.read():
        try:
            journal.replay(kind, body)
        except (PeerError, ValueError) as error:
            raise _damaged(path, getattr(error, "what", type(error).__name__)) from error
    if journal.phase == MASK:
        raise QuorumError(
            "the server ended while masked vectors came in", expected="all of them in one process",
            remedy="a new attempt; sites keep what they trained",
        )  # fmt: skip
    records.rewrite(path.read_bytes()[: records.size])
    return journal


def discard(path: Path) -> None:
    """Destroy a journal: its sum is folded, its attempt given up, or its round burnt. Twice does no harm.

    Raises:
        StorageError: It cannot be removed.
    """
    with storing(path):
        path.unlink(missing_ok=True)


@dataclass
class JournalledRelay:
    """A relay, and what it accepts written down before anything follows from it.

    Where a write failed the relay is ahead of the file: this object then refuses everything, and `restore`
    gives the one that counts.

    Attributes:
        relay: What the messages go to; complaints go to it directly, and it opens the sum.
        outgoing: Site → what the last closing sends it; once more, where a kill may have kept it from that.
    """

    relay: Relay
    _records: _Records
    outgoing: Mapping[str, bytes] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._phases = Phases(self.relay)

    @property
    def phase(self) -> str:
        """Under way, one of `PHASES`."""
        return self._phases.phase

    @property
    def heard(self) -> set[str]:
        """Sites whose message of that phase was accepted. Ask none of them again: it would refuse."""
        return self._phases.heard

    @property
    def due(self) -> type[Message]:
        """What sites send in this phase."""
        return self._phases.due

    def accept(self, message: Message) -> None:
        """A site's message of the phase under way.

        Raises:
            PeerError: As the relay's, or it is of another phase; nothing is written.
            StorageError: It could not be written.
        """
        self._records.check_whole()
        self._phases.accept(message)
        if self.phase != MASK:
            self._records.append(_MESSAGE, encode(message), sync=self.phase == UNMASK)

    def close(self) -> Mapping[str, bytes]:
        """End the phase under way: site → what it is sent, for every site that was heard.

        Raises:
            QuorumError: As the relay's: too few sites; nothing is written.
            StorageError: It could not be written; nothing may be sent.
        """
        self._records.check_whole()
        if self.phase == UNMASK:
            raise InternalError("nothing comes after the unmask answers", remedy="open the sum")
        outgoing = self._phases.closing()
        if self.phase == MASK:
            sites = json.dumps(sorted(self.heard)).encode() + b"\n"
            coordinates, counters = self.relay.sums
            lanes = pack(coordinates, self.relay.offer.bits), pack(counters, 64)
            self._records.append(_SUMS, sites, *lanes, sync=True)
        else:
            self._records.append(_CLOSED, self.phase.encode(), sync=True)
        self._advance(outgoing)
        return outgoing

    def replay(self, kind: bytes, body: bytes) -> None:
        """One journalled record, for `restore`.

        Raises:
            PeerError: It does not follow from those before it; ValueError likewise.
        """
        if kind == _OFFER and not self._records.size:
            return
        if kind == _MESSAGE and self.phase != MASK:
            self._phases.accept(decode(body, self._phases.due))
        elif kind == _CLOSED and body == self.phase.encode() and self.phase not in (MASK, UNMASK):
            self._advance(self._phases.closing())
        elif kind == _SUMS and self.phase == MASK:
            offer, end = self.relay.offer, body.index(b"\n") + 1
            cut = end + packed_size(offer.coordinates, offer.bits)
            coordinates = unpack(body[end:cut], offer.coordinates, offer.bits)
            self.heard.update(json.loads(body[:end]))
            self.relay.take_sums(sorted(self.heard), coordinates, unpack(body[cut:], offer.counters, 64))
            self._advance(self._phases.closing())
        else:
            raise PeerError("a record stands where none of its kind belongs")

    def _advance(self, outgoing: Mapping[str, bytes]) -> None:
        self._phases.advance()
        self.outgoing = outgoing


@dataclass
class _Records:
    """The file: `size` and `chain` are where its last whole record ends and that record's digest."""

    path: Path
    size: int = 0
    chain: bytes = _START
    broken: bool = False

    def read(self) -> Iterator[tuple[bytes, bytes]]:
        """Kind and body of every record; the position follows once the next is asked for."""
        try:
            data = self.path.read_bytes()
        except OSError as error:
            raise StorageError(f"cannot read {self.path}", found=error.strerror, remedy=_REMEDY) from error
        while len(data) >= (start := self.size + _HEAD.size + _DIGEST_BYTES):
            kind, length = _HEAD.unpack_from(data, self.size)
            body = data[start : start + length]
            head, digest = _frame(self.chain, kind, length, body)
            if data[self.size : start] != head:
                raise _damaged(self.path, f"a record that is not right at byte {self.size}")
            end = start + length + _DIGEST_BYTES
            if end > len(data):
                return  # a kill came while it was written
            if data[start + length : end] != digest:
                raise _damaged(self.path, f"a record that is not right at byte {self.size}")
            yield kind, body
            self.size, self.chain = end, digest

    def rewrite(self, content: bytes) -> None:
        """Begin, or go on, with a file that is on the disk as it is read here."""
        write_atomic(self.path, content)
        with storing(self.path):
            self.path.chmod(0o600)

    def append(self, kind: bytes, *parts: bytes, sync: bool) -> None:
        """Write one record, or refuse to go on; what is half there is dropped when the file is read."""
        length = sum(map(len, parts))
        head, digest = _frame(self.chain, kind, length, *parts)
        self.broken = True  # until all of it is there
        with storing(self.path, len(head) + length + len(digest)), self.path.open("r+b") as file:
            if file.seek(0, os.SEEK_END) != self.size:
                raise StorageError(f"{self.path} was changed by another process", remedy="run one server")
            file.writelines((head, *parts, digest))
            file.flush()
            if sync:
                os.fsync(file.fileno())
            self.size, self.chain = file.tell(), digest
        self.broken = False

    def check_whole(self) -> None:
        """Refuse to go on after a failed write."""
        if self.broken:
            raise StorageError(
                f"{self.path} does not hold all that its relay accepted",
                remedy="free space on its disk if it was full, then restore it",
            )


def _frame(chain: bytes, kind: bytes, length: int, *parts: bytes) -> tuple[bytes, bytes]:
    """What stands before a record's body, and behind it."""
    head = _HEAD.pack(kind, length)
    head += hashlib.sha256(chain + head).digest()
    state = hashlib.sha256(head)
    for part in parts:
        state.update(part)
    return head, state.digest()


def _damaged(path: Path, found: str) -> StorageError:
    return StorageError(f"{path} is damaged", found=found, expected="what the server wrote", remedy=_REMEDY)
