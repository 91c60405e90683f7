"""Learning rates by round and step."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wardround.core.plan import Schedule
from wardround.core.schedules import rate

SCHEDULES = st.builds(
    Schedule,
    shape=st.sampled_from(["constant", "linear", "cosine"]),
    scope=st.sampled_from(["run", "round"]),
    warmup=st.floats(0, 0.9),
    floor=st.floats(0, 1),
)


def curve(schedule: Schedule, rounds: int, steps: int) -> list[float]:
    """Every step's rate in order."""
    return [
        rate(schedule, 2.0, round=round, rounds=rounds, fraction=step / steps)
        for round in range(1, rounds + 1)
        for step in range(steps)
    ]


@given(SCHEDULES, st.integers(1, 5), st.integers(1, 20))
def test_a_rate_lies_between_zero_and_the_peak(schedule: Schedule, rounds: int, steps: int) -> None:
    """Whatever the schedule, every step's rate lies in [0, peak]."""
    assert all(0.0 <= value <= 2.0 * (1 + 1e-12) for value in curve(schedule, rounds, steps))


@given(SCHEDULES, st.integers(1, 5), st.integers(1, 20))
def test_a_rate_rises_through_warmup_and_then_never_rises_again(
    schedule: Schedule, rounds: int, steps: int
) -> None:
    """Within its scope the curve goes up once and then down."""
    values = curve(schedule, rounds, steps)
    if schedule.scope == "round":
        values = values[:steps]
    total = len(values)
    warm = [value for index, value in enumerate(values) if index / total < schedule.warmup]
    after = values[len(warm) :]
    assert warm == sorted(warm)
    assert all(a >= b - 1e-12 for a, b in itertools.pairwise(after))


@given(SCHEDULES.filter(lambda s: s.scope == "round"), st.integers(2, 5), st.integers(1, 9))
def test_a_schedule_over_the_round_repeats_every_round(schedule: Schedule, rounds: int, steps: int) -> None:
    """With scope=round each round has the same rates."""
    values = curve(schedule, rounds, steps)
    assert all(values[:steps] == values[start : start + steps] for start in range(0, len(values), steps))


def test_a_schedule_over_the_run_continues_where_the_last_round_ended() -> None:
    """With scope=run, 4 rounds of 5 steps are the same curve as 1 round of 20 steps."""
    schedule = Schedule(shape="cosine", warmup=0.2, floor=0.1)
    assert curve(schedule, 4, 5) == pytest.approx(curve(schedule, 1, 20), abs=1e-12)


def test_known_values() -> None:
    """Half-way points of each shape, by hand."""
    for shape, expected in (("constant", 2.0), ("linear", 1.0), ("cosine", 1.0)):
        assert rate(Schedule(shape=shape), 2.0, round=2, rounds=2, fraction=0.0) == pytest.approx(expected)  # type: ignore[arg-type]  # a loop over literals
    quarter = rate(Schedule(shape="cosine", floor=0.5), 2.0, round=1, rounds=1, fraction=0.25)
    assert quarter == pytest.approx(1.0 + 0.5 * (1 + math.cos(math.pi / 4)))
    assert rate(Schedule(warmup=0.5), 2.0, round=1, rounds=1, fraction=0.25) == pytest.approx(1.0)


def test_rounds_past_the_last_keep_the_floor() -> None:
    """A run that is extended does not start over or go negative."""
    assert rate(Schedule(shape="linear", floor=0.25), 2.0, round=9, rounds=3, fraction=0.5) == 0.5
