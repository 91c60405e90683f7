"""The two keys of a ledger: one hides who was charged, the other signs every row.

Both are derived from one secret of 32 bytes in `ledger.key`, in the ledger's own folder, so that whoever
backs the folder up has both. Without the secret nobody can tell which patient a unit's hash belongs to; with
it, anybody who has a list of ids can. It has to stay at the site.
"""

from __future__ import annotations

import hmac
from collections.abc import Iterable
from pathlib import Path
from typing import Final, final

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from wardround.client.sealed_files import make_key, read_key
from wardround.core.errors import StorageError
from wardround.core.packed import Array
from wardround.privacy.secagg.hashing import derive
from wardround.privacy.secagg.secret import Secret

KEY_FILE: Final = "ledger.key"
HASH_BYTES: Final = 16
"""Of HMAC-SHA256, cut as RFC 2104, section 5 allows. Were two ids to meet, both would be charged."""
HASHES: Final = np.dtype("S16")
_SALT: Final = b"wardround ledger 1"


@final
class LedgerKeys:
    """The secret for unit hashes and heads, and the signing key."""

    __slots__ = ("_root", "_signing", "_units")

    def __init__(self, root: Secret) -> None:
        self._root = root
        self._units = derive(root, _SALT, "units")
        self._signing = Ed25519PrivateKey.from_private_bytes(derive(root, _SALT, "rows").reveal())

    @staticmethod
    def make(folder: Path) -> LedgerKeys:
        """Fresh keys, durable in a folder that has none.

        Raises:
            StorageError: They cannot be written, or the file is not as it should be.
        """
        make_key(folder / KEY_FILE)
        return LedgerKeys.read(folder)

    @staticmethod
    def read(folder: Path) -> LedgerKeys:
        """The keys of a ledger; never made anew, since what was hashed under the old ones would be lost.

        Raises:
            StorageError: There are none, or others could have read them.
        """
        path = folder / KEY_FILE
        remedy = f"put the {KEY_FILE} back that this ledger was made with, with mode 0600"
        if not path.exists():
            raise StorageError(f"there is no {path}", expected="the ledger's own keys", remedy=remedy)
        return LedgerKeys(read_key(path, remedy=remedy))

    @property
    def public(self) -> str:
        """What the rows' signatures are checked with, 32 bytes in hex."""
        return self._signing.public_key().public_bytes_raw().hex()

    @property
    def check(self) -> str:
        """A value that tells this secret from any other and says nothing else about it, 32 bytes in hex."""
        return hmac.digest(self._units.reveal(), b"check", "sha256").hex()

    def sign(self, statement: bytes) -> bytes:
        """Ed25519 signature (RFC 8032), 64 bytes."""
        return self._signing.sign(statement)

    def hash_ids(self, ids: Iterable[str]) -> Array:
        """HMAC-SHA256(secret, id), cut to 16 bytes each; in the order of the ids, (units,) `HASHES`."""
        return self._hash(b"id\0", (id.encode() for id in ids))

    def hash_contents(self, contents: Iterable[bytes]) -> Array:
        """The same of contents, which never meet an id."""
        return self._hash(b"content\0", contents)

    def head_key(self, consortium: str) -> Secret:
        """Under which heads are shown to one consortium."""
        return derive(self._root, _SALT, "heads", consortium)

    def _hash(self, kind: bytes, values: Iterable[bytes]) -> Array:
        key = self._units.reveal()
        hashed = b"".join(hmac.digest(key, kind + value, "sha256")[:HASH_BYTES] for value in values)
        return np.frombuffer(hashed, dtype=HASHES)

    def __repr__(self) -> str:
        return f"LedgerKeys(public={self.public[:12]}…)"
