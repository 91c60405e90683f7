"""A site's history in its folder: opened, written, verified.

    history.key     the secret of the signing key
    history.jsonl   the rows (`ledger/chain.py` says how they follow each other)
    head.json       how many there are, and the last one's head: signed, written after each row
    reserve.N       room for a few rows more, so that a site whose disk is full can still say so

A chain whose end is cut off is a whole chain: the head shows it. Supervisor and commands write to the same
file, each taking its lock for one row. What no file here shows is that all of them went back to an older
copy together: whoever noted a head (`site history` prints it) can tell.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from wardround.client.history.rows import ALTERED, HISTORY, Begun, Left, Sent, read_row
from wardround.client.ledger.chain import Chain, chained, whole_lines
from wardround.client.ledger.row_file import RowFile
from wardround.client.ledger.rows import canonical
from wardround.client.sealed_files import make_key, read_key
from wardround.core.errors import StorageError
from wardround.privacy.secagg.hashing import derive, framed
from wardround.runtime.files import PART, atomic_folder, is_full, private_folder, storing, write_atomic

LOG = logging.getLogger(__name__)
FOLDER: Final = "history"
"""Of the site's folder."""
FILE, HEAD, KEY, RESERVE = "history.jsonl", "head.json", "history.key", "reserve"
RESERVES: Final = 8
RESERVE_BYTES: Final = 32 * 1024
"""Of one part: more than a row and a head need on any disk."""
TRIES: Final = 4
"""So much of the reserve is given up for one row: somebody else may be faster in taking the room."""
_SALT: Final = b"wardround history 1"
_HEAD_TAG: Final = "wardround history head 1"
WAIT_S: Final = 10.0
"""For another process that writes a row."""
LOOK_S: Final = 0.01
NOTED_DIGITS: Final = 32
"""Of a head, as people note it: 128 bits."""
CUT: Final = (
    "rows were cut off, or the file was put back from an older copy: put the last whole copy back; where "
    "there is none, move the folder away and keep it, and the next start begins a new history"
)


@dataclass(frozen=True)
class Head:
    """How far a history has come.

    Attributes:
        rows: How many it has.
        head: Of the last one, in hex.
    """

    rows: int
    head: str

    @property
    def text(self) -> str:
        """As people note it."""
        return f"{self.rows}-{self.head[:NOTED_DIGITS]}"


@dataclass
class History:
    """A site's history, open for writing.

    Attributes:
        folder: Of the history.
        chain: Its rows as far as this process has seen them.
        size: Bytes of those rows.
        now: Seconds since 1970.
    """

    folder: Path
    chain: Chain
    size: int
    now: Callable[[], float]
    _signing: Ed25519PrivateKey = field(repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)
    _short: bool = True
    """Whether some of the reserve may be missing."""

    @staticmethod
    def open(folder: Path, site: str, now: Callable[[], float] = time.time) -> History:
        """The history in a folder, all of it checked; a new one where there is no folder.

        Args:
            folder: Of the history.
            site: Name of the site.
            now: Seconds since 1970.

        Raises:
            StorageError: It cannot be read or written, or was altered or cut; names the row.
        """
        if not folder.exists():
            _make(folder, site, now)
        signing = _signing_key(folder)
        history = History(folder, Chain(record=HISTORY), 0, now, signing)
        with history._opened() as file:
            history._catch_up(file)
        begun = read_row(history.chain.body(0), 0) if len(history.chain) else None
        if not isinstance(begun, Begun) or begun.site != site or begun.key != _public(signing):
            raise StorageError(
                f"{folder} is not the history of this site", expected=f"one of {site}, signed by its own key",
                remedy=ALTERED,
            )  # fmt: skip
        history._fill_reserve()
        return history

    def record(self, left: Left) -> Sent:
        """Write one row; on the disk, with the head after it, when this returns.

        On a full disk some of the reserve is given up for it.

        Raises:
            StorageError: It is not, and nothing of it may leave.
        """
        with self._lock:
            for _ in range(TRIES):
                try:
                    row = self._record(left)
                except StorageError as error:
                    if not is_full(error) or not self._gave_up_reserve():
                        raise
                else:
                    if self._short:
                        self._fill_reserve()
                    return row
            return self._record(left)

    def _record(self, left: Left) -> Sent:
        with self._opened() as file:
            self._catch_up(file)
            row = Sent(row=len(self.chain), at=int(self.now()), left=left)
            line, before = self.chain.line(canonical(row), self._signing.sign), file.size
            file.append(line)
            try:
                self.chain.take(line[:-1])
                self._write_head()
            except BaseException:  # no row without its head: a cut would not show
                file.cut(before)
                del self.chain.lines[row.row :]
                raise
            self.size = file.size
        return row

    @property
    def head(self) -> Head:
        """How far it has come."""
        return Head(len(self.chain), self.chain.head(len(self.chain) - 1))

    @contextmanager
    def _opened(self) -> Iterator[RowFile]:
        path, end = self.folder / FILE, time.monotonic() + WAIT_S
        _require_file(path)
        while True:
            try:
                file = RowFile.open(path)
                break
            except StorageError as error:
                if "another process" not in error.what or time.monotonic() > end:
                    raise
                time.sleep(LOOK_S)
        try:
            yield file
        finally:
            file.close()

    def _catch_up(self, file: RowFile) -> None:
        """Read what another process of this site has written since, and check it all against the head."""
        if file.size < self.size:
            raise StorageError(
                "the history became shorter", found=f"{file.size} bytes", expected=f"{self.size}", remedy=CUT
            )
        new, torn = whole_lines(file.read(self.size))
        if len(self.chain):
            for line in new.split(b"\n")[:-1]:
                self.chain.take(line)
        else:
            self.chain = chained(new, HISTORY)
        if new:
            self.chain.check_last(_public(self._signing))
        self.size += len(new)
        head = _read_head(self.folder)
        _check_head(head, self.chain, _public(self._signing))
        if torn:  # a kill tore it: no head was written after it, and nothing left on its account
            LOG.warning("the last line of the history was never finished: it is cut off")
            file.cut(self.size)
        if head["rows"] != len(self.chain):  # a kill came between a row and its head
            self._write_head()

    def _gave_up_reserve(self) -> bool:
        self._short = True
        for path in sorted(self.folder.glob(f"{RESERVE}.*")):
            with storing(path):
                path.unlink(missing_ok=True)
            LOG.warning("the disk is full: %s is given up for a row of the history", path.name)
            return True
        return False

    def _fill_reserve(self) -> None:
        """Random bytes: a disk that packs takes no room for zeros."""
        try:
            for number in range(RESERVES):
                path = self.folder / f"{RESERVE}.{number}"
                if not path.exists():
                    write_atomic(path, os.urandom(RESERVE_BYTES), private=True)
        except StorageError:
            return  # with space again
        self._short = False

    def _write_head(self) -> None:
        _write_head(self.folder, self.chain, self._signing)


@dataclass(frozen=True)
class Verified:
    """A history that was checked.

    Attributes:
        begun: Row 0.
        sent: All others.
        head: How far it has come.
        torn: Its last line is not finished: another process writes it, or was killed over it.
    """

    begun: Begun
    sent: tuple[Sent, ...]
    head: Head
    torn: bool


def verify(folder: Path) -> Verified:
    """Check a history: every row, every signature, the head; nothing is written, and no key is needed.

    Raises:
        StorageError: A row was altered, moved, removed, repeated or inserted, or the end was cut off.
    """
    path = folder / FILE
    _require_file(path)
    head = _read_head(folder)  # before the rows: those only grow
    with storing(path):
        whole, torn = whole_lines(path.read_bytes())
    chain = chained(whole, HISTORY)
    rows = [read_row(chain.body(number), number) for number in range(len(chain))]
    begun, *sent = rows
    if not isinstance(begun, Begun):
        raise StorageError("the history does not begin with its row 0", remedy=ALTERED)
    chain.check_signatures(begun.key)
    _check_head(head, chain, begun.key)
    found = tuple(row for row in sent if isinstance(row, Sent))
    return Verified(begun, found, Head(len(chain), chain.head(len(chain) - 1)), bool(torn))


def require_noted(noted: str, folder: Path) -> None:
    """Refuse a history that is not at or beyond a head that somebody noted.

    Args:
        noted: As `Head.text`.
        folder: Of the history, which was verified.

    Raises:
        StorageError: It has gone back, or another way.
    """
    with storing(folder / FILE):
        chain = chained(whole_lines((folder / FILE).read_bytes())[0], HISTORY)
    rows, _, digest = noted.partition("-")
    number = int(rows) if rows.isdecimal() else 0
    there = 0 < number <= len(chain) and len(digest) == NOTED_DIGITS
    if not there or not chain.head(number - 1).startswith(digest):
        raise StorageError(
            "the history is not that of which this head was noted", found=f"{len(chain)} rows",
            expected=f"the head {noted} among them", remedy=CUT,
        )  # fmt: skip


def _make(folder: Path, site: str, now: Callable[[], float]) -> None:
    private_folder(folder.parent)
    with atomic_folder(folder) as made:
        made.chmod(0o700)
        make_key(made / KEY)
        signing, chain = _signing_key(made), Chain(record=HISTORY)
        line = chain.line(
            canonical(Begun(row=0, at=int(now()), site=site, key=_public(signing))), signing.sign
        )
        write_atomic(made / FILE, line, private=True)
        chain.take(line[:-1])
        _write_head(made, chain, signing)


def _signing_key(folder: Path) -> Ed25519PrivateKey:
    root = read_key(folder / KEY, remedy=f"put the {KEY} back that this history was made with, mode 0600")
    return Ed25519PrivateKey.from_private_bytes(derive(root, _SALT, "rows").reveal())


def _public(key: Ed25519PrivateKey) -> str:
    return key.public_key().public_bytes_raw().hex()


def _require_file(path: Path) -> None:
    if not path.exists():
        raise StorageError(
            f"there is no {path}", expected="a history: a site has one from its first start on", remedy=CUT
        )


def _write_head(folder: Path, chain: Chain, signing: Ed25519PrivateKey) -> None:
    rows, head = len(chain), chain.head(len(chain) - 1)
    signature = signing.sign(framed(_HEAD_TAG, rows, head)).hex()
    for stale in folder.glob(f".{HEAD}.*{PART}"):  # of a killed process
        stale.unlink(missing_ok=True)
    content = json.dumps({"rows": rows, "head": head, "signature": signature}).encode()
    write_atomic(folder / HEAD, content, private=True)


def _read_head(folder: Path) -> dict[str, Any]:
    path = folder / HEAD
    try:
        with storing(path):
            found = json.loads(path.read_bytes())
        if {name: type(value) for name, value in found.items()} == {
            "rows": int, "head": str, "signature": str,
        }:  # fmt: skip
            return dict(found)
    except (ValueError, AttributeError):
        pass
    raise StorageError(f"{path} is not the head that this site wrote", remedy=ALTERED)


def _check_head(head: dict[str, Any], chain: Chain, key: str) -> None:
    rows, digest = head["rows"], head["head"]
    try:
        public = Ed25519PublicKey.from_public_bytes(bytes.fromhex(key))
        public.verify(bytes.fromhex(head["signature"]), framed(_HEAD_TAG, rows, digest))
    except (InvalidSignature, ValueError):
        raise StorageError("the head of the history is not signed by its key", remedy=ALTERED) from None
    if not 0 < rows <= len(chain):
        raise StorageError(
            "the end of the history is missing", found=f"{len(chain)} rows", expected=f"{rows}", remedy=CUT
        )
    if chain.head(rows - 1) != digest:
        raise StorageError(
            f"row {rows - 1} of the history is not the one that its head names", found="another row",
            expected=digest[:12], remedy=ALTERED,
        )  # fmt: skip
