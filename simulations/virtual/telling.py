"""What a run tells of its virtual time, and what it keeps of it to go on after an interruption.

The moment at which a round ended is on disk before the round is journalled; a resumed run goes on from there,
and its rounds take the time that they would have taken.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from wardround.core.errors import ConfigError, StorageError
from wardround.runtime.events import (
    Event,
    EventStream,
    RoundBurnt,
    RoundFolded,
    RoundTimed,
    RunFinished,
    RunStarted,
)
from wardround.runtime.files import append_line, storing
from wardround.simulations.virtual.clock import RoundTimes, VirtualClock

FILE: Final = "clock.jsonl"


@dataclass
class Timekeeper:
    """A sink of an arm's own events, which passes them on with the virtual time of each round.

    Attributes:
        clock: Of the arm.
        events: Where they go on to.
        file: What it keeps.
        following: The round loop's: sites that need no broadcast.
    """

    clock: VirtualClock
    events: EventStream
    file: Path
    following: set[str]

    def emit(self, event: Event) -> None:
        """Pass an event on; the time of its round goes first.

        Raises:
            StorageError: The clock's file cannot be read or written, or lacks a round that was journalled.
            ConfigError: The availability trace is another than the run began with.
        """
        match event:
            case RunStarted():
                self._restore(event.resumed_from)
            case RoundFolded() | RoundBurnt():
                self._tell(event.arm, event.round, self.clock.end_round())
                self._keep(event.round)
            case RunFinished():
                last = self.clock.end_round()
                if self.clock.now > last.began or last.work_s:  # the exchange that scores the last adapter
                    self._tell(event.arm, event.last_round + 1, last)
        self.events.emit(event)

    def close(self) -> None:
        """Nothing is held."""

    def _tell(self, arm: str, round: int, times: RoundTimes) -> None:
        now = self.clock.now
        work = {site: times.work_s[site] for site in sorted(times.work_s)}
        late = tuple(sorted(times.late))
        self.events.emit(RoundTimed(arm, round, now - times.began, now, times.waited_s, late, work))

    def _keep(self, round: int) -> None:
        clock = self.clock
        append_line(
            self.file,
            {
                "round": round, "now": clock.now, "busy": dict(sorted(clock.busy.items())),
                "following": sorted(self.following), "trace": clock.sites.digest,
            },
        )  # fmt: skip

    def _restore(self, round: int) -> None:
        if round == 0:
            return
        found = [line for line in self._lines() if line["round"] == round]
        if not found:
            raise StorageError(
                f"{self.file} does not say when round {round} ended", expected="a line of every round",
                remedy="put the file back from a copy, or begin a new run",
            )  # fmt: skip
        last, clock = found[-1], self.clock
        if last["trace"] != clock.sites.digest:
            raise ConfigError(
                "the availability trace is not the one that the run began with",
                found=f"a file of SHA-256 {clock.sites.digest[:12]}", expected=str(last["trace"])[:12],
                remedy="bring the former file back, or start a new run",
            )  # fmt: skip
        clock.now, clock.busy = float(last["now"]), {str(k): float(v) for k, v in last["busy"].items()}
        clock.times = RoundTimes(began=clock.now)
        self.following.update(last["following"])

    def _lines(self) -> Iterator[dict[str, Any]]:
        """The whole lines; a kill may have torn one."""
        if not self.file.exists():
            return
        with storing(self.file):
            text = self.file.read_text(encoding="utf-8", errors="replace")
        for line in text.splitlines():
            try:
                record = json.loads(line)
            except ValueError:
                continue
            if isinstance(record, dict) and {"round", "now", "busy", "following", "trace"} <= set(record):
                yield record
