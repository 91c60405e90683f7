"""The round loop. The simulator and the networked server run this same file over another transport.

The way of one round:

    choose cohort → for each stage: broadcast → sums (`exchange.py`) → check → fold
    → judge the state that was broadcast → journal

A strategy that votes over groups has one sum a group instead of one over the whole cohort; who stands in
which of them is drawn before the first round (`grouping.py`). One that sees individuals has a sum of each
site.

The evaluation of the adapter after round r rides in the requests of round r + 1, so that its score is in the
journal's line of round r + 1; after the last fold one exchange only evaluates, so that the last adapter is
judged as well.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from wardround.core.counting import train_loss
from wardround.core.errors import PeerError
from wardround.core.packed import Adapter, Counters
from wardround.core.plan import TrainingPlan, cohort_size
from wardround.core.selection import Selection
from wardround.privacy.noise.source import RandomSource, SystemSource
from wardround.privacy.secagg.draw import Groups
from wardround.privacy.sums.aggregation import Aggregation
from wardround.privacy.sums.contract import EVALUATION
from wardround.privacy.sums.noise import epsilon_of_sums
from wardround.privacy.sums.offers import scale_of
from wardround.runtime.events import (
    EventStream,
    PrivacySpent,
    RoundBurnt,
    RoundFolded,
    RunStarted,
)
from wardround.server.attempts import Attempts
from wardround.server.cohorts import choose_cohort, require_some
from wardround.server.exchange import collect
from wardround.server.global_adapter import norm_of_change, require_initial
from wardround.server.grouping import draw_groups
from wardround.server.journal import Journal, Position
from wardround.server.outcome import Outcome, outcome_of
from wardround.server.relay_journals import RelayJournals
from wardround.server.round_control import RoundControl, Unasked, stopped
from wardround.server.scoring import Scored, evaluators_of, judge, scored_of
from wardround.server.stage import POLL_S, Channel, Stage
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
from wardround.server.transport import Transport
from wardround.strategies.adaptive_norm import clip_norm_of
from wardround.strategies.contract import DISCARDED, GroupStrategy, ServerState, SumStrategy


@dataclass(frozen=True)
class Run:
    """Everything one run of the loop needs.

    Attributes:
        run_id: Identifies the run in every message.
        arm: `federated`, `centralised` or `local/SITE`, for the events.
        plan: What is trained.
        strategy: How contributions become the next state.
        sites: Every site of the run, sorted.
        transport: Reaches the sites.
        aggregation: How contributions become sums.
        journal: Makes each round durable.
        events: Where the run tells what happens.
        on_state: Called with each new state (and the one it starts from) before the next request is sent.
        clock: Seconds by which the deadline of an exchange is kept. How long things took is always told in
            the wall clock's seconds.
        noise: Round → words for the noise that the server adds; from the operating system, but in a
            simulation.
        simulation: Says "not private": the noise may come from a seed.
        grace_s: So long an exchange waits for the others once enough have answered; None: until the deadline.
        control: What people ask of the run while it trains.
        attempts: How often each round was asked for, where sites outlive the server; a simulation's do not.
        journals: Of the sums' relays, likewise.
        following: As of `Channel`.
        poll_s: As of `Channel`.
        away: Round → sites that cannot be reached as it begins: they are asked for nothing in it. Called
            once, and it may take its time.
    """

    run_id: str
    arm: str
    plan: TrainingPlan
    strategy: SumStrategy
    sites: tuple[str, ...]
    transport: Transport
    aggregation: Aggregation
    journal: Journal
    events: EventStream
    on_state: Callable[[ServerState], None] = field(default=lambda _: None)
    clock: Callable[[], float] = time.monotonic
    noise: Callable[[int], RandomSource] = field(default=lambda _: SystemSource("noise of a sum"))
    simulation: bool = False
    grace_s: float | None = None
    control: RoundControl = field(default_factory=Unasked)
    attempts: Attempts | None = None
    journals: RelayJournals | None = None
    following: set[str] = field(default_factory=set)
    poll_s: float = POLL_S
    away: Callable[[int], frozenset[str]] = field(default=lambda _: frozenset())

    @property
    def channel(self) -> Channel:
        """What `exchange.py` needs of it."""
        return Channel(
            self.run_id,
            self.arm,
            self.plan,
            self.transport,
            self.aggregation,
            self.events,
            self.clock,
            self.noise,
            self.simulation,
            self.grace_s,
            self.control,
            self.attempts,
            self.journals,
            self.following,
            self.poll_s,
        )


@dataclass(frozen=True)
class Folded:
    """One round's result.

    Attributes:
        state: After its last stage; the old one under the round's number where the round was burnt.
        counters: Summed counters of its first stage; None where the round was burnt.
        survivors: Sites whose contributions are in it, sorted.
        scored: Of the state that was broadcast.
        bytes_up: Bytes of all replies.
        opened: The sums, one a stage (or group), as they go to the sites with the next broadcast; none of
            single sites.
        liars: Sites that were caught: they are not asked again.
        rounding: The most by which quantisation moved a coordinate of the mean.
        epsilon: Site → what it says to have spent, where it trains privately.
    """

    state: ServerState
    counters: Counters | None
    survivors: list[str]
    scored: Scored
    bytes_up: int
    opened: tuple[bytes, ...] = ()
    liars: frozenset[str] = frozenset()
    rounding: float = 0.0
    epsilon: Mapping[str, float] = field(default_factory=dict)


def run_rounds(run: Run, initial: Adapter) -> Outcome:
    """Train to the last round of the plan, or until early stopping; resumes from the journal.

    Raises:
        ConfigError: The initial adapter is not the one that the plan names.
        QuorumError: A round got fewer contributions than the plan's quorum. The journal stands: the
            run can be resumed.
        RunStoppedError: Somebody asked for it, at any moment, or between rounds. The journal stands as well.
    """
    require_initial(run.plan, initial)
    at = run.journal.resume() or Position(run.strategy.begin(initial), Selection(run.plan.release))
    started = time.perf_counter() - at.wall_s
    run.events.emit(
        RunStarted(
            run.run_id,
            run.arm,
            run.plan.name,
            run.plan.digest,
            run.plan.rounds.rounds,
            run.sites,
            at.state.round,
        )
    )
    run.on_state(at.state)
    groups = groups_of(run, at)
    if groups:  # who is not in the draw is not in the run
        run = replace(run, sites=tuple(sorted(site for group in groups for site in group)))
    spent: Mapping[str, float] = {}
    while at.state.round < run.plan.rounds.rounds and not at.selection.exhausted:
        if run.control.stop_requested or run.control.drain_requested:
            raise stopped()
        round_started, before = time.perf_counter(), at.state
        asking = leaving_out(run, at)
        away = run.away(before.round + 1)
        there = [site for site in asked_of(run, asking) if site not in away]
        require_some(there)
        every = len(asked_of(run, asking))
        # Groups are fixed for the run, whoever was caught or excluded since, or is away.
        asked = run.sites if groups else choose_cohort(run.plan, there, before.round + 1, of=every)
        cohort = list(asked)
        folded = train_round(run, asking, cohort, groups, away)
        at = Position(
            folded.state,
            judge(run.channel, at.selection, before, folded.scored),
            time.perf_counter() - started,
            folded.opened,
            at.left_out | folded.liars,
        )
        # Told first: what is told of a round that is not journalled is dropped when the run goes on, but of a
        # round that is journalled nothing would be told again, and the result is written from what was told.
        spent = {**spent, **folded.epsilon}
        tell_spent(run, at.state, spent)
        if folded.counters is not None:
            run.events.emit(
                RoundFolded(
                    run.arm,
                    at.state.round,
                    tuple(folded.survivors),
                    tuple(sorted(set(cohort) - set(folded.survivors))),
                    train_loss(folded.counters),
                    norm_of_change(run.strategy, before.adapter, at.state.adapter),
                    folded.bytes_up,
                    time.perf_counter() - round_started,
                    at.state.adapter.digest,
                    folded.rounding,
                    at.state.figures.get(DISCARDED),
                )
            )
        keep(run, at)
        run.on_state(at.state)
    at = replace(at, selection=judge_last(run, leaving_out(run, at)), wall_s=time.perf_counter() - started)
    keep(run, at)
    outcome = outcome_of(at, run.plan.rounds.rounds, run.strategy, run.journal)
    run.events.emit(outcome.event(run.arm))
    return outcome


def keep(run: Run, at: Position) -> None:
    """Make the position durable; what was journalled of the round's sums is of no use any more."""
    run.journal.commit(at)
    if run.journals is not None:
        run.journals.discard()


def leaving_out(run: Run, at: Position) -> Position:
    """The position as one round takes it: whom people excluded by now is left out of all of it."""
    return replace(at, left_out=at.left_out | run.control.excluded)


def asked_of(run: Run, at: Position) -> list[str]:
    """Sites that may be asked, sorted."""
    return sorted(set(run.sites) - at.left_out)


def without(sites: Sequence[str], away: frozenset[str]) -> tuple[str, ...]:
    """The sites that are not away."""
    return tuple(site for site in sites if site not in away)


def tell_spent(run: Run, state: ServerState, spent: Mapping[str, float]) -> None:
    """What the rounds so far cost in privacy, burnt ones included; nothing where nobody trains privately."""
    privacy, round = run.plan.privacy, state.round
    if privacy is not None and privacy.noise == "central":
        cohort, size = cohort_size(run.plan.rounds, len(run.sites)), run.strategy.statistics_layout(0).size
        cost = epsilon_of_sums(run.plan, units=len(run.sites), cohort=cohort, coordinates=size, rounds=round)
        spent = dict.fromkeys(run.sites, cost.value)
    if privacy is not None and spent:
        run.events.emit(
            PrivacySpent(
                run.arm, round, privacy.unit, privacy.delta, dict(sorted(spent.items())), clip_norm_of(state)
            )
        )


def groups_of(run: Run, at: Position) -> Groups:
    """The groups over which the run sums, durable from here on; none where it sums over the whole cohort."""
    if not isinstance(run.strategy, GroupStrategy):
        return ()
    grouping = draw_groups(
        run.channel, run.strategy, asked_of(run, leaving_out(run, at)), run.journal.drawn()
    )
    run.journal.keep_drawn(grouping.drawn)
    return grouping.groups


def train_round(
    run: Run, at: Position, cohort: Sequence[str], groups: Groups = (), away: frozenset[str] = frozenset()
) -> Folded:
    """One round, all stages of it.

    The state between two stages is not journalled: a resumed run begins the round anew, and each site
    contributes again from what it trained.

    Args:
        run: The run.
        at: After the round before.
        cohort: Sites that train.
        groups: Over which their contributions are summed; none: over all of them.
        away: Sites that are asked for nothing.

    Raises:
        QuorumError: Fewer sites than the quorum contributed. Nothing was opened: the run can be resumed.
        PeerError: The strategy did not advance the round.
    """
    before, state, round = at.state, at.state, at.state.round + 1
    if run.attempts is not None and run.attempts.burnt(round):
        why = "the server ended while sites helped to open its sum"
        return burnt(run, before, cohort, Scored(None, ()), why)
    evaluators = evaluators_of(run.plan, asked_of(run, at), cohort, before.round)
    survivors, folded = tuple(cohort), Folded(state, None, [], Scored(None, ()), 0)
    members = members_of(run.strategy, cohort, groups)
    for stage in range(run.strategy.stages):
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
                () if stage else at.opened,
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
        state = folded_from(run.strategy, state, sums, stage)
        survivors = tuple(sorted(site for s in sums.values() for site in s.total.survivors))
        told = for_the_sites(run.plan, run.strategy, members, sums, round, stage)
        folded = replace(
            folded,
            state=state,
            counters=folded.counters or added([s.counters for s in sums.values()]),
            survivors=list(survivors),
            opened=(*folded.opened, *told),
            rounding=max(
                scale_of(run.plan.encoding, s.cohort).error_of_mean(s.weight) for s in sums.values()
            ),
        )
    if state.round != round:
        raise PeerError("the strategy did not advance the round", found=state.round, expected=round)
    return folded


def burnt(run: Run, before: ServerState, cohort: Sequence[str], scored: Scored, reason: str) -> Folded:
    """The round is spent without a fold: the next one trains afresh from the same adapter."""
    run.events.emit(RoundBurnt(run.arm, before.round + 1, reason, tuple(sorted(cohort))))
    return Folded(replace(before, round=before.round + 1), None, [], scored, 0)


def judge_last(run: Run, at: Position) -> Selection:
    """Score the adapter after the last fold, by an exchange that only evaluates."""
    state, selection = at.state, at.selection
    evaluators = evaluators_of(run.plan, asked_of(run, at), (), state.round, last=True)
    if any(round == state.round for round, _ in selection.scores) or not evaluators:
        return selection
    round = state.round + 1
    if run.attempts is not None and run.attempts.burnt(round):
        return selection  # sites open no second sum: this adapter stays without a score
    asked = without(evaluators, run.away(round))
    collected = collect(
        run.channel,
        Stage(
            round,
            0,
            run.strategy.broadcast(state, round, 0),
            run.strategy.statistics_layout(0),
            {EVALUATION: asked},
            {EVALUATION: 1},
            opened=at.opened,
        ),
    )
    scored = scored_of(run.channel, collected, evaluators, folded=state.round)
    return judge(run.channel, selection, state, scored)
