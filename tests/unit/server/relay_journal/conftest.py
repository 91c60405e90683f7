"""Journals of attempts, and the sites that answer."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from wardround.privacy.secagg.dummy import TrustingRoster
from wardround.privacy.secagg.messages import (
    Advertised,
    Confirmed,
    Delivery,
    Message,
    Opened,
    Survivors,
    decode,
)
from wardround.privacy.secagg.offer import SignedOffer
from wardround.privacy.secagg.phases import UNMASK
from wardround.privacy.secagg.relay import Relay
from wardround.privacy.secagg.total import Sum
from wardround.server.relay_journal import JournalledRelay, _Records, begin, offered, restore


def started(group: Any, offer: Any, path: Path) -> JournalledRelay:
    """The journal of a new attempt."""
    return begin(path, SignedOffer.by(group.server, offer), Relay(offer, group.roster))


def again(group: Any, offer: Any, path: Path) -> JournalledRelay:
    """What a new server process makes of a journal."""
    return restore(path, Relay(offer, group.roster))


def trusting(group: Any, offer: Any, path: Path) -> JournalledRelay:
    """The same without the time that signatures take, for tests that restore thousands of times."""
    return restore(path, Relay(offer, TrustingRoster(group.roster.keys)))


def answer(group: Any, offer: Any, phase: str, name: str, sent: bytes) -> Message:
    """What a site says to what it was sent."""
    site = group.sites[name]
    found: Message
    match phase:
        case "advertise":
            found = group.advertise(name, offer)
        case "open":
            found = site.open_graph(decode(sent, Advertised))
        case "deal":
            found = site.deal(decode(sent, Opened if offer.degree else Advertised))
        case "mask":
            found = site.mask(decode(sent, Delivery), *group.inputs(offer, name))
        case "confirm":
            found = site.confirm(decode(sent, Survivors))
        case _:
            found = site.unmask(decode(sent, Confirmed))
    return found


Hook = Callable[[JournalledRelay], JournalledRelay]


def run_until(
    group: Any,
    offer: Any,
    journal: JournalledRelay,
    end: str = "",
    *,
    lost: Mapping[str, str] | None = None,
    after_message: Hook = lambda journal: journal,
    after_closing: Hook = lambda journal: journal,
) -> JournalledRelay:
    """Go on until the phase `end` is reached, or all have answered in the last one.

    Args:
        group: The consortium.
        offer: Of the attempt.
        journal: Where it stands.
        end: A phase.
        lost: Site → the phase from which on it says nothing.
        after_message: May replace the journal by a restored one after each message.
        after_closing: Likewise after each closing.
    """
    gone: set[str] = set()
    while True:
        gone |= {site for site, phase in (lost or {}).items() if phase == journal.phase}
        if journal.phase == end:
            return journal
        for name in list(journal.outgoing) or offer.cohort:
            if name not in gone and name not in journal.heard:
                journal.accept(answer(group, offer, journal.phase, name, journal.outgoing.get(name, b"")))
                journal = after_message(journal)
        if journal.phase == UNMASK:
            return journal
        journal.close()
        journal = after_closing(journal)


def killing(group: Any, offer: Any, path: Path, *phases: str) -> Hook:
    """Drop the server's objects in these phases; what comes back has to stand where they stood."""

    def kill(journal: JournalledRelay) -> JournalledRelay:
        if journal.phase not in phases:
            return journal
        before = journal.phase, set(journal.heard), dict(journal.outgoing)
        del journal
        restored = again(group, offer, path)
        assert (restored.phase, restored.heard, dict(restored.outgoing)) == before
        return restored

    return kill


def opened(journal: JournalledRelay) -> Sum:
    """The sum."""
    assert journal.relay.openable
    return journal.relay.open()


def bounds(path: Path) -> list[int]:
    """Where the records begin, and where the last one ends."""
    records = _Records(path)
    return [*(records.size for _ in records.read()), records.size]


def last_phase(group: Any, offer: Any, path: Path) -> bytes:
    """A journal with records of every kind; its bytes."""
    journal = run_until(group, offer, started(group, offer, path))
    assert journal.relay.openable
    return path.read_bytes()


def journal_offer(folder: Path) -> SignedOffer:
    """What the undisturbed server proposed."""
    found = offered(folder / "undisturbed")
    assert found is not None
    return found


def records_of(path: Path) -> list[bytes]:
    """The records as bytes."""
    return [path.read_bytes()[start:end] for start, end in itertools.pairwise(bounds(path))]


class Journals:
    """What the tests of a journal begin with."""

    def __init__(self, consortium: Any, folder: Path) -> None:
        self._consortium, self._folder = consortium, folder

    def fresh(self, size: int) -> tuple[Any, Any, Path]:
        """A consortium, an offer of it, and where its journal goes."""
        group = self._consortium(size)
        return group, group.offer(), self._folder / "attempt"

    started = staticmethod(started)
    again = staticmethod(again)
    trusting = staticmethod(trusting)
    answer = staticmethod(answer)
    run_until = staticmethod(run_until)
    killing = staticmethod(killing)
    opened = staticmethod(opened)
    bounds = staticmethod(bounds)
    last_phase = staticmethod(last_phase)
    journal_offer = staticmethod(journal_offer)
    records_of = staticmethod(records_of)


@pytest.fixture
def journals(consortium: Any, tmp_path: Path) -> Journals:
    """Helpers over one folder."""
    return Journals(consortium, tmp_path)
