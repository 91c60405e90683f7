"""Secure aggregation behind a round's sums: `real`, and `accounted` without its cryptography.

Five exchanges in the complete graph, six in a regular one (phase 1b):

    the server sends    offer    keys    (openings)    boxes    survivors      confirmations
    a site answers      keys     (opening)   boxes     vector   confirmation   shares
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum, auto

from wardround.core.errors import PeerError, QuorumError
from wardround.privacy.secagg.admission import Member, accept
from wardround.privacy.secagg.messages import (
    Advertised,
    Advertisement,
    Complaint,
    Confirmation,
    Confirmed,
    Dealing,
    Delivery,
    MaskedInput,
    Message,
    Opened,
    Opening,
    Survivors,
    Unmasking,
    decode,
    encode,
    kind_of,
)
from wardround.privacy.secagg.offer import Offer, SignedOffer
from wardround.privacy.secagg.relay import BadDealerError, Relay
from wardround.privacy.secagg.site import SecureSite
from wardround.privacy.secagg.total import Sum
from wardround.privacy.sums.contract import Lanes

ASK_AGAIN = 1
"""How often a site that does not answer the last request is asked once more: it repeats its answer."""


class Phase(Enum):
    """What a site is asked for."""

    ADVERTISE = auto()
    OPEN = auto()
    DEAL = auto()
    MASK = auto()
    CONFIRM = auto()
    UNMASK = auto()
    DONE = auto()


_ANSWERS: Mapping[Phase, type[Message]] = {
    Phase.ADVERTISE: Advertisement,
    Phase.OPEN: Opening,
    Phase.DEAL: Dealing,
    Phase.MASK: MaskedInput,
    Phase.CONFIRM: Confirmation,
    Phase.UNMASK: Unmasking,
}


class PhasedParty:
    """A site's side.

    Args:
        member: Who takes part, under which rules.
        site: `SecureSite`, or `DummySite` for `accounted`.
    """

    def __init__(self, member: Member, site: type[SecureSite] = SecureSite) -> None:
        self._member = member
        self._site = site(member)
        self._phase = Phase.DONE
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
        self._phase = Phase.OPEN if signed.offer.degree else Phase.DEAL
        return encode(answer)

    def step(self, message: bytes) -> bytes:
        """As the contract says."""
        site, offer = self._site, self._offer
        if offer is None:
            raise PeerError("a phase is asked for, and no attempt is under way")
        answer: Message
        match self._phase:
            case Phase.OPEN:
                answer = site.open_graph(decode(message, Advertised))
                following = Phase.DEAL
            case Phase.DEAL:
                keys: type[Advertised | Opened] = Opened if offer.degree else Advertised
                answer = site.deal(decode(message, keys))
                following = Phase.MASK
            case Phase.MASK:
                answer = self._mask(decode(message, Delivery))
                following = Phase.CONFIRM
            case Phase.CONFIRM:
                answer = site.confirm(decode(message, Survivors))
                following = Phase.UNMASK
            case Phase.UNMASK:
                answer = site.unmask(decode(message, Confirmed))
                following = Phase.DONE
            case _:
                answer = self._repeat(decode(message, Confirmed))
                following = Phase.DONE
        self._phase = following
        return encode(answer)

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


class PhasedCollector:
    """The server's side.

    Args:
        signed: What is proposed.
        relay: `Relay`, or `DummyRelay` for `accounted`.
        quorum: So many contributions the plan demands, beside the threshold.
    """

    def __init__(self, signed: SignedOffer, relay: Relay, quorum: int) -> None:
        self.offer = signed.offer
        self.liars: set[str] = set()
        self.burning = False
        self._signed, self._relay, self._quorum = signed, relay, quorum
        self._phase = Phase.ADVERTISE
        self._waiting = set(self.offer.cohort)
        self._answered: list[str] = []
        self._again, self._asked_last, self._last = ASK_AGAIN, set[str](), b""

    @property
    def waiting(self) -> frozenset[str]:
        """As the contract says."""
        return frozenset(self._waiting)

    def begin(self) -> Mapping[str, bytes]:
        """The offer, to the whole cohort."""
        return dict.fromkeys(self.offer.cohort, encode(self._signed))

    def leave(self, site: str) -> None:
        """As the contract says."""
        self._waiting.discard(site)

    def take(self, site: str, message: bytes) -> None:
        """As the contract says."""
        if site not in self._waiting:
            raise PeerError("a site answers that was not asked, or twice", found=site)
        self._waiting.discard(site)
        if self._phase is Phase.MASK and kind_of(message) == Complaint.KIND:
            complaint = decode(message, Complaint)
            _require(complaint, site)
            self.liars.add(self._relay.take_complaint(complaint))
            return
        answer = decode(message, _ANSWERS[self._phase], self.offer)
        _require(answer, site)
        match answer:
            case Advertisement():
                self._relay.take_advertisement(answer)
            case Opening():
                self._relay.take_opening(answer)
            case Dealing():
                self._relay.take_dealing(answer)
            case MaskedInput():
                self._relay.take_masked(answer)
            case Confirmation():
                self._relay.take_confirmation(answer)
            case Unmasking():
                self._relay.take_unmasking(answer)
        self._answered.append(site)

    def close(self) -> Mapping[str, bytes]:
        """As the contract says."""
        messages = self._close()
        self._waiting, self._answered = set(messages), []
        return messages

    def open(self) -> Sum:
        """As the contract says."""
        if not self.burning:
            raise QuorumError("nobody was asked to open the sum", found=f"phase {self._phase.name.lower()}")
        try:
            total = self._relay.open()
        except BadDealerError as error:
            self.liars.add(str(error.found))
            raise
        self.liars |= set(total.liars)
        return total

    def _close(self) -> Mapping[str, bytes]:
        relay, answered, regular = self._relay, sorted(self._answered), self.offer.degree > 0
        if self.liars:
            raise QuorumError(
                "a site was caught: the attempt ends", found=", ".join(sorted(self.liars)),
                remedy="the next attempt leaves it out",
            )  # fmt: skip
        match self._phase:
            case Phase.ADVERTISE:
                self._phase = Phase.OPEN if regular else Phase.DEAL
                return dict.fromkeys(answered, encode(relay.advertised()))
            case Phase.OPEN:
                self._phase = Phase.DEAL
                return dict.fromkeys(answered, encode(relay.opened()))
            case Phase.DEAL:
                self._phase = Phase.MASK
                return {site: encode(delivery) for site, delivery in relay.deliveries().items()}
            case Phase.MASK:
                missing = sorted(set(self.offer.cohort) - set(answered))
                if len(answered) < self._quorum:
                    raise QuorumError(
                        "fewer sites contributed than the plan's quorum",
                        found=f"{len(answered)}; not: {', '.join(missing)}",
                        expected=f"at least {self._quorum}",
                    )  # fmt: skip
                self._phase = Phase.CONFIRM
                return dict.fromkeys(answered, encode(relay.survivors()))
            case Phase.CONFIRM:
                confirmed = encode(relay.confirmed())
                self._phase, self.burning = Phase.UNMASK, True
                self._asked_last, self._last = set(answered), confirmed
                return dict.fromkeys(answered, confirmed)
            case _:
                self._asked_last -= set(answered)
                if relay.openable or not self._again or not self._asked_last:
                    return {}  # open() says what is missing
                self._again -= 1
                return dict.fromkeys(sorted(self._asked_last), self._last)


def _require(message: Message, site: str) -> None:
    if message.site != site:
        raise PeerError("a site speaks in the name of another", found=message.site, expected=site)
