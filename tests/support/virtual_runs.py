"""What is read of simulations in virtual time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from wardround.runtime.event_log import read_events
from wardround.runtime.events import (
    Event,
    RoundTimed,
)
from wardround.simulations.config import RunConfig
from wardround.simulations.simulate import SimulationResult

ROUNDS, WARDS = 3, 6
Settings = Callable[..., RunConfig]
Undisturbed = Callable[[RunConfig], SimulationResult]


def timed_settings(notes: Callable[..., Any]) -> Settings:
    """Six wards, three rounds of two steps; keyword arguments are the realism's."""
    make = notes(rows=72, wards=WARDS, rounds=ROUNDS)

    def real(name: str, sections: dict[str, Any] | None = None, **realism: Any) -> RunConfig:
        given = {"rounds": {"rounds": ROUNDS, "quorum": 0.3}, **(sections or {})}
        given["simulation"] = {"realism": realism, **given.get("simulation", {})}
        made: RunConfig = make(name, **given)
        return made

    return real


def told(result: SimulationResult) -> list[Event]:
    """The events of its federation."""
    events = read_events(result.folder / "metrics.jsonl")
    return [event for event in events if event.arm == "federated"]


def of(result: SimulationResult, kind: Any) -> list[Any]:
    """Those of one kind."""
    return [event for event in told(result) if isinstance(event, kind)]


def masked(mode: str = "real") -> dict[str, Any]:
    """Secure aggregation among four at least."""
    return {"mode": mode, "policy": {"modes": [mode], "least_cohort": 4}}


def digest(result: SimulationResult) -> str:
    """Of the last adapter."""
    return str(result.federated.outcome.last.adapter.digest)


def times(result: SimulationResult) -> list[Any]:
    """All that is told of virtual time."""
    return of(result, RoundTimed)


def within(seconds: float, **more: Any) -> dict[str, Any]:
    """Rounds with a deadline."""
    return {"rounds": ROUNDS, "quorum": 0.3, "deadline_s": seconds, **more}


def trace(folder: Path, text: str) -> str:
    """A trace's path."""
    path = folder / "trace.csv"
    path.write_text(text)
    return str(path)
