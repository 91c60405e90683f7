"""One stream of typed events a run; bars, logs, summaries, TensorBoard and any dashboard read it.

Nothing that reads the stream computes a metric again.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias


@dataclass(frozen=True)
class PlanAnswered:
    """A site answered the offer of a plan, before the run begins.

    `verdict`, `reasons` (each `code: sentence`), `rows`, `seconds_a_round`, `version` are a `PlanAnswer`'s.
    """

    arm: str
    site: str
    verdict: str
    reasons: tuple[str, ...] = ()
    rows: str = "unsaid"
    seconds_a_round: float | None = None
    version: str = ""


@dataclass(frozen=True)
class RunStarted:
    """A run begins, or goes on after an interruption.

    `arm` is `federated`, `centralised` or `local/SITE`; `resumed_from` is the last folded round, or 0.
    """

    run_id: str
    arm: str
    name: str
    plan_digest: str
    rounds: int
    sites: tuple[str, ...]
    resumed_from: int = 0


@dataclass(frozen=True)
class RoundStarted:
    """The cohort has been asked; once for each stage of a round."""

    arm: str
    round: int
    cohort: tuple[str, ...]
    bytes_down: int
    stage: int = 0


@dataclass(frozen=True)
class SiteReplied:
    """One site answered in one stage. `local` holds per-site figures where policy lets them out.

    Of the exchanges after the first one it is told only where something went wrong.
    """

    arm: str
    round: int
    site: str
    status: str
    code: str = ""
    reason: str = ""
    bytes_up: int = 0
    local: Mapping[str, float] = field(default_factory=dict)
    stage: int = 0
    attempt: int = 0
    exchange: int = 0


@dataclass(frozen=True)
class SumOpened:
    """One sum of a stage was opened, and what it took.

    `name` is `training` or `evaluation`, `mode` the plan's `secure.mode`; bytes are those of the sum's own
    messages, to and from all sites; `site_s` are all sites' seconds together, `server_s` the server's.
    A site that trains privately says its seconds rounded up, to powers of two.
    """

    arm: str
    round: int
    name: str
    mode: str
    cohort: int
    survivors: int
    exchanges: int
    bytes_down: int
    bytes_up: int
    site_s: float
    server_s: float
    stage: int = 0
    attempt: int = 0


@dataclass(frozen=True)
class BytesMoved:
    """Bytes of all that each site sent (`up`) and got (`down`) in one stage of a round.

    Broadcasts, opened sums and the messages of every sum, in all attempts and exchanges. The exchange that
    scores the last adapter is numbered as the round after it.
    """

    arm: str
    round: int
    up: Mapping[str, int]
    down: Mapping[str, int]
    stage: int = 0


@dataclass(frozen=True)
class PrivacySpent:
    """What is reserved of differential privacy so far, by Rényi DP: (ε, δ) for each `unit` of each site.

    `sites` maps a site to its ε after this round; of a site that did not take part it is what it had reserved
    before. Under `unit=site` it is one figure for all of them. `clip_norm` is that of the next
    round, where the server moves it: it follows from noised sums alone.
    """

    arm: str
    round: int
    unit: str
    delta: float
    sites: Mapping[str, float]
    clip_norm: float | None = None


@dataclass(frozen=True)
class PrivacyReported:
    """What a run cost each `unit` of each site once it has ended, at `delta`.

    `sites` maps a site to its `units`, its `sample_rate` q, the `sigma` of its noise over what one unit can
    change, its `steps`, and two bounds on ε: `reserved`, by Rényi DP, and `spent`, the smaller of that and
    the one by privacy losses. `round` is the last one; `rounds` are those that the figures are for: all that
    the plan has where the run stopped early, since its end was chosen by looking at what came out.
    """

    arm: str
    round: int
    rounds: int
    unit: str
    delta: float
    sites: Mapping[str, Mapping[str, float]]


@dataclass(frozen=True)
class RoundBurnt:
    """A round ends without a fold: the adapter stays, the round is spent, the next one trains afresh.

    `missing` are the sites that were asked: what they trained is in no sum.
    """

    arm: str
    round: int
    reason: str
    missing: tuple[str, ...] = ()


@dataclass(frozen=True)
class Evaluated:
    """The global adapter after `round` folds was scored on one part.

    `part` is `validation`, `test`, `test/SITE` or, where sites have adapters of their own, `own`: each on its
    own test rows; `values`, `support` and `by_class` are a `Scores`.
    `missing` are the sites that were asked and whose rows are not in it.
    """

    arm: str
    round: int
    part: str
    values: Mapping[str, float]
    support: Mapping[str, int]
    by_class: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    missing: tuple[str, ...] = ()


@dataclass(frozen=True)
class RoundFolded:
    """A round counts: its sum is folded and journalled.

    `rounding` is the most by which quantisation alone moved a coordinate of the mean; `discarded_energy` the
    share of the products' squared norm that a method over products cut off to keep the global rank.
    """

    arm: str
    round: int
    survivors: tuple[str, ...]
    missing: tuple[str, ...]
    train_loss: float | None
    update_norm: float
    bytes_up: int
    wall_s: float
    adapter_digest: str
    rounding: float = 0.0
    discarded_energy: float | None = None


@dataclass(frozen=True)
class RoundTimed:
    """How long a round took by a simulation's virtual clock; its wall time stands in `RoundFolded`.

    `virtual_s` are its seconds, `waited_s` those of them that it waited for sites to come before it asked
    any; `since_start_s` is the clock at its end. `late` are the sites that let a deadline pass, `sites` maps
    a site to the seconds that its messages and its work took. The exchange that scores the last adapter is
    numbered as the round after it.
    """

    arm: str
    round: int
    virtual_s: float
    since_start_s: float
    waited_s: float = 0.0
    late: tuple[str, ...] = ()
    sites: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Improved:
    """The released round changes to `round`."""

    arm: str
    round: int
    metric: str
    value: float


@dataclass(frozen=True)
class Notice:
    """Something a person should know; no data in it. `level` is `info` or `warning`."""

    arm: str
    level: str
    text: str


@dataclass(frozen=True)
class RunFinished:
    """The run has ended. `reason` is `completed` or `early_stop`.

    `adapter_digest` is that of the released adapter; empty where each site ends with one of its own.
    `wall_s` are the seconds of the whole run, over all its processes; what a killed one did after its last
    journalled round is not in it.
    """

    arm: str
    reason: str
    last_round: int
    best_round: int
    adapter_digest: str
    wall_s: float


Event: TypeAlias = (
    PlanAnswered
    | RunStarted
    | RoundStarted
    | SiteReplied
    | SumOpened
    | BytesMoved
    | PrivacySpent
    | PrivacyReported
    | Evaluated
    | RoundFolded
    | RoundBurnt
    | RoundTimed
    | Improved
    | Notice
    | RunFinished
)


class EventSink(Protocol):
    """Reads the stream."""

    def emit(self, event: Event) -> None:
        """Take one event."""

    def close(self) -> None:
        """Flush what is held."""


class EventStream:
    """Hands each event to every sink, in order."""

    def __init__(self, sinks: Iterable[EventSink] = ()) -> None:
        self._sinks = list(sinks)

    def emit(self, event: Event) -> None:
        """Hand the event to every sink."""
        for sink in self._sinks:
            sink.emit(event)

    def close(self) -> None:
        """Close every sink."""
        for sink in self._sinks:
            sink.close()


def as_record(event: Event) -> dict[str, Any]:
    """The event as plain JSON values, with its type under `event` and the time under `time_s`."""
    return {"event": type(event).__name__, "time_s": round(time.time(), 3), **dataclasses.asdict(event)}
