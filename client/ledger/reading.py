"""Looking at a ledger without opening it: no lock is taken, and nothing is written."""

from __future__ import annotations

import fcntl
from dataclasses import dataclass
from pathlib import Path

from wardround.client.ledger.book import Book
from wardround.client.ledger.chain import TORN, Chain, chained, whole_lines
from wardround.client.ledger.heads import Head, head_of, require
from wardround.client.ledger.keys import KEY_FILE, LedgerKeys
from wardround.client.ledger.row_file import FILE, refuse_if_ahead
from wardround.client.ledger.rows import AnyRow, Opened, fields_of, typed
from wardround.client.ledger.seen import Seen, read_seen
from wardround.client.ledger.store import check_keys, read_file, read_rows
from wardround.core.errors import ConfigError, StorageError


@dataclass(frozen=True)
class Verified:
    """What a ledger, or its export, proves.

    Attributes:
        rows: How many, each signed.
        key: Whose signatures they are: to compare with what the site says its key is.
        head: Stands for all of it: to compare with what others have seen.
        lists: Lists of units that are as their rows say; none of an export.
        mirror: Rows that the mirror is behind; None where none was looked at.
        strangers: Peers who gave back heads of another ledger, and none of this; as `Seen`.
        strangers_at: When, likewise.
    """

    rows: int
    key: str
    head: Head
    lists: int
    mirror: int | None
    strangers: int = 0
    strangers_at: int = 0


def look(folder: Path) -> tuple[Book, bool]:
    """The state of a ledger, and whether a line is torn; a line that is being written is not.

    Raises:
        StorageError: It is not there, or was altered.
    """
    whole, torn = _lines(folder / FILE)
    chain, book = read_rows(whole, folder)
    chain.check_last(book.opened.key)
    return book, torn


def verify(path: Path, *, key: str | None = None, mirror: Path | None = None) -> Verified:
    """Check everything that can be checked.

    Args:
        path: Folder of a ledger, or the file of an export.
        key: What the site's key is known to be, in hex.
        mirror: The ledger's mirror.

    Raises:
        RolledBackError: The mirror has, or peers have seen, rows that it lacks.
        StorageError: Something is not as it was written; says what and where.
        ConfigError: A mirror is named of an export.
    """
    is_folder = path.is_dir()
    if mirror is not None and not is_folder:
        raise ConfigError("an export has no mirror", remedy="verify the ledger's folder")
    whole, torn = _lines(path / FILE if is_folder else path)
    if torn:
        raise StorageError(f"{path} ends in a torn line", remedy=TORN)
    chain, book = read_rows(whole, path) if is_folder else (chained(whole), None)
    rows = [_row(chain, number) for number in range(len(chain))]
    opened = rows[0]
    if not isinstance(opened, Opened):
        raise StorageError("row 0 opens no ledger", remedy="export it anew")
    if key is not None and key != opened.key:
        raise StorageError(
            "this is the ledger of another key", found=f"{opened.key[:12]}…", expected=f"{key[:12]}…",
            remedy="ask the site for its own ledger",
        )  # fmt: skip
    chain.check_signatures(opened.key)
    if is_folder and (path / KEY_FILE).exists():
        check_keys(LedgerKeys.read(path), opened)
    seen = Seen()
    if book is not None:
        seen = read_seen(path)
        for told in seen.known:
            require(told, chain, book)
    behind = None
    if mirror is not None:
        held, _ = whole_lines(read_file(mirror / FILE))
        refuse_if_ahead(held, whole, mirror)
        behind = len(chain) - held.count(b"\n")
    epoch = sum(row.kind == "write_off" for row in rows)
    head = head_of(chain, epoch)
    lists = 0 if book is None else len(book.sources)
    return Verified(len(chain), opened.key, head, lists, behind, seen.strangers, seen.at)


def exported(folder: Path) -> tuple[bytes, Chain]:
    """The rows as they may be handed out: all of them, word for word, since none holds a unit's hash.

    Raises:
        StorageError: The ledger is torn or was altered.
    """
    whole, torn = _lines(folder / FILE)
    if torn:
        raise StorageError(f"{folder / FILE} ends in a torn line", remedy=TORN)
    chain = chained(whole)
    opened = _row(chain, 0)
    if isinstance(opened, Opened):
        chain.check_last(opened.key)
    return whole, chain


def _row(chain: Chain, number: int) -> AnyRow:
    return typed(fields_of(chain.body(number), number), number)


def _lines(path: Path) -> tuple[bytes, bool]:
    """Whole lines, and whether a line is torn: not one that another process is about to finish."""
    if not path.exists():
        raise StorageError(f"there is no {path}", remedy="name the folder of a ledger")
    whole, torn = whole_lines(read_file(path))
    if not torn:
        return whole, False
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return whole, False
        whole, torn = whole_lines(file.read())
    return whole, bool(torn)
