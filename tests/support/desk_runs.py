"""Executors that count, fail, hang and train by the clock, for a desk."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from wardround.runtime.events import EventStream, RoundFolded, RoundStarted, RunFinished, RunStarted
from wardround.runtime.files import append_line
from wardround.server.desk import Desk, Limits
from wardround.server.round_control import stopped
from wardround.server.run_control import RunControl
from wardround.server.run_live import read_lines
from wardround.server.run_record import RunFolder

QUICK = Limits(beat_s=0.1, stop_grace_s=1.0)
SITES = ("amber", "birch", "cedar")


class Trainer:
    """Trains rounds that take no time, keeps a journal, obeys; a test may hold it or make it fail.

    Args:
        rounds: Of each run.
        hold: In these rounds it waits until `go` is set, or somebody asks to stop.
        fail: Signed plan → what is raised instead of working.
    """

    def __init__(
        self, rounds: int = 3, hold: tuple[int, ...] = (), fail: dict[bytes, BaseException] | None = None
    ) -> None:
        self.rounds, self.hold, self.fail = rounds, hold, fail or {}
        self.go, self.holding = threading.Event(), threading.Event()
        self.worked: list[str] = []
        self.controls: list[RunControl] = []
        self.at_once = self.most_at_once = 0

    def __call__(self, run: RunFolder, control: RunControl, events: EventStream) -> None:
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            self.worked.append(run.run_id)
            self.controls.append(control)
            if run.signed_plan in self.fail:
                raise self.fail[run.signed_plan]
            self.train(run, control, events)
        finally:
            self.at_once -= 1

    def train(self, run: RunFolder, control: RunControl, events: EventStream) -> None:
        done = len(read_lines(run.journal / "rounds.jsonl"))
        if 0 in self.hold and not done:
            control.waiting_for("two sites have not answered the offer", ["cedar", "amber"])
            self.pause(control)
        events.emit(RunStarted(run.run_id, "federated", "toy", "d" * 64, self.rounds, SITES, done))
        for round in range(done + 1, self.rounds + 1):
            if control.stop_requested or control.drain_requested:
                raise stopped()
            asked = tuple(site for site in SITES if site not in control.excluded)
            events.emit(RoundStarted("federated", round, asked, 100))
            if round in self.hold:
                control.waiting_for(f"round {round}", asked)
                self.pause(control)
            append_line(run.journal / "rounds.jsonl", {"round": round, "sites": list(asked)})
            events.emit(RoundFolded("federated", round, asked, (), 0.5, 0.1, 300, 0.01, "a" * 64))
            control.waiting_for("")
        events.emit(RunFinished("federated", "completed", self.rounds, self.rounds, "a" * 64, 0.1))

    def pause(self, control: RunControl) -> None:
        self.holding.set()
        while not self.go.wait(0.01):
            if control.stop_requested:
                raise stopped()


def desk_at(folder: Path, execute: Any, **changes: Any) -> Desk:
    """A started desk that is quick about everything."""
    desk = Desk(folder, execute, limits=changes.pop("limits", QUICK), **changes)
    desk.start()
    return desk


def submitted(desk: Desk, plan: bytes = b"plan", submission: str = "") -> str:
    """Run id of a run in the queue."""
    return desk.submit(plan, [b"adapter"], submission or f"s{time.monotonic_ns()}").run_id


def until(condition: Callable[[], Any], seconds: float = 10.0) -> None:
    """Wait for something to come true."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come true"
        time.sleep(0.01)
