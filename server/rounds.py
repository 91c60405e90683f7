"""The round loop. The simulator and the networked server run this same file over another transport.

The way of one round:

    choose cohort → its stages (`one_round.py`): broadcast → sums → check → fold
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
from collections.abc import Mapping
from dataclasses import replace

from wardround.core.counting import train_loss
from wardround.core.packed import Adapter
from wardround.core.plan import cohort_size
from wardround.core.selection import Selection
from wardround.privacy.secagg.draw import Groups
from wardround.privacy.sums.contract import EVALUATION
from wardround.privacy.sums.noise import epsilon_of_sums
from wardround.runtime.events import PrivacySpent, RoundFolded, RunStarted
from wardround.server.cohorts import choose_cohort, require_some
from wardround.server.exchange import collect
from wardround.server.global_adapter import norm_of_change, require_initial
from wardround.server.grouping import draw_groups
from wardround.server.journal import Position
from wardround.server.one_round import asked_of, train_round, without
from wardround.server.outcome import Outcome, outcome_of
from wardround.server.round_control import stopped
from wardround.server.run import Run
from wardround.server.scoring import evaluators_of, judge, scored_of
from wardround.server.stage import Stage
from wardround.strategies.adaptive_norm import clip_norm_of
from wardround.strategies.contract import DISCARDED, GroupStrategy, ServerState


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
    """Make the position durable; what was kept of the round's sums and stages is of no use any more."""
    run.journal.commit(at)
    if run.journals is not None:
        run.journals.discard()
    if run.between is not None:
        run.between.discard()


def leaving_out(run: Run, at: Position) -> Position:
    """The position as one round takes it: whom people excluded by now is left out of all of it."""
    return replace(at, left_out=at.left_out | run.control.excluded)


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
