"""A server that dies at any instant finds every run where it was."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from desk_runs import QUICK, Trainer, desk_at, submitted, until

from wardround.core.errors import StorageError
from wardround.server.desk import MOST_DEATHS, Desk
from wardround.server.round_control import RunStoppedError
from wardround.server.run_live import read_lines
from wardround.server.run_record import RunFolder, found_runs
from wardround.server.run_states import RunStatus, Wish
from wardround.server.run_worker import Work

SERVER = """
import sys, time
from pathlib import Path
from desk_runs import Trainer, desk_at, submitted

folder, runs, pause = Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])

class Slow(Trainer):
    def pause(self, control):
        time.sleep(pause)

desk = desk_at(folder, Slow(rounds=4, hold=(0, 1, 2, 3, 4)))
for number in range(runs):
    print(submitted(desk, b"plan", f"run {number}"), flush=True)
print("ready", flush=True)
while any(not record.status.ended for record in desk.listed()):
    time.sleep(0.02)
print("done", flush=True)
desk.close()
"""


def server(folder: Path, runs: int, pause_s: float = 0.03) -> subprocess.Popen[str]:
    """A desk in a process of its own; it submits so many runs (the same ones each time) and works at them."""
    path = os.pathsep.join([*sys.path, os.environ.get("PYTHONPATH", "")])
    return subprocess.Popen(
        [sys.executable, "-c", SERVER, str(folder), str(runs), str(pause_s)],
        stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": path},
    )  # fmt: skip


@pytest.mark.parametrize("lives_s", [(0.0, 0.1, 0.25)])
def test_killed_again_and_again_every_run_is_finished_once(tmp_path: Path, lives_s: Any) -> None:
    """SIGKILL at several points of offering and rounds: no run lost, none doubled, no round twice."""
    for life_s in lives_s:
        process = server(tmp_path, 3)
        assert process.stdout is not None
        said: list[str] = [process.stdout.readline() for _ in range(4)]
        assert said[-1] == "ready\n"
        time.sleep(life_s)
        process.send_signal(signal.SIGKILL)
        process.wait(10)
        process.stdout.close()
    last = server(tmp_path, 3)
    out, _ = last.communicate(timeout=60)
    assert out.endswith("done\n")
    folders = found_runs(tmp_path / "runs")
    assert len(folders) == 3
    for folder in folders:
        record = folder.load()
        assert record.status is RunStatus.FINISHED, record
        rounds = [line["round"] for line in read_lines(folder.journal / "rounds.jsonl")]
        assert rounds == [1, 2, 3, 4]
        told = Counter((event["event"], event.get("round")) for event in read_lines(folder.events))
        # A kill between a round's line in the journal and its event leaves the event out, never twice.
        assert {told["RoundFolded", round] for round in rounds} <= {0, 1}
        assert told["RunFinished", None] == 1
    ended = sorted(folders, key=lambda folder: folder.load().changed)
    assert [f.load().submission for f in ended] == ["run 0", "run 1", "run 2"]


def test_a_desk_that_closes_ends_no_run(tmp_path: Path) -> None:
    """The one at work goes on when it starts again; the seconds in between are told to its executor."""
    trainer = Trainer(hold=(2,))
    desk = desk_at(tmp_path, trainer)
    run, following = submitted(desk), submitted(desk)
    until(trainer.holding.is_set)
    time.sleep(0.3)
    desk.close()
    stood = desk.run(run).record
    assert (stood.status, stood.closed, stood.deaths) == (RunStatus.TRAINING, True, 0)
    time.sleep(1.0)
    trainer.go.set()
    again = desk_at(tmp_path, trainer)
    assert again.wait(run, 10).status is RunStatus.FINISHED
    assert again.wait(following, 10).status is RunStatus.FINISHED
    assert trainer.worked == [run, run, following]
    assert 0.9 <= trainer.controls[1].down_s < 5
    assert 0.2 <= trainer.controls[1].worked_s < 5
    assert trainer.controls[2].down_s == 0
    again.close()


def died(folder: Path, **changes: Any) -> str:
    """A run whose server died while it trained, with these changes of its record; its id."""
    trainer = Trainer(hold=(2,))
    desk = desk_at(folder, trainer)
    run = submitted(desk)
    until(trainer.holding.is_set)
    desk.close()
    folder_of = desk.run(run).folder
    folder_of.save(folder_of.load().model_copy(update={"closed": False, **changes}))
    return run


@pytest.mark.parametrize("wish", ["stop", "drain"])
def test_what_was_asked_before_the_server_died_is_kept(tmp_path: Path, wish: str) -> None:
    """Nobody works at it any more: it is stopped, and can be resumed."""
    run = died(tmp_path, wish=Wish(wish))
    trainer = Trainer()
    desk = desk_at(tmp_path, trainer)
    assert desk.run(run).record.status is RunStatus.STOPPED
    assert trainer.worked == []
    desk.resume(run)
    assert desk.wait(run, 10).status is RunStatus.FINISHED
    desk.close()


@pytest.mark.parametrize("wish", [Wish.STOP, Wish.DRAIN])
def test_what_is_asked_as_the_server_starts_is_not_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wish: Wish
) -> None:
    """Between finding the run again and working at it."""
    run = died(tmp_path)
    at = Work.at

    def told(self: Work, live: Any) -> Any:
        desk._wish(run, wish)
        return at(self, live)

    monkeypatch.setattr(Work, "at", told)
    trainer = Trainer(hold=(2,))
    desk = Desk(tmp_path, trainer, limits=QUICK)
    desk.start()
    assert desk.wait(run, 10).status is RunStatus.STOPPED
    assert desk.run(run).record.reason == ("stopped" if wish is Wish.STOP else "drained")
    desk.close()


def test_a_run_that_takes_the_server_with_it_fails_in_the_end(tmp_path: Path) -> None:
    """It died soon after each start, too often: it has failed, and the next one has the place."""
    run = died(tmp_path, deaths=MOST_DEATHS)
    desk = desk_at(tmp_path, Trainer())
    record = desk.run(run).record
    assert record.status is RunStatus.FAILED
    assert f"died {MOST_DEATHS + 1} times" in record.reason
    following = submitted(desk)
    assert desk.wait(following, 10).status is RunStatus.FINISHED
    desk.close()


def test_a_server_that_dies_after_long_work_is_not_counted(tmp_path: Path) -> None:
    """Weeks of offering with a reboot each: no run fails of that."""
    run = died(tmp_path, deaths=MOST_DEATHS, taken=time.time() - 7200, alive=time.time())
    desk = desk_at(tmp_path, Trainer())
    assert desk.wait(run, 10).status is RunStatus.FINISHED
    desk.close()


@pytest.mark.parametrize(
    "data", [b"", b"{", b"[]", b'{"format": "wardround run 2"}', b"\xff\xfe", b"x" * (2 << 20)]
)
def test_a_record_that_cannot_be_read_hides_no_other_run(tmp_path: Path, data: bytes) -> None:
    """It is named, never at work, and never overwritten; the others go on."""
    desk = desk_at(tmp_path, Trainer())
    broken, whole = submitted(desk), submitted(desk)
    desk.wait(whole, 10)
    desk.close()
    path = tmp_path / "runs" / broken / "record.json"
    path.write_bytes(data)
    again = desk_at(tmp_path, Trainer())
    assert list(again.unreadable) == [broken]
    assert [record.run_id for record in again.listed()] == [whole]
    with pytest.raises(StorageError, match="cannot be read"):
        again.stop(broken, 1)
    assert again.wait(submitted(again), 10).status is RunStatus.FINISHED
    assert path.read_bytes() == data
    again.close()


@pytest.mark.parametrize("name", ["events.jsonl", "log.jsonl"])
def test_rubbish_among_the_events_is_passed_over(tmp_path: Path, name: str) -> None:
    """Torn lines, other types, events that lack something: what can be read is shown."""
    desk = desk_at(tmp_path, Trainer())
    run = submitted(desk)
    desk.wait(run, 10)
    desk.close()
    path = tmp_path / "runs" / run / name
    rubbish = b'{"event": "RunStarted"}\n[1]\n{"torn": \n\xff\xff\n{"event": 5}\n'
    rubbish += b'{"event": "RoundStarted", "round": "x"}\n'
    path.write_bytes(rubbish + path.read_bytes() + b"[" * 100_000)
    again = desk_at(tmp_path, Trainer())
    assert again.run(run).view.phase == "finished"
    assert again.run(run).view.rounds == 3
    assert again.run(run).lines.last >= 1
    again.close()


def test_what_a_killed_submission_left_is_removed(tmp_path: Path) -> None:
    """Half an upload is no run, and its bytes do not stay."""
    runs = tmp_path / "runs"
    half = runs / ".20261126-120000-0123abcd.0123456789ab.part"
    half.mkdir(parents=True)
    (half / "initial.safetensors").write_bytes(b"half")
    desk = desk_at(tmp_path, Trainer())
    assert desk.listed() == []
    assert not half.exists()
    desk.close()


def test_a_full_disk_while_it_trains_fails_the_run_and_frees_the_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither event nor record can be written: the next run is worked at all the same."""
    trainer = Trainer(hold=(1,))
    desk = desk_at(tmp_path, trainer)
    run = submitted(desk)
    until(trainer.holding.is_set)
    following = submitted(desk)
    full = str(desk.run(run).folder.path)
    save = RunFolder.save

    def refusing(self: RunFolder, record: Any) -> None:
        if str(self.path) == full:
            raise StorageError("cannot write the record", found="no space")
        save(self, record)

    monkeypatch.setattr(RunFolder, "save", refusing)
    monkeypatch.setattr("wardround.runtime.event_log.append_line", _no_space(full))
    trainer.go.set()
    failed = desk.wait(run, 10)
    assert failed.status is RunStatus.FAILED
    assert "no space" in failed.reason
    assert desk.wait(following, 10).status is RunStatus.FINISHED
    desk.close()


def _no_space(full: str) -> Any:
    from wardround.runtime.files import append_line

    def append(path: Path, record: Any, **options: Any) -> None:
        if str(path).startswith(full):
            raise StorageError("cannot write the events", found="no space")
        append_line(path, record, **options)

    return append


def test_an_executor_that_ends_while_the_server_goes_down_says_nothing_of_the_run(tmp_path: Path) -> None:
    """What breaks because the server closes is no failure; it is at work when the server is back."""

    class Breaking(Trainer):
        def pause(self, control: Any) -> None:
            try:
                super().pause(control)
            except RunStoppedError:
                raise OSError from None

    trainer = Breaking(hold=(1,))
    desk = desk_at(tmp_path, trainer)
    run = submitted(desk)
    until(trainer.holding.is_set)
    desk.close()
    assert Desk(tmp_path, trainer, limits=QUICK)._folder == tmp_path / "runs"
    trainer.go.set()
    again = desk_at(tmp_path, trainer)
    assert again.wait(run, 10).status is RunStatus.FINISHED
    again.close()
