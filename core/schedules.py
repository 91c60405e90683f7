"""Learning rates that know about rounds: pure, so that any step of any round can be asked for."""

from __future__ import annotations

import math

from wardround.core.plan import LocalWork, Schedule


def rate(schedule: Schedule, peak: float, *, round: int, rounds: int, fraction: float) -> float:
    """The learning rate of one step.

    Over the scope's progress p in [0, 1]: linear from zero to `peak` while p < `warmup`, then the named
    shape from `peak` down to `floor` · `peak` at p = 1.

    Args:
        schedule: Shape, scope, warm-up and floor.
        peak: The plan's learning rate.
        round: Counts from 1.
        rounds: Rounds of the run.
        fraction: Share of this local round's steps that are done, in [0, 1).

    Returns:
        A rate in [0, peak]. Rounds past the last (an extended run) keep the end's rate.
    """
    progress = fraction if schedule.scope == "round" else (round - 1 + fraction) / rounds
    progress = min(max(progress, 0.0), 1.0)
    if progress < schedule.warmup:
        return peak * progress / schedule.warmup
    after = (progress - schedule.warmup) / (1.0 - schedule.warmup)
    match schedule.shape:
        case "constant":
            share = 1.0
        case "linear":
            share = 1.0 - after
        case "cosine":
            share = (1.0 + math.cos(math.pi * after)) / 2.0
    return peak * (schedule.floor + (1.0 - schedule.floor) * share)


def single_rate(work: LocalWork, *, round: int, rounds: int) -> float:
    """The rate of a round's one step, where a site steps once: that of the round's middle."""
    return rate(work.schedule, work.learning_rate, round=round, rounds=rounds, fraction=0.5)
