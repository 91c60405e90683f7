"""Sources and people's signatures: what changes who is charged, and under which rules."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from wardround.client.ledger.book import Book
from wardround.client.ledger.policy import BudgetPolicy
from wardround.client.ledger.rows import Amended, Disjoint, SourceAdded, require_named
from wardround.client.ledger.store import Store
from wardround.client.ledger.units import UnitList
from wardround.core.errors import ConfigError, InternalError
from wardround.privacy.accounting.account import check_delta
from wardround.privacy.accounting.renyi import budget_at

LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Source:
    """Units that are charged together.

    Attributes:
        number: In this ledger.
        name: As it was asked for.
        digest: Of its list of units.
        units: How many.
        unknown: Units who came when the ledger knew others, and none of them by this id.
    """

    number: int
    name: str
    digest: str
    units: int
    unknown: int


def add_source(
    store: Store, name: str, unit_ids: Sequence[str | int], contents: Sequence[bytes | None] | None
) -> Source:
    """As `Ledger.source`."""
    store.check()
    units, book = UnitList.of(store.keys, unit_ids, contents), store.book
    if book.source_of(units.digest) is None:
        arrival = book.population.arrival(units)
        check_delta(book.policy.delta, max(book.units, book.population.size + arrival.unknown))
    return name_list(store, name, units)


def name_list(store: Store, name: str, units: UnitList) -> Source:
    """The source of a list, whatever δ comes to; one that is there keeps its number.

    Raises:
        StorageError: It cannot be kept.
    """
    book = store.book
    number = book.source_of(units.digest)
    unknown = contested = 0
    if number is None:
        arrival = book.population.arrival(units)
        store.add_list(units)
        if book.population.size:  # the first source brings nobody who could be known already
            unknown, contested = arrival.unknown, arrival.contested
        if unknown:
            LOG.warning(
                "source %r has %d units whom the ledger does not know: they are charged like the worst-off "
                "whom it knows, until a person signs that they are others", name, unknown,
            )  # fmt: skip
    elif book.sources[number].name == name:
        return source_at(book, number, name)
    place = len(book.sources) if number is None else number
    store.append(
        SourceAdded, source=place, name=name, digest=units.digest, units=len(units.ids), unknown=unknown,
        contested=contested,
    )  # fmt: skip
    return source_at(book, place, name)


def source_at(book: Book, number: int, name: str) -> Source:
    """A source by its number."""
    record = book.sources[number]
    return Source(number, name, record.digest, record.units, record.unknown)


def source_number(book: Book, source: Source) -> int:
    """Its number, if it is this ledger's.

    Raises:
        InternalError: It is another's.
    """
    if not 0 <= source.number < len(book.sources) or book.sources[source.number].digest != source.digest:
        raise InternalError("this source is another ledger's", found=source.name)
    return source.number


def declare_disjoint(store: Store, source: Source, who: str, why: str) -> None:
    """As `Ledger.declare_disjoint`."""
    store.check()
    require_named(who, why)
    number, batches = source_number(store.book, source), store.book.population.batches
    if not any(batch.source == number and not batch.contested for batch in batches):
        raise ConfigError(
            "there is nothing to declare of this source", found="no unit that it was the first to bring",
            expected="units that the ledger did not know, and whose content it did not know either",
        )  # fmt: skip
    store.append(Disjoint, source=number, who=who, why=why)


def amend(store: Store, policy: BudgetPolicy, who: str, why: str) -> None:
    """As `Ledger.amend`."""
    store.check()
    require_named(who, why)
    cap, order = policy.cap(units=store.book.units), store.book.order
    if cap is not None and order is not None and not budget_at(order, cap.epsilon, cap.delta) > 0:
        raise ConfigError(
            "this cap has no room at the ledger's order", found=f"ε = {cap.epsilon:g} at order {order:g}",
            expected="a larger ε", remedy="the order was chosen with the first cap and stays",
        )  # fmt: skip
    if order is None and cap is not None:
        order = cap.order
    store.append(Amended, policy=policy, order=order, who=who, why=why)
