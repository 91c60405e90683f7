"""No secure aggregation: a contribution travels signed, and in the clear. One exchange."""

from __future__ import annotations

from collections.abc import Mapping

from wardround.core.errors import PeerError
from wardround.privacy.secagg.admission import Member, read
from wardround.privacy.secagg.identity import Roster
from wardround.privacy.secagg.messages import MaskedInput, decode, encode
from wardround.privacy.secagg.offer import Offer, SignedOffer
from wardround.privacy.sums.contract import Lanes
from wardround.privacy.sums.form import Form
from wardround.privacy.sums.seen import Reader


class PlainParty:
    """A site's side. Its policy has to allow `off` (`SecurePolicy.check_mode`)."""

    def __init__(self, member: Member) -> None:
        self._member = member

    def check(self, offer: bytes, broadcast: bytes) -> Offer:
        """As the contract says."""
        found = read(self._member, decode(offer, SignedOffer), broadcast)
        last = self._member.record.load().place
        if found.place <= last:
            raise PeerError(
                "the offer is not newer than the last one", found=found.place, expected=f"after {last}"
            )
        return found

    def confirmed(self, round: int) -> Mapping[int, tuple[str, ...]]:  # noqa: ARG002 - the contract's
        """Nobody is asked."""
        return {}

    def begin(self, offer: bytes, broadcast: bytes, lanes: Lanes) -> bytes:
        """The contribution, signed and under no mask."""
        found, record = self.check(offer, broadcast), self._member.record
        record.save(record.load().after(decode(offer, SignedOffer)))
        coordinates, counters = map(bytes, lanes.packed(found.bits))
        vector = MaskedInput(
            site=self._member.name, dealt=found.context, coordinates=coordinates, counters=counters
        )
        signature = self._member.signer.sign(vector.statement(found.context))
        return encode(vector.model_copy(update={"signature": signature}))

    def step(self, message: bytes) -> bytes:  # noqa: ARG002 - the contract's
        """There is no other phase."""
        raise PeerError("a phase is asked for that this kind of aggregation does not have")


def plain_reader(offer: Offer, roster: Roster, form: Form) -> Reader:
    """Reads what a `PlainParty` sends in this attempt."""

    def read_plain(site: str, message: bytes) -> tuple[bytes | memoryview, bytes | memoryview]:
        vector = decode(message, MaskedInput, lanes=form.lane_bytes(offer))
        if vector.site != site or vector.dealt != offer.context:
            raise PeerError("a contribution is of another site or attempt", found=vector.site, expected=site)
        roster.check(site, vector.signature, vector.statement(offer.context))
        return vector.coordinates, vector.counters

    return read_plain
