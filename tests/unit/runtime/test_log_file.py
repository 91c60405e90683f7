"""A process's log as a file: lines of JSON, bounded, and never the reason that anything stops."""

from __future__ import annotations

import json
import logging
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from wardround.runtime.log_file import LogFile


@pytest.fixture
def log() -> Iterator[logging.Logger]:
    """A logger of this test's own."""
    own = logging.getLogger("wardround.test.log_file")
    own.propagate = False
    own.setLevel(logging.INFO)
    yield own
    own.handlers.clear()


def lines(path: Path) -> list[dict[str, Any]]:
    """The records of a file; every line of it is one."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_a_record_is_one_line(log: logging.Logger, tmp_path: Path) -> None:
    """Whatever is in its text; a traceback is a field of it. Nobody else may read the folder."""
    path = tmp_path / "logs" / "server.jsonl"
    log.addHandler(LogFile(path))
    log.info("the site %r\nsays “ä”", "aachen")
    try:
        {}["x"]
    except KeyError:
        log.exception("it went wrong")
    first, second = lines(path)
    assert first["text"] == "the site 'aachen'\nsays “ä”"
    assert (first["level"], first["logger"]) == ("INFO", log.name)
    assert first["time"].endswith("+00:00")
    assert "traceback" not in first
    assert "KeyError" in second["traceback"]
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_files_are_bounded_in_size_and_number(log: logging.Logger, tmp_path: Path) -> None:
    """The newest lines are kept, whole; the oldest file goes."""
    path = tmp_path / "server.jsonl"
    log.addHandler(LogFile(path, largest_bytes=2000, former=2))
    for number in range(200):
        log.info("line %d", number)
    found = sorted(path.parent.iterdir())
    assert [file.name for file in found] == ["server.jsonl", "server.jsonl.1", "server.jsonl.2"]
    assert all(file.stat().st_size < 2300 for file in found)
    kept = [line["text"] for file in reversed(found) for line in lines(file)]
    assert kept == [f"line {number}" for number in range(200 - len(kept), 200)]


def test_a_full_disk_is_said_once_and_stops_nothing(
    log: logging.Logger, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A device that is always full; when the file can be written again, it says what it lacks."""
    path = tmp_path / "server.jsonl"
    path.symlink_to("/dev/full")
    file = LogFile(path)
    log.addHandler(file)
    for number in range(5):
        log.warning("lost %d", number)
    said = capsys.readouterr().err
    assert said.count("cannot be written, nothing else stops") == 1
    assert "No space left" in said
    assert file.lost == 5
    path.unlink()
    log.info("there is room again")
    log.info("and still")
    assert [line["text"] for line in lines(path)] == [
        "5 records could not be written", "there is room again", "and still",
    ]  # fmt: skip
    assert file.lost == 5


def test_a_record_that_cannot_be_formatted_stops_nothing(
    log: logging.Logger, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The wrong number of arguments, say."""
    record = log.makeRecord(log.name, logging.INFO, __file__, 1, "%d and %d", (1,), None)
    LogFile(tmp_path / "server.jsonl").handle(record)
    assert "cannot be written" in capsys.readouterr().err
