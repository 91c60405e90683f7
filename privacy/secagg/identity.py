"""Who says what: Ed25519 signatures over typed statements, under identities that everybody has pinned."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from wardround.core.errors import PeerError
from wardround.privacy.secagg.hashing import digest, framed

SIGNATURE_BYTES = 64
PROTOCOL = "wardround-secagg/1"


class Signer(Protocol):
    """Signs in the name of one member; the key may lie in another process or in hardware."""

    def sign(self, statement: bytes) -> bytes:
        """Ed25519 signature (RFC 8032) of a `statement`."""


@dataclass(frozen=True)
class Roster:
    """The members whose keys this site's own people confirmed.

    Attributes:
        keys: Site → its public identity key, 32 bytes.
    """

    keys: Mapping[str, bytes]

    @cached_property
    def digest(self) -> bytes:
        """What is read out on the phone: one digest of all names and keys."""
        return digest("roster", *(part for site in sorted(self.keys) for part in (site, self.keys[site])))

    def check(self, site: str, signature: bytes, statement: bytes) -> None:
        """Refuse what the site did not sign.

        Raises:
            PeerError: The site is no member, or the signature is not its own.
        """
        key = self.keys.get(site)
        if key is None:
            raise PeerError("a message comes from a site that is no confirmed member", found=site)
        check(key, signature, statement, site)


def check(key: bytes, signature: bytes, statement: bytes, signer: str) -> None:
    """Refuse what the holder of `key` did not sign.

    Raises:
        PeerError: The signature is not right.
    """
    try:
        Ed25519PublicKey.from_public_bytes(key).verify(signature, statement)
    except (InvalidSignature, ValueError) as error:
        raise PeerError(
            f"the signature of {signer!r} is not right",
            expected="a message signed by the key in the roster, unchanged since",
            remedy="it was altered, is of another round or attempt, or not from this site: tell the operator",
        ) from error


def statement(kind: str, context: bytes, site: str, *parts: bytes | str | int) -> bytes:
    """What is signed: protocol, kind, context and signer in front of the content."""
    return framed(PROTOCOL, kind, context, site, *parts)


@dataclass(frozen=True)
class KeySigner:
    """A signer whose key lies in this process: simulations and tests."""

    key: Ed25519PrivateKey

    @staticmethod
    def fresh() -> KeySigner:
        """A new identity."""
        return KeySigner(Ed25519PrivateKey.generate())

    @property
    def public(self) -> bytes:
        """32 bytes."""
        return self.key.public_key().public_bytes_raw()

    def sign(self, statement: bytes) -> bytes:
        """As the protocol says."""
        return self.key.sign(statement)
