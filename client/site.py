"""One site: its encoded rows, its share of the machine, what it keeps between rounds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from wardround.client.checkpoints import CheckpointFile
from wardround.client.fold_check import FoldCheck
from wardround.client.grouping import Grouped
from wardround.client.memory import SiteStore
from wardround.client.own_figures import Figures
from wardround.client.parties import Parties
from wardround.client.private import SitePrivacy
from wardround.core.cells import EXACT, Cells
from wardround.core.messages import Request
from wardround.core.packed import Counters
from wardround.core.plan import TrainingPlan
from wardround.strategies.contract import Broadcast, SumStrategy
from wardround.training.evaluation import ScoringJob
from wardround.training.local_round import LocalJob, LocalResult
from wardround.training.tasks.contract import Encoded
from wardround.training.workbench import Workbench


class Together(Protocol):
    """Trains sites of one process together, and scores for them."""

    def __call__(
        self, request: Request, broadcast: Broadcast, site: Site, job: LocalJob
    ) -> LocalResult | None:
        """What the job gives; None: it has to be trained by itself."""

    def scored(self, request: Request, broadcast: Broadcast, site: Site, job: ScoringJob) -> Counters | None:
        """What the job counts; None: the site has to score by itself."""


@dataclass(frozen=True)
class Site:
    """What the handler of a round needs.

    Attributes:
        name: Name of the site.
        run_id: The run whose plan this site accepted.
        plan: That plan.
        strategy: The plan's strategy, bound to the adapter's layout.
        bench: Base model, adapter and tokenizer; sites of one process share it.
        training: Rows to train on.
        validation: Rows that the site held back; they only choose the released round.
        store: What the site keeps between rounds; it never leaves.
        parties: Its side of the run's sums.
        folds: What it knows of the server's state.
        grouped: Its part in the draw of the groups, where the strategy sums over groups.
        privacy: Its side of the plan's differential privacy, where it trains privately.
        checkpoints: Inside its local rounds, where somebody would go on from them.
        figures: Kinds of its own figures that may leave; None in a simulation, which shows them all.
        training_cells: How counts of the rows that it trains on leave; as they are in a simulation alone.
        validation_cells: The same of those that it held back.
        read: Digest of the rows as they were read; empty where nobody would go on from anything.
        rank: At which it trains; None: the plan's.
        together: Trains it with other sites of this process, in a simulation of many.
        message_s: Seconds after which its process is ended over one message.
    """

    name: str
    run_id: str
    plan: TrainingPlan
    strategy: SumStrategy
    bench: Workbench
    training: Sequence[Encoded]
    validation: Sequence[Encoded]
    store: SiteStore
    parties: Parties
    folds: FoldCheck
    grouped: Grouped | None = None
    privacy: SitePrivacy | None = None
    checkpoints: CheckpointFile | None = None
    figures: tuple[Figures, ...] | None = ()
    training_cells: Cells = EXACT
    validation_cells: Cells = EXACT
    read: str = ""
    rank: int | None = None
    together: Together | None = None
    message_s: float = math.inf

    @property
    def rows(self) -> str:
        """What it trains on: how many rows, and the digest of all that it read."""
        return f"{len(self.training)} {self.read}".rstrip()
