"""A ledger's folder, open for writing: keys, file, mirror, and the state that they hold.

    ledger.key      the secret of which both keys are made
    ledger.jsonl    the rows
    units/          lists of units, one file each
    seen.json       what peers have seen and the ledger lacks, where that ever was so (`seen.py`)

All of it is backed up together. Rows and lists, not the key, are in the mirror.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

from wardround.client.ledger.book import Book
from wardround.client.ledger.chain import TORN, Chain, chained, whole_lines
from wardround.client.ledger.heads import Head, head_of, is_covered, require
from wardround.client.ledger.keys import KEY_FILE, LedgerKeys
from wardround.client.ledger.policy import BudgetPolicy
from wardround.client.ledger.row_file import FILE, RowFile, mirrored
from wardround.client.ledger.rows import Opened, Row, canonical, checked
from wardround.client.ledger.seen import note_heads, read_seen
from wardround.client.ledger.units import FOLDER, UnitList, copy_lists, read_list, write_list
from wardround.core.errors import RolledBackError, StorageError
from wardround.runtime.files import atomic_folder, private_folder, storing, write_atomic

PRIVATE: Final = 0o700
R = TypeVar("R", bound=Row)


@dataclass
class Store:
    """An open ledger, without its rules.

    Attributes:
        folder: Of the ledger.
        keys: Its keys.
        file: Its rows' file.
        chain: Its lines.
        book: What they say.
        torn: What stands after the last whole line; only whoever repairs it gets to see that.
        mirror: The mirror's file, where there is one.
        now: Seconds since 1970.
        stopped: Why nothing may be written any more.
    """

    folder: Path
    keys: LedgerKeys
    file: RowFile
    chain: Chain
    book: Book
    torn: bytes
    mirror: RowFile | None = None
    now: Callable[[], float] = time.time
    stopped: StorageError | None = None

    @staticmethod
    def make(
        folder: Path,
        policy: BudgetPolicy,
        *,
        units: int,
        order: float | None,
        now: Callable[[], float],
        begin: Callable[[Path], None],
    ) -> None:
        """A new ledger in a folder of its own, whole or not there; `begin` may write to it before it is.

        Raises:
            StorageError: The folder holds something, or it cannot be written.
        """
        private_folder(folder.parent)
        with atomic_folder(folder) as made:
            made.chmod(PRIVATE)
            keys = LedgerKeys.make(made)
            (made / FOLDER).mkdir(mode=PRIVATE)
            row = Opened(
                row=0, at=int(now()), key=keys.public, check=keys.check, policy=policy, units=units,
                order=order,
            )  # fmt: skip
            line = Chain().line(canonical(row), keys.sign)
            write_atomic(made / FILE, line, private=True)
            begin(made)

    @staticmethod
    def open(
        folder: Path, mirror: Path | None = None, *, repair: bool = False, make_mirror: bool = False
    ) -> Store:
        """Open, lock and check a ledger.

        Args:
            folder: Of the ledger.
            mirror: The second place that every row is written to.
            repair: For whoever mends it: a torn line is no obstacle, and no mirror is looked at.
            make_mirror: The mirror is new, whatever the ledger has.

        Raises:
            RolledBackError: The mirror is ahead, or peers have seen rows that are missing.
            StorageError: There is none, or no mirror; it is torn, altered, another key's, or open elsewhere.
        """
        path = folder / FILE
        if not path.exists():
            raise StorageError(
                f"there is no ledger in {folder}", expected=FILE,
                remedy="put it back from its backup; where the site never had one, make it",
            )  # fmt: skip
        with ExitStack() as undo:
            file = RowFile.open(path)
            undo.callback(file.close)
            keys = LedgerKeys.read(folder)
            whole, torn = whole_lines(file.read())
            if torn and not repair:
                raise StorageError(f"{path} ends in a torn line", found=f"{len(torn)} bytes", remedy=TORN)
            chain, book = read_rows(whole, folder)
            check_keys(keys, book.opened)
            chain.check_last(book.opened.key)
            store = Store(folder, keys, file, chain, book, torn)
            if not repair:
                for head in read_seen(folder).known:
                    require(head, chain, book)
            if mirror is not None and not repair:
                store.mirror = mirrored(mirror / FILE, whole, make=make_mirror)
                undo.callback(store.mirror.close)
                copy_lists(folder, mirror, (source.digest for source in book.sources))
                store.check()
            undo.pop_all()
        return store

    @property
    def head(self) -> Head:
        """How far it has come."""
        return head_of(self.chain, len(self.book.write_offs))

    def lists(self, digest: str) -> UnitList:
        """A list of units."""
        return read_list(self.folder, digest)

    def add_list(self, units: UnitList) -> None:
        """Keep a list, here and in the mirror, before the row that names it."""
        write_list(self.folder, units)
        if self.mirror is not None:
            write_list(self.mirror.path.parent, units)

    def append(self, kind: type[R], **fields: Any) -> R:
        """Write a row; on the disk, and in the mirror, when this returns.

        Raises:
            ConfigError: A field is none.
            StorageError: It is not in both. Where it is in the file and not in the mirror it counts all the
                same, and no call succeeds before the mirror has it.
        """
        self.check()
        row = checked(kind, row=len(self.chain), at=int(self.now()), **fields)
        line = self.chain.line(canonical(row), self.keys.sign)
        self.take(line)
        self.check()
        return row

    def take(self, line: bytes) -> None:
        """Write a line that follows, and believe it."""
        # Whoever is interrupted between file and memory must not go on with a chain that lacks the row.
        before, self.stopped = self.stopped, StorageError(
            "the ledger was interrupted while it wrote", remedy="open it anew"
        )  # fmt: skip
        size = self.file.size
        try:
            self.file.append(line)
        except BaseException:
            if self.file.size == size:
                self.stopped = before
            raise
        self.book.take([self.chain.take(line[:-1])], self.lists)
        self.stopped = before

    def check(self) -> None:
        """Refuse to go on where the ledger must not be written, or its mirror is behind and stays so.

        Raises:
            StorageError: Says why.
        """
        if self.stopped is not None:
            raise self.stopped
        self.file.check()
        if self.mirror is not None and self.mirror.size < self.file.size:
            self.mirror.append(self.file.read(self.mirror.size))

    def require(self, heads: Iterable[Head]) -> None:
        """Refuse to go on, now and whenever it is opened, if others have seen more of it than it has.

        Raises:
            RolledBackError: They have.
        """
        lacking = sorted({head for head in heads if not is_covered(head, self.chain, self.book)})
        if not lacking:
            return
        try:
            require(lacking[-1], self.chain, self.book)
        except RolledBackError as error:
            self.stopped = error
            note_heads(self.folder, lacking)
            raise

    def close(self) -> None:
        """Unlock."""
        self.file.close()
        if self.mirror is not None:
            self.mirror.close()


def make_mirror(folder: Path, mirror: Path) -> int:
    """Make a ledger's mirror, level with it; returns how many rows it has.

    Raises:
        RolledBackError: Peers have seen rows that are missing.
        StorageError: There is a mirror, or the ledger cannot be opened.
    """
    if (mirror / FILE).exists():
        raise StorageError(
            f"{mirror} is a ledger's mirror already", found=FILE, expected="an empty folder, or none",
            remedy="one that lags is brought level whenever the ledger is written to",
        )  # fmt: skip
    store = Store.open(folder, mirror, make_mirror=True)
    try:
        return len(store.chain)
    finally:
        store.close()


def read_rows(whole: bytes, folder: Path) -> tuple[Chain, Book]:
    """The chain of whole lines, and what they say; signatures are not looked at.

    Args:
        whole: The lines.
        folder: Of a ledger or a mirror, with the lists of units.

    Raises:
        StorageError: A row was altered, moved, removed, repeated or inserted, or a list is not there.
    """
    chain = chained(whole)
    book = Book.begin(chain.body(0))
    bodies = (chain.body(row) for row in range(1, len(chain)))
    book.take(bodies, lambda digest: read_list(folder, digest))
    return chain, book


def read_file(path: Path) -> bytes:
    """A ledger's or a mirror's file.

    Raises:
        StorageError: It cannot be read.
    """
    with storing(path):
        return path.read_bytes()


def check_keys(keys: LedgerKeys, opened: Opened) -> None:
    """Refuse keys that a ledger was not made with.

    Raises:
        StorageError: Another signing key, or another secret behind the units' hashes.
    """
    for what, found, expected in (
        ("signed by another key", keys.public, opened.key),
        ("hashed under another secret", keys.check, opened.check),
    ):
        if found != expected:
            raise StorageError(
                f"this ledger is {what} than {KEY_FILE} holds", found=f"{found[:12]}…",
                expected=f"{expected[:12]}…", remedy=f"put the {KEY_FILE} back that it was made with",
            )  # fmt: skip
