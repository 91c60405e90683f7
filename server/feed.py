"""What followers read: the last records of a run, numbered. A slow follower never holds up who writes.

Whoever falls further behind than the feed keeps is told how many records it missed, and goes on with the
oldest that is there.
"""

from __future__ import annotations

import secrets
import threading
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Generic, TypeVar

KEPT = 4096
R = TypeVar("R")


@dataclass(frozen=True)
class Batch(Generic[R]):
    """What a follower gets at once.

    Attributes:
        records: (number, record), in order.
        missed: How many records before the first one were dropped before they were read.
        ended: Nothing will follow.
    """

    records: tuple[tuple[int, R], ...]
    missed: int
    ended: bool


class Feed(Generic[R]):
    """The last records of one run; for any number of threads.

    Args:
        before: What is there already; it is numbered from 1.
        kept: So many records stay readable.

    Attributes:
        epoch: Tells this feed from that of an earlier process, whose numbers meant other records.
    """

    def __init__(self, before: Iterable[R] = (), *, kept: int = KEPT) -> None:
        self.epoch = secrets.token_hex(8)
        self._records: deque[tuple[int, R]] = deque(maxlen=kept)
        self._last = 0
        self._ended = False
        self._changed = threading.Condition()
        for record in before:
            self.put(record)

    def put(self, record: R) -> None:
        """Append a record; waits for nobody."""
        with self._changed:
            self._last += 1
            self._records.append((self._last, record))
            self._ended = False
            self._changed.notify_all()

    def end(self) -> None:
        """Nothing follows for now; a later record takes this back."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def after(self, number: int, timeout_s: float, *, most: int = 256) -> Batch[R]:
        """Records after a number, as soon as there is one; an empty batch after `timeout_s` without.

        Args:
            number: The last one that the reader has; 0 for none.
            timeout_s: Longest time to wait.
            most: Records in one batch.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._ended or self._last > number, timeout_s)
            first = self._records[0][0] if self._records else self._last + 1
            missed = max(0, first - 1 - number)
            skip = max(0, number + 1 - first)
            found = [self._records[i] for i in range(skip, min(len(self._records), skip + most))]
            return Batch(tuple(found), missed, self._ended and (not found or found[-1][0] == self._last))

    @property
    def last(self) -> int:
        """Number of the newest record; 0 where there is none."""
        with self._changed:
            return self._last
