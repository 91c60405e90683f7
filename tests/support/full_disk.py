"""A disk that is full: in this process anywhere, and a real one (tmpfs) where the machine mounts it."""

from __future__ import annotations

import builtins
import errno
import io
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

BLOCK = 64 * 1024


class _Full(io.FileIO):
    """Takes half of the first that it is given, as a system does, and then no more."""

    half = False

    def write(self, data: Any, /) -> int:
        if self.half or len(data) < 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self.name)
        self.half = True
        return super().write(bytes(data)[: len(data) // 2])


@dataclass
class FullDisk:
    """Whether writes under a folder fail; counts those that did.

    Attributes:
        folder: Where.
        full: Whether they fail now.
        of: Which files there, where not all.
        refused: The files whose writes failed.
    """

    folder: Path
    full: bool = True
    of: Callable[[Path], bool] = lambda _: True
    refused: list[Path] = field(default_factory=list)

    def refuses(self, file: Any) -> bool:
        if not self.full or isinstance(file, int):
            return False
        path = Path(os.fsdecode(file)).absolute()
        if not path.is_relative_to(self.folder.absolute()) or not self.of(path):
            return False
        self.refused.append(path)
        return True


@contextmanager
def full_disk(folder: Path, of: Callable[[Path], bool] = lambda _: True) -> Iterator[FullDisk]:
    """In the block, files under a folder take half of what Python writes into them, and then ENOSPC."""
    disk, real, write = FullDisk(folder, of=of), io.open, os.write
    patch = pytest.MonkeyPatch()

    def opened(file: Any, mode: str = "r", buffering: int = -1, *rest: Any, **named: Any) -> Any:
        if not set(mode) & set("wax+") or not disk.refuses(file):
            return real(file, mode, buffering, *rest, **named)
        raw = _Full(file, mode.replace("b", "").replace("t", ""), opener=named.get("opener"))
        if buffering == 0:
            return raw
        buffered = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
        return buffered if "b" in mode else io.TextIOWrapper(buffered, encoding="utf-8")

    def written(descriptor: int, data: Any) -> int:
        name = Path(f"/proc/self/fd/{descriptor}").readlink()
        return write(descriptor, data[: len(data) // 2] if disk.refuses(name) else data)

    patch.setattr(os, "write", written)
    patch.setattr(io, "open", opened)
    patch.setattr(builtins, "open", opened)
    try:
        yield disk
    finally:
        patch.undo()


@dataclass(frozen=True)
class SmallDisk:
    """A mounted file system of its own.

    Attributes:
        path: Where.
    """

    path: Path

    @property
    def _filler(self) -> Path:
        return self.path / "filler"

    def fill(self) -> None:
        """To the last byte."""
        with self._filler.open("ab", buffering=0) as file:
            size = BLOCK
            while size:
                try:
                    file.write(bytes(size))
                except OSError as error:
                    assert error.errno == errno.ENOSPC  # noqa: PT017 - any other is no full disk
                    size //= 2

    def free(self) -> None:
        """Give the space back."""
        self._filler.unlink()


@contextmanager
def small_disk(folder: Path, megabytes: int) -> Iterator[SmallDisk]:
    """A small disk in place of a folder, with what the folder held; skips where none can be mounted."""
    kept = folder.with_name(folder.name + ".before")
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("no right to mount a small disk on this machine")
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copytree(folder, kept, symlinks=True)
    mode = f"mode={folder.stat().st_mode & 0o777:o}"
    command = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m,{mode}", "tmpfs", str(folder)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("this machine mounts no small disk")
    try:
        shutil.copytree(kept, folder, symlinks=True, dirs_exist_ok=True)
        yield SmallDisk(folder)
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)
