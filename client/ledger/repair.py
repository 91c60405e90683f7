"""What a person does when rows were lost: replay them, cut off a torn line, or write the cap off.

Each opens the ledger, does one thing, and leaves it closed. Nothing is guessed: what cannot be proved by a
signature is signed for by somebody, in a row.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from wardround.client.ledger.chain import chained, whole_lines
from wardround.client.ledger.row_file import FILE, RowFile, refuse_if_ahead
from wardround.client.ledger.rows import Mended, SourceAdded, WrittenOff, fields_of, require_named, typed
from wardround.client.ledger.store import Store, read_file
from wardround.client.ledger.units import copy_lists
from wardround.core.errors import ConfigError, StorageError
from wardround.runtime.files import storing


def replay(folder: Path, source: Path) -> int:
    """Append the rows that a mirror, or another copy, has and the ledger lacks; a torn line gives way.

    Args:
        folder: Of the ledger.
        source: Folder of the mirror or of the copy, with its lists of units.

    Returns:
        How many rows were appended.

    Raises:
        StorageError: The rows do not follow from the ledger's, are not signed by its key, or lists of units
            are missing; or they cannot be written.
    """
    with _mending(folder) as store:
        data, _ = whole_lines(read_file(source / FILE))
        rows, _ = whole_lines(store.file.read())
        if rows.startswith(data):
            raise StorageError(
                f"{source} has no row that the ledger lacks", found=f"{len(chained(data))} rows",
                expected=f"more than the {len(store.chain)} of the ledger",
                remedy="look for the rows in another copy, or write the cap off",
            )  # fmt: skip
        if not data.startswith(rows):
            refuse_if_ahead(data, rows, source)
        chain = chained(data)
        chain.check_signatures(store.book.opened.key, start=len(store.chain))
        missing = range(len(store.chain), len(chain))
        rows_named = [typed(fields_of(chain.body(row), row), row) for row in missing]
        copy_lists(source, folder, (row.digest for row in rows_named if isinstance(row, SourceAdded)))
        if store.torn:
            _cut(store)
        for line in data[len(rows) :].splitlines(keepends=True):
            store.take(line)
        return len(missing)


def mend(folder: Path, *, who: str, why: str, mirror: Path | None = None) -> None:
    """Cut off a torn last line, in somebody's name. What was cut, by its digest, is on record.

    Args:
        folder: Of the ledger.
        who: The person who signs.
        why: What happened, as far as they know.
        mirror: Where there is one: if it has the row, it is replayed instead.

    Raises:
        ConfigError: No line is torn; or nobody, or no reason, is named.
        StorageError: The mirror has the row; or the ledger cannot be read or written.
    """
    require_named(who, why)
    with _mending(folder) as store:
        if not store.torn:
            raise ConfigError(
                "no line of this ledger is torn", remedy="`wardround ledger verify` says what is"
            )
        if mirror is not None:
            rows, _ = whole_lines(store.file.read())
            refuse_if_ahead(whole_lines(read_file(mirror / FILE))[0], rows, mirror)
        cut = hashlib.sha256(store.torn).hexdigest()
        size = len(store.torn)
        _cut(store)
        store.append(Mended, who=who, why=why, cut_bytes=size, cut_digest=cut)


def write_off(
    folder: Path, *, who: str, why: str, runs: Iterable[str] = (), mirror: Path | None = None
) -> None:
    """Give up the rows that were lost: the whole cap counts as spent, by every unit that is or will be known.

    After it nothing fits under the cap; `Ledger.amend` can grant more, in somebody's name. The site joins no
    run again that it was in before. Without a cap nothing bounds what was lost: ε is infinite.

    Args:
        folder: Of the ledger.
        who: The person who signs.
        why: What was lost, as far as they know.
        runs: Runs that the lost rows may have been about, as their peers say.
        mirror: Where there is one: its rows, if they are others, are kept there under another name.

    Raises:
        ConfigError: Nobody, or no reason, is named.
        StorageError: A line is torn (mend it first), or the ledger cannot be read or written.
    """
    require_named(who, why)
    with _mending(folder) as store:
        if store.torn:
            raise StorageError(
                "the ledger ends in a torn line", remedy="cut it off first: `wardround ledger mend`"
            )
        if mirror is not None:
            _set_aside(store, mirror)
        store.append(WrittenOff, who=who, why=why, runs=tuple(runs))


@contextmanager
def _mending(folder: Path) -> Iterator[Store]:
    store = Store.open(folder, repair=True)
    try:
        yield store
    finally:
        store.close()


def _cut(store: Store) -> None:
    store.file.cut(store.file.size - len(store.torn))
    store.file.check()
    store.torn = b""


def _set_aside(store: Store, mirror: Path) -> None:
    """Another name for a mirror's file that the ledger will never be level with again."""
    path = mirror / FILE
    if not path.exists():
        return
    file = RowFile.open(path)
    try:
        whole, _ = whole_lines(file.read())
        if not store.file.read().startswith(whole):
            with storing(path):
                path.rename(path.with_name(f"lost-at-row-{len(store.chain)}.jsonl"))
    finally:
        file.close()
