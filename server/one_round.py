"""One round of the loop, all stages of it.

    for each stage: broadcast → sums (`exchange.py`) → check → fold

Sites take no offer twice, and help to open no sum twice. So where they outlive the server, what a stage gave
is on disk before the next one begins, and a server that is killed between two goes on with the later one. In
a simulation, whose sites begin afresh with it, a resumed run begins the round anew, and each site contributes
again from what it trained.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from wardround.core.errors import PeerError
from wardround.privacy.secagg.draw import Groups
from wardround.privacy.sums.contract import EVALUATION
from wardround.privacy.sums.offers import scale_of
from wardround.runtime.events import RoundBurnt
from wardround.server.exchange import collect
from wardround.server.folded import Folded
from wardround.server.journal import Position
from wardround.server.run import Run
from wardround.server.scoring import Scored, evaluators_of, scored_of
from wardround.server.stage import Stage
from wardround.server.stage_sums import (
    BurntError,
    added,
    folded_from,
    for_the_sites,
    least_alone,
    least_of,
    members_of,
    sums_of,
)
from wardround.strategies.contract import ServerState


def asked_of(run: Run, at: Position) -> list[str]:
    """Sites that may be asked, sorted."""
    return sorted(set(run.sites) - at.left_out)


def without(sites: Sequence[str], away: frozenset[str]) -> tuple[str, ...]:
    """The sites that are not away."""
    return tuple(site for site in sites if site not in away)


def train_round(
    run: Run, at: Position, cohort: Sequence[str], groups: Groups = (), away: frozenset[str] = frozenset()
) -> Folded:
    """One round, all stages of it, or those that an interrupted server has not kept.

    Args:
        run: The run.
        at: After the round before.
        cohort: Sites that train.
        groups: Over which their contributions are summed; none: over all of them.
        away: Sites that are asked for nothing.

    Raises:
        QuorumError: Fewer sites than the quorum contributed. Nothing was opened: the run can be resumed.
        PeerError: The strategy did not advance the round.
        StorageError: What a stage gave cannot be kept, or read again.
    """
    before, round = at.state, at.state.round + 1
    kept = None if run.between is None else run.between.load(round)
    begin = 0 if kept is None else kept[0] + 1
    if run.attempts is not None and run.attempts.burnt(round, begin):
        why = "the server ended while sites helped to open its sum"
        return burnt(run, before, cohort, Scored(None, ()) if kept is None else kept[1].scored, why)
    evaluators = evaluators_of(run.plan, asked_of(run, at), cohort, before.round)
    folded = Folded(before, None, list(cohort), Scored(None, ()), 0) if kept is None else kept[1]
    members = members_of(run.strategy, cohort, groups)
    for stage in range(begin, run.strategy.stages):
        state, survivors = folded.state, folded.survivors
        collected = collect(
            run.channel,
            Stage(
                round,
                stage,
                run.strategy.broadcast(state, round, stage),
                run.strategy.statistics_layout(stage),
                {**members, EVALUATION: () if stage else without(evaluators, away)},
                {name: least_of(run.plan, sites, survivors, stage) for name, sites in members.items()}
                | {EVALUATION: 1},
                # Cohort and threshold are a round's; who was lost in an earlier stage counts as dropped out.
                (frozenset(cohort) - set(survivors)) | ((at.left_out | away) & frozenset(cohort)),
                folded.opened if stage else at.opened,
                least_alone(run.plan, run.strategy, len(cohort)),
            ),
        )
        folded = replace(
            folded,
            scored=folded.scored
            if stage
            else scored_of(run.channel, collected, evaluators, folded=before.round),
            bytes_up=folded.bytes_up + collected.bytes_up,
            liars=folded.liars | collected.liars,
            epsilon={**folded.epsilon, **collected.epsilon},
        )
        try:
            sums = sums_of(run.channel, run.strategy, collected, round, stage, members, survivors)
        except BurntError as error:
            return replace(
                burnt(run, before, cohort, folded.scored, error.what),
                bytes_up=folded.bytes_up, liars=folded.liars, epsilon=folded.epsilon,
            )  # fmt: skip
        told = for_the_sites(run.plan, run.strategy, members, sums, round, stage)
        folded = replace(
            folded,
            state=folded_from(run.strategy, state, sums, stage),
            counters=folded.counters or added([s.counters for s in sums.values()]),
            survivors=sorted(site for s in sums.values() for site in s.total.survivors),
            opened=(*folded.opened, *told),
            rounding=max(
                scale_of(run.plan.encoding, s.cohort).error_of_mean(s.weight) for s in sums.values()
            ),
        )
        if run.between is not None and stage < run.strategy.stages - 1:
            run.between.save(stage, folded)  # before anybody is asked what follows from it
    if folded.state.round != round:
        raise PeerError("the strategy did not advance the round", found=folded.state.round, expected=round)
    return folded


def burnt(run: Run, before: ServerState, cohort: Sequence[str], scored: Scored, reason: str) -> Folded:
    """The round is spent without a fold: the next one trains afresh from the same adapter."""
    run.events.emit(RoundBurnt(run.arm, before.round + 1, reason, tuple(sorted(cohort))))
    return Folded(replace(before, round=before.round + 1), None, [], scored, 0)
