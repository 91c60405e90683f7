"""A trusted aggregator: it sees each contribution, and whoever carries them in between sees none.

The consortium chose it, the plan names its key, and each site's people pinned that key. A site seals its
contribution to the key (`privacy/sealed.py`); the aggregator opens, checks and adds. One exchange.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from wardround.core.errors import PeerError
from wardround.core.seeds import Purpose, generator
from wardround.privacy.sealed import LARGEST_LANE, Header, Received, public_key, seal, unseal
from wardround.privacy.secagg.admission import Member, accept_seen
from wardround.privacy.secagg.identity import Roster
from wardround.privacy.secagg.messages import decode
from wardround.privacy.secagg.offer import Offer, SignedOffer
from wardround.privacy.secagg.secret import SECRET_BYTES, Secret
from wardround.privacy.sums.contract import Lanes
from wardround.privacy.sums.form import IN_THE_RING, Form
from wardround.privacy.sums.seen import Reader


class TrustedParty:
    """A site's side.

    Args:
        member: Who takes part, under which rules.
        aggregator: The key that its own people pinned (`SecurePolicy.trusted_key`), 32 bytes.
        form: In which contributions travel.
    """

    def __init__(self, member: Member, aggregator: bytes, form: Form = IN_THE_RING) -> None:
        self._member, self._aggregator, self._form = member, aggregator, form

    def check(self, offer: bytes, broadcast: bytes) -> Offer:
        """As the contract says; a cohort may be of any size, since a contribution hides among nobody."""
        found = accept_seen(self._member, self._member.record.load(), decode(offer, SignedOffer), broadcast)
        header_of(
            found, self._member.name, self._aggregator, self._form
        )  # refused before anything is trained
        return found

    def confirmed(self, round: int) -> Mapping[int, tuple[str, ...]]:  # noqa: ARG002 - the contract's
        """Nobody is asked."""
        return {}

    def begin(self, offer: bytes, broadcast: bytes, lanes: Lanes) -> bytes:
        """The contribution, sealed under fresh ephemeral keys and signed."""
        member, found = self._member, self.check(offer, broadcast)
        signed = decode(offer, SignedOffer)
        member.record.save(member.record.load().after(signed))  # durable first: one envelope a place, ever
        header = header_of(found, member.name, self._aggregator, self._form)
        return seal(header, *lanes.packed(found.bits), member.signer)

    def step(self, message: bytes) -> bytes:  # noqa: ARG002 - the contract's
        """There is no other phase."""
        raise PeerError("a phase is asked for that this kind of aggregation does not have")


@dataclass
class Aggregator:
    """The aggregator's key, and what it has accepted in each of a run's sums.

    One serves a whole run, so that a later attempt knows what an earlier one accepted. It lives as long as
    the contributions themselves: a restarted aggregator has lost both, and asks for the round again.

    Attributes:
        key: X25519; never leaves this object.
        received: Run of a sum (`offers.run_of`) → what was accepted in it.
    """

    key: Secret
    received: dict[str, Received] = field(default_factory=dict)

    @property
    def public(self) -> bytes:
        """What plan and policies name, 32 bytes."""
        return public_key(self.key)

    def reader(self, offer: Offer, roster: Roster, form: Form = IN_THE_RING) -> Reader:
        """Opens what a `TrustedParty` sends in this attempt: each site's once.

        The reader raises a PeerError where an envelope is malformed, altered, replayed, of another site or of
        another attempt.
        """
        public = self.public

        def read_sealed(site: str, message: bytes) -> tuple[bytes, bytes]:
            before = self.received.get(offer.run_id, Received(run_id=offer.run_id))
            header = header_of(offer, site, public, form)
            contribution, self.received[offer.run_id] = unseal(message, header, self.key, roster, before)
            return contribution.coordinates, contribution.counters

        return read_sealed


def simulated_aggregator(seed: int) -> Aggregator:
    """The trusted aggregator of a simulation. Its key follows from the run's seed.

    So two runs of one plan have one digest, and a resumed one opens what is sealed to the same key. Whoever
    knows the seed has the key: a consortium's plan that names it is refused.
    """
    return Aggregator(Secret(generator(seed, Purpose.AGGREGATOR).bytes(SECRET_BYTES)))


def header_of(offer: Offer, site: str, aggregator: bytes, form: Form = IN_THE_RING) -> Header:
    """What a site's envelope is bound to in this attempt: site and aggregator derive the same.

    Raises:
        PeerError: A lane is longer than can be sealed.
    """
    sizes = form.lane_bytes(offer)
    if max(sizes) > LARGEST_LANE:
        raise PeerError(
            "the contribution is too long to be sealed", found=f"{max(sizes)} bytes",
            expected=f"at most {LARGEST_LANE}", remedy="train a smaller adapter, or in a narrower ring",
        )  # fmt: skip
    return Header(
        run_id=offer.run_id, round=offer.round, stage=offer.stage, attempt=offer.attempt, plan=offer.plan,
        roster=offer.roster, broadcast=offer.broadcast, layout=offer.layout,
        counters_layout=offer.counters_layout, offer=offer.context, aggregator=aggregator, site=site,
        coordinates_bytes=sizes[0], counters_bytes=sizes[1],
    )  # fmt: skip
