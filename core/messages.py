"""What server and site say to each other, as values; how it travels is the transport's business."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from wardround.core.packed import Packed

SPENT: Final = "epsilon"
"""Among a reply's figures: the ε that the site's units have spent in this run. It follows from the plan and
from the site's number of units, and tells nothing of a row."""

SECONDS: Final = "seconds"
"""Among a reply's figures: how long the work took; `seconds.NAME` is how long the protocol of a sum took."""

BEHIND: Final = "behind"
"""Code of a reply: the site cannot make the broadcast itself; it is sent it, and that is all."""

NODE_STARTED_ANEW: Final = 100
"""Code of a message's error: the site's node has started anew, and lost what it had fetched."""
WORKER_ENDED: Final = 101
"""The same: the site's worker ended over the message, not for its length, and is started again."""


def is_duration(name: str) -> bool:
    """Whether one of a reply's figures says how long something took."""
    return name == SECONDS or name.startswith(f"{SECONDS}.")


@dataclass(frozen=True)
class Request:
    """What one site is asked in one exchange.

    Attributes:
        run_id: Identifies the run; a site answers only for runs whose plan it accepted.
        plan_digest: The plan that both sides follow.
        round: Counts from 1. The broadcast is the state after round − 1. The exchange after the last
            fold is numbered rounds + 1 and only evaluates.
        stage: Counts from 0; methods with a second pass have stages 0 and 1. A site trains and evaluates
            in stage 0; in a later one it contributes from what it trained then.
        attempt: Counts from 0; a later attempt sums the contributions again that sites have kept.
        exchange: Counts from 0 in every attempt: the first one offers, and asks for work where the attempt is
            the first as well; those that follow are the phases of secure aggregation.
        site: Name of the site.
        broadcast: What the strategy sends to everybody in this stage, in the first exchange of the first
            attempt; None in all others.
        follows: Digest of the broadcast in its place, for a site that can make it from the state before and
            the opened sums: they are a third of the bytes. Empty with a broadcast.
        opened: With a broadcast of stage 0, or in its place, the sums of the round before, one a stage
            (`privacy/sums/opened.py`); empty in round 1, and where the round before was burnt. With
            a broadcast of a later stage, those of the stages before it.
        sums: Name of each sum that the site is asked to take part in → the message of its protocol.
    """

    run_id: str
    plan_digest: str
    round: int
    site: str
    sums: Mapping[str, bytes]
    broadcast: Packed | None = None
    follows: str = ""
    opened: tuple[bytes, ...] = ()
    stage: int = 0
    attempt: int = 0
    exchange: int = 0


@dataclass(frozen=True)
class Reply:
    """A site's answer.

    Attributes:
        status: `ok`; `refused` where policy or plan forbid; `failed` where something went wrong.
        code: Short stable identifier of the reason where status is not `ok`.
        reason: One sentence without data, and without the text of an exception that is not ours.
        sums: Name of each sum → the site's message. Where status is not `ok`, of those sums that what went
            wrong does not concern: a site whose training failed still sends what it had scored.
    """

    run_id: str
    plan_digest: str
    round: int
    site: str
    stage: int = 0
    attempt: int = 0
    exchange: int = 0
    status: Literal["ok", "refused", "failed"] = "ok"
    code: str = ""
    reason: str = ""
    sums: Mapping[str, bytes] = field(default_factory=dict)
    local: dict[str, float] = field(default_factory=dict)
    """Per-site figures that this site's policy lets out (a simulation: all of them)."""

    @property
    def size(self) -> int:
        """Bytes of its contents."""
        return sum(len(message) for message in self.sums.values())


PLACE = ("run_id", "round", "stage", "attempt", "exchange", "site")
"""What a reply repeats of the request that it answers, beside the plan."""


def reply_to(request: Request, **fields: Any) -> Reply:
    """A reply that names what it answers; `fields` are the reply's own."""
    return Reply(
        plan_digest=request.plan_digest, **{name: getattr(request, name) for name in PLACE}, **fields
    )


def answers(reply: Reply, request: Request) -> bool:
    """Whether a reply is to this very request."""
    return all(getattr(reply, name) == getattr(request, name) for name in PLACE)
