"""Keys, members and rosters for tests (`pythonpath` in pyproject.toml finds this folder)."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from wardround.runtime.roster import RosterDocument, RosterMember

NOW = datetime(2026, 11, 1, 12, tzinfo=UTC)


def transport_key() -> str:
    """A fresh P-384 public key, as rosters write it."""
    public = ec.generate_private_key(ec.SECP384R1()).public_key()
    return public.public_bytes(Encoding.X962, PublicFormat.CompressedPoint).hex()


def roster_member(site: str, **changes: Any) -> RosterMember:
    """A member with fresh keys."""
    fields: dict[str, Any] = {
        "site": site, "identity": Ed25519PrivateKey.generate().public_key().public_bytes_raw().hex(),
        "transport": transport_key(), "admitted": NOW,
    }  # fmt: skip
    return RosterMember(**(fields | changes))


def roster_document(*sites: str, **changes: Any) -> RosterDocument:
    """A first roster of these sites, in order."""
    fields: dict[str, Any] = {
        "consortium": "northern lights", "version": 1, "issued": NOW,
        "members": tuple(roster_member(site) for site in sites),
    }  # fmt: skip
    return RosterDocument(**(fields | changes))


def next_roster(former: RosterDocument, **changes: Any) -> RosterDocument:
    """The version after a roster."""
    fields = {"version": former.version + 1, "previous": former.digest}
    return RosterDocument(**(former.model_dump() | fields | changes))
