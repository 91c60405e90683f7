"""Scores adapters on test rows; nothing here chooses anything."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from wardround.core.counting import scores
from wardround.core.errors import InternalError
from wardround.core.metrics.contract import Scores
from wardround.core.packed import Adapter, Counters
from wardround.core.plan import TrainingPlan
from wardround.runtime.events import Evaluated, EventStream
from wardround.simulations.comparison import EVERYBODY, OWN_ROWS, part_of
from wardround.simulations.together import Crew, Job, Made
from wardround.training.evaluation import ScoringJob, batches_of
from wardround.training.local_round import LocalResult
from wardround.training.tasks.contract import Encoded
from wardround.training.workbench import Workbench

AT_ONCE: Final = 4
"""Batches that a worker is handed: few enough that all are done at nearly the same time."""


@dataclass(frozen=True)
class TestRows:
    """Encoded test rows: everybody's, and each site's own."""

    everybody: list[Encoded]
    sites: dict[str, list[Encoded]]

    __test__ = False  # the name is no test class


@dataclass(frozen=True)
class Scorer:
    """Scores adapters of one plan on the test rows, which are dealt out to whoever trains.

    Attributes:
        bench: Says how many rows are a batch.
        plan: Of the run.
        rows: What is scored.
        events: Where the scores are told.
        crew: Counts.
    """

    bench: Workbench
    plan: TrainingPlan
    rows: TestRows
    events: EventStream
    crew: Crew

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
        asked = {part: rows for part, rows in parts.items() if rows}
        counted = self._counted([(adapter, rows) for rows in asked.values()])
        return self._told(dict(zip(asked, counted, strict=True)), arm, round)

    def score_own(self, adapters: Mapping[str, Adapter], *, arm: str, round: int) -> dict[str, Scores]:
        """Part → scores of the sites' own adapters, and an event for each.

        `test/SITE` is a site's adapter on its own test rows, and `own` the sum of these. In `test` every
        site's adapter has been asked all of everybody's rows: its support is so many times theirs.
        """
        asked: list[tuple[tuple[str, ...], Adapter, Sequence[Encoded]]] = []
        for site, adapter in adapters.items():
            asked.append(((EVERYBODY,), adapter, self.rows.everybody))
            asked.append(((OWN_ROWS, part_of(site)), adapter, self.rows.sites.get(site, [])))
        asked = [each for each in asked if each[2]]
        found: dict[str, Counters] = {}
        for (parts, _, _), counters in zip(asked, self._counted([each[1:] for each in asked]), strict=True):
            for part in parts:
                found[part] = added(found.get(part), counters)
        return self._told(found, arm, round)

    def _counted(self, asked: Sequence[tuple[Adapter, Sequence[Encoded]]]) -> list[Counters]:
        """Of each adapter and its rows. Batches are those of one process; what they count are integers."""
        jobs = [
            (number, ScoringJob(adapter, rows, self.plan.task, self.plan.data, batches))
            for number, (adapter, rows) in enumerate(asked)
            for batches in pieces(batches_of(self.bench, rows))
        ]
        totals: dict[int, Counters] = {}
        made = all_of(self.crew, [job for _, job in jobs])
        for (number, _), counters in zip(jobs, made, strict=True):
            if isinstance(counters, Exception):
                raise counters
            if isinstance(counters, LocalResult):
                raise InternalError("rows were to be scored, and were trained on")
            totals[number] = added(totals.get(number), counters)
        return list(totals.values())

    def _told(self, counted: Mapping[str, Counters], arm: str, round: int) -> dict[str, Scores]:
        found = {part: scores(self.plan, counters) for part, counters in counted.items()}
        for part, result in found.items():
            self.events.emit(Evaluated(arm, round, part, result.values, result.support, result.by_class))
        return found


def added(total: Counters | None, counters: Counters) -> Counters:
    """One more."""
    return counters if total is None else total.with_vector(total.vector + counters.vector)


def pieces(batches: int) -> list[range]:
    """So many batches, a few at a time; of none one piece, which counts nothing."""
    return [range(first, min(first + AT_ONCE, batches)) for first in range(0, max(1, batches), AT_ONCE)]


def all_of(crew: Crew, jobs: Iterable[Job]) -> Iterator[Made]:
    """What each job made, in order; no more of them are under way than the crew takes."""
    under_way: deque[Callable[[], Sequence[Made]]] = deque()
    for job in jobs:
        under_way.append(crew.start([job]))
        if len(under_way) > crew.ahead:
            yield under_way.popleft()()[0]
    while under_way:
        yield under_way.popleft()()[0]
