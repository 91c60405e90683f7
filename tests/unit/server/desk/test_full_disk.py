"""The server's disk is full: the run at work stops by name, those that wait keep their turn."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from desk_runs import QUICK, Trainer, desk_at, submitted, until
from full_disk import full_disk

from wardround.runtime.event_log import read_events
from wardround.runtime.events import RoundFolded
from wardround.server.desk import Limits
from wardround.server.run_live import read_lines
from wardround.server.run_messages import why_text
from wardround.server.run_states import RunStatus

SOON = Limits(beat_s=QUICK.beat_s, stop_grace_s=QUICK.stop_grace_s, space_s=0.1)


def rounds(folder: Path, run: str) -> list[int]:
    """Those that its journal holds."""
    return [line["round"] for line in read_lines(folder / "runs" / run / "journal" / "rounds.jsonl")]


@pytest.mark.parametrize("name", ["rounds.jsonl", "events.jsonl", "*"])
def test_the_run_at_work_stops_by_name_and_goes_on_when_it_is_resumed(tmp_path: Path, name: str) -> None:
    """Whether journal, events or nothing at all can be written; the files hold no half of anything."""
    trainer = Trainer(hold=(2,))
    desk = desk_at(tmp_path, trainer, limits=SOON)
    run = submitted(desk)
    until(trainer.holding.is_set)
    with full_disk(tmp_path, lambda path: name in {"*", path.name}) as disk:
        trainer.go.set()
        record = desk.wait(run, 10)
        assert disk.refused
    assert record.status is RunStatus.FAILED
    assert "No space left on device" in record.reason
    assert "free space" in record.reason
    assert str(tmp_path) in record.reason
    assert why_text(record, "", 0).startswith("failed: cannot write")
    assert rounds(tmp_path, run) == ([1, 2] if name == "events.jsonl" else [1])
    for line in (tmp_path / "runs" / run / "events.jsonl").read_text().splitlines():
        json.loads(line)  # none is half there
    desk.resume(run)
    assert desk.wait(run, 10).status is RunStatus.FINISHED
    assert rounds(tmp_path, run) == [1, 2, 3]
    desk.close()


def test_who_waits_keeps_its_turn_until_there_is_space(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither failed nor begun, and it says why; then each has its turn, in the order of the queue."""
    trainer = Trainer(hold=(1,))
    desk = desk_at(tmp_path, trainer, limits=SOON)
    head, second, third = (submitted(desk) for _ in range(3))
    until(trainer.holding.is_set)
    with full_disk(tmp_path):
        trainer.go.set()
        assert desk.wait(head, 10).status is RunStatus.FAILED
        until(lambda: desk.run(second).record.reason)
        waiting = desk.run(second).record
        assert waiting.status is RunStatus.QUEUED
        assert "waits for space" in why_text(waiting, "", 0)
        assert "No space left" in why_text(waiting, "", 0)
        until(lambda: trainer.worked == [head])
        assert sum(f"{second} waits for space" in line for line in caplog.messages) == 1
    assert [desk.wait(run, 10).status for run in (second, third)] == [RunStatus.FINISHED] * 2
    assert trainer.worked == [head, second, third]
    assert desk.run(second).record.reason == "completed"
    desk.close()


def test_a_server_that_starts_on_a_full_disk_waits_and_goes_on(tmp_path: Path) -> None:
    """The run that was at work is not failed for it."""
    trainer = Trainer(hold=(2,))
    desk = desk_at(tmp_path, trainer, limits=SOON)
    run = submitted(desk)
    until(trainer.holding.is_set)
    desk.close()
    with full_disk(tmp_path / "runs" / run):
        again = desk_at(tmp_path, Trainer(), limits=SOON)
        until(lambda: "waits for space" in again.run(run).record.reason)
        assert again.run(run).record.status is RunStatus.TRAINING
        assert "waits for space" in why_text(again.run(run).record, "", 0)
    assert again.wait(run, 10).status is RunStatus.FINISHED
    assert rounds(tmp_path, run) == [1, 2, 3]
    again.close()


def test_a_log_that_cannot_be_written_stops_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Nor does it fill the server's own log."""
    with full_disk(tmp_path, lambda path: path.name == "log.jsonl") as disk:
        desk = desk_at(tmp_path, Trainer(), limits=SOON)
        run = submitted(desk)
        assert desk.wait(run, 10).status is RunStatus.FINISHED
        assert len(disk.refused) > 3
    assert sum("the log of" in line for line in caplog.messages) == 1
    events: list[Any] = read_events(tmp_path / "runs" / run / "events.jsonl")
    assert [event.round for event in events if isinstance(event, RoundFolded)] == [1, 2, 3]
    desk.close()


def test_the_disk_of_these_tests_takes_half(tmp_path: Path) -> None:
    """So that what stays of it would be seen."""
    with full_disk(tmp_path), pytest.raises(OSError, match="No space"):
        (tmp_path / "x").write_bytes(bytes(100))
    assert (tmp_path / "x").stat().st_size >= 50
    assert (tmp_path / "x").write_bytes(b"whole") == len(b"whole")
