"""Which kind of aggregation a plan asks for: the one place that knows all of them."""

from __future__ import annotations

from dataclasses import dataclass

from wardround.privacy.secagg.admission import Member
from wardround.privacy.secagg.dummy import DummyRelay, DummySite, TrustingRoster
from wardround.privacy.secagg.identity import Roster, Signer
from wardround.privacy.secagg.offer import Offer, SignedOffer
from wardround.privacy.secagg.policy import Mode
from wardround.privacy.secagg.relay import Relay
from wardround.privacy.sums.contract import TRAINING, Collector, Party
from wardround.privacy.sums.phased import PhasedCollector, PhasedParty
from wardround.privacy.sums.plain import PlainCollector, PlainParty


@dataclass(frozen=True)
class Aggregation:
    """What the server needs to ask for sums.

    Attributes:
        mode: The plan's `secure.mode`.
        signer: Signs offers with the key that the consortium gave its server.
        roster: The members' keys.
    """

    mode: Mode
    signer: Signer
    roster: Roster

    def collector(self, name: str, offer: Offer, *, quorum: int) -> Collector:
        """The server's side of one attempt at the sum of this name."""
        signed = SignedOffer.by(self.signer, offer)
        match self.mode:
            case "real":
                return PhasedCollector(signed, Relay(offer, self.roster), quorum)
            case "accounted":
                return PhasedCollector(signed, DummyRelay(offer, TrustingRoster(self.roster.keys)), quorum)
            case "off":
                return PlainCollector(signed, self.roster, weighed=name == TRAINING)


def party(mode: Mode, member: Member) -> Party:
    """A site's side of a run's sums of one name.

    Args:
        mode: The plan's `secure.mode`.
        member: This site; its `run_id` is that of the sum (`offers.run_of`).

    Raises:
        PolicyError: The site's own rules do not allow this mode.
    """
    member.policy.check_mode(mode)
    match mode:
        case "real":
            return PhasedParty(member)
        case "accounted":
            return PhasedParty(member, DummySite)
        case "off":
            return PlainParty(member)
