"""The one file that a ledger, or another chain, grows in, and its mirror: what a call returned from stays.

A line is one write, then a sync. Where either fails the file is cut back to where it was, so that nothing of
the line is left and nothing was believed; should the cut fail as well, nothing more is written by this
process, and the next one finds a line that is whole (it counts: too much is charged, never too little) or
torn (it is refused). A kill can tear a line: nobody was told of it by then.
"""

from __future__ import annotations

import errno
import fcntl
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from wardround.client.ledger.chain import whole_lines
from wardround.core.errors import RolledBackError, StorageError
from wardround.runtime.files import private_folder, storing, sync_folder

FILE: Final = "ledger.jsonl"
MODE: Final = 0o600


class BusyError(StorageError):
    """Another process has the ledger open; it ends with what it writes."""


@dataclass
class RowFile:
    """An open, locked file of lines.

    Attributes:
        path: Of the file.
        descriptor: Of the open file.
        size: Bytes that are on the disk.
        process: Who opened it.
        broken: A write failed and could not be undone.
    """

    path: Path
    descriptor: int
    size: int
    process: int
    broken: bool = False

    @staticmethod
    def open(path: Path, *, make: bool = False) -> RowFile:
        """Open and lock; with `make`, an empty file where there is none.

        Raises:
            BusyError: Another process has it open.
            StorageError: It cannot be opened.
        """
        with storing(path):
            new = make and not path.exists()
            flags = os.O_RDWR | os.O_APPEND | os.O_NOFOLLOW | (os.O_CREAT if new else 0)
            descriptor = os.open(path, flags, MODE)
        try:
            with storing(path):
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except StorageError as error:
            os.close(descriptor)
            if isinstance(error.__cause__, BlockingIOError):
                raise BusyError(
                    f"another process has {path} open", expected="one process a ledger",
                    remedy="end the other one (`fuser` names it), or let it do the work",
                ) from None  # fmt: skip
            raise
        try:
            with storing(path):
                os.fsync(descriptor)  # a killed process may have left a line that is not on the disk yet
                if new:
                    sync_folder(path.parent)
                return RowFile(path, descriptor, os.fstat(descriptor).st_size, os.getpid())
        except BaseException:
            os.close(descriptor)
            raise

    def read(self, start: int = 0) -> bytes:
        """The bytes from `start` on.

        Raises:
            StorageError: They cannot be read.
        """
        with storing(self.path):
            parts, at = [], start
            while at < self.size:
                parts.append(os.pread(self.descriptor, self.size - at, at))
                at += len(parts[-1])
                if not parts[-1]:
                    raise OSError(errno.EIO, "the file became shorter")
            return b"".join(parts)

    def append(self, lines: bytes) -> None:
        """Write at the end; on the disk when this returns.

        Raises:
            StorageError: It could not be written, and nothing of it is there; or the file is no longer what
                this process opened.
        """
        self.check()
        with storing(self.path, len(lines)):
            try:
                _write(self.descriptor, lines)
                os.fsync(self.descriptor)
                self.size += len(lines)
            except BaseException:
                self.cut(self.size)
                raise

    def cut(self, size: int) -> None:
        """Cut the file back; where that fails, it counts as broken."""
        self.broken = True
        try:
            os.ftruncate(self.descriptor, size)
            os.fsync(self.descriptor)
        except OSError:
            return
        self.size, self.broken = size, False

    def check(self) -> None:
        """Refuse to write where something is not as it was.

        Raises:
            StorageError: An earlier write failed half-way, this is another process, or somebody else changed
                the file.
        """
        with storing(self.path):
            named, ours = self.path.lstat(), os.fstat(self.descriptor)
        same = (named.st_dev, named.st_ino, ours.st_size) == (ours.st_dev, ours.st_ino, self.size)
        for what, is_right in (
            ("could not be written, nor cut back, before", not self.broken),
            ("was opened by the process that this one was forked from", self.process == os.getpid()),
            ("is not the file that was opened, or somebody else wrote to it", same),
        ):
            if not is_right:
                raise StorageError(f"{self.path} {what}", remedy="end this process and open the file anew")

    def close(self) -> None:
        """Close and unlock."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1


def _write(descriptor: int, lines: bytes) -> None:
    if os.write(descriptor, lines) != len(lines):  # the disk is full, as a rule: the next write would say so
        raise OSError(errno.ENOSPC, "only a part was written")


def mirrored(path: Path, rows: bytes, *, make: bool = False) -> RowFile:
    """Open the mirror's file, which may be behind; a torn end goes.

    Args:
        path: Of the mirror's file.
        rows: Whole lines of the ledger.
        make: Where it is not there it is made. Else only that of a ledger that nobody has written to: one
            that was put back would look whole beside an empty mirror.

    Raises:
        RolledBackError: The mirror is ahead, or has other rows.
        StorageError: It is not there, cannot be opened, or another process has it open.
    """
    if not make and rows.count(b"\n") > 1 and not path.exists():
        raise StorageError(
            "the ledger's mirror is not there, so that nothing shows whether the ledger was put back",
            found=f"no {path}", expected="the mirror's rows",
            remedy="mount its disk; where it is lost or new, be sure that the ledger is its last copy, then "
            "make it: wardround ledger mirror LEDGER MIRROR",
        )  # fmt: skip
    private_folder(path.parent)
    file = RowFile.open(path, make=True)
    try:
        whole, torn = whole_lines(file.read())
        refuse_if_ahead(whole, rows, path.parent)
        if torn:
            file.cut(len(whole))
    except BaseException:
        file.close()
        raise
    return file


def refuse_if_ahead(mirror: bytes, rows: bytes, folder: Path) -> None:
    """Refuse rows that are not at or beyond those of a mirror.

    Raises:
        RolledBackError: They are not.
    """
    if rows.startswith(mirror):
        return
    here, there = (lines.count(b"\n") for lines in (rows, mirror))
    found = f"{here} rows in the ledger, {there} in {folder}"
    if mirror.startswith(rows):
        raise RolledBackError(
            "the ledger was put back to an older copy: its mirror has rows that it lacks", found=found,
            expected="a ledger at or beyond its mirror",
            remedy=f"wardround ledger replay LEDGER {folder}",
        )  # fmt: skip
    raise RolledBackError(
        "the mirror has other rows than the ledger", found=found,
        expected="the ledger's own rows",
        remedy="if it is another ledger's, name the right mirror; if the ledger's own rows are lost, move "
        "the mirror away and write the cap off (`wardround ledger write-off`)",
    )  # fmt: skip
