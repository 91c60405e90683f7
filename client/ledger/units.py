"""Lists of units: who is in a source, by keyed hashes, each list in a file that its row has the digest of."""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final

import numpy as np

from wardround.client.ledger.keys import HASH_BYTES, HASHES, LedgerKeys
from wardround.core.errors import ConfigError, StorageError
from wardround.core.packed import Array
from wardround.runtime.files import storing, write_atomic

FOLDER: Final = "units"
_START: Final = b"wardround ledger units 1\n"
_SIZES: Final = struct.Struct("<QQ")
PAIRS: Final = np.dtype("S32")
"""A content's hash, then that of the id that had it."""


@dataclass(frozen=True)
class UnitList:
    """The units of a source.

    Attributes:
        ids: (units,) `HASHES`, sorted, each once.
        contents: (pairs,) `PAIRS`, sorted, each once; none where contents were not given.
    """

    ids: Array
    contents: Array

    @staticmethod
    def of(keys: LedgerKeys, ids: Sequence[str | int], contents: Sequence[bytes | None] | None) -> UnitList:
        """Hash what a source says of its units.

        Args:
            keys: Of the ledger.
            ids: Of the units; one may stand there several times, once a row.
            contents: Beside each id a digest of that unit's, or row's, content; equal ones mean the same
                patient under two ids. None, or None beside an id, where contents say nothing.

        Raises:
            ConfigError: No ids, an empty one, or not one content beside each id.
        """
        if not ids or any(unit == "" for unit in ids):
            raise ConfigError(
                "a source needs the id of every unit", found=f"{len(ids)} ids, or an empty one",
                remedy="name the column of the patient's id; rows without one cannot be charged",
            )  # fmt: skip
        if contents is not None and len(contents) != len(ids):
            raise ConfigError(
                "contents have to stand beside the ids", found=f"{len(contents)} contents",
                expected=f"{len(ids)}, as there are ids",
            )  # fmt: skip
        hashed = keys.hash_ids(map(str, ids))
        pairs = np.zeros(0, PAIRS)
        given = {} if contents is None else {at: one for at, one in enumerate(contents) if one is not None}
        if given:
            both = np.stack([keys.hash_contents(given.values()), hashed[list(given)]], axis=1)
            pairs = np.unique(np.ascontiguousarray(both).view(PAIRS).ravel())
        return UnitList(np.unique(hashed), pairs)

    @property
    def content_of_pairs(self) -> Array:
        """(pairs,) `HASHES`."""
        return halves(self.contents)[:, 0]

    @property
    def owner_of_pairs(self) -> Array:
        """(pairs,) `HASHES`: the id that had the content."""
        return halves(self.contents)[:, 1]

    @cached_property
    def encoded(self) -> bytes:
        """The file: numbers of ids and of pairs, then both."""
        sizes = _SIZES.pack(len(self.ids), len(self.contents))
        return b"".join((_START, sizes, self.ids.tobytes(), self.contents.tobytes()))

    @property
    def digest(self) -> str:
        """SHA-256 of the file, in hex. Without the ledger's secret it says nothing about who is in it."""
        return hashlib.sha256(self.encoded).hexdigest()


def halves(pairs: Array) -> Array:
    """(pairs,) `PAIRS` → (pairs, 2) `HASHES`."""
    return np.ascontiguousarray(pairs).view(HASHES).reshape(-1, 2)


def path_of(folder: Path, digest: str) -> Path:
    """Where a list's file is, in a ledger's folder or in its mirror."""
    return folder / FOLDER / f"{digest}.units"


def write_list(folder: Path, units: UnitList) -> None:
    """Write a list's file; durable when this returns. One that is there is the same.

    Raises:
        StorageError: It cannot be written.
    """
    path = path_of(folder, units.digest)
    if not path.exists():
        write_atomic(path, units.encoded, private=True)


def read_list(folder: Path, digest: str) -> UnitList:
    """Read a list's file.

    Raises:
        StorageError: It is not there, or not what the ledger's row says.
    """
    path = path_of(folder, digest)
    remedy = "put it back from the mirror or from a backup of the ledger's folder"
    if not path.exists():
        raise StorageError(f"the list of units {path} is missing", remedy=remedy)
    with storing(path):
        data = path.read_bytes()
    if hashlib.sha256(data).hexdigest() != digest:
        raise StorageError(
            f"the list of units {path} was altered", found="another digest", expected=digest[:12],
            remedy=remedy,
        )  # fmt: skip
    ids, pairs = _SIZES.unpack_from(data, len(_START))
    start = len(_START) + _SIZES.size
    return UnitList(
        np.frombuffer(data, HASHES, count=ids, offset=start),
        np.frombuffer(data, PAIRS, count=pairs, offset=start + HASH_BYTES * ids),
    )


def copy_lists(source: Path, target: Path, digests: Iterable[str]) -> None:
    """Copy lists that are missing in `target`, from one ledger's folder or mirror to another.

    Raises:
        StorageError: One cannot be read or written, or was altered.
    """
    for digest in digests:
        if not os.path.lexists(path_of(target, digest)):
            write_list(target, read_list(source, digest))
