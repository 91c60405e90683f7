"""Heads: what others keep of a ledger, so that a restored backup is noticed.

A copy of a ledger that ends earlier is a whole chain. Only who has seen a later row can tell: the peers of a
run, to whom the site shows its head with every advertisement (`client/peer_heads.py`), and the site's own
mirror. What peers see is
encrypted under a key of their consortium: they learn neither how many rows there are, nor whether it moved,
nor that two consortia have the same site's ledger before them; and the site recognises its own head again.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from wardround.client.ledger.book import Book
from wardround.client.ledger.chain import Chain
from wardround.core.errors import PeerError, RolledBackError
from wardround.privacy.secagg.secret import Secret

_NONCE_BYTES: Final = 12
_BOUND: Final = b"wardround ledger head 1"
_SIZES: Final = struct.Struct("<HIH28s")
"""Epoch, number of rows (48 bits, lower part first), digest."""
_LOW: Final = 2**32
DIGEST_DIGITS: Final = 56
"""Of a row's head, in hex: 224 bits, so that what is shown fits 64 bytes."""
BLINDED_BYTES: Final = _NONCE_BYTES + _SIZES.size + 16


@dataclass(frozen=True, order=True)
class Head:
    """How far a ledger has come.

    Attributes:
        epoch: How often its cap was written off: the branch that it is on.
        rows: How many it has.
        digest: First `DIGEST_DIGITS` of the last one's head.
    """

    epoch: int
    rows: int
    digest: str

    def blinded(self, key: Secret) -> bytes:
        """As a consortium sees it; another one each time (RFC 8439, a random nonce)."""
        nonce = os.urandom(_NONCE_BYTES)
        high, low = divmod(self.rows, _LOW)
        content = _SIZES.pack(self.epoch, low, high, bytes.fromhex(self.digest))
        return nonce + ChaCha20Poly1305(key.reveal()).encrypt(nonce, content, _BOUND)

    @staticmethod
    def seen(blinded: bytes, key: Secret) -> Head:
        """The head that was blinded.

        Raises:
            PeerError: This ledger never showed it to this consortium.
        """
        try:
            nonce, sealed = blinded[:_NONCE_BYTES], blinded[_NONCE_BYTES:]
            content = ChaCha20Poly1305(key.reveal()).decrypt(nonce, sealed, _BOUND)
            epoch, low, high, digest = _SIZES.unpack(content)
        except (InvalidTag, ValueError, struct.error):
            raise PeerError(
                "what a peer kept is no head of this ledger", found=f"{len(blinded)} bytes",
                expected="what the site showed to this consortium",
                remedy="ask another peer; whoever gave it altered it, or means another site or consortium",
            ) from None  # fmt: skip
        return Head(epoch, _LOW * high + low, digest.hex())


def head_of(chain: Chain, epoch: int) -> Head:
    """How far a chain has come."""
    return Head(epoch, len(chain), chain.head(len(chain) - 1)[:DIGEST_DIGITS])


def is_covered(head: Head, chain: Chain, book: Book) -> bool:
    """Whether a ledger is at or beyond a head.

    A head from before a write-off may be of rows that were lost then, and which are charged by it: of any, if
    what the ledger itself had is charged beside them; else of those alone that came after its last one.

    Args:
        head: What somebody has seen.
        chain: The ledger's.
        book: What it says.
    """
    if 0 < head.rows <= len(chain) and chain.head(head.rows - 1)[:DIGEST_DIGITS] == head.digest:
        return True
    if head.digest in book.branches:
        return True
    ended = head.epoch < len(book.write_offs)
    return ended and (head.epoch in book.beside or head.rows > book.write_offs[head.epoch])


def require(head: Head, chain: Chain, book: Book) -> None:
    """Refuse a ledger that is not at or beyond a head; arguments as `is_covered`.

    Raises:
        RolledBackError: Rows are missing, or the ledger went another way.
    """
    if is_covered(head, chain, book):
        return
    missing = head.epoch > len(book.write_offs) or head.rows > len(chain)
    raise RolledBackError(
        "the ledger was put back to an older copy" if missing else "the ledger went two ways",
        found=f"{len(chain)} rows", expected=f"{head.rows} rows, the last of them as others have seen it",
        remedy="replay the missing rows (`wardround ledger replay`), or write the cap off "
        "(`wardround ledger write-off`); until then this site takes part in nothing",
    )  # fmt: skip
