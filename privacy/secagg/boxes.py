"""Two shares, sealed for one recipient: ChaCha20-Poly1305 (RFC 8439) under a key that seals one box, ever.

A box whose ledger head was changed, put in or taken out does not open.
"""

from __future__ import annotations

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from wardround.core.errors import PeerError
from wardround.privacy.secagg.messages import Box
from wardround.privacy.secagg.secret import Secret
from wardround.privacy.secagg.shamir import SHARE_BYTES, number

_NONCE = bytes(12)  # each key seals one box


def seal(key: Secret, seed_share: Secret, key_share: Secret, agreed: bytes, head: bytes = b"") -> bytes:
    """Both shares, bound to the transcript `agreed` (a digest) and to the head that the box carries."""
    plain = seed_share.reveal() + key_share.reveal()
    return ChaCha20Poly1305(key.reveal()).encrypt(_NONCE, plain, agreed + head)


def open_box(key: Secret, box: Box, agreed: bytes) -> tuple[Secret, Secret] | None:
    """The two shares of a box, or None where it does not open to two shares."""
    try:
        plain = ChaCha20Poly1305(key.reveal()).decrypt(_NONCE, box.sealed, agreed + box.head)
    except InvalidTag:
        return None
    pair = Secret(plain[:SHARE_BYTES]), Secret(plain[SHARE_BYTES:])
    try:
        for share in pair:
            number(share)
    except PeerError:
        return None
    return pair
