"""What a ledger comes to, as figures for people; ε is per patient and site everywhere."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from wardround.client.ledger.book import Book
from wardround.client.ledger.charging import reported, room, spent
from wardround.client.ledger.draws import Charge
from wardround.privacy.accounting.account import Account, Epsilon
from wardround.privacy.accounting.mechanisms import Mechanism
from wardround.privacy.accounting.steps import steps_of

MOST_REPORTED: Final = 10
"""Runs whose losses are composed, the last ones: about a second each."""


@dataclass(frozen=True)
class RunLine:
    """One run.

    Attributes:
        run: Its id.
        plan: Digest of its plan.
        stages: Stages of rounds that something was reserved for.
        reservations: How many.
        extra: Of them, beyond the first of each stage: draws after a crash.
        sealed: Stages whose contribution stands.
        refusals: What was refused.
        epsilon: Reserved in this run alone, for the worst-off patient; where it trains privately of those
            whom it does not get without privacy as well.
        released: Units that it gets without privacy: held back to be scored, or all.
        reported: The same by privacy losses, where they give less; None of runs before the last
            `MOST_REPORTED`.
        left: The site does not join it again.
    """

    run: str
    plan: str
    stages: int
    reservations: int
    extra: int
    sealed: int
    refusals: int
    released: int
    epsilon: Epsilon
    reported: Epsilon | None
    left: bool


@dataclass(frozen=True)
class ClassLine:
    """Units with one history.

    Attributes:
        units: How many.
        sources: Names of the sources that they are in.
        declared: They came as patients whom the ledger did not know, in somebody's name, or first of all.
        epsilon: Of the worst-off patient behind them, in all.
    """

    units: int
    sources: tuple[str, ...]
    declared: bool
    epsilon: Epsilon


@dataclass(frozen=True)
class Summary:
    """A ledger.

    Attributes:
        rows: How many it has.
        units: How many units it knows.
        runs: In order of their first row.
        classes: Units by history.
        highest: ε of the site's worst-off patient.
        left: ε that is left under the cap, at its order, to whoever has least; None without a cap.
        cap: ε of the cap.
        delta: δ of every ε here.
        order: The cap's Rényi order.
        write_offs: How often the cap was written off.
        refusals: What was refused, in all.
    """

    rows: int
    units: int
    runs: tuple[RunLine, ...]
    classes: tuple[ClassLine, ...]
    highest: Epsilon
    left: float | None
    cap: float | None
    delta: float
    order: float | None
    write_offs: int
    refusals: int


@dataclass(frozen=True)
class ReservationLine:
    """One reservation.

    Attributes:
        row: Where it stands.
        run: Its run; with `round`, `stage` and `draw`.
        source: Name of the source.
        unit: What one clipped contribution was of.
        mechanism: As it was reserved.
        steps: For which it still counts, after it was settled.
        epsilon: Of it alone, as it counts.
    """

    row: int
    run: str
    round: int
    stage: int
    draw: str
    source: str
    unit: str
    mechanism: Mechanism
    steps: int
    epsilon: Epsilon


def summarise(book: Book) -> Summary:
    """Everything in it."""
    population = book.population
    classes = tuple(
        ClassLine(
            units=int(size),
            sources=tuple(book.sources[number].name for number in sorted(population.members[place])),
            declared=population.batches[population.batch_of[place]].declared,
            epsilon=spent(book, [place]),
        )
        for place, size in enumerate(population.sizes())
        if size
    )
    everybody = list(range(len(population.members)))
    drawn: dict[str, list[tuple[Charge, ...]]] = {run: [] for run in book.plans}
    for (run, _, _), charges in book.draws.everything():
        drawn[run].append(charges)
    sealed = Counter(stage[0] for stage in book.seals)
    refused = Counter(place[0] for _, place in book.refusals)
    behind = {run: _charged(book, run) for run in drawn}
    by_losses = {run: reported(book, behind[run], run) for run in [*drawn][-MOST_REPORTED:]}
    return Summary(
        rows=book.rows,
        units=population.size,
        runs=tuple(
            RunLine(
                run=run,
                plan=book.plans[run],
                stages=len(held),
                reservations=(made := sum(map(len, held))),
                extra=made - len(held),
                sealed=sealed[run],
                refusals=refused[run],
                released=_released(book, run),
                epsilon=spent(book, behind[run], run),
                reported=by_losses.get(run),
                left=run in book.left,
            )
            for run, held in drawn.items()
        ),
        classes=classes,
        highest=spent(book, everybody),
        left=room(book),
        cap=book.policy.epsilon,
        delta=book.policy.delta,
        order=book.order,
        write_offs=len(book.write_offs),
        refusals=len(book.refusals),
    )


def _charged(book: Book, run: str) -> list[int]:
    """Classes of units that a run's noise protects, as far as it has any; else all."""
    tallies, worlds = book.run_tallies(run), book.worlds
    everybody = set(range(len(book.population.members)))
    if not any(tally.steps for tally in tallies):
        return sorted(everybody)
    released = worlds.hits[:, [tally.released for tally in tallies]].any(axis=1)
    return sorted(everybody - set(worlds.owner[released].tolist())) or sorted(everybody)


def _released(book: Book, run: str) -> int:
    found = [number for number, tally in enumerate(book.run_tallies(run)) if tally.released]
    sizes, classes = (
        book.population.sizes(),
        {place for n in found for place in book.population.classes_of(n)},
    )
    return int(sum(sizes[place] for place in classes))


def reservations(book: Book) -> Iterator[ReservationLine]:
    """Each reservation, in the order of rows."""
    charges = [(charge, *stage) for stage, held in book.draws.everything() for charge in held]
    for charge, run, round, stage in sorted(charges, key=lambda entry: entry[0].row):
        steps = book.steps_left((run, round, stage, charge.draw))
        yield ReservationLine(
            row=charge.row, run=run, round=round, stage=stage, draw=charge.draw,
            source=book.sources[charge.terms.source].name, unit=charge.terms.unit,
            mechanism=charge.terms.mechanism, steps=steps,
            epsilon=_alone(charge.terms.mechanism, steps, book.policy.delta, book.units),
        )  # fmt: skip


@lru_cache(maxsize=4096)
def _alone(mechanism: Mechanism, steps: int, delta: float, units: int) -> Epsilon:
    if not steps:
        return Account().epsilon(delta, units=units)
    found = steps_of(mechanism)
    ran = mechanism if found is None else found[0].mechanism(steps)
    return Account(mechanisms=(ran,)).epsilon(delta, units=units)
