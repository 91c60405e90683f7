"""Small files that a command trusts: values in JSON, and private keys that nobody else may read.

A size is judged before a byte is read into memory. A private file has to be a plain one, of this user, and
closed to everybody else: a key that others could have read is not used.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Final, TypeVar

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import (
    SECP256R1,
    SECP384R1,
    EllipticCurvePrivateKey,
    EllipticCurvePublicKey,
)
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_ssh_private_key,
)
from pydantic import BaseModel, ValidationError

from wardround.core.errors import ConfigError, StorageError
from wardround.privacy.secagg.secret import Secret
from wardround.runtime.passphrases import VARIABLE, opened
from wardround.runtime.signed import malformed

LARGEST_VALUE: Final = 2**16
LARGEST_KEY: Final = 2**13
_OTHERS: Final = 0o077

M = TypeVar("M", bound=BaseModel)


def read_bounded(path: Path, largest: int) -> bytes:
    """All bytes of a file that has at most so many.

    Raises:
        StorageError: It is not there, no file, cannot be read, or is larger.
    """
    try:
        with Path(path).open("rb") as file:
            data = file.read(largest + 1)
    except OSError as error:
        raise StorageError(
            f"cannot read {path}", found=error.strerror, remedy="check the path, and who may read it"
        ) from error
    if len(data) > largest:
        raise StorageError(
            f"{path} is too large", found=f"more than {largest} bytes", expected=f"at most {largest}",
            remedy="check that this is the file you mean",
        )  # fmt: skip
    return data


def read_value(path: Path, model: type[M], *, remedy: str, largest: int = LARGEST_VALUE) -> M:
    """A value of this type from a JSON file, read strictly.

    Raises:
        StorageError: The file cannot be read, or holds something else.
    """
    try:
        return model.model_validate_json(read_bounded(path, largest), strict=True)
    except ValidationError as error:
        found = malformed(str(path), error).found
        raise StorageError(f"{path} does not hold what it should", found=found, remedy=remedy) from error


def value_bytes(value: BaseModel) -> bytes:
    """A value as the JSON file that `read_value` reads."""
    return (value.model_dump_json(indent=2) + "\n").encode()


def read_private(path: Path, *, largest: int = LARGEST_KEY) -> Secret:
    """The content of a file that its owner alone can read; opened, where it is locked with a passphrase.

    Raises:
        StorageError: It is not there, no plain file, another user's, open to others, or too large.
        ConfigError: As `passphrases.py:opened`.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise StorageError(
            f"cannot read {path}", found=error.strerror, expected="a plain file of this user",
            remedy="put a copy back, with mode 0600",
        ) from error  # fmt: skip
    try:
        state = os.fstat(descriptor)
        mode = stat.S_IMODE(state.st_mode)
        for what, is_right, found, expected in (
            ("is no plain file", stat.S_ISREG(state.st_mode), "a folder or else", "a file"),
            ("is another user's", state.st_uid == os.geteuid(), f"user {state.st_uid}", "this user"),
            ("can be used by others", not mode & _OTHERS, f"mode {mode:04o}", "mode 0600"),
            ("is too large", state.st_size <= largest, f"{state.st_size} bytes", f"at most {largest}"),
        ):
            if not is_right:
                raise StorageError(
                    f"{path} {what}", found=found, expected=expected,
                    remedy="where others may have read it, rotate the key; else set mode 0600",
                )  # fmt: skip
        with os.fdopen(os.dup(descriptor), "rb") as file:
            content = Secret(file.read(largest + 1))
    finally:
        os.close(descriptor)
    return opened(path, content)


def exchange_pem(key: X25519PrivateKey) -> bytes:
    """An X25519 private key as PEM (PKCS 8), not encrypted."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def identity_pem(key: Ed25519PrivateKey, passphrase: Secret | None = None) -> bytes:
    """An Ed25519 private key as PEM (PKCS 8), encrypted where there is a passphrase."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, _encryption(passphrase))


def curve_pem(key: EllipticCurvePrivateKey, passphrase: Secret | None = None) -> bytes:
    """An elliptic curve's private key as PEM (PKCS 8), encrypted where there is a passphrase."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, _encryption(passphrase))


def transport_file(key: EllipticCurvePrivateKey) -> bytes:
    """A transport key in OpenSSH's own format, not encrypted."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())


def transport_point(key: EllipticCurvePublicKey) -> str:
    """A P-384 public key as rosters write it: a compressed point in hexadecimal."""
    return key.public_bytes(Encoding.X962, PublicFormat.CompressedPoint).hex()


def require_folder(path: Path, about: str, what: str, remedy: str) -> None:
    """Refuse a folder that does not describe itself, or that others may enter.

    Args:
        path: Of the folder.
        about: Name of the file in it that describes it.
        what: What it should be, such as "no site's folder".
        remedy: What to do where it is not.

    Raises:
        StorageError: It is not what it should be, or is open to others.
    """
    if not (path / about).is_file():
        raise StorageError(f"{path} is {what}", found=f"no {about} in it", remedy=remedy)
    mode = path.stat().st_mode & 0o777
    if mode & 0o077:
        raise StorageError(
            f"{path} is open to others", found=f"mode {mode:04o}", expected="mode 0700",
            remedy=f"chmod 700 {path}",
        )  # fmt: skip


def read_identity(path: Path, passphrase: Secret | None = None) -> Ed25519PrivateKey:
    """An Ed25519 private key from its file.

    Raises:
        StorageError: The file is not there, is open to others, or holds something else.
        ConfigError: It is encrypted and the passphrase is missing or wrong.
    """
    key = _read_pem(path, passphrase)
    if not isinstance(key, Ed25519PrivateKey):
        raise _no_key(path, "an Ed25519 key")
    return key


def read_curve_key(path: Path, passphrase: Secret | None = None) -> EllipticCurvePrivateKey:
    """A P-256 private key from its file; raises as `read_identity`."""
    key = _read_pem(path, passphrase)
    if not (isinstance(key, EllipticCurvePrivateKey) and isinstance(key.curve, SECP256R1)):
        raise _no_key(path, "a P-256 key")
    return key


def read_exchange(path: Path) -> X25519PrivateKey:
    """An X25519 private key from its file; raises as `read_identity`."""
    key = _read_pem(path, None)
    if not isinstance(key, X25519PrivateKey):
        raise _no_key(path, "an X25519 key")
    return key


def read_transport(path: Path) -> EllipticCurvePrivateKey:
    """A transport key (P-384, OpenSSH) from its file; raises StorageError as `read_identity`."""
    secret = read_private(path)
    try:
        key = load_ssh_private_key(secret.reveal(), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm, NotImplementedError):  # of a compressed point
        raise _no_key(path, "a P-384 key in OpenSSH's format") from None
    if not (isinstance(key, EllipticCurvePrivateKey) and isinstance(key.curve, SECP384R1)):
        raise _no_key(path, "a P-384 key in OpenSSH's format")
    return key


def is_encrypted(path: Path) -> bool:
    """Whether a PEM file asks for a passphrase; raises StorageError as `read_private`."""
    return b"BEGIN ENCRYPTED PRIVATE KEY" in read_private(path).reveal()


def _read_pem(path: Path, passphrase: Secret | None) -> object:
    secret = read_private(path)
    if b"BEGIN ENCRYPTED PRIVATE KEY" not in secret.reveal():
        passphrase = None
    elif passphrase is None:
        raise ConfigError(f"{path} is encrypted", remedy=f"set {VARIABLE}, or type the passphrase")
    try:
        return load_pem_private_key(secret.reveal(), None if passphrase is None else passphrase.reveal())
    except (ValueError, TypeError, UnsupportedAlgorithm):
        if passphrase is None:
            raise _no_key(path, "a private key in PEM") from None
        raise ConfigError(
            f"{path} does not open", found="another passphrase, or a damaged file",
            remedy="type the passphrase that the consortium was made with",
        ) from None  # fmt: skip


def _encryption(passphrase: Secret | None) -> KeySerializationEncryption:
    return NoEncryption() if passphrase is None else BestAvailableEncryption(passphrase.reveal())


def _no_key(path: Path, expected: str) -> StorageError:
    return StorageError(
        f"{path} does not hold its key", found="something else", expected=expected,
        remedy="put a copy back, or rotate the key",
    )  # fmt: skip
