"""A site's record of what left it: nothing in it can be changed, and it costs milliseconds."""

from __future__ import annotations

import hashlib
import shutil
import stat
from pathlib import Path
from typing import Any

import pytest
from full_disk import full_disk

from wardround.client.history import history as module
from wardround.client.history.history import (
    FILE,
    HEAD,
    KEY,
    RESERVE,
    RESERVES,
    History,
    require_noted,
    verify,
)
from wardround.client.history.rows import Left
from wardround.core.errors import StorageError


def left(number: int = 0, **changes: Any) -> Left:
    """A message."""
    digest = hashlib.sha256(str(number).encode()).hexdigest()
    fields: dict[str, Any] = {
        "kind": "reply",
        "run": "one",
        "round": 1,
        "bytes": 100 + number,
        "digest": digest,
    }
    return Left(**(fields | changes))


def written(folder: Path, rows: int) -> History:
    """A history of so many messages."""
    history = History.open(folder, "north", now=lambda: 1000.0)
    for number in range(rows):
        history.record(left(number))
    return history


def lines(folder: Path) -> list[bytes]:
    """With their ends."""
    return (folder / FILE).read_bytes().splitlines(keepends=True)


def test_what_left_is_there_in_its_order(tmp_path: Path) -> None:
    """Chained and signed, for its owner alone, and found again by another process."""
    folder = tmp_path / "history"
    history = written(folder, 3)
    found = verify(folder)
    assert [row.left for row in found.sent] == [left(number) for number in range(3)]
    assert [row.row for row in found.sent] == [1, 2, 3]
    assert found.head == history.head
    assert (found.begun.site, found.torn) == ("north", False)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}
    reserve = [f"{RESERVE}.{number}" for number in range(RESERVES)]
    assert sorted(path.name for path in folder.iterdir()) == sorted([FILE, HEAD, KEY, *reserve])
    again = History.open(folder, "north")
    again.record(left(3))
    history.record(left(4))  # it catches up with what the other process wrote
    assert [row.left.bytes for row in verify(folder).sent] == [100, 101, 102, 103, 104]


def test_a_byte_that_was_changed_anywhere_is_noticed(tmp_path: Path) -> None:
    """In a row or in the head; by whoever looks, and by the supervisor that would go on with it."""
    folder = tmp_path / "history"
    written(folder, 2)
    for name in (FILE, HEAD):
        whole = (folder / name).read_bytes()
        for place in range(0, len(whole), 7):
            changed = whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :]
            (folder / name).write_bytes(changed)
            with pytest.raises(StorageError):
                verify(folder)
            if place % 5 == 0:
                with pytest.raises(StorageError):
                    History.open(folder, "north")
            assert (folder / name).read_bytes() == changed, "nothing is mended by looking"
        (folder / name).write_bytes(whole)
    verify(folder)


@pytest.mark.parametrize(
    ("what", "named"),
    [
        ("edited", "row 2 of the history does not follow"),
        ("removed", "row 2 of the history does not follow"),
        ("inserted", "row 2 of the history does not follow"),
        ("repeated", "row 4 of the history does not follow"),
        ("swapped", "row 2 of the history does not follow"),
        ("cut", "the end of the history is missing"),
        ("cut and torn", "the end of the history is missing"),
        ("emptied", "the history is empty"),
        ("gone", "there is no"),
    ],
)
def test_whoever_changes_the_record_is_named(tmp_path: Path, what: str, named: str) -> None:
    """Whatever was done, and to which row."""
    folder = tmp_path / "history"
    written(folder, 3)
    rows = lines(folder)
    other = written(tmp_path / "other", 3)
    changed = {
        "edited": [*rows[:2], rows[2].replace(b'"bytes":101', b'"bytes":001'), rows[3]],
        "removed": [*rows[:2], rows[3]],
        "inserted": [*rows[:2], lines(other.folder)[2], *rows[2:]],
        "repeated": [*rows, rows[3]],
        "swapped": [rows[0], rows[1], rows[3], rows[2]],
        "cut": rows[:3],
        "cut and torn": [*rows[:3], rows[3][:-1]],
        "emptied": [],
        "gone": [],
    }[what]
    (folder / FILE).write_bytes(b"".join(changed))
    if what == "gone":
        (folder / FILE).unlink()
    with pytest.raises(StorageError, match=named):
        verify(folder)
    with pytest.raises(StorageError, match=named):
        History.open(folder, "north")


def test_a_row_by_another_key_is_refused(tmp_path: Path) -> None:
    """Chained as it should be, it is not signed by this history's key."""
    folder, other = tmp_path / "history", tmp_path / "other"
    history = written(folder, 1)
    shutil.copytree(folder, other)
    (other / KEY).write_bytes(bytes(32))
    stranger = History.open(folder, "north")
    stranger._signing = module._signing_key(other)
    stranger.chain.lines = list(history.chain.lines)
    line = stranger.chain.line(history.chain.body(1).replace(b'"row":1', b'"row":2'), stranger._signing.sign)
    with (folder / FILE).open("ab") as file:
        file.write(line)
    for look in (
        lambda: verify(folder),
        lambda: History.open(folder, "north"),
        lambda: history.record(left(9)),
    ):
        with pytest.raises(StorageError, match="row 2 of the history is not signed by its key"):
            look()


def test_a_whole_older_copy_is_noticed_by_who_noted_a_head(tmp_path: Path) -> None:
    """Nothing in the folder shows that all of it went back together."""
    folder, copy = tmp_path / "history", tmp_path / "copy"
    history = written(folder, 2)
    shutil.copytree(folder, copy)
    history.record(left(2))
    noted = history.head.text
    require_noted(noted, folder)
    history.record(left(3))
    require_noted(noted, folder)
    verify(copy)
    for wrong in (noted, noted[:-1] + "x", "0-" + "0" * 32, "", "nonsense"):
        with pytest.raises(StorageError, match="not that of which this head was noted"):
            require_noted(wrong, copy)


def test_a_kill_costs_nothing_that_left(tmp_path: Path) -> None:
    """Over a row: it goes, since nothing left on its account. Between a row and its head: the row stays."""
    folder = tmp_path / "history"
    history = written(folder, 2)
    with (folder / FILE).open("ab") as file:
        file.write(b'{"body":{"at":1')
    found = verify(folder)
    assert found.torn
    assert len(found.sent) == 2
    head = (folder / HEAD).read_bytes()
    History.open(folder, "north").record(left(2))
    (folder / HEAD).write_bytes(head)
    assert [row.left.bytes for row in verify(folder).sent] == [100, 101, 102]
    History.open(folder, "north")
    (folder / FILE).write_bytes(b"".join(lines(folder)[:3]))
    with pytest.raises(StorageError, match="the end of the history is missing"):
        verify(folder)
    with pytest.raises(StorageError, match=r"shorter|missing"):
        history.record(left(5))


@pytest.mark.parametrize("file", [FILE, HEAD])
def test_a_full_disk_lets_nothing_leave(tmp_path: Path, file: str) -> None:
    """Neither a row nor half of one stays; with space again it goes on."""
    folder = tmp_path / "history"
    history = written(folder, 1)
    with full_disk(folder, lambda path: file in path.name) as disk:
        for _ in range(2):
            with pytest.raises(StorageError, match="No space left"):
                history.record(left(1))
        assert disk.refused
    assert len(verify(folder).sent) == 1
    history.record(left(1))
    assert [row.left.bytes for row in verify(folder).sent] == [100, 101]


def test_a_full_disk_has_room_for_a_few_rows_more(tmp_path: Path) -> None:
    """So that a site can still say that its disk is full; with space again the room is kept free anew."""
    folder = tmp_path / "history"
    history = written(folder, 1)
    given_up = 0

    def full(path: Path) -> bool:
        """Until so much of the reserve was given up, as if the rest of the disk filled up at once."""
        return len(list(folder.glob(f"{RESERVE}.*"))) >= RESERVES - given_up

    with full_disk(folder, full):
        for number in range(1, RESERVES + 1):
            history.record(left(number))
            given_up = number
        with pytest.raises(StorageError, match="No space left"):
            history.record(left(99))
    assert len(verify(folder).sent) == 1 + RESERVES
    history.record(left(0))
    assert len(list(folder.glob(f"{RESERVE}.*"))) == RESERVES


def test_another_sites_history_is_not_gone_on_with(tmp_path: Path) -> None:
    """Nor one whose key is lost."""
    folder = tmp_path / "history"
    written(folder, 1)
    with pytest.raises(StorageError, match="not the history of this site"):
        History.open(folder, "south")
    (folder / KEY).unlink()
    with pytest.raises(StorageError):
        History.open(folder, "north")
    verify(folder)  # no key is needed
