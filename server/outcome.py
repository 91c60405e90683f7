"""How a run ends: what is released, which is nothing where each site ends with an adapter of its own."""

from __future__ import annotations

from dataclasses import dataclass

from wardround.core.errors import ConfigError
from wardround.core.packed import Adapter
from wardround.core.selection import Selection
from wardround.runtime.events import RunFinished
from wardround.server.journal import Journal, Position
from wardround.strategies.contract import PersonalStrategy, ServerState, SumStrategy


@dataclass(frozen=True)
class Outcome:
    """How a run ended: the state after the last fold, the scores, the adapter of the released round.

    `released` is None where each site ends with an adapter of its own: what federates is none for anybody.
    `wall_s` are the seconds of the whole run, those before an interruption included.
    """

    last: ServerState
    selection: Selection
    released_round: int
    released: Adapter | None
    reason: str
    wall_s: float = 0.0

    @property
    def for_everybody(self) -> Adapter:
        """The released adapter.

        Raises:
            ConfigError: There is none: each site has its own.
        """
        if self.released is None:
            raise ConfigError(
                "this run has no adapter for everybody: its strategy leaves each site one of its own",
                remedy="take a site's own adapter, or a strategy with one for all, such as fedavg",
            )
        return self.released

    def event(self, arm: str) -> RunFinished:
        """As the run's events tell it."""
        digest = "" if self.released is None else self.released.digest
        return RunFinished(arm, self.reason, self.last.round, self.released_round, digest, self.wall_s)


def outcome_of(at: Position, rounds: int, strategy: SumStrategy, journal: Journal) -> Outcome:
    """What comes of a run of so many planned rounds that stands there.

    Raises:
        StorageError: The state of the best round cannot be read.
    """
    last, released = at.state, None
    released_round = last.round  # of earlier rounds sites keep no part of their own
    if not isinstance(strategy, PersonalStrategy):
        released_round, released = journal.released(last, at.selection)
    reason = "completed" if last.round >= rounds else "early_stop"
    return Outcome(last, at.selection, released_round, released, reason, at.wall_s)
