"""One change of the operator's folder at a time, whole or not at all, and one line of the log for each.

A change is written down first, in one file; from then on it counts, and whoever opens the folder next carries
it out if a kill came in between. So an invitation is used and its site is a member, or neither.
"""

from __future__ import annotations

import base64
import contextlib
import errno
import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from pydantic import Field, ValidationError

from wardround.core.checked import Frozen
from wardround.core.errors import InternalError, StorageError
from wardround.runtime.files import PART, append_line, private_folder, storing, sync_folder, write_atomic
from wardround.runtime.roster import LARGEST_ROSTER
from wardround.runtime.signed import malformed
from wardround.runtime.small_files import read_private
from wardround.server.consortium.operator_folder import (
    INVITATIONS,
    LOG,
    SERVER_FOLDER,
    TLS,
    OperatorFolder,
    open_operator_folder,
)
from wardround.server.consortium.server_folder import IDENTITY_KEY, TLS_KEY, TOKEN

PENDING: Final = "pending.json"
_LARGEST: Final = 4 * LARGEST_ROSTER
_LINE_BYTES: Final = 2**16


class Change(Frozen):
    """What a change writes.

    Attributes:
        files: Place within the folder → content in base64; all of them are the operator's alone.
        line: What the log says.
    """

    files: dict[str, str] = Field(max_length=64)
    line: dict[str, str | int]


@contextlib.contextmanager
def changing(path: Path) -> Iterator[OperatorFolder]:
    """Open the operator's folder to change it, with what a kill left undone carried out.

    Raises:
        StorageError: There is none, another command is changing it, or it cannot be written.
    """
    open_operator_folder(path)
    with storing(path):
        lock = os.open(path, os.O_RDONLY)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                raise StorageError(
                    f"another command is changing {path}", remedy="wait until it has ended"
                ) from error
        _sweep(path)
        finish(path)
        yield open_operator_folder(path)
    finally:
        os.close(lock)


def commit(folder: OperatorFolder, files: Mapping[str, bytes], line: Mapping[str, str | int]) -> None:
    """Make a change: once this has written it down it counts, whatever happens.

    Args:
        folder: As `changing` gave it.
        files: Place within the folder → new content.
        line: For the log: `at`, `event` and what it was about; no secret.

    Raises:
        StorageError: It could not be written down: nothing has changed; or it could not be carried out: the
            next command that changes the folder does it.
    """
    encoded = {name: base64.b64encode(data).decode() for name, data in files.items()}
    change = Change(files=encoded, line=dict(line))
    write_atomic(folder.path / PENDING, change.model_dump_json().encode(), private=True)
    finish(folder.path)


def finish(path: Path) -> None:
    """Carry out a change that is written down, if there is one; raises StorageError."""
    pending = path / PENDING
    if not pending.exists():
        return
    try:
        change = Change.model_validate_json(read_private(pending, largest=_LARGEST).reveal())
    except ValidationError as error:
        raise StorageError(
            f"{pending} does not hold a change", found=malformed(str(pending), error).found,
            remedy="put the folder back from its last copy",
        ) from error  # fmt: skip
    for name, data in change.files.items():
        place = path / name
        if not place.resolve().is_relative_to(path.resolve()):
            raise InternalError("a change writes beyond its folder", found=name)
        private_folder(place.parent)
        write_atomic(place, base64.b64decode(data), private=True)
    if _last_line(path / LOG) != change.line:
        append_line(path / LOG, change.line)
    with storing(pending):
        pending.unlink()
        sync_folder(path)


def _sweep(path: Path) -> None:
    """Remove what killed commands left under temporary names, which may hold a key; nobody else writes here.

    In the server's folder only what this side writes: a server may be at work there.
    """
    stale = [*path.glob(f".*{PART}"), *(path / INVITATIONS).glob(f".*{PART}")]
    for name in (TLS, TLS_KEY, IDENTITY_KEY, TOKEN):
        stale += (path / SERVER_FOLDER).glob(f".{name}.*{PART}")
    with storing(path):
        for file in stale:
            if file.is_file():
                file.unlink(missing_ok=True)


def _last_line(log: Path) -> Any:
    """The last whole line, as a value; None where there is none."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _LINE_BYTES))
            lines = file.read().split(b"\n")
        return json.loads(lines[-2])
    except (FileNotFoundError, IndexError, ValueError):
        return None
