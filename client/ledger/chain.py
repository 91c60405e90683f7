"""Lines of a ledger, or of another record of a site's: each is bound to all lines before it, and signed.

    {"body":BODY,"head":HEAD,"signature":SIGNATURE}

BODY is canonical JSON (`rows.py`). HEAD is SHA-256 over the head and the signature of the line before, as
they stand there, and BODY; of row 0 over BODY alone. SIGNATURE is Ed25519 over the head. Both are in hex.
Since the chain takes signatures in, the last signature vouches for every byte before it: opening a ledger
checks the whole chain and that one signature, which takes a microsecond a row; `check_signatures` all of
them.

What no chain shows is that its end is missing: see `heads.py`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from wardround.core.errors import StorageError
from wardround.privacy.secagg.hashing import framed

_BEFORE: Final = b'{"body":'
_HEAD: Final = b',"head":"'
_SIGNATURE: Final = b'","signature":"'
_AFTER: Final = b'"}'
_TAIL: Final = len(_HEAD) + 64 + len(_SIGNATURE) + 128 + len(_AFTER)
_BODY: Final = slice(len(_BEFORE), -_TAIL)
_HEAD_PART: Final = slice(len(_HEAD) - _TAIL, len(_HEAD) + 64 - _TAIL)
_SIGNED_PART: Final = slice(-len(_AFTER) - 128, -len(_AFTER))
ALTERED: Final = (
    "the file is not what the ledger wrote: put the last whole copy back, then replay the rows that the "
    "mirror has, or write the cap off"
)
TORN: Final = (
    "its last line was never finished, and nothing was done on its account: replay it from the mirror, or "
    "cut it off in your name with `wardround ledger mend`"
)


@dataclass(frozen=True)
class Record:
    """Which record the lines are of.

    Attributes:
        name: In messages, such as `ledger`.
        tag: Of what is signed, so that a row of one record never passes for one of another.
        altered: What to do where it is not what its site wrote.
    """

    name: str
    tag: str
    altered: str


LEDGER: Final = Record("ledger", "wardround ledger row 1", ALTERED)


@dataclass
class Chain:
    """Lines that follow each other.

    Attributes:
        lines: One a row, without their ends.
        record: Which record they are of.
    """

    lines: list[bytes] = field(default_factory=list)
    record: Record = LEDGER

    def __len__(self) -> int:
        return len(self.lines)

    def body(self, row: int) -> bytes:
        """What a row says."""
        return self.lines[row][_BODY]

    def head(self, row: int) -> str:
        """Its head, in hex: stands for it and all rows before it."""
        return self.lines[row][_HEAD_PART].decode()

    def line(self, body: bytes, sign: Callable[[bytes], bytes]) -> bytes:
        """The line that this body would be next, with its end; the chain stays as it is."""
        head = hashlib.sha256(self._before(len(self)) + body).hexdigest()
        return _line(body, head.encode(), sign(self._statement(head)).hex().encode()) + b"\n"

    def take(self, line: bytes) -> bytes:
        """Add one line, without its end; returns its body.

        Raises:
            StorageError: It does not follow.
        """
        self.lines += followed([line], self._before(len(self)), len(self), self.record)
        return line[_BODY]

    def check_last(self, key: str) -> None:
        """Check the last signature, which vouches for all rows; names the first bad row where it does not.

        Raises:
            StorageError: A signature is not that of the ledger's key.
        """
        if self.lines and not self._is_signed(len(self) - 1, key):
            self.check_signatures(key)

    def check_signatures(self, key: str, start: int = 0) -> None:
        """Check every signature from row `start` on.

        Raises:
            StorageError: One is not that of the ledger's key; names the row.
        """
        for row in range(start, len(self)):
            if not self._is_signed(row, key):
                raise StorageError(
                    f"row {row} of the {self.record.name} is not signed by its key",
                    found="another signature", expected=f"one by the key {key[:12]}…",
                    remedy=self.record.altered,
                )  # fmt: skip

    def _is_signed(self, row: int, key: str) -> bool:
        written = self.lines[row][_SIGNED_PART]
        try:
            signature = bytes.fromhex(written.decode())
            public = Ed25519PublicKey.from_public_bytes(bytes.fromhex(key))
            public.verify(signature, self._statement(self.head(row)))
        except (InvalidSignature, ValueError):
            return False
        return signature.hex().encode() == written  # hex has two ways to write a letter

    def _before(self, row: int) -> bytes:
        return _bound(self.lines[row - 1]) if row else b""

    def _statement(self, head: str) -> bytes:
        return framed(self.record.tag, head)


def followed(lines: list[bytes], before: bytes, row: int, record: Record = LEDGER) -> list[bytes]:
    """The lines, if each follows from the one before it.

    Raises:
        StorageError: One does not; names its row.
    """
    sha256 = hashlib.sha256
    for number, line in enumerate(lines, start=row):
        body = line[_BODY]
        head = sha256(before + body).hexdigest().encode()
        signature = line[_SIGNED_PART]
        # Written anew and compared as a whole, so that no byte of the line is left unchecked.
        if line != _line(body, head, signature):
            raise StorageError(
                f"row {number} of the {record.name} does not follow from those before it",
                found="another line", expected="the line that was written there", remedy=record.altered,
            )  # fmt: skip
        before = head + signature
    return lines


def whole_lines(data: bytes) -> tuple[bytes, bytes]:
    """The bytes up to the last end of a line, and what stands after it: nothing, or a torn line."""
    end = data.rfind(b"\n") + 1
    return data[:end], data[end:]


def chained(data: bytes, record: Record = LEDGER) -> Chain:
    """The chain of whole lines.

    Raises:
        StorageError: There are none, or a row was altered, moved, removed, repeated or inserted; names it.
    """
    chain = Chain(followed(data.split(b"\n")[:-1], b"", 0, record), record)
    if not chain.lines:
        raise StorageError(
            f"the {record.name} is empty", expected="at least its row 0", remedy=record.altered
        )
    return chain


def _line(body: bytes, head: bytes, signature: bytes) -> bytes:
    return b'{"body":%b,"head":"%b","signature":"%b"}' % (body, head, signature)


def _bound(line: bytes) -> bytes:
    return line[_HEAD_PART] + line[_SIGNED_PART]
