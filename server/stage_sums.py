"""The sums of a stage, once they were asked for: which of them count, and what of it can be asked again."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from wardround.core.counting import WEIGHT
from wardround.core.errors import PeerError, PolicyError, QuorumError
from wardround.core.packed import Counters, Statistics
from wardround.core.plan import TrainingPlan
from wardround.privacy.secagg.total import Sum
from wardround.privacy.sums.noise import RingNoise, ring_noise
from wardround.privacy.sums.opened import ImpossibleSumError, statistics_of
from wardround.runtime.events import Notice
from wardround.server.stage import Channel, Collected
from wardround.strategies.contract import GroupStrategy, SumStrategy


class BurntError(PeerError):
    """Sites may have helped to open a sum that did not come out: the round cannot be tried again."""


def quorum_of(plan: TrainingPlan, cohort: int) -> int:
    """Least number of contributions for a round of `cohort` sites to count; at least one."""
    return max(1, math.ceil(plan.rounds.quorum * cohort))


@dataclass(frozen=True)
class StageSum:
    """One sum of contributions, opened and within the plan's bounds.

    Attributes:
        total: As it was opened.
        statistics: Σ w_i · statistics_i, float64.
        counters: Σ of the counters.
        cohort: Sites that were asked.
    """

    total: Sum
    statistics: Statistics
    counters: Counters
    cohort: int

    @property
    def weight(self) -> float:
        """Σ w_i."""
        return float(self.counters[WEIGHT])


def added(counters: Sequence[Counters]) -> Counters:
    """The counters of all groups together."""
    first = counters[0]
    return first.with_vector(np.sum([each.vector for each in counters], axis=0, dtype=first.vector.dtype))


def least_of(plan: TrainingPlan, sites: Sequence[str], survivors: Sequence[str], stage: int) -> int:
    """So many of a sum's sites have to be in it: the quorum, and in a later stage all of the first one."""
    return len(set(survivors) & set(sites)) if stage else quorum_of(plan, len(sites))


def sums_of(
    channel: Channel,
    strategy: SumStrategy,
    collected: Collected,
    round: int,
    stage: int,
    members: Mapping[str, Sequence[str]],
    before: Sequence[str],
) -> dict[str, StageSum]:
    """The stage's sums of contributions, by name.

    Over groups, those of some may be missing, or impossible, as long as the strategy says that the others are
    enough: one hostile site must not be able to end every round.

    Raises:
        QuorumError: Nothing was opened, and it can be asked for again.
        BurntError: It cannot.
    """
    layout, encoding = strategy.statistics_layout(stage), channel.plan.encoding
    sums: dict[str, StageSum] = {}
    lost: list[QuorumError | BurntError] = []
    for name, sites in members.items():
        own = [site for site in before if site in sites]
        try:
            total = sum_of(channel, collected, name, round, stage, own)
            noise = ring_noise(channel.plan, cohort=len(sites), coordinates=layout.size, round=round)
            total = noised(channel, total, noise, round)
            sums[name] = StageSum(
                total,
                *statistics_of(total, layout, encoding, cohort=len(sites), noise=noise),
                cohort=len(sites),
            )
        except ImpossibleSumError as error:
            lost.append(BurntError(error.what, found=error.found, expected=error.expected))
        except (QuorumError, BurntError) as error:
            lost.append(error)
    enough = strategy.least_groups if isinstance(strategy, GroupStrategy) else len(members)
    if len(sums) >= enough:
        for missing in lost:
            text = f"round {round} goes on without the sum of a group: {missing.what}"
            channel.events.emit(Notice(channel.arm, "warning", text))
        return sums
    burnt = [missing for missing in lost if isinstance(missing, BurntError)]
    if sums and not burnt:  # what was opened is spent: nobody helps to open it a second time
        raise BurntError(f"too few groups are left for a vote: {lost[0].what}")
    raise (burnt or lost)[0]


def noised(channel: Channel, total: Sum, noise: RingNoise | None, round: int) -> Sum:
    """The sum with the server's noise, where the plan has the server add it: before anything looks at it.

    Raises:
        PolicyError: The noise comes from a seed, and this is no simulation.
    """
    privacy = channel.plan.privacy
    if noise is None or privacy is None or privacy.noise != "central":
        return total
    source = channel.noise(round)
    if source.repeatable and not channel.simulation:
        raise PolicyError(
            "the server's noise comes from a seed, which protects nobody", found="a repeatable source",
            expected="words from the operating system",
            remedy="use the system's source, or run a simulation, which says that it is not private",
        )  # fmt: skip
    return noise.added_to_sum(total, source)


def sum_of(
    channel: Channel, collected: Collected, name: str, round: int, stage: int, before: Sequence[str]
) -> Sum:
    """One of the stage's sums of contributions.

    Raises:
        QuorumError: It was not opened, and can be asked for again.
        BurntError: It cannot.
    """
    total, lost = collected.sums.get(name), collected.lost.get(name)
    least = len(before) if stage else quorum_of(channel.plan, len(before))
    if total is not None and len(total.survivors) >= least:
        return total
    if name in collected.burnt:
        raise BurntError(lost.what if lost else "the sum cannot be opened")
    survivors = total.survivors if total else ()
    missing = ", ".join(sorted(set(before) - set(survivors)))
    if stage:
        raise BurntError(f"a site of the first stage is lost in the second: {missing}")
    raise QuorumError(
        f"round {round} of {channel.arm} did not reach its quorum",
        found=f"{lost.what} ({lost.found})"
        if lost
        else f"{len(survivors)} of {len(before)} sites contributed; not: {missing}",
        expected=f"at least {least}",
        remedy="look at these sites' reasons; the run can be resumed from its last folded round",
    )
