"""The story of a run, as its sinks are told it."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from wardround.runtime.events import (
    Evaluated,
    Event,
    EventStream,
    Improved,
    RoundBurnt,
    RoundFolded,
    RoundStarted,
    RunFinished,
    RunStarted,
    SiteReplied,
    SumOpened,
)
from wardround.runtime.sinks import RichSink

SITES = ("budapest", "zürich [x]")


def sums_opened(arm: str, round: int) -> list[Event]:
    """The round's two sums."""
    return [
        SumOpened(arm, round, name, "real", 2, 2, 5, 900, 1400, 0.02, 0.01, attempt=attempt)
        for name, attempt in (("evaluation", 0), ("training", 1))
    ]


def round_events(arm: str, round: int, *, bad: str = "") -> list[Event]:
    """What the round loop says in one round."""
    replies: list[Event] = [
        SiteReplied(arm, round, site, "quarantined", "malformed_reply", "not finite", 10)
        if site == bad
        else SiteReplied(arm, round, site, "ok", "", "", 1500, {"train.loss": 0.5})
        for site in SITES
    ]
    return [
        RoundStarted(arm, round, SITES, 100), *replies, *sums_opened(arm, round),
        Evaluated(arm, round - 1, "validation", {"macro_f1": round / 10, "loss": 0.5}, {"macro_f1": 80}),
        Improved(arm, round - 1, "macro_f1", round / 10),
        RoundFolded(
            arm, round, tuple(s for s in SITES if s != bad), (bad,) if bad else (), 0.25, 0.1, 3000, 1.5, "d"
        ),
    ]  # fmt: skip


def run_events(arm: str = "federated", rounds: int = 3, first: int = 1, bad: str = "") -> list[Event]:
    """A whole run, or what is left of it after round first − 1."""
    events: list[Event] = [RunStarted("run", arm, "heart", "p", rounds, SITES, first - 1)]
    for round in range(first, rounds + 1):
        events += round_events(arm, round, bad=bad if round == 2 else "")
    return [
        *events,
        Evaluated(arm, rounds, "validation", {"macro_f1": 0.9}, {"macro_f1": 80}),
        Improved(arm, rounds, "macro_f1", 0.9),
        RunFinished(arm, "completed", rounds, rounds, "d", 9.0),
        Evaluated(arm, rounds, "test/budapest", {"macro_f1": 0.8}, {"macro_f1": 40}, {"sick": {"f1": 0.7}}),
    ]  # fmt: skip


def emit(sink: Any, events: list[Event]) -> None:
    """Send all events through a stream, and close it."""
    stream = EventStream([sink])
    for event in events:
        stream.emit(event)
    stream.close()


BURNT = RoundBurnt("federated", 2, "too few sites answered to open the sum")


def with_a_burnt_round(first: int = 1) -> list[Event]:
    """A run whose second round was spent without a fold, or what is left of it after round first − 1."""
    rounds = {
        1: round_events("federated", 1), 2: [RoundStarted("federated", 2, SITES, 100), BURNT],
        3: round_events("federated", 3),
    }  # fmt: skip
    left = [event for round in range(first, 4) for event in rounds[round]]
    end = RunFinished("federated", "completed", 3, 3, "d", 9.0)
    return [RunStarted("run", "federated", "heart", "p", 3, SITES, first - 1), *left, end]


def shown(events: list[Event], *, terminal: bool, **options: Any) -> str:
    """What a console of 140 columns shows."""
    out = io.StringIO()
    console = Console(
        file=out, force_terminal=terminal, width=140, color_system="standard" if terminal else None
    )
    emit(RichSink(console, **options), events)
    return out.getvalue()


class Story:
    """What the tests of the sinks tell, and how."""

    SITES = SITES
    sums_opened = staticmethod(sums_opened)
    round_events = staticmethod(round_events)
    run_events = staticmethod(run_events)
    emit = staticmethod(emit)
    BURNT = BURNT
    with_a_burnt_round = staticmethod(with_a_burnt_round)
    shown = staticmethod(shown)


@pytest.fixture
def story() -> type[Story]:
    """Helpers."""
    return Story
