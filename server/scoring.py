"""The score of the state that was broadcast: who gives it, and what it says of the release."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from wardround.core.counting import metric_layout, scores
from wardround.core.packed import Counters, Packed
from wardround.core.plan import TrainingPlan
from wardround.core.selection import Selection
from wardround.privacy.sums.contract import EVALUATION
from wardround.runtime.events import Evaluated, Improved, Notice
from wardround.server.stage import Channel, Collected
from wardround.strategies.contract import ServerState


@dataclass(frozen=True)
class Scored:
    """Summed metric numerators of the state that was broadcast.

    Attributes:
        counters: None where nothing was asked, or opened.
        missing: Sites that were asked and are not in them, sorted.
    """

    counters: Counters | None
    missing: tuple[str, ...]


def evaluators_of(
    plan: TrainingPlan, sites: Sequence[str], cohort: Collection[str], folded: int, *, last: bool = False
) -> tuple[str, ...]:
    """Who scores the state after `folded` rounds: nobody where it is not due."""
    if not evaluation_due(plan, folded, last=last):
        return ()
    return tuple(sorted(sites if last or plan.release.evaluators == "all" else cohort))


def evaluation_due(plan: TrainingPlan, folded: int, *, last: bool) -> bool:
    """Whether the state after `folded` rounds is scored: every `release.every` rounds, and the last."""
    has_validation = plan.data.validation_fraction > 0
    return has_validation and (last or folded % plan.release.every == 0)


def scored_of(channel: Channel, collected: Collected, evaluators: Sequence[str], *, folded: int) -> Scored:
    """The summed metric numerators, and which evaluators are not in them."""
    total = collected.sums.get(EVALUATION)
    if total is not None and total.survivors:
        missing = tuple(sorted(set(evaluators) - set(total.survivors)))
        return Scored(Packed(metric_layout(channel.plan), total.counters), missing)
    lost = collected.lost.get(EVALUATION)
    if lost is not None:
        text = f"round {folded} has no score: {lost.what}"
        channel.events.emit(Notice(channel.arm, "warning", text))
    return Scored(None, tuple(evaluators))


def judge(channel: Channel, selection: Selection, state: ServerState, scored: Scored) -> Selection:
    """Score the state that was broadcast from the summed counters, and note whether it is the best so far.

    Such a score is compared only with scores that lack the same sites (`Selection`).
    """
    if scored.counters is None:
        return selection
    plan, arm, events = channel.plan, channel.arm, channel.events
    found, missing = scores(plan, scored.counters), scored.missing
    if not found.values:
        return selection
    events.emit(
        Evaluated(arm, state.round, "validation", found.values, found.support, found.by_class, missing)
    )
    if missing:
        text = (
            f"the score of round {state.round} lacks {', '.join(missing)}: "
            "it is compared only with scores that lack the same sites"
        )
        events.emit(Notice(arm, "warning", text))
    if state.round == 0:
        return selection  # shown for comparison; nothing was trained, so it is never released
    updated = selection.add(state.round, found.values.get(plan.release.metric), missing)
    if updated.best is not None and updated.best != selection.best:
        events.emit(Improved(arm, updated.best[0], plan.release.metric, updated.best[1]))
    return updated
