"""Where a run stands in the queue, and which way it may go from there. Pure.

    queued ──► offering ──► training ──► finished
      ▲ │         │  ╲         │  ╲
      │ │         │   ╲        │   draining ──► stopped, finished
      │ ▼         ▼    ▼       ▼
      └─ stopped, failed (resume)

A run holds the queue's one place while it is offering, training or draining.
"""

from __future__ import annotations

from enum import StrEnum

from wardround.core.errors import ConfigError, InternalError


class RunStatus(StrEnum):
    """Where a run stands."""

    QUEUED = "queued"
    OFFERING = "offering"
    TRAINING = "training"
    DRAINING = "draining"
    STOPPED = "stopped"
    FINISHED = "finished"
    FAILED = "failed"

    @property
    def active(self) -> bool:
        """Whether it holds the place: an executor is at it, or was when the server died."""
        return self in {RunStatus.OFFERING, RunStatus.TRAINING, RunStatus.DRAINING}

    @property
    def ended(self) -> bool:
        """Whether nothing more comes of it by itself."""
        return self in {RunStatus.STOPPED, RunStatus.FINISHED, RunStatus.FAILED}


_S = RunStatus
ALLOWED: dict[RunStatus, frozenset[RunStatus]] = {
    _S.QUEUED: frozenset({_S.OFFERING, _S.STOPPED, _S.FAILED}),
    _S.OFFERING: frozenset({_S.TRAINING, _S.STOPPED, _S.FINISHED, _S.FAILED}),
    _S.TRAINING: frozenset({_S.DRAINING, _S.STOPPED, _S.FINISHED, _S.FAILED}),
    _S.DRAINING: frozenset({_S.STOPPED, _S.FINISHED, _S.FAILED}),
    _S.STOPPED: frozenset({_S.QUEUED}),
    _S.FAILED: frozenset({_S.QUEUED}),
    _S.FINISHED: frozenset(),
}
"""Status → where a run may go from it."""


class Wish(StrEnum):
    """What somebody has asked of a run that has not happened yet."""

    NONE = ""
    DRAIN = "drain"
    STOP = "stop"


def moved(run_id: str, now: RunStatus, then: RunStatus) -> RunStatus:
    """The new status.

    Raises:
        InternalError: There is no such way.
    """
    if then not in ALLOWED[now]:
        raise InternalError(f"the run {run_id} cannot go from {now} to {then}")
    return then


def wished(run_id: str, now: RunStatus, wish: Wish, before: Wish = Wish.NONE) -> Wish:
    """What is asked of a run from now on: who asked to stop does not get less by asking to drain.

    A run that has begun no round has none to finish: to drain it is to stop it.

    Raises:
        ConfigError: The run has ended.
    """
    if now.ended:
        raise ConfigError(
            f"the run {run_id} cannot be told to {wish}",
            found=f"it is {now}",
            expected="a run that is queued, offering, training or draining",
        )
    if wish is Wish.DRAIN and now in {_S.QUEUED, _S.OFFERING}:
        wish = Wish.STOP
    return Wish.STOP if Wish.STOP in {wish, before} else wish


def require_resumable(run_id: str, now: RunStatus) -> None:
    """Refuse to resume what did not stop.

    Raises:
        ConfigError: The run is queued, at work, or finished.
    """
    if now not in {_S.STOPPED, _S.FAILED}:
        raise ConfigError(
            f"the run {run_id} cannot be resumed",
            found=f"it is {now}",
            expected="one that stopped or failed",
        )
