"""What server and site say to each other, as values; how it travels is the transport's business."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from wardround.core.packed import Array, Counters, Packed


@dataclass(frozen=True)
class Request:
    """One site's work for one round.

    Attributes:
        run_id: Identifies the run; a site answers only for runs whose plan it accepted.
        plan_digest: The plan that both sides follow.
        round: Counts from 1. The broadcast is the state after round − 1. The exchange after the last
            fold is numbered rounds + 1 and only evaluates.
        stage: Counts from 0; methods with a second pass have stages 0 and 1. A site trains and evaluates
            in stage 0; in a later one it contributes from what it trained then.
        attempt: Counts from 0; a later attempt sends the stored contribution again.
        site: Name of the site.
        train: Whether to train (in stage 0) and contribute.
        evaluate: Whether to score the broadcast adapter on the validation part; in stage 0 only.
        broadcast: What the strategy sends to everybody in this stage.
        cohort_size: Sites asked to train, at most so many contributions are summed.
    """

    run_id: str
    plan_digest: str
    round: int
    site: str
    train: bool
    evaluate: bool
    broadcast: Packed
    cohort_size: int = 1
    stage: int = 0
    attempt: int = 0


@dataclass(frozen=True)
class Reply:
    """A site's answer.

    Attributes:
        status: `ok`; `refused` where policy or plan forbid; `failed` where training went wrong.
        code: Short stable identifier of the reason where status is not `ok`.
        reason: One sentence without data, and without the text of an exception that is not ours.
        statistics: Ring integers of the weighted statistics (int64, the statistics layout), or None.
        statistics_layout_digest: Layout that the integers follow.
        counters: Weights, loss sums and metric numerators, or None. A site whose training failed after it
            had scored the broadcast still sends the metric numerators, with weight and loss sums zero.
    """

    run_id: str
    plan_digest: str
    round: int
    site: str
    stage: int = 0
    attempt: int = 0
    status: Literal["ok", "refused", "failed"] = "ok"
    code: str = ""
    reason: str = ""
    statistics: Array | None = None
    statistics_layout_digest: str = ""
    counters: Counters | None = None
    local: dict[str, float] = field(default_factory=dict)
    """Per-site figures that this site's policy lets out (a simulation: all of them)."""


def reply_to(request: Request, **fields: Any) -> Reply:
    """A reply that names what it answers; `fields` are the reply's own."""
    return Reply(
        run_id=request.run_id,
        plan_digest=request.plan_digest,
        round=request.round,
        site=request.site,
        stage=request.stage,
        attempt=request.attempt,
        **fields,
    )
