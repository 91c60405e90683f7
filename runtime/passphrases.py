"""Passphrases of keys: where they come from, and files of keys that are locked with one.

A locked file is a line of format, a salt, a nonce, and its content under ChaCha20-Poly1305 (RFC 8439), whose
key scrypt (RFC 7914) makes of passphrase and salt. The process that has opened one locks what it writes with
the same passphrase; its children are not told it.
"""

from __future__ import annotations

import getpass
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from wardround.core.errors import ConfigError
from wardround.privacy.secagg.secret import SECRET_BYTES, Secret

VARIABLE: Final = "WARDROUND_PASSPHRASE"
DIRECTORY: Final = "CREDENTIALS_DIRECTORY"
"""Of the credentials that systemd gives a service."""
CREDENTIAL: Final = "wardround-passphrase"
SHORTEST: Final = 12
"""Characters: whoever has a copy of the file may try as many as there is time for."""
LONGEST: Final = 4096
_START: Final = b"wardround locked key 1\n"
_SALT_BYTES: Final = 16
_NONCE_BYTES: Final = 12
_HEAD: Final = len(_START) + _SALT_BYTES + _NONCE_BYTES
_N, _R, _P = 2**16, 8, 1
"""Of scrypt: 64 MiB and a fifth of a second for each that is tried."""


def given_passphrase(whose: str) -> Secret | None:
    """From the environment, from systemd, or typed at a terminal; None where there is none of these.

    Args:
        whose: Completes "Passphrase of ", where it is asked for.

    Raises:
        ConfigError: The credential is there and cannot be read.
    """
    given = os.environ.get(VARIABLE)
    if given is None and (credential := _credential()) is not None:
        given = credential
    if given is None and sys.stdin is not None and sys.stdin.isatty():
        given = getpass.getpass(f"Passphrase of {whose}: ")
    return Secret(given.encode()) if given else None


def new_passphrase(whose: str, file: Path | None = None) -> Secret:
    """A passphrase for keys: from a file, or typed twice.

    Args:
        whose: Completes "New passphrase of ".
        file: Its first line is the passphrase; None: a terminal is asked at.

    Raises:
        ConfigError: It is short, the two differ, the file cannot be read, or there is no terminal.
    """
    if file is not None:
        given = _first_line(file)
    elif sys.stdin is None or not sys.stdin.isatty():
        raise ConfigError("no terminal to ask for a passphrase at", remedy="give it as --help says")
    else:
        given = getpass.getpass(f"New passphrase of {whose}: ")
        if getpass.getpass("Once more: ") != given:
            raise ConfigError("the two passphrases differ", remedy="begin again; nothing was changed")
    return long_enough(given)


def long_enough(given: str) -> Secret:
    """A new passphrase; raises ConfigError where it is too short."""
    if len(given) < SHORTEST:
        raise ConfigError("the passphrase is too short", expected=f"{SHORTEST} characters or more")
    return Secret(given.encode())


def without_passphrase(environment: Mapping[str, str]) -> dict[str, str]:
    """What a child process may know of an environment."""
    return {name: value for name, value in environment.items() if name not in {VARIABLE, DIRECTORY}}


@dataclass
class Lock:
    """The passphrase with which this process opens and locks keys; None: they lie open."""

    passphrase: Secret | None = None
    _keys: dict[bytes, Secret] = field(default_factory=dict, repr=False)
    """Salt → key: files that were locked together share a salt, and cost one derivation."""
    _salt: bytes = b""

    def locked(self, content: bytes) -> bytes:
        """What to write of a key: locked where there is a passphrase."""
        if self.passphrase is None:
            return content
        self._salt = self._salt or os.urandom(_SALT_BYTES)
        nonce = os.urandom(_NONCE_BYTES)
        sealed = ChaCha20Poly1305(self._key(self._salt).reveal()).encrypt(nonce, content, _START)
        return _START + self._salt + nonce + sealed

    def opens(self, content: bytes) -> Secret | None:
        """What a locked file holds; None where the passphrase is another, or none."""
        if self.passphrase is None:
            return None
        salt, nonce = content[len(_START) :][:_SALT_BYTES], content[_HEAD - _NONCE_BYTES : _HEAD]
        try:
            return Secret(ChaCha20Poly1305(self._key(salt).reveal()).decrypt(nonce, content[_HEAD:], _START))
        except (InvalidTag, ValueError):  # a file that was cut has no whole nonce
            return None

    def _key(self, salt: bytes) -> Secret:
        assert self.passphrase is not None  # noqa: S101 - both callers looked
        if salt not in self._keys:
            made = Scrypt(salt=salt, length=SECRET_BYTES, n=_N, r=_R, p=_P).derive(self.passphrase.reveal())
            self._keys[salt] = Secret(made)
        return self._keys[salt]


_LOCKS: Final[list[Lock]] = [Lock()]
"""Of this process: one, until somebody asks for another."""


def use_lock(lock: Lock) -> None:
    """Let this process open and lock keys with it from here on."""
    _LOCKS[0] = lock


def locked(content: bytes) -> bytes:
    """What to write of a key, as the lock of this process has it."""
    return _LOCKS[0].locked(content)


def is_locked(content: bytes) -> bool:
    """Whether a file of a key needs a passphrase."""
    return content.startswith(_START)


def opened(path: Path, content: Secret) -> Secret:
    """A key as it was before it was locked; asks once for the passphrase where this process has none.

    Args:
        path: Of the file, for what is said of it.
        content: Of the file, which may lie open.

    Raises:
        ConfigError: There is no passphrase, or it is another, or the file is damaged.
    """
    data = content.reveal()
    if not is_locked(data):
        return content
    if _LOCKS[0].passphrase is None:
        passphrase = given_passphrase("this site's keys")
        if passphrase is None:
            raise ConfigError(
                f"{path} is locked with a passphrase", found="none",
                remedy=f"set {VARIABLE}, give the service the credential {CREDENTIAL}, or use a terminal",
            )  # fmt: skip
        use_lock(Lock(passphrase))
    found = _LOCKS[0].opens(data)
    if found is None:
        use_lock(Lock())  # whoever asks again may type another
        raise ConfigError(
            f"{path} does not open", found="another passphrase, or a damaged file",
            remedy="give the passphrase of these keys; put the last copy of a damaged file back",
        )  # fmt: skip
    return found


def _credential() -> str | None:
    folder = os.environ.get(DIRECTORY)
    if folder is None or not (path := Path(folder) / CREDENTIAL).exists():
        return None
    return _first_line(path)


def _first_line(path: Path) -> str:
    try:
        with path.open(encoding="utf-8") as file:
            return file.read(LONGEST).split("\n", 1)[0]
    except (OSError, UnicodeDecodeError) as error:
        found = getattr(error, "strerror", None) or "no UTF-8"
        raise ConfigError(f"the passphrase in {path} cannot be read", found=found) from error
