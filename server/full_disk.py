"""What the server's disk refuses of what sites send: told once, and for how long it has been so.

A site that is answered 503 tries again, so a disk that is full for a moment costs nothing. One that stays
full stops the run by name (`server/link_grid.py`), before its round counts sites as late that are not.
"""

from __future__ import annotations

import errno
import logging
import sqlite3
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, Literal, TypeAlias

from sqlalchemy.exc import DBAPIError

from wardround.core.errors import StorageError
from wardround.runtime.files import storing

LOG = logging.getLogger(__name__)
PATIENCE_S: Final = 30.0
"""So long a run waits for space before it stops."""
_SQLITE: Final = {
    sqlite3.SQLITE_FULL: errno.ENOSPC,
    sqlite3.SQLITE_IOERR: errno.EIO,
    sqlite3.SQLITE_READONLY: errno.EROFS,
}
"""SQLite's codes that mean the disk."""
Part: TypeAlias = Literal["objects", "database", "bodies"]
"""Contents of messages; what belongs to what; a request's body on its way in, an answer's on its way out."""


class DiskWatch:
    """For any thread.

    Args:
        clock: Seconds, monotonic.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._lock = clock, threading.Lock()
        self._refused: dict[Part, tuple[float, StorageError]] = {}

    def refused(self, part: Part, error: StorageError) -> None:
        """The disk has refused something: a line in the log for the first one."""
        with self._lock:
            first = part not in self._refused
            since = self._clock() if first else self._refused[part][0]
            self._refused[part] = since, error
        if first:
            LOG.error("what sites send cannot be kept, they try again: %s", error)

    def works(self, part: Part) -> None:
        """It takes such things: a line in the log where it did not before."""
        if part not in self._refused:  # each request asks: without the lock
            return
        with self._lock:
            since, _ = self._refused.pop(part, (None, None))
        if since is not None:
            LOG.warning("what sites send is kept again, after %.0f s", self._clock() - since)

    def lasting(self, seconds: float) -> StorageError | None:
        """What has been refused for so long, and not taken since."""
        with self._lock:
            now = self._clock()
            return next((error for since, error in self._refused.values() if now - since >= seconds), None)

    def forget(self) -> None:
        """A run begins: what was refused before says nothing of the disk as it is now."""
        with self._lock:
            self._refused.clear()


def refusal(database: Path, error: DBAPIError) -> StorageError | None:
    """The disk's refusal behind an error of SQLite's; None where it is about something else."""
    code = getattr(error.orig, "sqlite_errorcode", None)
    number = None if code is None else _SQLITE.get(code & 0xFF)
    if number is None:
        return None
    try:
        with storing(database):
            raise OSError(number, str(error.orig)) from error
    except StorageError as refused:
        return refused
