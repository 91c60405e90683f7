"""A contribution sealed to a trusted aggregator: the fallback for strategies that have to see single sites.

A consortium may choose an aggregator and pin its X25519 key. A site seals both lanes to it and signs the
envelope; the relay in between (Flower's SuperLink) learns the header and can drop an envelope, but neither
read nor alter it, pass it off as another site's, nor have it counted twice.

HPKE (RFC 9180), single-shot in base mode: DHKEM(X25519, HKDF-SHA256), HKDF-SHA256, ChaCha20-Poly1305, from
`cryptography` (47 or newer; Flower 1.41 asks for 50). An ephemeral key seals one lane, ever; `info` (section
8.1) holds header and lane. Base mode says nothing about the sender, hence the signature over all of it.

An envelope: four bytes of format, the header's length, the header as JSON, 64 bytes of signature, then each
lane as ephemeral key (32), ciphertext, tag (16). Both sides know both lanes' lengths.
What it does not give: forward secrecy (whoever gets the aggregator's key opens what was recorded; a fresh
key for every run bounds that), nor any protection against the aggregator, or a quantum computer later.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, TypeAlias

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite
from pydantic import Field, ValidationError

from wardround.core.errors import InternalError, PeerError
from wardround.privacy.secagg.hashing import digest, framed
from wardround.privacy.secagg.identity import SIGNATURE_BYTES, Roster, Signer, statement
from wardround.privacy.secagg.messages import PublicKey
from wardround.privacy.secagg.offer import Digest, SiteName, Wire
from wardround.privacy.secagg.secret import Secret

SUITE: Final = Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.CHACHA20_POLY1305)
KIND: Final = "sealed"
"""Of the statement that a site signs over an envelope."""
MAGIC: Final = b"WSE1"
LARGEST_HEAD: Final = 4096  # bytes; the longest run id and site name, escaped, stay below it
LARGEST_LANE: Final = 2**31 - 1
"""Bytes that `cryptography` encrypts in one call; the ciphers allow more (ChaCha20-Poly1305 2^38 − 64,
RFC 8439 section 2.8; AES-GCM 2^36 − 31). A billion coordinates of 16 bits."""
ADDED_BYTES: Final = 32 + 16  # to each lane: ephemeral key, tag
_LANES: Final = "coordinates", "counters"
_PREFIX: Final = struct.Struct("<4sI")
Octets: TypeAlias = bytes | bytearray | memoryview


class Header(Wire):
    """What an envelope is bound to, in the clear: not believed, but compared with what is expected."""

    protocol: Literal["wardround-sealed/1"] = "wardround-sealed/1"
    run_id: str = Field(min_length=1, max_length=256)
    round: int = Field(ge=1, lt=2**31)
    stage: int = Field(default=0, ge=0, le=7)
    attempt: int = Field(default=0, ge=0, lt=2**31)
    plan: Digest
    roster: Digest
    broadcast: Digest
    """Of the state that the site trained from."""
    layout: Digest
    """Of the statistics, and so of the order of the coordinates."""
    counters_layout: Digest
    offer: Digest
    """Of all that was proposed: cohort, ring, scale and bounds too, which no other field names."""
    aggregator: PublicKey
    """X25519; the one key that opens the envelope."""
    site: SiteName
    coordinates_bytes: int = Field(ge=0, le=LARGEST_LANE)
    counters_bytes: int = Field(ge=0, le=LARGEST_LANE)
    """Lengths of the packed lanes, exactly."""

    @property
    def head(self) -> bytes:
        """The one encoding of these fields that counts."""
        return self.model_dump_json().encode()

    @property
    def lane_bytes(self) -> tuple[int, int]:
        """Lengths of both lanes before sealing."""
        return self.coordinates_bytes, self.counters_bytes

    @property
    def place(self) -> tuple[int, int, int]:
        """Round, stage and attempt, which only ever grow."""
        return self.round, self.stage, self.attempt


class Received(Wire):
    """What the aggregator has accepted in one run. A value: `unseal` returns the next one.

    Make it durable together with the contribution (`model_dump_json`, `model_validate_json`), and give each
    call the state of the one before. One attempt is open at a time: each site counts once in it, and what
    is of an earlier round, stage or attempt than the newest accepted one is refused.
    """

    run_id: str
    place: tuple[int, int, int] = (0, 0, 0)
    """Round, stage and attempt of the newest accepted contribution."""
    sites: frozenset[SiteName] = frozenset()
    """Whose contribution to it was accepted."""

    def after(self, header: Header) -> Received:
        """The state with one more contribution.

        Raises:
            PeerError: It was accepted before, or its attempt is over.
            InternalError: This is the state of another run.
        """
        if header.run_id != self.run_id:
            raise InternalError("the record of accepted contributions is of another run")
        before = self.sites if header.place == self.place else frozenset[str]()
        if header.place < self.place or header.site in before:
            what = "was accepted already" if before else "is of a round, stage or attempt that is over"
            raise PeerError(
                f"a sealed contribution of {header.site!r} {what}", found=f"place {header.place}",
                expected=f"{self.place} or later", remedy="drop it: it is late, came twice, or is replayed",
            )  # fmt: skip
        return Received(run_id=self.run_id, place=header.place, sites=before | {header.site})


@dataclass(frozen=True)
class Contribution:
    """Both lanes as the site packed them; neither shows in a repr."""

    coordinates: bytes = field(repr=False)
    counters: bytes = field(repr=False)


def public_key(key: Secret) -> bytes:
    """The X25519 key, 32 bytes, that sites pin for whoever holds `key` (made by `Secret.fresh()`)."""
    return X25519PrivateKey.from_private_bytes(key.reveal()).public_key().public_bytes_raw()


def context_of(header: Header) -> bytes:
    """What the signature over an envelope is bound to."""
    return digest("sealed header", header.head)


def seal(header: Header, coordinates: Octets, counters: Octets, signer: Signer) -> bytes:
    """One site's envelope.

    Lanes are encrypted where they lie; joining copies the ciphertexts once, so memory holds three times them.

    Args:
        header: Where it belongs by the site's own plan and state, never by the relay's word; with the
            aggregator's key that the site's people pinned.
        coordinates: Packed ring integers, `header.coordinates_bytes` bytes.
        counters: Packed, `header.counters_bytes` bytes.
        signer: The identity of `header.site`.

    Raises:
        PeerError: Nothing can be sealed to the aggregator's key.
        InternalError: A lane has not the length that the header states.
    """
    lanes = [memoryview(lane).cast("B") for lane in (coordinates, counters)]
    found, stated = tuple(map(len, lanes)), header.lane_bytes
    if found != stated:
        raise InternalError("lanes are not as long as their header states", found=found, expected=stated)
    try:
        key = X25519PublicKey.from_public_bytes(header.aggregator)
        sealed = [SUITE.encrypt(lane, key, _info(header, i)) for i, lane in enumerate(lanes)]
    except ValueError as error:
        raise PeerError(
            "nothing can be sealed to the aggregator's key", found="no X25519 key, or one of low order",
            remedy="compare the pinned key with the aggregator's people",
        ) from error  # fmt: skip
    head, signature = header.head, signer.sign(_signed(header, sealed))
    return b"".join((_PREFIX.pack(MAGIC, len(head)), head, signature, *sealed))


def unseal(
    envelope: Octets, expected: Header, key: Secret, roster: Roster, received: Received
) -> tuple[Contribution, Received]:
    """Check one envelope, then open it.

    Size, header, replay, signature, only then decryption: it allocates both lanes, all before it a few KiB.

    Args:
        envelope: What arrived; not copied.
        expected: Where the aggregator is, and the site that it takes the envelope for.
        key: Of the aggregator.
        roster: The members, as the aggregator's own people confirmed them.
        received: What was accepted before.

    Returns:
        The contribution, and the state to store with it.

    Raises:
        PeerError: Another size, format, context or site; seen before; not signed by the site; does not open.
        InternalError: Key, roster or state are not those that `expected` speaks of.
    """
    if (expected.roster, expected.aggregator) != (roster.digest, public_key(key)):
        raise InternalError("the expected header names another roster, or another key, than those at hand")
    head, signature, sealed = _split(memoryview(envelope).cast("B"), expected)
    if head != expected.head:
        raise _differing(head, expected)
    after = received.after(expected)
    roster.check(expected.site, signature, _signed(expected, sealed))
    private = X25519PrivateKey.from_private_bytes(key.reveal())
    try:
        lanes = [SUITE.decrypt(lane, private, _info(expected, i)) for i, lane in enumerate(sealed)]
    except InvalidTag as error:
        raise PeerError(
            f"the contribution of {expected.site!r} does not open", found="the site's own signature over it",
            expected="lanes sealed to this key under this header", remedy="ask that site: no relay does this",
        ) from error  # fmt: skip
    return Contribution(*lanes), after


def _split(view: memoryview, expected: Header) -> tuple[bytes, bytes, tuple[memoryview, memoryview]]:
    """Header, signature and sealed lanes, sizes first; the lanes are not copied."""
    magic, size = _PREFIX.unpack_from(view) if len(view) >= _PREFIX.size else (MAGIC, 0)
    if magic != MAGIC:
        raise PeerError(
            "a sealed envelope is of another format or version", found=magic.hex(), expected=MAGIC.hex(),
            remedy="site and aggregator need versions of wardround that agree",
        )  # fmt: skip
    payload = sum(expected.lane_bytes) + 2 * ADDED_BYTES
    if size > LARGEST_HEAD or len(view) != _PREFIX.size + size + SIGNATURE_BYTES + payload:
        raise PeerError(
            "a sealed envelope has the wrong length", found=f"{len(view)} bytes, header of {size}",
            expected=f"a header of at most {LARGEST_HEAD}, {SIGNATURE_BYTES} of signature, {payload} sealed",
            remedy="it was cut, or the site follows another layout or plan",
        )  # fmt: skip
    head, rest = view[_PREFIX.size :][:size], view[_PREFIX.size + size :]
    counters = SIGNATURE_BYTES + expected.coordinates_bytes + ADDED_BYTES
    return bytes(head), bytes(rest[:SIGNATURE_BYTES]), (rest[SIGNATURE_BYTES:counters], rest[counters:])


def _differing(head: bytes, expected: Header) -> PeerError:
    """Says where a header differs. It is read for this only: what is opened follows from `expected`."""
    ours = expected.model_dump(mode="json")
    try:
        other = Header.model_validate_json(head).model_dump(mode="json")
    except ValidationError as error:
        places = {part for fault in error.errors(include_input=False) for part in fault["loc"]}
        fields, found = [], f"no valid {', '.join(name for name in ours if name in places) or 'header'}"
    else:
        fields = [name for name in ours if other[name] != ours[name]]
        found = ", ".join(f"{name} {other[name]!r}" for name in fields) or "a header spelled otherwise"
    return PeerError(
        "a sealed envelope belongs to another context", found=found,
        expected=", ".join(f"{name} {ours[name]!r}" for name in fields) or expected.protocol,
        remedy="it belongs elsewhere, was altered, or the site follows another plan: tell the operator",
    )  # fmt: skip


def _info(header: Header, lane: int) -> bytes:
    """HPKE's `info`: a ciphertext opens nowhere else."""
    return framed(header.protocol, _LANES[lane], header.head)


def _signed(header: Header, sealed: Sequence[Octets]) -> bytes:
    """What the site signs: header, and hashes of both ciphertexts with their ephemeral keys."""
    hashes = (hashlib.sha256(lane).digest() for lane in sealed)
    return statement(KIND, context_of(header), header.site, *hashes)
