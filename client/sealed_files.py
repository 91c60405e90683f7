"""Files of a site that nobody reads without its storage key, and that are whole or refused.

A file is a line of format, a salt, its own key wrapped under the site's storage key, a line that says whose
and what it is, the sealed content, and a SHA-256 of all that. Every write takes a fresh 256-bit key, so each
seals once: ChaCha20-Poly1305 (RFC 8439) with a zero nonce, whose tag covers the line in the clear as well.
The digest tells an accident (a torn or damaged file) from a file that another storage key sealed.

What this cannot notice is a file that went backwards: an older whole one (a backup that was put back), or
none where there was one, is taken for the last. Whoever restores a site's folder has to begin a new run.
"""

from __future__ import annotations

import glob
import hashlib
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from pydantic import Field, ValidationError

from wardround.core.errors import StorageError
from wardround.privacy.secagg.hashing import DIGEST_BYTES, derive
from wardround.privacy.secagg.offer import Digest, SiteName, Wire
from wardround.privacy.secagg.secret import SECRET_BYTES, Secret
from wardround.runtime.files import PART, private_folder, storing, sync_folder, write_atomic
from wardround.runtime.passphrases import locked, opened

KEY_FILE: Final = "storage.key"
KEY_MODE: Final = 0o600
_FORMAT: Final = b"wardround sealed file "
_START: Final = _FORMAT + b"1\n"
_TAG_BYTES: Final = 16
_WRAPPED_BYTES: Final = SECRET_BYTES + _TAG_BYTES
_HEAD: Final = len(_START) + SECRET_BYTES + _WRAPPED_BYTES  # format, salt, wrapped key: then the label
_NONCE: Final = bytes(12)
LARGEST_KEY: Final = 2**10
"""Bytes of a key's file, locked or not."""
LARGEST: Final = 2**31 - 1 - _TAG_BYTES
"""Bytes that `cryptography` seals in one call."""


class Owner(Wire):
    """Whose files these are.

    Attributes:
        run_id: Of the run.
        plan: Digest of the plan that the site accepted.
        site: Its name.
    """

    run_id: str = Field(min_length=1, max_length=256)
    plan: Digest
    site: SiteName


class Label(Wire):
    """What a sealed file is, in the clear, and bound to its content.

    Attributes:
        owner: Whose.
        kind: Of the content.
        sum: Name of the sum that it is about, where it is about one.
        round: Where it belongs, of a contribution; with `stage` and `broadcast`.
    """

    owner: Owner
    kind: str
    sum: str = ""
    round: int = 0
    stage: int = 0
    broadcast: bytes = b""


@dataclass(frozen=True)
class SealedFile:
    """One file, and what its label has to say but for the place.

    Attributes:
        path: Of the file.
        label: Owner, kind and sum.
        key: The site's storage key.
        remedy: What to do where the file is not what the site wrote.
    """

    path: Path
    label: Label
    key: Secret
    remedy: str

    def read(self) -> tuple[Label, bytes] | None:
        """Label and content; None where there is no file.

        Raises:
            StorageError: The file cannot be read, is torn, damaged, of another format, run, plan, site, kind
                or sum, or sealed under another storage key.
        """
        data = self._bytes()
        if data is None:
            return None
        label, start = self._checked(data)
        salt = data[len(_START) :][:SECRET_BYTES]
        wrapped, sealed = data[len(_START) + SECRET_BYTES : _HEAD], data[start:-DIGEST_BYTES]
        bound = data[_HEAD : start - 1]
        try:
            own = ChaCha20Poly1305(_wrapping(self.key, salt).reveal()).decrypt(_NONCE, wrapped, bound)
            return label, ChaCha20Poly1305(own).decrypt(_NONCE, sealed, bound)
        except InvalidTag as error:
            raise StorageError(
                f"{self.path} does not open", found="a whole file that another storage key sealed",
                expected="one of this site's own", remedy=f"put the {KEY_FILE} back that it was written with",
            ) from error  # fmt: skip

    def label_found(self) -> Label | None:
        """The label of the file; None where there is none. No key is needed for it; raises as `read`."""
        data = self._bytes()
        return None if data is None else self._checked(data)[0]

    def write(self, content: bytes, *, erase: bool = False, **place: int | bytes) -> None:
        """Seal and write; durable when it returns.

        Args:
            content: All of it.
            erase: Overwrite the key of the file that is replaced, once the new one is there.
            place: Fields of the label: round, stage, broadcast.

        Raises:
            StorageError: It cannot be written, or it is too large; what was there stays. Or what was there
                could not be erased; the new file stands.
        """
        label = self.label.model_copy(update=place)
        bound = label.model_dump_json().encode()
        if len(content) > LARGEST:
            raise StorageError(
                f"too much for {self.path}", found=f"{len(content)} bytes", expected=f"at most {LARGEST}",
                remedy="train a smaller adapter, or shorten its encoding",
            )  # fmt: skip
        salt, own = Secret.fresh().reveal(), Secret.fresh()
        wrapped = ChaCha20Poly1305(_wrapping(self.key, salt).reveal()).encrypt(_NONCE, own.reveal(), bound)
        sealed = ChaCha20Poly1305(own.reveal()).encrypt(_NONCE, content, bound)
        data = b"".join((_START, salt, wrapped, bound, b"\n", sealed))
        private_folder(self.path.parent)
        with storing(self.path):
            _sweep(self.path)
        with _opened(self.path) as before:
            write_atomic(self.path, data + hashlib.sha256(data).digest(), private=True)
            if erase and before is not None:
                with storing(self.path):
                    _blank(before)  # the name means the new file by now

    def destroy(self) -> None:
        """Overwrite the file's key and remove the file, and what a kill left of it; twice does no harm.

        A disk that writes elsewhere than it is told to (flash, copy on write) may still hold the old key,
        wrapped: that is as safe as the storage key.

        Raises:
            StorageError: It cannot be removed.
        """
        with storing(self.path):
            _sweep(self.path)
        with _opened(self.path) as descriptor, storing(self.path):
            if descriptor is not None:
                _blank(descriptor)  # first, so that a crash before the next line has lost it as well
                self.path.unlink()
                sync_folder(self.path.parent)

    def _bytes(self) -> bytes | None:
        try:
            return self.path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StorageError(
                f"cannot read {self.path}", found=error.strerror, remedy=self.remedy
            ) from error

    def _checked(self, data: bytes) -> tuple[Label, int]:
        """The label, and where the content begins, of a file that is whole and this site's."""
        if data.startswith(_FORMAT) and not data.startswith(_START):
            found = "another version of the format, or damage to its first line"
            raise self._wrong("is not of the format that this version reads", found, "version 1")
        end = data.find(b"\n", _HEAD) if data.startswith(_START) else -1
        if end < 0 or hashlib.sha256(data[:-DIGEST_BYTES]).digest() != data[-DIGEST_BYTES:]:
            raise self._wrong("is damaged", "bytes that do not match their digest", "what the site wrote")
        try:
            label = Label.model_validate_json(data[_HEAD:end])
        except ValidationError as error:
            raise self._wrong(
                "has no label that can be read", "other fields", "those of version 1"
            ) from error
        for what, found, expected in (
            ("run", label.owner.run_id, self.label.owner.run_id),
            ("plan", label.owner.plan.hex()[:12], self.label.owner.plan.hex()[:12]),
            ("site", label.owner.site, self.label.owner.site),
            ("kind", label.kind, self.label.kind),
            ("sum", label.sum, self.label.sum),
        ):
            if found != expected:
                raise ForeignFileError(
                    f"{self.path} is of another {what}", found=found, expected=expected,
                    remedy="give each run, and each site, a folder of its own",
                )  # fmt: skip
        return label, end + 1

    def _wrong(self, what: str, found: str, expected: str) -> StorageError:
        return StorageError(f"{self.path} {what}", found=found, expected=expected, remedy=self.remedy)


class ForeignFileError(StorageError):
    """A whole file, of another run, plan, site or sum: not to be written over, nor destroyed."""


def storage_key(folder: Path) -> Secret:
    """The key under which a site's files in `folder` are sealed; made where there is none.

    It lies in a file beside them (`storage.key`, 32 bytes, mode 0600): that protects copies and backups of
    the files that leave the key out, and nothing on a machine that is read as a whole. A hospital should keep
    it in its keystore instead, and pass it from there.

    Raises:
        StorageError: The file cannot be made or read, or another user owns it, could have read it, or it does
            not hold a key. It is never replaced: what it sealed could not be read any more.
    """
    path = Path(folder) / KEY_FILE
    private_folder(path.parent)
    if not os.path.lexists(path):
        make_key(path)
    return read_key(
        path,
        remedy="put a copy back with the right owner and mode; where others may have read it, leave "
        "the run and begin with a new folder",
    )


def read_key(path: Path, *, remedy: str) -> Secret:
    """The key in a file that its owner alone can use.

    Args:
        path: Of the file.
        remedy: What to do where it is not as it should be.

    Raises:
        StorageError: It cannot be read, or another user owns it, could have read it, or it holds no key.
        ConfigError: It is locked with a passphrase that is not given.
    """
    with storing(path):
        _sweep(path)
        found = path.lstat()
    mode = stat.S_IMODE(found.st_mode)
    for what, is_right, value, expected in (
        ("is no plain file", stat.S_ISREG(found.st_mode), "a link, a folder or else", "a file"),
        ("is another user's", found.st_uid == os.geteuid(), f"user {found.st_uid}", f"user {os.geteuid()}"),
        ("can be used by others, or not by its owner", mode == KEY_MODE, f"mode {mode:04o}", "mode 0600"),
        ("holds no key", found.st_size <= LARGEST_KEY, f"{found.st_size} bytes", f"{SECRET_BYTES} bytes"),
    ):
        if not is_right:
            raise StorageError(f"{path} {what}", found=value, expected=expected, remedy=remedy)
    with storing(path):
        content = Secret(path.read_bytes())
    key = opened(path, content)
    if (size := len(key.reveal())) != SECRET_BYTES:
        raise StorageError(
            f"{path} holds no key", found=f"{size} bytes", expected=f"{SECRET_BYTES} bytes", remedy=remedy
        )
    return key


def make_key(path: Path) -> None:
    """A whole fresh key under its name, or none: written elsewhere, then linked, which replaces nothing.

    Raises:
        StorageError: It cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.urandom(6).hex()}{PART}")
    with storing(path, SECRET_BYTES):
        try:
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, KEY_MODE)
            with os.fdopen(descriptor, "wb") as file:
                file.write(locked(Secret.fresh().reveal()))
                file.flush()
                os.fsync(file.fileno())
            with suppress(FileExistsError):  # another process was faster: its key counts
                os.link(temporary, path)
            sync_folder(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


def _sweep(path: Path) -> None:
    """Remove what killed processes left of a file under temporary names, the keys in it first."""
    for stale in path.parent.glob(f".{glob.escape(path.name)}.*{PART}"):
        with _opened(stale) as descriptor:
            # Linked, it is the very file that counts, under a second name.
            if descriptor is not None and os.fstat(descriptor).st_nlink == 1:
                _blank(descriptor)
        stale.unlink(missing_ok=True)


def _wrapping(key: Secret, salt: bytes) -> Secret:
    return derive(key, salt, "sealed file of a site")


@contextmanager
def _opened(path: Path) -> Iterator[int | None]:
    """A descriptor to write to; None where there is no file."""
    descriptor = None
    with storing(path), suppress(FileNotFoundError):
        descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _blank(descriptor: int) -> None:
    """Overwrite salt and wrapped key: what they sealed is lost."""
    os.pwrite(descriptor, bytes(_HEAD - len(_START)), len(_START))
    os.fsync(descriptor)
