"""What a ledger says after so many rows: a fold over them, without files, clocks or secrets.

What is written and what is read again goes through the same `take`, from the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias

from wardround.client.ledger.draws import Draw, Draws, Stage, Unread
from wardround.client.ledger.policy import BudgetPolicy
from wardround.client.ledger.population import Population, Worlds
from wardround.client.ledger.rows import (
    Amended,
    AnyRow,
    Disjoint,
    Joined,
    Mended,
    Opened,
    Refused,
    Released,
    Reserved,
    Sealed,
    Settled,
    SourceAdded,
    Terms,
    WrittenOff,
    fields_of,
    plain_seal,
    split_terms,
    typed,
)
from wardround.client.ledger.units import UnitList
from wardround.core.errors import StorageError
from wardround.privacy.accounting.cap import Cap
from wardround.privacy.accounting.steps import Step, steps_of
from wardround.privacy.accounting.tally import Tally

Lists: TypeAlias = Callable[[str], UnitList]
"""Digest of a list of units → the list."""


class Known(NamedTuple):
    """Terms that were read before, and where they are counted."""

    terms: Terms
    total: Tally
    of_run: Tally
    step: Step | None
    steps: int


@dataclass(frozen=True)
class SourceRecord:
    """A source by its number.

    Attributes:
        row: That named it first.
        name: Its first name.
        digest: Of its list of units.
        units: How many.
        unknown: Ids that it brought.
    """

    row: int
    name: str
    digest: str
    units: int
    unknown: int


@dataclass
class Book:
    """State of a ledger.

    Attributes:
        opened: Row 0.
        rows: How many there are.
        policy: In force.
        order: The Rényi order of the cap; stays once there is one.
        population: Who is who.
        sources: By their numbers.
        totals: What each source was charged since the cap was last written off, or ever, where that counts
            beside the cap.
        runs: The same by source and run.
        older: What sources were charged before it was, by source and run.
        draws: Reservations of each stage.
        lowered: Those that were settled at fewer steps → so many.
        seals: Stages whose contribution stands → its digest.
        plans: Plan of each run.
        left: Runs that this site does not join again.
        refusals: What was refused, each once.
        floor: ρ at the cap's order that was written off, for every unit.
        unknown: Rows were lost, and there was no cap that bounds what they said.
        write_offs: Rows at which the cap was written off.
        beside: Those among them, counted from 0, that cover a whole branch that was lost.
        branches: Heads of rows that were joined.
        notes: Rows that a person signed.
    """

    opened: Opened
    rows: int = 1
    population: Population = field(default_factory=Population)
    sources: list[SourceRecord] = field(default_factory=list)
    totals: list[Tally] = field(default_factory=list)
    runs: dict[tuple[int, str], Tally] = field(default_factory=dict)
    older: dict[tuple[int, str], Tally] = field(default_factory=dict)
    draws: Draws = field(default_factory=Draws)
    lowered: dict[Draw, int] = field(default_factory=dict)
    seals: dict[Stage, str] = field(default_factory=dict)
    plans: dict[str, str] = field(default_factory=dict)
    left: set[str] = field(default_factory=set)
    refusals: dict[tuple[str, Draw], Refused] = field(default_factory=dict)
    floor: float = 0.0
    unknown: bool = False
    write_offs: list[int] = field(default_factory=list)
    beside: set[int] = field(default_factory=set)
    branches: set[str] = field(default_factory=set)
    notes: list[Amended | Disjoint | WrittenOff | Mended] = field(default_factory=list)
    policy: BudgetPolicy = field(init=False)
    order: float | None = field(init=False)
    _worlds: Worlds | None = None
    _known: dict[bytes, Known] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.policy, self.order = self.opened.policy, self.opened.order

    @staticmethod
    def begin(body: bytes) -> Book:
        """The book of row 0.

        Raises:
            StorageError: It is none.
        """
        row = typed(fields_of(body, 0), 0)
        if not isinstance(row, Opened):
            raise _misplaced(0)
        return Book(row)

    def take(self, bodies: Iterable[bytes], lists: Lists) -> None:
        """More rows.

        Args:
            bodies: As they stand in the file; written by this ledger, since their signatures are right.
            lists: Reads the list of a new source.

        Raises:
            StorageError: One cannot be read, or what it is about is not there.
        """
        waiting: dict[bytes, list[Unread]] = {}
        for body in bodies:
            front, terms = split_terms(body, self.rows)
            if terms:
                rows = waiting.get(terms)
                if rows is None:
                    rows = waiting[terms] = []
                rows.append((self.rows, front))
            else:
                seal = plain_seal(body, self.rows)
                if seal is not None:
                    self.seals[seal[:3]] = seal[3]
                else:
                    self._charge(waiting)
                    self._apply(body, lists)
            self.rows += 1
        self._charge(waiting)

    @property
    def cap(self) -> Cap | None:
        """The filter in force."""
        if self.policy.epsilon is None or self.order is None:
            return None
        return Cap(epsilon=self.policy.epsilon, delta=self.policy.delta, order=self.order)

    @property
    def units(self) -> int:
        """How many the site has: as it said, or as many as the ledger knows by now."""
        return max(self.opened.units, self.population.size)

    @property
    def worlds(self) -> Worlds:
        """Whom a charge may have met."""
        if self._worlds is None:
            self._worlds = self.population.worlds()
        return self._worlds

    def source_of(self, digest: str) -> int | None:
        """Number of the source with this list."""
        return next((n for n, source in enumerate(self.sources) if source.digest == digest), None)

    def steps_left(self, draw: Draw) -> int:
        """For how many steps a draw's reservation counts; 0 where there is none."""
        charge = self.draws.find(draw)
        if charge is None:
            return 0
        reserved = (steps_of(charge.terms.mechanism) or (None, 1))[1]
        return self.lowered.get(draw, reserved)

    def is_drawn(self, stage: Stage) -> bool:
        """Whether anything of a stage is charged."""
        return any(self.steps_left((*stage, charge.draw)) for charge in self.draws.of(stage))

    def run_tallies(self, run: str) -> list[Tally]:
        """What one run charged to each source, whatever was written off since."""
        return [
            Tally.total(held[number, run] for held in (self.runs, self.older) if (number, run) in held)
            for number in range(len(self.sources))
        ]

    def _charge(self, waiting: dict[bytes, list[Unread]]) -> None:
        """Reservations of equal terms, together."""
        for encoded, rows in waiting.items():
            try:
                known = self._known.get(encoded) or self._terms(encoded)
            except (LookupError, ValueError):
                raise _misplaced(rows[0][0]) from None
            known.total.count(known.step, len(rows) * known.steps)
            known.of_run.count(known.step, len(rows) * known.steps)
            self.draws.add(known.terms, rows)
        waiting.clear()

    def _terms(self, encoded: bytes) -> Known:
        terms = Terms.model_validate_json(encoded)
        step, steps = steps_of(terms.mechanism) or (None, 1)
        of_run = self._of_run(terms.source, terms.run)
        known = Known(terms, self.totals[terms.source], of_run, step, steps)
        self._known[encoded] = known
        self.plans.setdefault(terms.run, terms.plan)
        return known

    def _apply(self, body: bytes, lists: Lists) -> None:
        row = typed(fields_of(body, self.rows), self.rows)
        try:
            self._one(row, lists)
        except (LookupError, TypeError, ValueError):
            raise _misplaced(self.rows) from None

    def _one(self, row: AnyRow, lists: Lists) -> None:
        match row:
            case SourceAdded():
                self._source(row, lists)
            case Settled():
                self._settle(row)
            case Sealed():
                self.seals[row.run, row.round, row.stage] = row.digest
            case Released():
                self.totals[row.source].released = True
                self._of_run(row.source, row.run).released = True
                self.plans.setdefault(row.run, row.plan)
            case Refused():
                self.refusals[row.reason, (row.run, row.round, row.stage, row.draw)] = row
            case Disjoint():
                self.population.declare(row.source)
                self._worlds = None
                self.notes.append(row)
            case Amended():
                self.policy, self.order = row.policy, row.order
                self.notes.append(row)
            case WrittenOff():
                self._write_off(row)
            case Mended():
                self.notes.append(row)
            case Joined():
                self.branches.update(row.heads)
            case Opened() | Reserved():
                raise _misplaced(row.row)

    def _of_run(self, source: int, run: str) -> Tally:
        tally = self.runs.get((source, run))
        if tally is None:
            tally = self.runs[source, run] = Tally()
        return tally

    def _source(self, row: SourceAdded, lists: Lists) -> None:
        if row.source == len(self.sources):
            self.population.add(lists(row.digest))
            self.sources.append(SourceRecord(row.row, row.name, row.digest, row.units, row.unknown))
            self.totals.append(Tally())
            self._worlds = None

    def _settle(self, row: Settled) -> None:
        draw = row.run, row.round, row.stage, row.draw
        charge = self.draws.find(draw)
        found = None if charge is None else steps_of(charge.terms.mechanism)
        if charge is None or found is None or draw in self.lowered:
            raise _misplaced(row.row)
        step, reserved = found
        if charge.row > max(self.write_offs, default=0):  # what was written off stays as it was
            self.totals[charge.terms.source].lower(step, reserved - row.steps)
            self.runs[charge.terms.source, row.run].lower(step, reserved - row.steps)
        self.lowered[draw] = row.steps

    def _write_off(self, row: WrittenOff) -> None:
        """What was lost came after the rows here, and with them it is within the cap: together they are it.

        Unless the ledger went on by itself. Then its own rows count beside the cap; so they do for good where
        a branch was joined, since nothing bounded both together.
        """
        if self.cap is None:
            self.unknown = True
        else:
            epsilon = max(self.cap.epsilon, row.epsilon or 0.0)
            self.floor = max(self.floor, self.cap.model_copy(update={"epsilon": epsilon}).budget)
        self.left |= {*self.plans, *row.runs}
        for place, tally in self.runs.items():
            self.older[place] = Tally.total([self.older.get(place, Tally()), tally])
        self.runs, self._known = {}, {}
        if row.beside:
            self.beside.add(len(self.write_offs))
        if not self.beside and not self.branches:
            # What was released stays released.
            self.totals = [Tally(released=tally.released) for tally in self.totals]
        self.write_offs.append(row.row)
        self.notes.append(row)


def _misplaced(number: int) -> StorageError:
    return StorageError(
        f"row {number} of the ledger is about something that is not there",
        found="a reference to no earlier row", expected="rows in the order in which they were written",
        remedy="read it with the version of wardround that wrote it",
    )  # fmt: skip
