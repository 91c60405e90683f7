"""Simulations that lose sites, through the real loop and real sums."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from wardround.core.errors import QuorumError
from wardround.runtime.event_log import read_events
from wardround.runtime.events import Event, RoundBurnt, RoundFolded, SiteReplied
from wardround.simulations.config import RunConfig
from wardround.simulations.outages import CODE
from wardround.simulations.simulate import SimulationResult, run_simulation

ROUNDS = 4


@pytest.fixture
def settings(notes: Callable[..., Any]) -> Callable[..., RunConfig]:
    """Nine wards, four rounds, real masks; one in seven is lost in a round: now and then too many of them."""
    make = notes(rows=108, wards=9, rounds=ROUNDS)

    def lossy(name: str, **sections: Any) -> RunConfig:
        given = {
            "secure": {"mode": "real", "policy": {"least_cohort": 4}},
            "simulation": {"outage": 0.15}, "rounds": {"rounds": ROUNDS, "quorum": 0.3},
        }  # fmt: skip
        made: RunConfig = make(name, **(given | sections))
        return made

    return lossy


class Stop:
    """Ends the run after its second round."""

    def emit(self, event: Event) -> None:
        """As a kill does."""
        if isinstance(event, RoundFolded) and event.round > 2:
            raise KeyboardInterrupt

    def close(self) -> None:
        """Nothing to flush."""


def test_a_run_goes_on_with_whom_it_has_and_is_the_same_when_resumed(
    settings: Callable[..., RunConfig], undisturbed: Callable[[RunConfig], SimulationResult]
) -> None:
    """Sites that were lost come back in later rounds; nobody is quarantined for having missed one."""
    whole = undisturbed(settings("whole"))
    events = read_events(whole.folder / "metrics.jsonl")
    missing = {event.round: event.missing for event in events if isinstance(event, RoundFolded)}
    burnt = {event.round for event in events if isinstance(event, RoundBurnt)}
    assert sorted([*missing, *burnt]) == list(range(1, ROUNDS + 1))
    assert len(missing) > 2
    assert sum(map(len, missing.values())) > 0
    assert len(set(missing.values())) > 1
    bad = {(event.status, event.code) for event in events if isinstance(event, SiteReplied)} - {("ok", "")}
    assert ("failed", CODE) in bad
    assert {status for status, _ in bad} <= {"failed", "refused"}
    config = settings("cut")
    with pytest.raises(KeyboardInterrupt):
        run_simulation(config, sinks=(Stop(),))
    again = run_simulation(config.model_copy(update={"resume": config.output}))
    last, other = (result.federated.outcome.last.adapter for result in (whole, again))
    assert last.digest == other.digest


def test_too_few_are_an_error_that_says_so(settings: Callable[..., RunConfig]) -> None:
    """Not a round of nobody."""
    with pytest.raises(QuorumError):
        run_simulation(
            settings(
                "none",
                simulation={"outage": 0.9},
                secure={"mode": "off"},
                rounds={"rounds": 1, "quorum": 0.9},
            )
        )
