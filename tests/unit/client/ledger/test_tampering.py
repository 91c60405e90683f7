"""Whoever alters, moves, removes, repeats or inserts a row is found out, by the row's number."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from wardround.client.ledger.chain import Chain, chained, whole_lines
from wardround.client.ledger.keys import KEY_FILE, LedgerKeys
from wardround.client.ledger.ledger import Ledger
from wardround.client.ledger.reading import verify
from wardround.client.ledger.row_file import FILE
from wardround.client.ledger.units import FOLDER
from wardround.core.errors import StorageError

IDS = [f"patient {i}" for i in range(5)]
ROWS = 6


@pytest.fixture
def lines(ledger: Ledger, folder: Path, asked: Any) -> list[bytes]:
    """Of a ledger with six rows, which is closed: opened, source, three reservations, a seal."""
    source = ledger.source("ward", IDS)
    for round in range(1, 4):
        asked.reserve(ledger, source, round)
    ledger.seal(run="run", round=1, stage=0, digest="11" * 32)
    ledger.close()
    found = (folder / FILE).read_bytes().splitlines(keepends=True)
    assert len(found) == ROWS
    return found


def refused(folder: Path, lines: list[bytes], match: str) -> None:
    """Neither opened nor verified."""
    (folder / FILE).write_bytes(b"".join(lines))
    for look in (lambda: Ledger.open(folder).close(), lambda: verify(folder)):
        with pytest.raises(StorageError, match=match) as refusal:
            look()
        assert refusal.value.remedy


Edit = Callable[[list[bytes]], list[bytes]]
EDITS: dict[str, tuple[Edit, int]] = {
    "removed": (lambda rows: rows[:2] + rows[3:], 2),
    "the first one removed": (lambda rows: rows[1:], 0),
    "moved": (lambda rows: [*rows[:2], rows[3], rows[2], *rows[4:]], 2),
    "repeated": (lambda rows: [*rows[:3], rows[2], *rows[3:]], 3),
    "repeated at the end": (lambda rows: [*rows, rows[-1]], ROWS),
    "inserted": (lambda rows: [*rows[:4], rows[0], *rows[4:]], 4),
    "an empty line": (lambda rows: [*rows[:4], b"\n", *rows[4:]], 4),
    "blank space": (lambda rows: [*rows[:4], rows[4].replace(b":", b": ", 1), *rows[5:]], 4),
}


@pytest.mark.parametrize("name", EDITS)
def test_rows_that_do_not_follow_are_refused_by_number(folder: Path, lines: list[bytes], name: str) -> None:
    """The row that is the first not to follow."""
    edit, row = EDITS[name]
    refused(folder, edit(lines), f"row {row} of the ledger does not follow")


def test_a_bit_turned_anywhere_is_refused(folder: Path, lines: list[bytes]) -> None:
    """In every byte of the file: body, head, signature or what stands between them."""
    whole = b"".join(lines)
    key = json.loads(lines[0])["body"]["key"]
    assert verify(folder).rows == ROWS

    def passes(data: bytes) -> bool:
        rows, torn = whole_lines(data)
        try:
            chained(rows).check_last(key)
        except StorageError:
            return False
        return not torn

    assert passes(whole)
    for place in range(len(whole)):
        for bit in (1 << place % 5, 0x20):
            altered = bytearray(whole)
            altered[place] ^= bit
            assert not passes(bytes(altered)), f"byte {place} was {whole[place : place + 1]!r}"


def resigned(lines: list[bytes], sign: Callable[[bytes], bytes], edit: Callable[[Any, int], None]) -> bytes:
    """What somebody makes who can compute every hash, and sign with a key of their own."""
    chain, made = Chain(), b""
    for number, line in enumerate(lines):
        body = json.loads(line)["body"]
        edit(body, number)
        encoded = json.dumps(body, sort_keys=True, separators=(",", ":")).encode()
        new = chain.line(encoded, sign)
        chain.take(new[:-1])
        made += new
    return made


def cheaper(body: Any, number: int) -> None:
    """Row 3 costs less."""
    if number == 3:
        body["terms"]["mechanism"]["steps"] = 1


def test_a_forger_with_another_key_is_refused_by_row(folder: Path, lines: list[bytes]) -> None:
    """All hashes fit; the signatures are another key's, and the first of them is named."""
    forged = resigned(lines, Ed25519PrivateKey.generate().sign, cheaper)
    assert len(chained(forged)) == ROWS
    refused(folder, [forged], "row 0 of the ledger is not signed by its key")


def test_a_forger_who_keeps_old_signatures_is_refused_by_row(folder: Path, lines: list[bytes]) -> None:
    """Deterministic signatures of rows that did not change stay right: the altered one is named."""
    old = [bytes.fromhex(json.loads(line)["signature"]) for line in lines]
    turn = iter(old)
    forged = resigned(lines, lambda _: next(turn), cheaper)
    refused(folder, [forged], "row 3 of the ledger is not signed by its key")


def test_a_forged_ledger_with_its_own_key_is_another_ledger(folder: Path, lines: list[bytes]) -> None:
    """Row 0 names the key; the key file does not fit, and a third party has the key from elsewhere."""
    other = Ed25519PrivateKey.generate()
    public = other.public_key().public_bytes_raw().hex()

    def mine(body: Any, number: int) -> None:
        cheaper(body, number)
        if number == 0:
            body["key"] = public

    (folder / FILE).write_bytes(resigned(lines, other.sign, mine))
    with pytest.raises(StorageError, match="signed by another key"):
        Ledger.open(folder)
    known = json.loads(lines[0])["body"]["key"]
    with pytest.raises(StorageError, match="the ledger of another key"):
        verify(folder, key=known)


def test_another_key_does_not_open_it(folder: Path, lines: list[bytes], tmp_path: Path) -> None:
    """Under another secret all units would look new. Neither key is shown."""
    mine = LedgerKeys.read(folder)
    (folder / KEY_FILE).unlink()
    with pytest.raises(StorageError, match=r"(?s)there is no .*put the ledger.key back"):
        Ledger.open(folder)
    assert not (folder / KEY_FILE).exists(), "keys were made for a ledger that has others"
    other = LedgerKeys.make(folder)
    with pytest.raises(StorageError, match=r"(?s)signed by another key.*put the ledger.key back") as refusal:
        Ledger.open(folder)
    for keys in (mine, other):
        assert keys._root.reveal().hex() not in str(refusal.value)
        assert keys._root.reveal().hex() not in repr(keys)
        assert repr(keys) == f"LedgerKeys(public={keys.public[:12]}…)"
    assert mine.check != other.check


def test_another_secret_behind_the_hashes_is_refused(
    folder: Path, lines: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The check value of row 0 tells, also where the signing key is right."""
    monkeypatch.setattr(LedgerKeys, "check", "00" * 32)
    with pytest.raises(StorageError, match="hashed under another secret"):
        Ledger.open(folder)
    with pytest.raises(StorageError, match="hashed under another secret"):
        verify(folder)


def test_a_list_of_units_that_was_altered_or_lost_is_refused(folder: Path, lines: list[bytes]) -> None:
    """Its digest is in the chain."""
    (path,) = (folder / FOLDER).iterdir()
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(StorageError, match="was altered"):
        Ledger.open(folder)
    path.unlink()
    with pytest.raises(StorageError, match=r"(?s)is missing.*from the mirror"):
        Ledger.open(folder)


@pytest.mark.parametrize("torn", [b"{", b'{"body":{"at":18', b"\0" * 40])
def test_a_torn_last_line_is_refused_and_not_guessed(folder: Path, lines: list[bytes], torn: bytes) -> None:
    """Neither counted nor cut off; the remedy is named."""
    refused(folder, [*lines, torn], r"(?s)ends in a torn line.*mend")
    assert (folder / FILE).read_bytes().endswith(torn)


def test_a_last_line_without_its_end_is_torn(folder: Path, lines: list[bytes]) -> None:
    """Also where everything but the end of the line is there."""
    refused(folder, [*lines[:-1], lines[-1][:-1]], "ends in a torn line")


@pytest.mark.parametrize("content", [b"", b"\n", b"no ledger\n"])
def test_what_is_no_ledger_is_refused(folder: Path, lines: list[bytes], content: bytes) -> None:
    """An emptied file is not a new ledger."""
    refused(folder, [content], "is empty|does not follow")


def test_a_missing_ledger_is_not_made(folder: Path, lines: list[bytes]) -> None:
    """To begin afresh would be a fresh budget."""
    (folder / FILE).unlink()
    with pytest.raises(StorageError, match=r"(?s)there is no ledger in .*from its backup"):
        Ledger.open(folder)
    shutil.rmtree(folder)
    with pytest.raises(StorageError, match="there is no ledger in"):
        Ledger.open(folder)


def test_a_row_of_a_later_version_is_not_read(folder: Path, lines: list[bytes]) -> None:
    """A kind that this version does not know may charge something."""
    keys = LedgerKeys.read(folder)
    chain = chained(b"".join(lines))
    for body in (b'{"at":1,"kind":"refund","row":6}', b'{"at":1,"kind":"mend","row":6,"more":1}', b"[]"):
        refused(folder, [*lines, chain.line(body, keys.sign)], "row 6 of the ledger cannot be read")
    moved = chained(b"".join(lines)).body(2)
    refused(folder, [*lines, chain.line(moved, keys.sign)], r"(?s)row 6 of the ledger is another one.*row 2")
    body = b'{"at":1,"digest":"%b","kind":"seal","round":1,"row":7,"run":"r","stage":0}' % (b"11" * 32)
    refused(folder, [*lines, chain.line(body, keys.sign)], r"(?s)row 6 of the ledger is another one.*row 7")


def test_rows_about_what_is_not_there_are_refused(folder: Path, lines: list[bytes], asked: Any) -> None:
    """Signed by the ledger's own key: written by a version with an error."""
    keys = LedgerKeys.read(folder)
    chain = chained(b"".join(lines))
    good = json.loads(lines[2])["body"] | {"row": ROWS, "draw": "d"}
    bodies = [
        good | {"terms": good["terms"] | {"source": 1}},
        good | {"terms": good["terms"] | {"source": -1}},
        json.loads(lines[0])["body"] | {"row": ROWS},
        {"at": 1, "kind": "settle", "row": ROWS, "run": "r", "round": 1, "stage": 0, "draw": "d", "steps": 1},
    ]
    for body in bodies:
        encoded = json.dumps(body, sort_keys=True, separators=(",", ":")).encode()
        refused(folder, [*lines, chain.line(encoded, keys.sign)], "row 6 of the ledger is about something")


def test_the_chain_can_be_checked_by_hand(folder: Path, lines: list[bytes]) -> None:
    """As the page says: SHA-256 over the head and signature of the row before, and the body."""
    before = ""
    for line in lines:
        row = json.loads(line)
        body = json.dumps(row["body"], sort_keys=True, separators=(",", ":"))
        assert hashlib.sha256((before + body).encode()).hexdigest() == row["head"]
        before = row["head"] + row["signature"]
