"""Two ways that a ledger went, as one: the rows of a copy, and after them what it did by itself.

Built under another name and put in place whole, so that a kill leaves the one or the other.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from wardround.client.ledger.chain import Chain
from wardround.client.ledger.heads import DIGEST_DIGITS
from wardround.client.ledger.row_file import FILE, MODE, RowFile
from wardround.client.ledger.rows import (
    Amended,
    AnyRow,
    Joined,
    Released,
    Reserved,
    Sealed,
    WrittenOff,
    fields_of,
    typed,
)
from wardround.client.ledger.sources import name_list
from wardround.client.ledger.store import Store, read_rows
from wardround.core.errors import StorageError
from wardround.runtime.files import storing, sync_folder, write_atomic

JOINING: Final = f".{FILE}.joining"


@contextmanager
def joined(store: Store, data: bytes, common: int) -> Iterator[Store]:
    """The ledger with a copy's rows and its own after them; in place, and durable, when this yields.

    Its own lines, as they were, stay in a file beside it.

    Args:
        store: The ledger, open for repair.
        data: Whole lines of the copy, signed by the ledger's key, their lists of units already here.
        common: Rows that both have; each has more.

    Raises:
        StorageError: A person signed for the ledger's own way what cannot be carried over; or it cannot be
            written.
    """
    own = [_row(store.chain, number) for number in range(common, len(store.chain))]
    signed = next((row for row in own if isinstance(row, Amended | WrittenOff)), None)
    if signed is not None:
        raise StorageError(
            "the ledger went another way than this copy, and a person changed its rules there",
            found=f"row {signed.row}: {signed.kind}", expected="charges, seals and sources alone",
            remedy="keep the ledger as it is and write the cap off (`wardround ledger write-off`)",
        )  # fmt: skip
    heads = [store.chain.head(row.row)[:DIGEST_DIGITS] for row in own]
    heads += [head for row in own if isinstance(row, Joined) for head in row.heads]
    path = store.folder / JOINING
    both = _copied(store, path, data)
    try:
        both.append(Joined, common=common, heads=tuple(heads))
        for row in own:
            _carry(row, store, both)
        write_atomic(store.folder / f"branch-{store.head.digest[:16]}.jsonl", store.file.read(), private=True)
        with storing(store.file.path):
            path.replace(store.file.path)
            sync_folder(store.folder)
        both.file.path = store.file.path
        yield both
    finally:
        both.close()


def _row(chain: Chain, number: int) -> AnyRow:
    return typed(fields_of(chain.body(number), number), number)


def _copied(store: Store, path: Path, data: bytes) -> Store:
    """A ledger of the copy's rows under another name."""
    chain, book = read_rows(data, store.folder)
    with storing(path, len(data)):
        path.unlink(missing_ok=True)  # what a kill left
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, MODE))
    file = RowFile.open(path)
    try:
        file.append(data)
    except BaseException:
        file.close()
        raise
    return Store(store.folder, store.keys, file, chain, book, b"", now=store.now)


def _carry(row: AnyRow, store: Store, both: Store) -> None:
    """Count a row of the ledger's own way after the copy's.

    What lowers a charge is left out, and so is a declaration; a person may sign that again.
    """
    match row:
        case Reserved(terms=terms):
            terms = terms.model_copy(update={"source": _source(terms.source, store, both)})
            place = (terms.run, row.round, row.stage, row.draw)
            held = both.book.draws.find(place)
            if held is None:
                draw = row.draw
            elif held.terms == terms and place not in both.book.lowered:
                return  # the very same batches and noise
            else:
                draw = f"{row.draw[:200]} (row {row.row} of another way)"
            both.append(Reserved, round=row.round, stage=row.stage, draw=draw, terms=terms)
        case Released(run=run, plan=plan):
            both.append(Released, source=_source(row.source, store, both), run=run, plan=plan)
        case Sealed(run=run, round=round, stage=stage, digest=digest):
            if (run, round, stage) not in both.book.seals:
                both.append(Sealed, run=run, round=round, stage=stage, digest=digest)
        case _:
            pass


def _source(number: int, store: Store, both: Store) -> int:
    """The number there of a source that has another one here."""
    record = store.book.sources[number]
    return name_list(both, record.name, store.lists(record.digest)).number
