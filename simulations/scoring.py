"""Scores adapters on test rows; nothing here chooses anything."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from wardround.core.counting import scores
from wardround.core.metrics.contract import Scores
from wardround.core.packed import Adapter, Counters
from wardround.core.plan import TrainingPlan
from wardround.runtime.events import Evaluated, EventStream
from wardround.simulations.comparison import EVERYBODY, OWN_ROWS, part_of
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
        return self._told({part: self._count(rows) for part, rows in parts.items() if rows}, arm, round)

    def score_own(self, adapters: Mapping[str, Adapter], *, arm: str, round: int) -> dict[str, Scores]:
        """Part → scores of the sites' own adapters, and an event for each.

        `test/SITE` is a site's adapter on its own test rows, and `own` the sum of these. In `test` every
        site's adapter has been asked all of everybody's rows: its support is so many times theirs.
        """
        found: dict[str, Counters] = {}

        def add(part: str, counters: Counters) -> None:
            before = found.get(part)
            found[part] = counters if before is None else before.with_vector(before.vector + counters.vector)

        for site, adapter in adapters.items():
            self.bench.load_adapter(adapter)
            if self.rows.everybody:
                add(EVERYBODY, self._count(self.rows.everybody))
            if own := self.rows.sites.get(site):
                counted = self._count(own)
                add(OWN_ROWS, counted)
                add(part_of(site), counted)
        return self._told(found, arm, round)

    def _count(self, rows: list[Encoded]) -> Counters:
        return evaluate(
            self.bench.model,
            self.bench.task,
            self.plan.task,
            self.plan.data,
            rows,
            batch_size=self.bench.machine.evaluation_batch_size,
            device=self.bench.device,
            tokenizer=self.bench.tokenizer,
        )

    def _told(self, counted: Mapping[str, Counters], arm: str, round: int) -> dict[str, Scores]:
        found = {part: scores(self.plan, counters) for part, counters in counted.items()}
        for part, result in found.items():
            self.events.emit(Evaluated(arm, round, part, result.values, result.support, result.by_class))
        return found
