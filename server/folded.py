"""What came of a round, or of its first stages, and how that waits on disk for the next stage.

A site helps to open no sum twice and takes no earlier stage's offer again. So what a stage gave is durable
before the next one is asked for, and a server that is killed goes on there (`one_round.py`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from wardround.core.counting import TRAINING_LAYOUT, metric_layout
from wardround.core.errors import StorageError
from wardround.core.packed import Counters, Packed
from wardround.core.plan import TrainingPlan
from wardround.runtime.files import load_tensors, save_tensors, storing
from wardround.server.journal import opened_in, state_in, state_tensors
from wardround.server.scoring import Scored
from wardround.strategies.contract import ServerState

COUNTERS: Final = "counters"
SCORES: Final = "scores"
NOTES: Final = "folded"


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


@dataclass(frozen=True)
class BetweenStages:
    """What the stages of the round under way gave so far; one file, of no other round.

    Attributes:
        path: Of the file.
        plan: What is trained.
    """

    path: Path
    plan: TrainingPlan

    def load(self, round: int) -> tuple[int, Folded] | None:
        """The last stage of a round that was kept, and what it gave; None where none was.

        Raises:
            StorageError: The file cannot be read, is damaged, or belongs to another plan.
        """
        if not self.path.exists():
            return None
        tensors, notes = load_tensors(self.path)
        if notes.get("plan_digest") != self.plan.digest:
            raise StorageError(f"{self.path} belongs to another plan")
        try:
            state = state_in(tensors, notes, self.plan.adapter.layout)
            said = json.loads(notes[NOTES])
            if state.round + 1 != round:
                return None
            counters = Packed(TRAINING_LAYOUT, tensors[COUNTERS])
            scores = Packed(metric_layout(self.plan), tensors[SCORES]) if SCORES in tensors else None
            return int(said["stage"]), Folded(
                state,
                counters,
                list(said["survivors"]),
                Scored(scores, tuple(said["missing"])),
                int(said["bytes_up"]),
                opened_in(tensors),
                frozenset(said["liars"]),
                float(said["rounding"]),
                dict(said["epsilon"]),
            )
        except (KeyError, ValueError, TypeError) as error:
            raise StorageError(
                f"{self.path} does not hold a round's first stages", found=type(error).__name__,
                remedy="put it back from a copy, or begin a new run",
            ) from error  # fmt: skip

    def save(self, stage: int, folded: Folded) -> None:
        """Keep what the stages up to this one gave; durable when it returns.

        Raises:
            StorageError: It cannot be written.
        """
        tensors, notes = state_tensors(folded.state, folded.opened)
        if folded.counters is not None:
            tensors[COUNTERS] = folded.counters.vector
        if folded.scored.counters is not None:
            tensors[SCORES] = folded.scored.counters.vector
        said = {
            "stage": stage,
            "survivors": folded.survivors,
            "missing": folded.scored.missing,
            "bytes_up": folded.bytes_up,
            "liars": sorted(folded.liars),
            "rounding": folded.rounding,
            "epsilon": dict(folded.epsilon),
        }
        save_tensors(self.path, tensors, {**notes, NOTES: json.dumps(said), "plan_digest": self.plan.digest})

    def discard(self) -> None:
        """Drop it, if it is there: the round is journalled.

        Raises:
            StorageError: It cannot be removed.
        """
        with storing(self.path):
            self.path.unlink(missing_ok=True)
