"""What a private round asks of the site's ledger: to be charged before it trains, sealed before it leaves."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Protocol

from pydantic import Field

from wardround.client.ledger.draws import Draw, Reservation
from wardround.client.ledger.guards import WHOLE, check_noise
from wardround.client.ledger.ledger import Ledger
from wardround.client.ledger.rows import Unit
from wardround.client.ledger.sources import Source
from wardround.core.checked import Frozen
from wardround.privacy.accounting.mechanisms import BandedGaussian, Mechanism, NoPrivacy


class Charge(Frozen):
    """One round, before a row is touched; or with `NoPrivacy` a whole run, before it is accepted.

    A `BandedGaussian` is a whole run as well: charged in the first round that asks, and found again by its
    draw in every later one.

    Attributes:
        source: Name of the source, for people.
        units: The patient of each training row; repeated ones are one.
        run: Id of the run.
        plan: Digest of its plan, in hex.
        round: Which.
        draw: Names the batches and the noise that will be drawn, and none other.
        mechanism: What will be done.
        unit: What is clipped.
        most_examples: As in the plan.
        delta: Of the plan's privacy: at which the run's ε is told.
        after: Under a `BandedGaussian`: the round whose steps the noise that this one begins with ends with.
        repeatable: Likewise: drawn from a seed, a sealed round gives the same again.
        everybody: The patients of all rows that the source has, where `units` are a part of them: the ledger
            takes all of them for one export first, in which each id is a patient of its own.
        contents: Of them, by id, a digest of the content of all rows; nothing of those who share it. Whoever
            has the content of somebody else, known under another id, is taken for that patient.
    """

    source: str
    units: tuple[str, ...]
    run: str
    plan: str
    round: int
    draw: str
    mechanism: Mechanism
    unit: Unit
    most_examples: int | None = None
    delta: float = Field(gt=0, lt=1)
    after: int = Field(default=0, ge=0)
    repeatable: bool = False
    everybody: tuple[str, ...] = ()
    contents: dict[str, str] = Field(default_factory=dict)


class Charges(Protocol):
    """The ledger, wherever it lies."""

    def reserve(self, charge: Charge) -> float:
        """Charge a round to every unit, durably.

        Returns:
            ε that the run has cost the worst-off unit, this round included, at the charge's δ.

        Raises:
            BudgetError: It would go beyond the site's cap.
            PolicyError: The noise that it begins with is older than a contribution of the run, or the round
                is sealed already.
            StorageError: The ledger cannot be written, or does not hold what was written.
        """

    def seal(self, run: str, round: int, digest: str) -> None:
        """Mark a contribution as the round's: no other may leave, nor other noise be drawn.

        Raises:
            PolicyError: Another one is sealed already.
        """

    def settle(self, run: str, round: int, draw: str, steps: int) -> None:
        """Lower a charge to the steps that ran, where whoever made it did no more and never will.

        Of a reservation that another process made nobody knows that: it stays as it is.

        Raises:
            InternalError: More steps ran than were reserved.
            StorageError: The ledger cannot be written.
        """


def enter_contents(
    ledger: Ledger, name: str, everybody: Collection[str], contents: Mapping[str, str]
) -> Source:
    """Everybody in an export as one source, known by ids and, as far as they are given, by contents.

    Raises:
        PolicyError: δ is not below 1/units for as many as the ledger would then know.
        StorageError: It cannot be kept.
    """
    ids = sorted(set(everybody))
    found = [contents.get(unit) for unit in ids]
    return ledger.source(name, ids, [None if one is None else one.encode() for one in found])


@dataclass
class Made:
    """Reservations of this process, as long as their round is not sealed.

    Attributes:
        reservations: Run, round, stage and draw → the reservation, as it was asked for last.
    """

    reservations: dict[Draw, Reservation] = field(default_factory=dict)


@dataclass(frozen=True)
class LedgerCharges:
    """A ledger in this process.

    Attributes:
        ledger: Opens it, for as long as something is written.
        owner: Goes before the id of each run.
        made: Reservations of this process, which opens the ledger anew for each of them.
    """

    ledger: Callable[[], AbstractContextManager[Ledger]]
    owner: str = ""
    made: Made = field(default_factory=Made, repr=False)

    def reserve(self, charge: Charge) -> float:
        """As `Charges`."""
        with self.ledger() as ledger:
            if charge.everybody:
                enter_contents(ledger, charge.source, charge.everybody, charge.contents)
            source = ledger.source(charge.source, sorted(set(charge.units)))
            run = self.owner + charge.run
            if isinstance(charge.mechanism, NoPrivacy):
                ledger.release_without_privacy(source, run=run, plan=charge.plan)
                return math.inf
            whole = isinstance(charge.mechanism, BandedGaussian)
            if whole:
                again = charge.round if charge.repeatable else None
                check_noise(ledger.book, run, charge.after, again)
            reservation = ledger.reserve(
                source, run=run, plan=charge.plan, round=WHOLE if whole else charge.round, stage=0,
                draw=charge.draw, mechanism=charge.mechanism, unit=charge.unit,
                most_examples=charge.most_examples,
            )  # fmt: skip
            self.made.reservations[reservation.draw] = reservation
            return ledger.epsilon(source, run=run, delta=charge.delta).value

    def seal(self, run: str, round: int, digest: str) -> None:
        """As `Charges`."""
        with self.ledger() as ledger:
            ledger.seal(run=self.owner + run, round=round, stage=0, digest=digest)
        for place in [place for place in self.made.reservations if place[:2] == (self.owner + run, round)]:
            del self.made.reservations[place]

    def settle(self, run: str, round: int, draw: str, steps: int) -> None:
        """As `Charges`."""
        reservation = self.made.reservations.pop((self.owner + run, round, 0, draw), None)
        if reservation is None:
            return
        with self.ledger() as ledger:
            ledger.resume(reservation)
            ledger.settle(reservation, steps)
