"""Secure aggregation behind a round's sums: `real`, and `accounted` without its cryptography.

Five exchanges in the complete graph, six in a regular one (phase 1b):

    the server sends    offer    keys    (openings)    boxes    survivors      confirmations
    a site answers      keys     (opening)   boxes     vector   confirmation   shares
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from wardround.core.errors import PeerError, QuorumError
from wardround.privacy.secagg.admission import Member, accept
from wardround.privacy.secagg.messages import (
    Advertised,
    Complaint,
    Confirmed,
    Delivery,
    Message,
    Opened,
    Survivors,
    decode,
    encode,
    kind_of,
)
from wardround.privacy.secagg.offer import Offer, SignedOffer
from wardround.privacy.secagg.phases import CONFIRM, DEAL, MASK, OPEN, UNMASK
from wardround.privacy.secagg.relay import BadDealerError, Relay
from wardround.privacy.secagg.site import SecureSite
from wardround.privacy.secagg.total import Sum
from wardround.privacy.sums.cohort import CohortCollector
from wardround.privacy.sums.contract import Lanes

ASK_AGAIN = 1
"""How often a site that does not answer the last request is asked once more: it repeats its answer."""


class PhasedParty:
    """A site's side.

    Args:
        member: Who takes part, under which rules.
        site: `SecureSite`, or `DummySite` for `accounted`.
    """

    def __init__(self, member: Member, site: type[SecureSite] = SecureSite) -> None:
        self._member = member
        self._site = site(member)
        self._phase = ""
        self._offer: Offer | None = None
        self._lanes: Lanes | None = None

    def check(self, offer: bytes, broadcast: bytes) -> Offer:
        """As the contract says."""
        return accept(self._member, self._member.record.load(), decode(offer, SignedOffer), broadcast)

    def confirmed(self, round: int) -> Mapping[int, tuple[str, ...]]:
        """As the contract says."""
        state = self._member.record.load()
        if state.place[0] != round:
            return {}
        return {int(stage): survivors for stage, survivors in state.survivors.items()}

    def begin(self, offer: bytes, broadcast: bytes, lanes: Lanes) -> bytes:
        """As the contract says: fresh keys."""
        signed = decode(offer, SignedOffer)
        answer = self._site.advertise(signed, broadcast)
        self._offer, self._lanes = signed.offer, lanes
        self._phase = OPEN if signed.offer.degree else DEAL
        return encode(answer)

    def step(self, message: bytes) -> bytes:
        """As the contract says."""
        site, offer = self._site, self._offer
        if offer is None:
            return self._after_restart(message)
        answer: Message
        phase, following = self._phase, ""
        if phase == OPEN:
            answer, following = site.open_graph(decode(message, Advertised)), DEAL
        elif phase == DEAL:
            keys: type[Advertised | Opened] = Opened if offer.degree else Advertised
            answer, following = site.deal(decode(message, keys)), MASK
        elif phase == MASK:
            answer, following = self._mask(decode(message, Delivery)), CONFIRM
        elif phase == CONFIRM:
            answer, following = site.confirm(decode(message, Survivors)), UNMASK
        elif phase == UNMASK:
            answer = site.unmask(decode(message, Confirmed))
        else:
            answer = self._repeat(decode(message, Confirmed))
        self._phase = following
        return encode(answer)

    def _after_restart(self, message: bytes) -> bytes:
        """The unmask answer once more: all that a new process knows of the attempt is in the record."""
        try:
            return encode(self._repeat(decode(message, Confirmed)))
        except PeerError as error:
            raise PeerError("a phase is asked for, and no attempt is under way") from error

    def _mask(self, delivery: Delivery) -> Message:
        if self._lanes is None:
            raise PeerError("a vector is asked for twice")
        lanes, self._lanes = self._lanes, None
        return self._site.mask(delivery, lanes.coordinates, lanes.counters)

    def _repeat(self, message: Confirmed) -> Message:
        answer = self._site.repeat(message.confirmations[0].survived) if message.confirmations else None
        if answer is None:
            raise PeerError("a phase is asked for out of its order", remedy="a new attempt")
        return answer


class Walk(Protocol):
    """An attempt's phases as a collector walks them: `Phases`, or what also writes them down."""

    @property
    def relay(self) -> Relay:
        """What the messages go to."""

    @property
    def phase(self) -> str:
        """Under way."""

    @property
    def heard(self) -> set[str]:
        """Sites whose message of that phase was accepted."""

    @property
    def due(self) -> type[Message]:
        """What sites send in this phase."""

    def accept(self, message: Message) -> None:
        """Take a site's message."""

    def close(self) -> Mapping[str, bytes]:
        """End the phase: site → what it is sent."""


class PhasedCollector(CohortCollector):
    """The server's side.

    Args:
        signed: What is proposed.
        walk: Of `Relay`, or of `DummyRelay` for `accounted`.
        quorum: So many contributions the plan demands, beside the threshold.
    """

    def __init__(self, signed: SignedOffer, walk: Walk, quorum: int) -> None:
        super().__init__(signed)
        self._phases, self._quorum = walk, quorum
        self._again, self._last = ASK_AGAIN, dict[str, bytes]()

    @staticmethod
    def opening(signed: SignedOffer, walk: Walk, outgoing: Mapping[str, bytes]) -> PhasedCollector:
        """One whose server ended while sites helped to open the sum: whoever was not heard is asked again.

        Args:
            signed: What was proposed.
            walk: In its last phase.
            outgoing: Site → what it was sent last.
        """
        found = PhasedCollector(signed, walk, 0)
        found.burning, found._last = True, dict(outgoing)
        found._waiting = set(outgoing) - walk.heard
        return found

    def asked_again(self) -> Mapping[str, bytes]:
        """Site → what it was sent last, of those that are waited for."""
        return {site: self._last[site] for site in sorted(self._waiting)}

    def take(self, site: str, message: bytes) -> None:
        """As the contract says."""
        self._settle(site)
        if self._phases.phase == MASK and kind_of(message) == Complaint.KIND:
            complaint = decode(message, Complaint)
            _require(complaint, site)
            self.liars.add(self._phases.relay.take_complaint(complaint))
            return
        answer = decode(message, self._phases.due, self.offer)
        _require(answer, site)
        self._phases.accept(answer)

    def close(self) -> Mapping[str, bytes]:
        """As the contract says."""
        messages = self._unheard() if self._phases.phase == UNMASK else self._close()
        self._waiting = set(messages)
        return messages

    def open(self) -> Sum:
        """As the contract says."""
        if not self.burning:
            raise QuorumError("nobody was asked to open the sum", found=f"phase {self._phases.phase!r}")
        try:
            total = self._phases.relay.open()
        except BadDealerError as error:
            self.liars.add(str(error.found))
            raise
        self.liars |= set(total.liars)
        return total

    def _close(self) -> Mapping[str, bytes]:
        phases = self._phases
        if self.liars:
            raise QuorumError(
                "a site was caught: the attempt ends", found=", ".join(sorted(self.liars)),
                remedy="the next attempt leaves it out",
            )  # fmt: skip
        if phases.phase == MASK and len(phases.heard) < self._quorum:
            missing = sorted(set(self.offer.cohort) - phases.heard)
            raise QuorumError(
                "fewer sites contributed than the plan's quorum",
                found=f"{len(phases.heard)}; not: {', '.join(missing)}",
                expected=f"at least {self._quorum}",
            )
        messages = phases.close()
        if phases.phase == UNMASK:
            self.burning, self._last = True, dict(messages)
        return messages

    def _unheard(self) -> Mapping[str, bytes]:
        """The last request once more, to whom it may bring a missing share from; else nothing."""
        unheard = {site: sent for site, sent in self._last.items() if site not in self._phases.heard}
        if self._phases.relay.openable or not self._again:
            return {}  # open() says what is missing
        self._again -= 1
        return unheard


def _require(message: Message, site: str) -> None:
    if message.site != site:
        raise PeerError("a site speaks in the name of another", found=message.site, expected=site)
