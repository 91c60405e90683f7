"""An aggregator and the sites that seal for it."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PublicKey

from wardround.privacy.sealed import (
    ADDED_BYTES,
    MAGIC,
    SUITE,
    Contribution,
    Header,
    Received,
    _info,
    _signed,
    public_key,
    seal,
    unseal,
)
from wardround.privacy.secagg.hashing import digest
from wardround.privacy.secagg.identity import SIGNATURE_BYTES, KeySigner, Roster
from wardround.privacy.secagg.secret import Secret

COORDINATES, COUNTERS = bytes(range(40)), bytes(range(100, 124))


def assemble(head: bytes, signature: bytes, *sealed: bytes) -> bytes:
    """The parts as they lie on the wire."""
    return struct.pack("<4sI", MAGIC, len(head)) + head + signature + b"".join(sealed)


def take_apart(envelope: bytes) -> tuple[bytes, bytes, list[bytes]]:
    """Header, signature and sealed lanes."""
    size = int.from_bytes(envelope[4:8], "little")
    head, rest = envelope[8 : 8 + size], envelope[8 + size :]
    sealed, middle = rest[SIGNATURE_BYTES:], len(COORDINATES) + ADDED_BYTES
    return head, rest[:SIGNATURE_BYTES], [sealed[:middle], sealed[middle:]]


def encrypted(
    header: Header, lanes: tuple[bytes, bytes] = (COORDINATES, COUNTERS), to: bytes | None = None
) -> list[bytes]:
    """Lanes that anybody can seal: HPKE's base mode asks for the public key alone."""
    key = X25519PublicKey.from_public_bytes(to or header.aggregator)
    return [SUITE.encrypt(lane, key, _info(header, i)) for i, lane in enumerate(lanes)]


class World:
    """An aggregator and two sites; the aggregator waits for round 3, attempt 2 of `site_a`."""

    coordinates, counters = COORDINATES, COUNTERS

    def __init__(self) -> None:
        self.key = Secret.fresh()
        self.signers = {"site_a": KeySigner.fresh(), "site_b": KeySigner.fresh()}
        self.roster = Roster({site: signer.public for site, signer in self.signers.items()})
        self.received = Received(run_id="run")

    def header(self, **changes: Any) -> Header:
        fields: dict[str, Any] = {
            "run_id": "run", "round": 3, "attempt": 2, "plan": digest("plan"), "roster": self.roster.digest,
            "broadcast": digest("broadcast"), "layout": digest("layout"), "counters_layout": digest("counts"),
            "offer": digest("offer"), "aggregator": public_key(self.key), "site": "site_a",
            "coordinates_bytes": len(COORDINATES), "counters_bytes": len(COUNTERS),
        }  # fmt: skip
        return Header(**(fields | changes))

    def seal(self, signer: str = "site_a", **changes: Any) -> bytes:
        header = self.header(**changes)
        lanes = COORDINATES.ljust(header.coordinates_bytes, b"x"), COUNTERS.ljust(header.counters_bytes, b"x")
        return seal(
            header, lanes[0][: header.coordinates_bytes], lanes[1][: header.counters_bytes],
            self.signers[signer],
        )  # fmt: skip

    def unseal(self, envelope: bytes, **changes: Any) -> tuple[Contribution, Received]:
        return unseal(envelope, self.header(**changes), self.key, self.roster, self.received)

    def signed(self, header: Header, sealed: list[bytes], signer: str = "site_a") -> bytes:
        """An envelope of any content under a right signature: what a dishonest site can send."""
        return assemble(header.head, self.signers[signer].sign(_signed(header, sealed)), *sealed)

    assemble, take_apart, encrypted = map(staticmethod, (assemble, take_apart, encrypted))


@pytest.fixture
def world() -> World:
    """Fresh keys."""
    return World()
