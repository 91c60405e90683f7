"""What a person does when rows were lost: replay them, cut off a torn line, or write the cap off.

A ledger that worked on after it was put back has gone another way than the copy that its rows are replayed
from. Then the copy's rows stand, and what is charged, sealed or released on the other way is charged, sealed
and released after them: both are counted, in whatever order they came.

Each opens the ledger, does one thing, and leaves it closed. Nothing is guessed: what cannot be proved by a
signature is signed for by somebody, in a row.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

from wardround.client.ledger.branches import joined
from wardround.client.ledger.chain import Chain, chained, whole_lines
from wardround.client.ledger.heads import is_covered
from wardround.client.ledger.row_file import FILE, MODE, RowFile, refuse_if_ahead
from wardround.client.ledger.rows import Mended, SourceAdded, WrittenOff, fields_of, require_named, typed
from wardround.client.ledger.seen import read_seen
from wardround.client.ledger.store import Store, read_file
from wardround.client.ledger.units import copy_lists
from wardround.core.errors import ConfigError, StorageError
from wardround.runtime.files import storing, sync_folder


@dataclass(frozen=True)
class Replayed:
    """What a replay did.

    Attributes:
        rows: Of the copy, that the ledger lacked.
        own: Rows that the ledger had beyond those that both have, and which are counted after them.
        behind: Peers have seen others than are there now: the ledger stays closed.
    """

    rows: int
    own: int
    behind: bool


def replay(folder: Path, source: Path, *, mirror: Path | None = None) -> Replayed:
    """Take the rows that a mirror, or another copy, has and the ledger lacks; a torn line gives way.

    Args:
        folder: Of the ledger.
        source: Folder of the mirror or of the copy, with its lists of units.
        mirror: The ledger's mirror, where it is not the source: if it followed the ledger on another way than
            the copy's, its rows are kept there under another name.

    Raises:
        StorageError: The rows are another ledger's, or not signed by its key; lists of units are missing; a
            person changed the policy or wrote the cap off on the ledger's other way; or they cannot be
            written.
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
        chain = chained(data)
        common = _common(store.chain, chain)
        if not common:
            refuse_if_ahead(data, rows, source)
        chain.check_signatures(store.book.opened.key, start=common)
        missing = range(common, len(chain))
        rows_named = [typed(fields_of(chain.body(row), row), row) for row in missing]
        copy_lists(source, folder, (row.digest for row in rows_named if isinstance(row, SourceAdded)))
        if store.torn:
            _cut(store)
        if mirror is not None and mirror.resolve() != source.resolve():
            _set_aside(mirror, data, common)
        if common == len(store.chain):
            for line in data[len(rows) :].splitlines(keepends=True):
                store.take(line)
            return Replayed(len(missing), 0, behind=_is_behind(store))
        with joined(store, data, common) as both:
            return Replayed(len(missing), len(store.chain) - common, behind=_is_behind(both))


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
    folder: Path,
    *,
    who: str,
    why: str,
    runs: Iterable[str] = (),
    mirror: Path | None = None,
    went_on: bool = False,
    epsilon: float | None = None,
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
        went_on: The ledger was written to after it was put back: its own rows then count beside the cap,
            since nothing bounded them together with those that were lost. So they do in any case where peers
            have seen rows that it lacks.
        epsilon: Of the highest cap that the lost rows had, where it was raised in them.

    Raises:
        ConfigError: Nobody, or no reason, is named; or the ledger has no cap that could have been raised.
        StorageError: A line is torn (mend it first), or the ledger cannot be read or written.
    """
    require_named(who, why)
    with _mending(folder) as store:
        if store.torn:
            raise StorageError(
                "the ledger ends in a torn line", remedy="cut it off first: `wardround ledger mend`"
            )
        if mirror is not None:
            _set_aside(mirror, store.file.read(), len(store.chain))
        if epsilon is not None and (store.book.cap is None or not 0 < epsilon < math.inf):
            raise ConfigError(
                "a cap that was raised is a number, of a ledger with a cap", found=f"ε = {epsilon:g}"
            )
        beside = went_on or _is_behind(store)
        store.append(WrittenOff, who=who, why=why, runs=tuple(runs), beside=beside, epsilon=epsilon)


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


def _common(one: Chain, other: Chain) -> int:
    """Rows that two chains begin with; a chain holds what is before a row, so the rest differs for good."""
    return sum(
        1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one.lines, other.lines, strict=False))
    )


def _is_behind(store: Store) -> bool:
    """Whether peers have seen rows that are not there."""
    return not all(is_covered(head, store.chain, store.book) for head in read_seen(store.folder).known)


def _set_aside(mirror: Path, rows: bytes, row: int) -> None:
    """Another name for a mirror's file that a ledger of these rows will never be level with again."""
    path = mirror / FILE
    if not path.exists():
        return
    file = RowFile.open(path)
    try:
        whole, _ = whole_lines(file.read())
        if not rows.startswith(whole):
            with storing(path):
                path.rename(path.with_name(f"lost-at-row-{row}.jsonl"))
                path.touch(mode=MODE)  # a mirror that lags, and none that is missing
                sync_folder(path.parent)
    finally:
        file.close()
