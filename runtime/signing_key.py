"""The consortium's key as it lies on the operator's computer: PEM, PKCS8, Ed25519, mode 0600."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from wardround.core.errors import StorageError

CONSORTIUM_KEY: Final = "consortium.key"
LARGEST_KEY: Final = 4096
"""Bytes of the file; an Ed25519 key takes 119."""


def read_signing_key(path: Path) -> Ed25519PrivateKey:
    """A signing key that lies in a file.

    Raises:
        StorageError: It is not there, others may read it, or it is no Ed25519 key; no part of it is shown.
    """
    remedy = "name the folder that `wardround consortium init` made on the operator's own computer"
    try:
        with path.open("rb") as file:
            mode = stat.S_IMODE(path.stat().st_mode)
            data = file.read(LARGEST_KEY + 1)
    except OSError as error:
        raise StorageError(f"cannot read the key {path}", found=error.strerror, remedy=remedy) from error
    if mode & 0o077:
        raise StorageError(
            f"others can read the key {path}", found=f"mode {mode:04o}", expected="mode 0600",
            remedy="make new keys where somebody else has had access; else chmod 600",
        )  # fmt: skip
    expected = "a PEM file (PKCS8) with an Ed25519 key and no passphrase"
    try:
        key = load_pem_private_key(data if len(data) <= LARGEST_KEY else b"", password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise StorageError(f"{path} holds no key", expected=expected, remedy=remedy) from error
    if not isinstance(key, Ed25519PrivateKey):
        raise StorageError(f"{path} holds another kind of key", expected=expected, remedy=remedy)
    return key
