"""What people want of a run at work, and what it waits for: between the desk and an executor."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from wardround.runtime.events import EventStream
from wardround.server.run_record import RunFolder


@dataclass(frozen=True)
class Waiting:
    """What a run waits for: a sentence, the sites, and since when (seconds since 1970)."""

    text: str = ""
    sites: tuple[str, ...] = ()
    since: float = 0.0


class RunControl:
    """A `RoundControl` that the desk sets and an executor reads; for any number of threads.

    Attributes:
        down_s: Seconds since the run's first start in which no executor was at it: a deadline that began in
            an earlier process moves by so much.
        worked_s: Seconds that executors were at it before this one.
    """

    def __init__(self, *, excluded: Iterable[str] = (), down_s: float = 0.0, worked_s: float = 0.0) -> None:
        self.down_s, self.worked_s = down_s, worked_s
        self._stop, self._drain = threading.Event(), threading.Event()
        self._excluded = frozenset(excluded)
        self._waiting = Waiting()

    @property
    def stop_requested(self) -> bool:
        """Stop at once."""
        return self._stop.is_set()

    @property
    def drain_requested(self) -> bool:
        """Stop after the round that trains."""
        return self._drain.is_set()

    @property
    def excluded(self) -> frozenset[str]:
        """Sites that are not asked any more."""
        return self._excluded

    @property
    def waiting(self) -> Waiting:
        """What the executor waits for."""
        return self._waiting

    def waiting_for(self, text: str, sites: Iterable[str] = ()) -> None:
        """Say what the run waits for, and for whom; an empty text for nothing. `why` shows it."""
        self._waiting = Waiting(text, tuple(sorted(sites)), time.time()) if text else Waiting()

    def pause(self, seconds: float) -> bool:
        """Wait so long, or until somebody asks to stop: True then."""
        return self._stop.wait(seconds)

    def ask_stop(self) -> None:
        """Ask the executor to stop at once."""
        self._stop.set()

    def ask_drain(self) -> None:
        """Ask the executor to stop after the round that trains."""
        self._drain.set()

    def exclude(self, site: str) -> None:
        """Leave a site out from the next round on."""
        self._excluded |= {site}


class Execute(Protocol):
    """Does the work of a run: offers its plan, runs its rounds, keeps its journal.

    It returns when the run has ended, raises `RunStoppedError` when it stopped because it was asked to, and
    anything else when the run failed. Called again for an interrupted run, it goes on from the journal.
    """

    def __call__(self, run: RunFolder, control: RunControl, events: EventStream) -> None:
        """Work at the run until it ends."""
