"""Which kind of aggregation a plan asks for: the one place that knows all of them."""

from __future__ import annotations

from dataclasses import dataclass

from wardround.core.errors import ConfigError
from wardround.core.plan import SecureRules
from wardround.privacy.secagg.admission import Member
from wardround.privacy.secagg.dummy import DummyRelay, DummySite, TrustingRoster
from wardround.privacy.secagg.identity import Roster, Signer
from wardround.privacy.secagg.offer import Offer, SignedOffer
from wardround.privacy.secagg.phases import Phases
from wardround.privacy.secagg.policy import Mode
from wardround.privacy.secagg.relay import Relay
from wardround.privacy.sums.contract import TRAINING, Collector, Party
from wardround.privacy.sums.form import IN_THE_RING, Form, require_seen
from wardround.privacy.sums.phased import PhasedCollector, PhasedParty
from wardround.privacy.sums.plain import PlainParty, plain_reader
from wardround.privacy.sums.seen import SeenCollector
from wardround.privacy.sums.trusted import Aggregator, TrustedParty


@dataclass(frozen=True)
class Aggregation:
    """What the server needs to ask for sums.

    Attributes:
        mode: The plan's `secure.mode`.
        signer: Signs offers with the key that the consortium gave its server.
        roster: The members' keys.
        aggregator: Opens what sites seal; under `trusted` alone.
        form: In which contributions travel; another than the ring's where each is seen.

    Raises:
        ConfigError: The mode needs an aggregator's key, or has no use for one, or hides what would have to be
            read.
    """

    mode: Mode
    signer: Signer
    roster: Roster
    aggregator: Aggregator | None = None
    form: Form = IN_THE_RING

    def __post_init__(self) -> None:
        if (self.mode == "trusted") != (self.aggregator is not None):
            raise ConfigError(
                "only a trusted aggregator holds a key that contributions are sealed to",
                found=f"secure.mode={self.mode}, {'no' if self.aggregator is None else 'a'} private key",
                expected="a private key under secure.mode=trusted, and none otherwise",
            )
        require_seen(self.form.compression, self.mode)

    def collector(self, name: str, offer: Offer, *, quorum: int) -> Collector:
        """The server's side of one attempt at the sum of this name."""
        signed = SignedOffer.by(self.signer, offer)
        match self.mode:
            case "real":
                return PhasedCollector(signed, Phases(Relay(offer, self.roster)), quorum)
            case "accounted":
                dummy = DummyRelay(offer, TrustingRoster(self.roster.keys))
                return PhasedCollector(signed, Phases(dummy), quorum)
            case "off":
                reader = plain_reader(offer, self.roster, self.form)
                return SeenCollector(signed, reader, weighed=name == TRAINING, form=self.form)
            case "trusted":
                assert self.aggregator is not None  # noqa: S101 - made sure of above
                reader = self.aggregator.reader(offer, self.roster, self.form)
                return SeenCollector(signed, reader, weighed=name == TRAINING, quorum=quorum, form=self.form)


def party(rules: SecureRules, member: Member, form: Form = IN_THE_RING) -> Party:
    """A site's side of a run's sums of one name.

    Args:
        rules: The plan's.
        member: This site; its `run_id` is that of the sum (`offers.run_of`).
        form: In which contributions travel.

    Raises:
        ConfigError: The form is of contributions that are seen, and the mode hides them.
        PolicyError: The site's own rules do not allow this mode, or trust another aggregator or none.
    """
    member.policy.check_mode(rules.mode, rules.aggregator)
    require_seen(form.compression, rules.mode)
    match rules.mode:
        case "real":
            return PhasedParty(member)
        case "accounted":
            return PhasedParty(member, DummySite)
        case "off":
            return PlainParty(member)
        case "trusted":
            return TrustedParty(member, member.policy.trusted_key(rules.aggregator), form)
