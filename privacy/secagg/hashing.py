"""Hashes and keys with a tag for what they are for; parts are length-prefixed, so that no two inputs meet."""

from __future__ import annotations

import hashlib
import struct

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from wardround.privacy.secagg.secret import SECRET_BYTES, Secret

DIGEST_BYTES = 32


def framed(tag: str, *parts: bytes | str | int) -> bytes:
    """An injective encoding: tag and parts, each with its kind and its length in front.

    A number is taken as a signed 64-bit one.
    """
    out = bytearray()
    for part in (tag, *parts):
        match part:
            case str():
                kind, body = b"s", part.encode()
            case int():
                kind, body = b"i", struct.pack("<q", part)
            case _:
                kind, body = b"b", bytes(part)
        out += kind + struct.pack("<Q", len(body)) + body
    return bytes(out)


def unframed(data: bytes) -> tuple[bytes | str | int, ...]:
    """Tag and parts of what `framed` made.

    Raises:
        ValueError: It is nothing that `framed` makes.
    """
    parts: list[bytes | str | int] = []
    at = 0
    while at < len(data):
        kind, head = data[at : at + 1], data[at + 1 : at + 9]
        if len(head) < 8:  # noqa: PLR2004 - bytes of a length
            raise ValueError("a part has no length")
        (length,) = struct.unpack("<Q", head)
        body = data[at + 9 : at + 9 + length]
        if len(body) != length:
            raise ValueError("a part is cut off")
        match kind:
            case b"s":
                parts.append(body.decode())
            case b"i" if length == 8:  # noqa: PLR2004 - bytes of a number
                parts.append(struct.unpack("<q", body)[0])
            case b"b":
                parts.append(body)
            case _:
                raise ValueError("a part is of no kind")
        at += 9 + length
    if not parts or not isinstance(parts[0], str):
        raise ValueError("there is no tag")
    return tuple(parts)


def digest(tag: str, *parts: bytes | str | int) -> bytes:
    """SHA-256 of `framed`."""
    return hashlib.sha256(framed(tag, *parts)).digest()


def derive(secret: Secret, salt: bytes, tag: str, *parts: bytes | str | int) -> Secret:
    """A 32-byte key for one purpose (HKDF-SHA256, RFC 5869)."""
    key = HKDF(hashes.SHA256(), SECRET_BYTES, salt, framed(tag, *parts)).derive(secret.reveal())
    return Secret(key)
