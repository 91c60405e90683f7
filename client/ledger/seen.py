"""What peers have told a ledger of itself, kept beside it so that no later process goes on without it.

`seen.json` is written when peers have seen rows that the ledger lacks, before anybody is refused on that
account, and stays: what it names only has to be there. A whole folder that is put back has lost it with the
rows. Then peers, who still keep the same heads, say it again.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import Field

from wardround.client.ledger.heads import Head
from wardround.client.ledger.rows import Count, HeadDigest
from wardround.core.checked import Frozen
from wardround.core.errors import StorageError
from wardround.runtime.files import write_atomic
from wardround.runtime.small_files import read_value, value_bytes

LOG = logging.getLogger(__name__)
SEEN: Final = "seen.json"
MOST_HEADS: Final = 64
"""The highest ones; a ledger that has them has those below them, unless it went several ways."""
_REMEDY: Final = "remove it where nobody knows what it said: peers give back what they have seen once more"


class SeenHead(Frozen):
    """A head as peers have seen it."""

    epoch: Count
    rows: Count
    digest: HeadDigest


class Seen(Frozen):
    """What peers have told."""

    version: Literal[1] = 1
    heads: Annotated[tuple[SeenHead, ...], Field(max_length=MOST_HEADS)] = ()
    """That the ledger lacked when they were told."""
    strangers: Count = 0
    """Peers who gave back what is no head of this ledger, the last time that none gave back one that is."""
    at: Count = 0
    """When that was, in seconds since 1970."""

    @property
    def known(self) -> tuple[Head, ...]:
        """The heads."""
        return tuple(Head(head.epoch, head.rows, head.digest) for head in self.heads)


def read_seen(folder: Path) -> Seen:
    """What peers have told the ledger in a folder.

    Raises:
        StorageError: The file cannot be read.
    """
    path = folder / SEEN
    return read_value(path, Seen, remedy=_REMEDY) if path.exists() else Seen()


def note_heads(folder: Path, heads: Iterable[Head]) -> None:
    """Keep heads that the ledger lacks, beside those before; durable when this returns.

    Where it cannot be written that is said: the caller refuses all the same, and peers say it again.
    """
    try:
        before = read_seen(folder)
        known = sorted({*before.known, *heads})[-MOST_HEADS:]
        seen = tuple(SeenHead(epoch=head.epoch, rows=head.rows, digest=head.digest) for head in known)
        _write(folder, before.model_copy(update={"heads": seen}))
    except StorageError as error:
        LOG.error("what peers have seen of the ledger cannot be kept: %s", error)  # noqa: TRY400 - it is not ours


def note_strangers(folder: Path, peers: int, at: int) -> None:
    """Keep that so many peers gave back heads of another ledger.

    Raises:
        StorageError: It cannot be written.
    """
    _write(folder, read_seen(folder).model_copy(update={"strangers": peers, "at": at}))


def _write(folder: Path, seen: Seen) -> None:
    write_atomic(folder / SEEN, value_bytes(seen), private=True)
