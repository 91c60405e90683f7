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
from wardround.privacy.secagg.draw import Groups
from wardround.privacy.secagg.total import Sum
from wardround.privacy.sums.contract import TRAINING, name_of
from wardround.privacy.sums.noise import RingNoise, ring_noise
from wardround.privacy.sums.opened import ImpossibleSumError, opened, statistics_of
from wardround.runtime.events import Notice
from wardround.server.stage import Channel, Collected
from wardround.strategies.contract import (
    GroupStrategy,
    IndividualStrategy,
    ServerState,
    SumStrategy,
    combined,
)

_REMEDY = "look at these sites' reasons; the run can be resumed from its last folded round"


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


def members_of(strategy: SumStrategy, cohort: Sequence[str], groups: Groups) -> dict[str, tuple[str, ...]]:
    """Name of each of a round's sums of contributions → its sites: all of the cohort, a group, or one."""
    parts = tuple((site,) for site in cohort) if isinstance(strategy, IndividualStrategy) else groups
    return {name_of(TRAINING, index): part for index, part in enumerate(parts)} or {TRAINING: tuple(cohort)}


def least_alone(plan: TrainingPlan, strategy: SumStrategy, cohort: int) -> int:
    """Contributions that a round needs where each is a sum of its own; 0 where sites are summed."""
    if not isinstance(strategy, IndividualStrategy):
        return 0
    return max(quorum_of(plan, cohort), strategy.least_sites)


def folded_from(
    strategy: SumStrategy, state: ServerState, sums: Mapping[str, StageSum], stage: int
) -> ServerState:
    """The state after a stage, from its sums.

    Raises:
        PeerError: They are too few, or as the strategy says.
    """
    parts = [(found.statistics, found.weight) for found in sums.values()]
    if isinstance(strategy, IndividualStrategy):
        return strategy.fold(state, *strategy.combine_individuals(state, parts), stage)
    return strategy.fold(state, *combined(strategy, parts), stage)


def for_the_sites(
    plan: TrainingPlan,
    strategy: SumStrategy,
    members: Mapping[str, Sequence[str]],
    sums: Mapping[str, StageSum],
    round: int,
    stage: int,
) -> tuple[bytes, ...]:
    """The stage's sums as they go to the sites with the next broadcast; none where each is one site's."""
    if isinstance(strategy, IndividualStrategy):
        return ()
    return tuple(
        opened(
            sums[name].total, round=round, stage=stage, cohort=sums[name].cohort,
            bits=plan.encoding.bits, group=group,
        )
        for group, name in enumerate(members) if name in sums
    )  # fmt: skip


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
    enough: one hostile site must not be able to end every round. The same holds of single contributions, of
    which the plan's quorum has to be there as well.

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
            if isinstance(strategy, IndividualStrategy):
                _tell_impossible(channel, round, sites[0], error)
        except (QuorumError, BurntError) as error:
            lost.append(error)
    if isinstance(strategy, IndividualStrategy):
        return _enough_alone(channel, strategy, sums, lost, round, members)
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


def _tell_impossible(channel: Channel, round: int, site: str, error: PeerError) -> None:
    text = f"{site} is left out of round {round}: {error.what}"
    channel.events.emit(Notice(channel.arm, "warning", text))


def _enough_alone(
    channel: Channel,
    strategy: SumStrategy,
    sums: dict[str, StageSum],
    lost: Sequence[QuorumError | BurntError],
    round: int,
    members: Mapping[str, Sequence[str]],
) -> dict[str, StageSum]:
    """The contributions, if they are enough.

    Raises:
        QuorumError: They are not. What was seen is not spent by it: the round can be asked for again.
        BurntError: They are not, and a contribution was impossible: to ask again would only repeat that.
    """
    least = least_alone(channel.plan, strategy, len(members))
    if len(sums) >= least:
        return sums
    burnt = [missing for missing in lost if isinstance(missing, BurntError)]
    if burnt:
        raise burnt[0]
    missing = ", ".join(sites[0] for name, sites in members.items() if name not in sums)
    raise QuorumError(
        f"round {round} of {channel.arm} did not reach its quorum",
        found=f"{len(sums)} of {len(members)} sites contributed; not: {missing}",
        expected=f"at least {least}",
        remedy=_REMEDY,
    )


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
        remedy=_REMEDY,
    )
