"""A backup that was put back: heads and mirror notice it; rows are replayed, or the cap written off."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from restored_ledger import IDS, SIGNED, last, restore

from wardround.client.ledger.commands import add_mirror
from wardround.client.ledger.heads import BLINDED_BYTES, Head
from wardround.client.ledger.ledger import Ledger
from wardround.client.ledger.policy import BudgetPolicy
from wardround.client.ledger.reading import verify
from wardround.client.ledger.repair import mend, replay
from wardround.client.ledger.row_file import FILE
from wardround.core.errors import (
    PeerError,
    RolledBackError,
    StorageError,
)
from wardround.privacy.secagg.secret import Secret

# --- the mirror


def test_every_row_is_in_the_mirror_and_the_key_is_not(backup: Path, folder: Path, mirror: Path) -> None:
    """Rows and lists, word for word."""
    assert (mirror / FILE).read_bytes() == (folder / FILE).read_bytes()
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*")}
    assert {path.relative_to(mirror).as_posix() for path in mirror.rglob("*")} == names - {"ledger.key"}
    assert verify(folder, mirror=mirror).mirror == 0


def test_a_mirror_that_is_ahead_keeps_a_restored_ledger_closed(
    backup: Path, folder: Path, mirror: Path
) -> None:
    """The remedy is named; looking at it without its mirror notices nothing, and says so on its page."""
    restore(folder, backup)
    for look in (lambda: Ledger.open(folder, mirror=mirror), lambda: verify(folder, mirror=mirror)):
        with pytest.raises(RolledBackError, match=r"(?s)put back to an older copy.*ledger replay"):
            look()


@pytest.mark.parametrize("restored", [False, True])
def test_a_mirror_that_is_missing_is_not_made_anew_unasked(
    backup: Path, folder: Path, mirror: Path, tmp_path: Path, restored: bool, asked: Any
) -> None:
    """Its disk is not mounted: beside an empty place a ledger that was put back would pass as whole."""
    if restored:
        folder.rename(tmp_path / "later")
        backup.rename(folder)
    away = mirror.rename(tmp_path / "away")
    for empty in (False, True):
        if empty:
            mirror.mkdir()
        with pytest.raises(StorageError, match=r"(?s)mirror is not there.*wardround ledger mirror"):
            Ledger.open(folder, mirror=mirror)
        with pytest.raises(StorageError):
            verify(folder, mirror=mirror)
        assert not mirror.exists() or not [*mirror.iterdir()]
    mirror.rmdir()
    away.rename(mirror)
    if restored:
        with pytest.raises(RolledBackError):
            Ledger.open(folder, mirror=mirror)
    else:
        Ledger.open(folder, mirror=mirror).close()
    new = tmp_path / "new mirror"
    add_mirror(folder, new)
    assert verify(folder, mirror=new).mirror == 0
    with pytest.raises(StorageError, match="mirror already"):
        add_mirror(folder, new)
    with Ledger.open(folder, mirror=new) as ledger:
        asked.reserve(ledger, ledger.source("ward", IDS), 9)
    assert (new / FILE).read_bytes() == (folder / FILE).read_bytes()


def test_replayed_from_the_mirror_it_is_as_it_was(
    backup: Path, folder: Path, mirror: Path, asked: Any
) -> None:
    """Lists of units included; and then there is nothing to replay."""
    whole, head = (folder / FILE).read_bytes(), last(folder)
    restore(folder, backup)
    assert replay(folder, mirror).rows == 4
    assert ((folder / FILE).read_bytes(), last(folder)) == (whole, head)
    with Ledger.open(folder, mirror=mirror) as ledger:
        assert ledger.sealed(run="run", round=3, stage=0) == "11" * 32
        assert asked.reserve(ledger, ledger.source("ward", IDS), 3).again
        assert len(ledger.book.sources) == 2
    with pytest.raises(StorageError, match="has no row that the ledger lacks"):
        replay(folder, mirror)


def test_a_torn_line_gives_way_to_the_mirrors(backup: Path, folder: Path, mirror: Path) -> None:
    """Nobody has to sign for it: the mirror proves what it was."""
    whole = (folder / FILE).read_bytes()
    (folder / FILE).write_bytes(whole[:-40])
    with pytest.raises(StorageError, match="torn line"):
        Ledger.open(folder, mirror=mirror)
    with pytest.raises(RolledBackError, match="ledger replay"):
        mend(folder, **SIGNED, mirror=mirror)
    assert replay(folder, mirror).rows == 1
    assert (folder / FILE).read_bytes() == whole


def test_a_torn_line_that_the_mirror_lacks_is_not_replayed(backup: Path, folder: Path, mirror: Path) -> None:
    """It stays until somebody cuts it off."""
    with (folder / FILE).open("ab") as file:
        file.write(b'{"body":')
    with pytest.raises(StorageError, match="no row that the ledger lacks"):
        replay(folder, mirror)
    assert (folder / FILE).read_bytes().endswith(b'{"body":')
    mend(folder, **SIGNED, mirror=mirror)
    Ledger.open(folder, mirror=mirror).close()


def test_only_rows_of_this_ledger_are_replayed(
    backup: Path, folder: Path, mirror: Path, tmp_path: Path, policy: BudgetPolicy, asked: Any
) -> None:
    """Not another ledger's, not altered ones, not without their lists; and then nothing is written."""
    restore(folder, backup)
    before = (folder / FILE).read_bytes()
    with Ledger.create(tmp_path / "other", policy, units=10) as other:
        asked.reserve(other, other.source("ward", IDS))
    with pytest.raises(RolledBackError, match="other rows than the ledger"):
        replay(folder, tmp_path / "other")
    rows = (mirror / FILE).read_bytes()
    (mirror / FILE).write_bytes(rows.replace(b'"round":3', b'"round":4'))
    with pytest.raises(StorageError, match="does not follow"):
        replay(folder, mirror)
    line = rows.splitlines(keepends=True)[-1]
    place = line.index(b'"signature":"') + 20
    forged = line[:place] + (b"0" if line[place : place + 1] != b"0" else b"1") + line[place + 1 :]
    (mirror / FILE).write_bytes(rows.removesuffix(line) + forged)
    with pytest.raises(StorageError, match="row 6 of the ledger is not signed"):
        replay(folder, mirror)
    (mirror / FILE).write_bytes(rows)
    shutil.rmtree(mirror / "units")
    with pytest.raises(StorageError, match="is missing"):
        replay(folder, mirror)
    assert (folder / FILE).read_bytes() == before


def test_a_mirror_that_is_behind_is_brought_level(backup: Path, folder: Path, mirror: Path) -> None:
    """When it was away for a while, a crash came between the two writes, or it is made later."""
    whole = (folder / FILE).read_bytes()
    for kept in (0, 400, len(whole) - 1):
        (mirror / FILE).write_bytes(whole[:kept])
        Ledger.open(folder, mirror=mirror).close()
        assert (mirror / FILE).read_bytes() == whole
    rows = whole.splitlines(keepends=True)
    (mirror / FILE).write_bytes(b"".join(rows[:3]) + b"\0\0\0")
    Ledger.open(folder, mirror=mirror).close()
    shutil.rmtree(mirror)
    add_mirror(folder, mirror)
    assert (mirror / FILE).read_bytes() == whole
    assert len(list((mirror / "units").iterdir())) == 2


def test_another_ledgers_mirror_is_refused_and_left_as_it_is(
    backup: Path, folder: Path, mirror: Path, tmp_path: Path, policy: BudgetPolicy
) -> None:
    """Nothing is written to it."""
    other = tmp_path / "other mirror"
    Ledger.create(tmp_path / "other", policy, units=10, mirror=other).close()
    before = (other / FILE).read_bytes()
    with pytest.raises(RolledBackError, match="other rows than the ledger"):
        Ledger.open(folder, mirror=other)
    assert [path.name for path in other.rglob("*")] == [FILE]
    assert (other / FILE).read_bytes() == before


def test_a_mirror_that_fails_stops_the_work_and_the_charge_stands(
    folder: Path, policy: BudgetPolicy, mirror: Path, asked: Any
) -> None:
    """Nobody is told that a row is safe that is in one place only; once it is back, the same draw goes on."""
    with Ledger.create(folder, policy, units=1000, mirror=mirror) as ledger:
        source = ledger.source("ward", IDS)
        away = mirror.with_name("away")
        mirror.rename(away)
        for _ in range(2):
            with pytest.raises(StorageError):
                asked.reserve(ledger, source)
        with pytest.raises(StorageError):
            ledger.seal(run="run", round=1, stage=0, digest="11" * 32)
        away.rename(mirror)
        assert asked.reserve(ledger, source).again
        assert (mirror / FILE).read_bytes() == (folder / FILE).read_bytes()


# --- heads


def test_a_head_that_peers_kept_keeps_a_restored_ledger_from_working(
    backup: Path, folder: Path, asked: Any
) -> None:
    """Every later call is refused as well; after a replay it passes."""
    with Ledger.open(folder) as ledger:
        old, seen = ledger.blinded_head("north"), ledger.head()
    aside = folder.with_name("aside")
    shutil.copytree(folder, aside)
    restore(folder, backup)
    with Ledger.open(folder) as ledger:
        source = ledger.source("ward", IDS)
        ledger.require_head([ledger.head()])
        assert ledger.seen_head(old, "north") == seen
        with pytest.raises(
            RolledBackError, match=r"(?s)an older copy.*3 rows.*7 rows.*ledger replay.*write-off"
        ):
            ledger.require_head([ledger.head(), seen])
        for call in (
            lambda: asked.reserve(ledger, source, 2),
            lambda: ledger.source("new", ["z"]),
            lambda: ledger.seal(run="run", round=1, stage=0, digest="11" * 32),
            lambda: ledger.release_without_privacy(source, run="r", plan=asked.PLAN),
        ):
            with pytest.raises(RolledBackError):
                call()
    assert replay(folder, aside).rows == 4
    with Ledger.open(folder) as ledger:
        ledger.require_head([seen])
        asked.reserve(ledger, ledger.source("ward", IDS), 9)
        ledger.require_head([seen])


def test_a_ledger_that_went_two_ways_is_refused(backup: Path, folder: Path, asked: Any) -> None:
    """A restored copy that worked on before anybody looked has as many rows, and others."""
    seen = last(folder)
    restore(folder, backup)
    with Ledger.open(folder) as ledger:
        for round in range(50, 56):
            asked.reserve(ledger, ledger.source("ward", IDS), round)
        assert ledger.head().rows > seen.rows
        with pytest.raises(RolledBackError, match="went two ways"):
            ledger.require_head([seen])


def test_peers_learn_nothing_from_a_head(ledger: Ledger, asked: Any) -> None:
    """It has one length, is another one each time, and opens for the site and that consortium alone."""
    first = [ledger.blinded_head("north") for _ in range(3)]
    asked.reserve(ledger, ledger.source("ward", IDS))
    shown = [*first, ledger.blinded_head("north"), ledger.blinded_head("south")]
    assert len(set(shown)) == 5
    assert {len(head) for head in shown} == {BLINDED_BYTES} == {64}
    assert ledger.seen_head(first[0], "north").rows == 1
    assert ledger.seen_head(shown[3], "north") == ledger.head()
    for wrong in (shown[4], first[0][:-1], b"", bytes(BLINDED_BYTES)):
        with pytest.raises(PeerError, match="no head of this ledger"):
            ledger.seen_head(wrong, "north")


@pytest.mark.parametrize(
    "head", [Head(0, 1, "ab" * 28), Head(65535, 2**48 - 1, "00" * 28), Head(3, 2**32, "ff" * 28)]
)
def test_a_head_is_seen_as_it_was_shown(head: Head) -> None:
    """Of ledgers of any length."""
    key = Secret.fresh()
    assert Head.seen(head.blinded(key), key) == head
