"""The reservations of a ledger by stage, read from their rows when somebody asks for their run.

A ledger may have a hundred thousand of them, and is asked about the few of one run. Opening it counts what
they cost; where each belongs is read later.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias

from wardround.client.ledger.rows import Terms, place_of
from wardround.privacy.accounting.mechanisms import Mechanism

Stage: TypeAlias = tuple[str, int, int]
"""Run, round, stage."""
Draw: TypeAlias = tuple[str, int, int, str]
"""Run, round, stage, draw."""
Unread: TypeAlias = tuple[int, bytes]
"""Row of a reservation, and its body up to the terms."""


class Charge(NamedTuple):
    """A reservation.

    Attributes:
        row: Where it stands.
        draw: Of batches and noise.
        terms: What it charges, with the steps that were reserved.
    """

    row: int
    draw: str
    terms: Terms


@dataclass(frozen=True)
class Reservation:
    """What stands in the ledger before data is touched.

    Attributes:
        draw: Run, round, stage, draw.
        mechanism: As the patient is charged for it.
        again: It stood there already: the same draw was asked for before, and is not charged twice.
    """

    draw: Draw
    mechanism: Mechanism
    again: bool


@dataclass
class Draws:
    """All reservations.

    Attributes:
        unread: Run → those that nobody asked for yet, by their terms.
        stages: Run → round and stage → the others, in the order of their rows.
    """

    unread: dict[str, list[tuple[Terms, list[Unread]]]] = field(default_factory=dict)
    stages: dict[str, dict[tuple[int, int], tuple[Charge, ...]]] = field(default_factory=dict)

    def add(self, terms: Terms, rows: list[Unread]) -> None:
        """Reservations of equal terms."""
        self.unread.setdefault(terms.run, []).append((terms, rows))

    def of(self, stage: Stage) -> tuple[Charge, ...]:
        """Those of one stage.

        Raises:
            StorageError: A row of its run cannot be read.
        """
        return self._read(stage[0]).get(stage[1:], ())

    def find(self, draw: Draw) -> Charge | None:
        """That of one draw; None where there is none."""
        return next((charge for charge in self.of(draw[:3]) if charge.draw == draw[3]), None)

    def everything(self) -> Iterator[tuple[Stage, tuple[Charge, ...]]]:
        """All of them, run by run."""
        for run in [*self.stages, *(run for run in self.unread if run not in self.stages)]:
            for place, charges in self._read(run).items():
                yield (run, *place), charges

    def _read(self, run: str) -> dict[tuple[int, int], tuple[Charge, ...]]:
        unread = self.unread.get(run)
        if unread is None:
            return self.stages.get(run, {})
        stages = dict(self.stages.get(run, {}))
        found = ((row, front, terms) for terms, rows in unread for row, front in rows)
        for row, front, terms in sorted(found, key=lambda entry: entry[0]):
            draw, place = place_of(front, row)
            stages[place] = (*stages.get(place, ()), Charge(row, draw, terms))
        self.stages[run] = stages
        del self.unread[run]  # last: what cannot be read is refused each time
        return stages
