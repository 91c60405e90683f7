"""Durable files: what is there under its name is whole, whatever happened while it was written.

A file is written under a temporary name in its own folder, synced, renamed, and the folder is synced. A
full disk, a missing right or a kill leaves the old file as it was. Parent folders are made as needed.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import glob
import json
import math
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from wardround.core.errors import StorageError

PART = ".part"
"""Ending of a temporary name, which a killed process may leave."""
_ASIDE = ".old"
"""Stands before PART in the temporary name of a folder that is being replaced."""

_REMEDIES = {
    errno.ENOSPC: "free space on this disk, or choose another output folder",
    errno.EDQUOT: "free space within your quota, or choose another output folder",
    errno.EFBIG: "raise the limit on file sizes, or choose another output folder",
    errno.EACCES: "give this user the right to write there, or choose another output folder",
    errno.EPERM: "give this user the right to write there, or choose another output folder",
    errno.EROFS: "this disk is mounted read-only: choose another output folder",
    errno.EIO: "the disk reports a fault: look at the system's log",
}
"""Reasons that mean the disk, and what to do."""
_NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT})


def write_atomic(path: Path, content: bytes, *, private: bool = False) -> None:
    """Write a whole file, or leave what was there.

    Args:
        path: The file.
        content: All of it.
        private: Only its owner reads it, from its first byte on: a mode that is set afterwards comes late.

    Raises:
        StorageError: It could not be written; names the path, the bytes needed and the remedy.
    """
    path = Path(path)
    with storing(path, len(content)):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = _temporary(path)
        try:
            if private:
                temporary.touch(mode=0o600, exist_ok=False)
            with temporary.open("r+b" if private else "xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            _remove(temporary)
            raise
        sync_folder(path.parent)


def private_folder(path: Path) -> None:
    """Make a folder that only its owner enters, durable when it returns; one that is there stays as it is.

    A file is only as durable as the entries of the folders above it.

    Raises:
        StorageError: It cannot be made.
    """
    path = Path(path)
    with storing(path):
        for folder in (*reversed(path.parents), path):
            if not folder.is_dir():
                folder.mkdir(mode=0o700, exist_ok=True)
                sync_folder(folder.parent)


def write_json(path: Path, value: Any) -> None:
    """Write indented JSON as `write_atomic` does; see `json_text` for what becomes of special values."""
    write_atomic(path, (json_text(value, indent=2) + "\n").encode("utf-8", "backslashreplace"))


def append_line(path: Path, record: Mapping[str, Any], *, durable: bool = True) -> None:
    """Append one JSON line.

    Args:
        path: The file; made where it is not there. A torn last line of a killed process is closed first,
            so that it cannot swallow this one.
        record: What the line holds.
        durable: Sync before returning. Without it, the line survives the process but not the machine.

    Raises:
        StorageError: The line could not be written; the file is cut back to what it was.
    """
    path = Path(path)
    line = (json_text(record) + "\n").encode("utf-8", "backslashreplace")
    with storing(path, len(line)):
        path.parent.mkdir(parents=True, exist_ok=True)
        new = not path.exists()
        with path.open("a+b", buffering=0) as file:
            size = file.seek(0, os.SEEK_END)
            if size:
                file.seek(size - 1)
                line = line if file.read(1) == b"\n" else b"\n" + line
            try:
                rest = memoryview(line)
                while rest:
                    rest = rest[file.write(rest) :]
                if durable:
                    os.fsync(file.fileno())
            except OSError:
                with contextlib.suppress(OSError):
                    file.truncate(size)
                raise
        if new and durable:
            sync_folder(path.parent)


@contextlib.contextmanager
def atomic_folder(path: Path, *, replace: bool = False) -> Iterator[Path]:
    """Build a folder under a temporary name beside `path`; it gets its name when the block ends well.

    What a killed process left of an earlier attempt at the same folder is removed first; where the kill came
    between the two renames of a replacement, the old folder gets its name back. A temporary folder is
    locked while somebody works in it, so that nobody else takes it for left over.

    Args:
        path: The folder's final name.
        replace: Take the place of a folder that is there; it stays until the new one is complete.

    Yields:
        The temporary folder to write into.

    Raises:
        StorageError: `path` is there and holds something, or the disk failed. Whatever else the block
            raises goes on as it is. In each case nothing is left behind.
    """
    path = Path(path)
    _sweep(path)
    occupied = path.is_symlink() or (path.exists() and not (path.is_dir() and not any(path.iterdir())))
    if occupied and not (replace and path.is_dir() and not path.is_symlink()):
        raise StorageError(
            f"{path} is there already", expected="no such folder, or an empty one",
            remedy="choose another name, or move it away",
        )  # fmt: skip
    with storing(path):
        temporary, lock = _claimed(path)
    try:
        with storing(path, only_disk=True):
            yield temporary
        with storing(path):
            _sync_tree(temporary)
            _put_in_place(temporary, path)
            sync_folder(path.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    finally:
        os.close(lock)


def json_text(value: Any, *, indent: int | None = None) -> str:
    """Strict JSON: numbers that are not finite become null, NumPy values and paths plain ones."""
    return json.dumps(_plain(value), indent=indent, ensure_ascii=False, allow_nan=False)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist())
    if isinstance(value, list | tuple | set | frozenset):
        items = sorted(value) if isinstance(value, set | frozenset) else value
        return [_plain(item) for item in items]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value


@contextlib.contextmanager
def storing(path: Path, needed: int | None = None, *, only_disk: bool = False) -> Iterator[None]:
    """Turn an OSError into a StorageError; with `only_disk`, just one that means the disk."""
    try:
        yield
    except StorageError:
        raise
    except Exception as error:
        number = _errno_of(error)
        if number is None or (only_disk and number not in _REMEDIES):
            raise
        raise StorageError(
            f"cannot write {path}",
            found=f"{os.strerror(number)}{_free(path)}",
            expected=None if needed is None else f"room for {needed} bytes",
            remedy=_REMEDIES.get(number, "check the path, or choose another output folder"),
        ) from error


def is_full(error: StorageError) -> bool:
    """Whether there was no space for what was to be written: once there is, the same will work."""
    cause = error.__cause__
    return isinstance(cause, Exception) and _errno_of(cause) in _NO_SPACE


def _errno_of(error: Exception) -> int | None:
    if isinstance(error, OSError):
        return error.errno or errno.EIO
    # safetensors wraps the disk's fault into its own exception, with the number only in the words
    if type(error).__name__ == "SafetensorError":
        return next((number for number in _REMEDIES if f"(os error {number})" in str(error)), None)
    return None


def _free(path: Path) -> str:
    for folder in path.parents:
        with contextlib.suppress(OSError):
            return f"; {shutil.disk_usage(folder).free} bytes free"
    return ""


def _temporary(path: Path, mark: str = "") -> Path:
    return path.with_name(f".{path.name[:100]}.{secrets.token_hex(6)}{mark}{PART}")


def _claimed(path: Path) -> tuple[Path, int]:
    """A new temporary folder and the descriptor that holds its lock; the lock goes with the process."""
    while True:
        temporary = _temporary(path)
        temporary.mkdir(parents=True)
        try:
            lock = os.open(temporary, os.O_RDONLY)
        except FileNotFoundError:  # swept in the moment before it was locked
            continue
        with contextlib.suppress(OSError):  # a file system without locks: then nothing is swept either
            fcntl.flock(lock, fcntl.LOCK_EX)
        if temporary.exists():
            return temporary, lock
        os.close(lock)


def _sweep(path: Path) -> None:
    """Remove what killed processes left of a folder, and bring back what they had moved aside."""
    stem = f".{glob.escape(path.name[:100])}.{'?' * 12}"
    for stale in path.parent.glob(f"{stem}{_ASIDE}{PART}"):
        with _if_nobody_works_in(stale) as free, contextlib.suppress(OSError):
            if free and not path.exists():
                stale.replace(path)
            elif free:
                shutil.rmtree(stale, ignore_errors=True)
    for stale in path.parent.glob(f"{stem}{PART}"):
        with _if_nobody_works_in(stale) as free:
            if free and stale.is_dir():
                shutil.rmtree(stale, ignore_errors=True)


@contextlib.contextmanager
def _if_nobody_works_in(folder: Path) -> Iterator[bool]:
    """Lock a folder as its builder does; False where that cannot be had."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_NONBLOCK)
    except OSError:
        yield False
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        free = False
    else:
        free = True
    try:
        yield free
    finally:
        os.close(descriptor)


def _put_in_place(temporary: Path, path: Path) -> None:
    """Rename; a folder that is in the way is moved aside first and comes back if the rename fails."""
    if not (path.exists() and any(path.iterdir())):
        temporary.replace(path)
        return
    aside = _temporary(path, _ASIDE)
    with _if_nobody_works_in(path):  # locked, so that nobody takes it for left over and brings it back
        path.replace(aside)
        try:
            temporary.replace(path)
        except BaseException:
            aside.replace(path)
            raise
    shutil.rmtree(aside, ignore_errors=True)


def _sync_tree(folder: Path) -> None:
    for root, _, names in os.walk(folder):
        for name in names:
            with (Path(root) / name).open("rb") as file:
                os.fsync(file.fileno())
        sync_folder(Path(root))


def erase_file(file: Path) -> None:
    """Overwrite a file and remove it; one that is gone already does no harm. Raises OSError.

    A disk that writes elsewhere than it is told to (flash, copy on write) may still hold the old bytes.
    """
    with contextlib.suppress(FileNotFoundError):
        if not file.is_symlink():  # what a link leads to is not ours
            with file.open("r+b", buffering=0) as handle:
                left = os.fstat(handle.fileno()).st_size
                while left > 0:
                    left -= handle.write(bytes(min(left, 1 << 20)))
                os.fsync(handle.fileno())
        file.unlink()


def sync_folder(folder: Path) -> None:
    """Make the entries of a folder durable; raises OSError."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some network file systems cannot sync a folder
            raise
    finally:
        os.close(descriptor)


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)
