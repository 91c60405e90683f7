"""The sums of a stage, once they were asked for: which of them count, and what of it can be asked again."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from wardround.core.errors import PeerError, QuorumError
from wardround.core.packed import Counters
from wardround.core.plan import TrainingPlan
from wardround.privacy.secagg.total import Sum
from wardround.runtime.events import Notice
from wardround.server.exchange import Channel, Collected
from wardround.strategies.contract import GroupStrategy, SumStrategy


class BurntError(PeerError):
    """Sites may have helped to open a sum that did not come out: the round cannot be tried again."""


def quorum_of(plan: TrainingPlan, cohort: int) -> int:
    """Least number of contributions for a round of `cohort` sites to count; at least one."""
    return max(1, math.ceil(plan.rounds.quorum * cohort))


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
) -> dict[str, Sum]:
    """The stage's sums of contributions, by name.

    Over groups, those of some may be missing as long as the strategy says that the others are enough.

    Raises:
        QuorumError: Nothing was opened, and it can be asked for again.
        BurntError: It cannot.
    """
    sums: dict[str, Sum] = {}
    lost: list[QuorumError | BurntError] = []
    for name, sites in members.items():
        own = [site for site in before if site in sites]
        try:
            sums[name] = sum_of(channel, collected, name, round, stage, own)
        except (QuorumError, BurntError) as error:
            lost.append(error)
    enough = strategy.least_groups if isinstance(strategy, GroupStrategy) else len(members)
    if len(sums) >= enough:
        for missing in lost:
            text = f"round {round} goes on without the sum of a group: {missing.what}"
            channel.events.emit(Notice(channel.arm, "warning", text))
        return sums
    burnt = [error for error in lost if isinstance(error, BurntError)]
    if sums and not burnt:  # what was opened is spent: nobody helps to open it a second time
        raise BurntError(f"too few groups are left for a vote: {lost[0].what}")
    raise (burnt or lost)[0]


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
