"""Scores adapters on test rows; nothing here chooses anything."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from wardround.core.counting import scores
from wardround.core.metrics.contract import Scores
from wardround.core.packed import Adapter
from wardround.core.plan import TrainingPlan
from wardround.runtime.events import Evaluated, EventStream
from wardround.simulations.comparison import EVERYBODY, part_of
from wardround.training.evaluation import evaluate
from wardround.training.tasks.contract import Encoded
from wardround.training.workbench import Workbench


@dataclass(frozen=True)
class TestRows:
    """Encoded test rows: everybody's, and each site's own."""

    everybody: list[Encoded]
    sites: dict[str, list[Encoded]]

    __test__ = False  # the name is no test class


@dataclass(frozen=True)
class Scorer:
    """Scores adapters of one plan on the test rows."""

    bench: Workbench
    plan: TrainingPlan
    rows: TestRows
    events: EventStream

    def score(
        self, adapter: Adapter, *, arm: str, round: int, sites: Collection[str] | None = None
    ) -> dict[str, Scores]:
        """Part → scores, and an event for each: `test`, and `test/SITE` for the sites asked (None: all)."""
        wanted = (
            self.rows.sites
            if sites is None
            else {name: self.rows.sites[name] for name in sites if name in self.rows.sites}
        )
        parts = {EVERYBODY: self.rows.everybody} | {part_of(name): rows for name, rows in wanted.items()}
        self.bench.load_adapter(adapter)
        found: dict[str, Scores] = {}
        for part, rows in parts.items():
            if not rows:
                continue
            counters = evaluate(
                self.bench.model,
                self.bench.task,
                self.plan.task,
                self.plan.data,
                rows,
                batch_size=self.bench.machine.evaluation_batch_size,
                device=self.bench.device,
                tokenizer=self.bench.tokenizer,
            )
            result = scores(self.plan, counters)
            found[part] = result
            self.events.emit(Evaluated(arm, round, part, result.values, result.support, result.by_class))
        return found
