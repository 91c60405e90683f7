"""The ledger on a disk: durable when a call returns, whole after any fault, one process at a time."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from wardround.client.ledger.book import Book
from wardround.client.ledger.ledger import Ledger
from wardround.client.ledger.policy import BudgetPolicy
from wardround.client.ledger.repair import mend
from wardround.client.ledger.row_file import FILE, RowFile
from wardround.core.errors import ConfigError, StorageError
from wardround.runtime import _durable

IDS = [f"patient {i}" for i in range(5)]
ROUNDS = (1, 2)
DIGEST = "11" * 32


class KilledError(BaseException):
    """The process ends here."""


def test_only_its_owner_reads_it(ledger: Ledger, folder: Path) -> None:
    """Whatever the umask: folders 0700, files 0600."""
    before = os.umask(0)
    try:
        ledger.source("ward", IDS)
    finally:
        os.umask(before)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in [folder, *folder.rglob("*")]}
    assert len(modes) == 5
    for name, mode in modes.items():
        assert mode == (0o700 if name in ("ledger", "units") else 0o600), name


def test_a_ledger_is_made_once(ledger: Ledger, folder: Path, policy: BudgetPolicy) -> None:
    """Never over one that is there, and whole or not at all."""
    ledger.close()
    before = (folder / FILE).read_bytes()
    with pytest.raises(StorageError, match="is there already"):
        Ledger.create(folder, policy, units=10)
    assert (folder / FILE).read_bytes() == before


def test_a_second_process_is_kept_out(ledger: Ledger, folder: Path) -> None:
    """And a second opening in the same one; it opens when the first has ended."""
    code = (
        "import sys\nfrom pathlib import Path\nfrom wardround.client.ledger.row_file import RowFile\n"
        "RowFile.open(Path(sys.argv[1]))"
    )
    command = [sys.executable, "-c", code, str(folder / FILE)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert "another process has" in done.stderr
    with pytest.raises(StorageError, match=r"(?s)another process has .* open.*one process a ledger"):
        Ledger.open(folder)
    ledger.close()
    Ledger.open(folder).close()


def test_a_forked_process_does_not_write(ledger: Ledger, asked: Any) -> None:
    """It would share the lock, and fork the chain."""
    source = ledger.source("ward", IDS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "getpid", lambda: 1)
        with pytest.raises(StorageError, match="forked from"):
            asked.reserve(ledger, source)
    asked.reserve(ledger, source)


@pytest.mark.parametrize("how", ["replaced", "appended", "cut", "removed"])
def test_a_file_that_somebody_else_touched_is_not_written(
    ledger: Ledger, folder: Path, asked: Any, how: str
) -> None:
    """A copy that was put back underneath an open ledger, above all."""
    source = ledger.source("ward", IDS)
    asked.reserve(ledger, source)
    path = folder / FILE
    content = path.read_bytes()
    if how == "replaced":
        path.rename(folder / "aside")
        path.write_bytes(content)
    elif how == "removed":
        path.unlink()
    elif how == "appended":
        with path.open("ab") as file:
            file.write(b"x")
    else:
        os.truncate(path, len(content) - 1)
    with pytest.raises(StorageError):
        asked.reserve(ledger, source, 2)


def test_threads_take_turns(ledger: Ledger, folder: Path, asked: Any) -> None:
    """Each of their rows is there."""
    source = ledger.source("ward", IDS)
    threads = [
        threading.Thread(target=lambda k=k: [asked.reserve(ledger, source, r, draw=f"{k}") for r in range(5)])
        for k in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    ledger.close()
    with Ledger.open(folder) as again:
        assert sum(len(held) for _, held in again.book.draws.everything()) == 20


def test_what_a_call_returned_from_has_been_synced(
    folder: Path, policy: BudgetPolicy, tmp_path: Path, asked: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both files, and the folders that name them: a power cut loses nothing that anybody was told."""
    synced: dict[int, int] = {}
    real = os.fsync

    def sync(descriptor: int) -> None:
        real(descriptor)
        found = os.fstat(descriptor)
        synced[found.st_ino] = found.st_size

    monkeypatch.setattr(os, "fsync", sync)
    mirror = tmp_path / "other disk" / "mirror"

    def check() -> None:
        for place in (folder, mirror):
            for path in [place.parent, place, *place.rglob("*")]:
                found = path.stat()
                assert found.st_ino in synced, path
                assert path.is_dir() or synced[found.st_ino] == found.st_size, path

    with Ledger.create(folder, policy, units=1000, mirror=mirror) as ledger:
        check()
        source = ledger.source("ward", IDS)
        check()
        for round in ROUNDS:
            reservation = asked.reserve(ledger, source, round)
            check()
            ledger.settle(reservation, 3)
            check()
            ledger.seal(run="run", round=round, stage=0, digest=DIGEST)
            check()


def test_what_a_killed_process_left_is_synced_before_it_is_believed(
    ledger: Ledger, folder: Path, asked: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A line may be in the file and not on the disk: the same draw, asked for again, stands on it."""
    asked.reserve(ledger, ledger.source("ward", IDS))
    ledger.close()
    synced = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(os.fstat(descriptor).st_ino))
    with Ledger.open(folder):
        assert (folder / FILE).stat().st_ino in synced


def work(folder: Path, mirror: Path | None, asked: Any, done: list[tuple[str, int]]) -> None:
    """Open, reserve, settle, seal; `done` is what a caller was told, or may have been."""
    with Ledger.open(folder, mirror=mirror) as ledger:
        source = ledger.source("ward", IDS)
        for round in ROUNDS:
            if ledger.sealed(run="run", round=round, stage=0):
                continue
            # A process that was stopped draws anew; its earlier draw stays charged.
            reservation = asked.reserve(ledger, source, round, draw=f"draw {len(done)}")
            done.append(("reserved", round))
            done.append(("settling", round))
            ledger.settle(reservation, 6)
            ledger.seal(run="run", round=round, stage=0, digest=DIGEST)
            done.append(("sealed", round))


def check(ledger: Ledger, done: list[tuple[str, int]]) -> None:
    """Nothing that anybody was told is missing, and nothing is charged too little."""
    for round in ROUNDS:
        reserved = done.count(("reserved", round))
        settling = done.count(("settling", round))
        held = ledger.book.draws.of(("run", round, 0))
        steps = sum(ledger.book.steps_left(("run", round, 0, charge.draw)) for charge in held)
        assert steps >= 10 * reserved - 4 * settling
        if ("sealed", round) in done:
            assert ledger.sealed(run="run", round=round, stage=0) == DIGEST
    total = sum(tally.steps.total() for tally in ledger.book.totals)
    assert total == sum(
        ledger.book.steps_left((*s, c.draw)) for s, h in ledger.book.draws.everything() for c in h
    )


@contextmanager
def failing(call: str, error: BaseException, after: int, *, part: bool = False) -> Iterator[list[int]]:
    """A call of the operating system that fails after so many that do not; a write may do a part first."""
    real, left = getattr(os, call), [after]

    def fail(*arguments: Any, **named: Any) -> Any:
        left[0] -= 1
        if left[0] < 0:
            if part:
                real(arguments[0], arguments[1][: len(arguments[1]) // 2])
            raise error
        return real(*arguments, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, call, fail)
        if isinstance(error, KilledError):  # who is killed does not tidy up
            patch.setattr(_durable, "_remove", lambda path: None)
            patch.setattr(RowFile, "cut", lambda self, size: None)
        yield left


FULL, BROKEN = OSError(errno.ENOSPC, "No space left on device"), OSError(errno.EIO, "Input/output error")
FAULTS = [
    *(("write", FULL, False, False), ("write", FULL, True, True)),
    *(("write", KilledError(), False, False), ("write", KilledError(), True, True)),
    *(("fsync", FULL, False, True), ("fsync", KilledError(), False, True)),
    *(("replace", FULL, False, False), ("replace", KilledError(), False, True)),
    *(("open", FULL, False, False), ("open", KilledError(), False, True)),
]
"""Call that fails, how, after a part of it was done, and whether there is a mirror."""


@pytest.mark.parametrize(("call", "error", "part", "mirrored"), FAULTS, ids=lambda value: repr(value)[:20])
def test_a_fault_at_any_step_loses_nothing(
    folder: Path,
    policy: BudgetPolicy,
    tmp_path: Path,
    asked: Any,
    call: str,
    error: BaseException,
    part: bool,
    mirrored: bool,
) -> None:
    """At the k-th call, for every k: afterwards everything that was told is there, and the work goes on."""
    reached = 0
    for after in range(200):
        place = folder / str(after)
        mirror = tmp_path / "mirror" / str(after) if mirrored else None
        Ledger.create(place, policy, units=1000).close()
        done: list[tuple[str, int]] = []
        with failing(call, error, after, part=part) as left:
            try:
                work(place, mirror, asked, done)
            except (StorageError, KilledError):
                reached += 1
        if left[0] >= 0:
            break
        try:
            Ledger.open(place, mirror=mirror).close()
        except StorageError as refusal:
            if "torn line" not in refusal.what or not isinstance(error, KilledError):
                raise
            mend(place, who="Dr Test", why="a kill", mirror=mirror)
        with Ledger.open(place, mirror=mirror) as ledger:
            check(ledger, done)
        work(place, mirror, asked, done)
        with Ledger.open(place, mirror=mirror) as ledger:
            check(ledger, done)
        if mirror is not None:
            assert (mirror / FILE).read_bytes() == (place / FILE).read_bytes()
    else:
        pytest.fail("the work never ended")
    assert reached == after, "a fault was swallowed"
    assert after >= (1 if call in ("replace", "open") else 6)


@pytest.mark.parametrize("part", [False, True])
def test_a_full_disk_leaves_nothing_of_the_line_and_the_ledger_goes_on(
    ledger: Ledger, folder: Path, asked: Any, part: bool
) -> None:
    """Nothing was believed; once there is room the same reservation is made."""
    source = ledger.source("ward", IDS)
    before = (folder / FILE).read_bytes()
    with failing("write", FULL, 0, part=part), pytest.raises(StorageError, match="cannot write"):
        asked.reserve(ledger, source)
    assert (folder / FILE).read_bytes() == before
    assert not asked.reserve(ledger, source).again
    assert len((folder / FILE).read_bytes().splitlines()) == 3


def test_a_short_write_is_a_full_disk(
    ledger: Ledger, folder: Path, asked: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is no error of the operating system, and half a line all the same."""
    source = ledger.source("ward", IDS)
    before, real = (folder / FILE).read_bytes(), os.write
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", lambda descriptor, line: real(descriptor, line[:30]))
        with pytest.raises(StorageError, match="No space left"):
            asked.reserve(ledger, source)
    assert (folder / FILE).read_bytes() == before


def test_a_line_that_cannot_be_cut_back_ends_the_process_part(
    ledger: Ledger, folder: Path, asked: Any
) -> None:
    """Nothing more is written by it; the next one finds the torn line, and refuses it."""
    source = ledger.source("ward", IDS)
    with (
        failing("write", FULL, 0, part=True),
        failing("ftruncate", BROKEN, 0),
        pytest.raises(StorageError, match="cannot write"),
    ):
        asked.reserve(ledger, source)
    for round in (1, 2):
        with pytest.raises(StorageError, match="could not be written, nor cut back"):
            asked.reserve(ledger, source, round)
    ledger.close()
    with pytest.raises(StorageError, match="torn line"):
        Ledger.open(folder)


@pytest.mark.parametrize("where", ["before the file returns", "after it"])
def test_an_interrupt_between_file_and_memory_ends_the_process_part(
    ledger: Ledger, folder: Path, asked: Any, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """A chain that lacks its last row must not go on; the row counts once it is opened anew."""
    source, real = ledger.source("ward", IDS), RowFile.append

    def interrupted(self: Any, *arguments: Any) -> None:
        if isinstance(self, RowFile):
            real(self, *arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(*((RowFile, "append") if where.startswith("before") else (Book, "take")), interrupted)
        with pytest.raises(KeyboardInterrupt):
            asked.reserve(ledger, source)
    with pytest.raises(StorageError, match="interrupted while it wrote"):
        asked.reserve(ledger, source, 2)
    ledger.close()
    with Ledger.open(folder) as again:
        assert asked.reserve(again, again.source("ward", IDS)).again


def test_a_torn_line_is_cut_off_in_somebodys_name(ledger: Ledger, folder: Path, asked: Any) -> None:
    """With what was cut on record, by its digest; a whole ledger is not mended."""
    source = ledger.source("ward", IDS)
    asked.reserve(ledger, source)
    ledger.close()
    with pytest.raises(ConfigError, match="no line of this ledger is torn"):
        mend(folder, who="Dr Test", why="none")
    with (folder / FILE).open("ab") as file:
        file.write(b'{"body":{"at')
    with pytest.raises(ConfigError, match="a person is missing"):
        mend(folder, who=" ", why="a kill")
    mend(folder, who="Dr Test", why="a kill")
    with Ledger.open(folder) as again:
        (note,) = again.book.notes
        assert (note.kind, note.who, note.why) == ("mend", "Dr Test", "a kill")
        assert note.model_dump()["cut_bytes"] == 12
        assert asked.reserve(again, again.source("ward", IDS)).again
