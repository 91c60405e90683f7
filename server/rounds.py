"""The round loop. The simulator and the networked server run this same file over another transport.

The way of one round:

    choose cohort → for each stage: broadcast → exchange (every reply checked, then added) → fold
    → judge the state that was broadcast → journal

The evaluation of the adapter after round r rides in the requests of round r + 1, so that its score is in the
journal's line of round r + 1; after the last fold one exchange only evaluates, so that the last adapter is
judged as well.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from wardround.core.counting import WEIGHT, train_loss, validation_scores
from wardround.core.errors import ConfigError, PeerError, QuorumError
from wardround.core.messages import Reply, Request
from wardround.core.metrics.contract import Scores
from wardround.core.packed import Adapter, Counters, Packed
from wardround.core.plan import TrainingPlan
from wardround.core.seeds import Purpose, generator
from wardround.privacy.ring import decode
from wardround.runtime.events import (
    Evaluated,
    EventStream,
    Improved,
    Notice,
    RoundFolded,
    RoundStarted,
    RunFinished,
    RunStarted,
    SiteReplied,
)
from wardround.server.intake import Intake, quorum_of
from wardround.server.journal import Journal, Position
from wardround.server.selection import Selection
from wardround.server.transport import Transport
from wardround.strategies.contract import ServerState, SumStrategy

POLL_S = 0.2


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
        journal: Makes each round durable.
        events: Where the run tells what happens.
        on_state: Called with each new state (and the one it starts from) before the next request is sent.
        clock: Seconds by which the deadline of an exchange is kept. How long things took is always told in
            the wall clock's seconds.
    """

    run_id: str
    arm: str
    plan: TrainingPlan
    strategy: SumStrategy
    sites: tuple[str, ...]
    transport: Transport
    journal: Journal
    events: EventStream
    on_state: Callable[[ServerState], None] = field(default=lambda _: None)
    clock: Callable[[], float] = time.monotonic


@dataclass(frozen=True)
class Outcome:
    """How a run ended: the state after the last fold, the scores, the adapter of the released round.

    `wall_s` are the seconds of the whole run, those before an interruption included.
    """

    last: ServerState
    selection: Selection
    released_round: int
    released: Adapter
    reason: str
    wall_s: float = 0.0


@dataclass(frozen=True)
class Folded:
    """One round's result.

    Attributes:
        state: After its last stage.
        counters: Summed counters of its first stage.
        survivors: Sites whose contributions are in it, sorted.
        unscored: Sites that were asked to score the broadcast and did not.
        bytes_up: Bytes of all replies.
    """

    state: ServerState
    counters: Counters
    survivors: list[str]
    unscored: tuple[str, ...]
    bytes_up: int


def run_rounds(run: Run, initial: Adapter) -> Outcome:
    """Train to the last round of the plan, or until early stopping; resumes from the journal.

    Raises:
        ConfigError: The initial adapter is not the one that the plan names.
        QuorumError: A round got fewer contributions than the plan's quorum. The journal stands: the
            run can be resumed.
    """
    require_initial(run.plan, initial)
    began = run.journal.resume() or Position(run.strategy.begin(initial), Selection(run.plan.release))
    state, selection = began.state, began.selection
    started = time.perf_counter() - began.wall_s
    run.events.emit(
        RunStarted(
            run.run_id,
            run.arm,
            run.plan.name,
            run.plan.digest,
            run.plan.rounds.rounds,
            run.sites,
            state.round,
        )
    )
    run.on_state(state)
    while state.round < run.plan.rounds.rounds and not selection.exhausted:
        round_started, before = time.perf_counter(), state
        cohort = choose_cohort(run.plan, run.sites, state.round + 1)
        folded = train_round(run, state, cohort)
        state = folded.state
        selection = judge(run, selection, before, folded.counters, folded.unscored)
        run.journal.commit(state, selection, wall_s=time.perf_counter() - started)
        run.events.emit(
            RoundFolded(
                run.arm,
                state.round,
                tuple(folded.survivors),
                tuple(sorted(set(cohort) - set(folded.survivors))),
                train_loss(folded.counters),
                norm_of_change(before.adapter, state.adapter),
                folded.bytes_up,
                time.perf_counter() - round_started,
                state.adapter.digest,
            )
        )
        run.on_state(state)
    selection = judge_last(run, state, selection)
    wall_s = time.perf_counter() - started
    run.journal.commit(state, selection, wall_s=wall_s)
    released_round, released = run.journal.released(state, selection)
    reason = "completed" if state.round >= run.plan.rounds.rounds else "early_stop"
    run.events.emit(RunFinished(run.arm, reason, state.round, released_round, released.digest, wall_s))
    return Outcome(state, selection, released_round, released, reason, wall_s)


def require_initial(plan: TrainingPlan, initial: Adapter) -> None:
    """Refuse to start from another adapter than the one that every site has accepted with the plan.

    Raises:
        ConfigError: Names both digests.
    """
    if initial.digest != plan.adapter.initial_digest:
        raise ConfigError(
            "the initial adapter is not the plan's",
            found=initial.digest[:12],
            expected=plan.adapter.initial_digest[:12],
            remedy="start with the adapter that was made with the plan, or make a new plan for this one",
        )


def train_round(run: Run, state: ServerState, cohort: Sequence[str]) -> Folded:
    """One round, all stages of it.

    The state between two stages is not journalled: a resumed run begins the round anew, and each site
    contributes again from what it trained.

    Raises:
        QuorumError: Fewer sites than the quorum contributed, or one that is in the first stage's sum
            is not in a later one's.
        PeerError: The strategy did not advance the round.
    """
    round, bytes_up = state.round + 1, 0
    counters: Counters | None = None
    unscored: tuple[str, ...] = ()
    asked = list(cohort)
    for stage in range(run.strategy.stages):
        intake, received = exchange(run, state, round, asked, stage=stage, evaluate=stage == 0)
        bytes_up += received
        if stage == 0:
            unscored = intake.unscored
        if len(intake.survivors) < (quorum_of(run.plan, len(cohort)) if stage == 0 else len(asked)):
            raise QuorumError(
                f"round {round} of {run.arm} did not reach its quorum",
                found=f"{len(intake.survivors)} of {len(asked)} sites contributed; not: "
                + ", ".join(sorted(set(asked) - set(intake.survivors))),
                expected=f"at least {quorum_of(run.plan, len(cohort))}"
                if stage == 0
                else f"all {len(asked)}, whose contributions are in the sum of stage {stage - 1}",
                remedy="look at these sites' reasons; the run can be resumed from its last folded round",
            )
        total = Packed(run.strategy.statistics_layout(stage), decode(intake.total, run.plan.encoding))
        state = run.strategy.fold(state, total, float(intake.counters[WEIGHT]), stage)
        counters = counters or intake.counters
        asked = sorted(intake.survivors)
    if counters is None or state.round != round:
        raise PeerError("the strategy did not advance the round", found=state.round, expected=round)
    return Folded(state, counters, asked, unscored, bytes_up)


def exchange(
    run: Run, state: ServerState, round: int, cohort: Sequence[str], *, stage: int = 0, evaluate: bool = True
) -> tuple[Intake, int]:
    """Ask the cohort (and whoever else evaluates), collect until all have answered or the deadline passes."""
    due = evaluate and evaluation_due(run.plan, state.round, last=not cohort)
    evaluators = (
        set(run.sites if run.plan.release.evaluators == "all" or not cohort else cohort) if due else set()
    )
    broadcast = run.strategy.broadcast(state, round, stage)
    requests = {
        site: Request(
            run_id=run.run_id,
            plan_digest=run.plan.digest,
            round=round,
            site=site,
            stage=stage,
            train=site in cohort,
            evaluate=site in evaluators,
            broadcast=broadcast,
            cohort_size=max(1, len(cohort)),
        )
        for site in sorted(evaluators | set(cohort))
    }
    intake = Intake(run.plan, requests, run.strategy.statistics_layout(stage))
    if not requests:
        return intake, 0
    bytes_down = run.transport.send(list(requests.values()))
    run.events.emit(RoundStarted(run.arm, round, tuple(cohort), bytes_down, stage))
    deadline, bytes_up = run.clock() + run.plan.rounds.deadline_s, 0
    while intake.waiting and run.clock() < deadline:
        for reply, size in run.transport.receive(POLL_S):
            bytes_up += size
            take(run, intake, reply, size)
    for site in intake.waiting:
        run.events.emit(
            SiteReplied(
                run.arm, round, site, "late", "deadline", "no answer before the deadline", stage=stage
            )
        )
    return intake, bytes_up


def take(run: Run, intake: Intake, reply: Reply, size: int) -> None:
    """Fold one reply, or quarantine its sender for this round by name."""
    outcome = SiteReplied(
        run.arm,
        reply.round,
        reply.site,
        reply.status,
        reply.code,
        reply.reason,
        size,
        reply.local,
        reply.stage,
    )
    try:
        if intake.take(reply):
            run.events.emit(outcome)
    except PeerError as error:
        run.events.emit(
            replace(outcome, status="quarantined", code="malformed_reply", reason=error.what, local={})
        )


def judge(
    run: Run, selection: Selection, state: ServerState, counters: Counters, unscored: tuple[str, ...]
) -> Selection:
    """Score the state that was broadcast from the summed counters, and note whether it is the best so far.

    `unscored` are the sites that were asked and are not in the sums: such a score is shown, and compared only
    with scores that lack the same sites (`Selection`).
    """
    scores: Scores = validation_scores(run.plan, counters)
    if not scores.values:
        return selection
    run.events.emit(
        Evaluated(
            run.arm, state.round, "validation", scores.values, scores.support, scores.by_class, unscored
        )
    )
    if unscored:
        run.events.emit(
            Notice(
                run.arm,
                "warning",
                f"the score of round {state.round} lacks {', '.join(unscored)}: "
                "it is compared only with scores that lack the same sites",
            )
        )
    if state.round == 0:
        return selection  # shown for comparison; nothing was trained, so it is never released
    updated = selection.add(state.round, scores.values.get(run.plan.release.metric), unscored)
    if updated.best is not None and updated.best != selection.best:
        run.events.emit(Improved(run.arm, updated.best[0], run.plan.release.metric, updated.best[1]))
    return updated


def judge_last(run: Run, state: ServerState, selection: Selection) -> Selection:
    """Score the adapter after the last fold, by an exchange that only evaluates."""
    if any(round == state.round for round, _ in selection.scores):
        return selection
    intake, _ = exchange(run, state, state.round + 1, ())
    return judge(run, selection, state, intake.counters, intake.unscored)


def choose_cohort(plan: TrainingPlan, sites: Sequence[str], round: int) -> list[str]:
    """Sites that train in this round: a share of all, drawn from the seed tree."""
    size = max(1, round_half_up(plan.rounds.participation * len(sites)))
    if size >= len(sites):
        return sorted(sites)
    draw = generator(plan.seed, Purpose.COHORT, round=round)
    return sorted(draw.choice(sorted(sites), size=size, replace=False).tolist())


def evaluation_due(plan: TrainingPlan, folded: int, *, last: bool) -> bool:
    """Whether the state after `folded` rounds is scored: every `release.every` rounds, and the last."""
    has_validation = plan.data.validation_fraction > 0
    return has_validation and (last or folded % plan.release.every == 0)


def round_half_up(value: float) -> int:
    """Nearest integer, halves up."""
    return int(np.floor(value + 0.5))


def norm_of_change(before: Adapter, after: Adapter) -> float:
    """‖after − before‖₂ in float64."""
    return float(np.linalg.norm(after.vector.astype(np.float64) - before.vector.astype(np.float64)))
