"""No secure aggregation: the server sees, and checks, each contribution. One exchange."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from wardround.core.errors import PeerError
from wardround.privacy.packing import pack, unpack, word_of
from wardround.privacy.secagg.admission import Member, read
from wardround.privacy.secagg.identity import Roster
from wardround.privacy.secagg.messages import MaskedInput, decode, encode
from wardround.privacy.secagg.offer import Offer, SignedOffer
from wardround.privacy.secagg.total import Sum, centred, total_of
from wardround.privacy.sums.contract import Lanes


class PlainParty:
    """A site's side. Its policy has to allow `off` (`SecurePolicy.check_mode`)."""

    def __init__(self, member: Member) -> None:
        self._member = member
        self._place = (0, 0, 0)

    def check(self, offer: bytes, broadcast: bytes) -> Offer:
        """As the contract says."""
        found = read(self._member, decode(offer, SignedOffer), broadcast)
        if found.place <= self._place:
            raise PeerError(
                "the offer is not newer than the last one", found=found.place, expected=f"after {self._place}"
            )
        return found

    def confirmed(self, round: int) -> Mapping[int, tuple[str, ...]]:  # noqa: ARG002 - the contract's
        """Nobody is asked."""
        return {}

    def begin(self, offer: bytes, broadcast: bytes, lanes: Lanes) -> bytes:
        """The contribution, signed and under no mask."""
        found = self.check(offer, broadcast)
        self._place = found.place
        vector = MaskedInput(
            site=self._member.name, dealt=found.context,
            coordinates=pack(lanes.coordinates, found.bits), counters=pack(lanes.counters, 64),
        )  # fmt: skip
        signature = self._member.signer.sign(vector.statement(found.context))
        return encode(vector.model_copy(update={"signature": signature}))

    def step(self, message: bytes) -> bytes:  # noqa: ARG002 - the contract's
        """There is no other phase."""
        raise PeerError("a phase is asked for that this kind of aggregation does not have")


class PlainCollector:
    """The server's side.

    Args:
        signed: What is proposed.
        roster: The members' keys.
        weighed: Whether the first counter is a weight, which has to be 1 to `offer.most_weight`.
    """

    def __init__(self, signed: SignedOffer, roster: Roster, *, weighed: bool) -> None:
        self.offer = signed.offer
        self.liars: set[str] = set()
        self.burning = False
        self._signed, self._roster, self._weighed = signed, roster, weighed
        self._waiting, self._survivors = set(self.offer.cohort), list[str]()
        self._coordinates = np.zeros(self.offer.coordinates, dtype=word_of(self.offer.bits))
        self._counters = np.zeros(self.offer.counters, dtype=word_of(64))

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
        """Check one contribution and add it.

        Raises:
            PeerError: As the contract says, or a coordinate, counter or weight is beyond the offer's bounds.
        """
        if site not in self._waiting:
            raise PeerError("a site answers that was not asked, or twice", found=site)
        self._waiting.discard(site)
        offer, vector = self.offer, decode(message, MaskedInput, self.offer)
        if vector.site != site or vector.dealt != offer.context:
            raise PeerError("a contribution is of another site or attempt", found=vector.site, expected=site)
        self._roster.check(site, vector.signature, vector.statement(offer.context))
        coordinates = unpack(vector.coordinates, offer.coordinates, offer.bits)
        counters = unpack(vector.counters, offer.counters, 64)
        self._check_bounds(coordinates, counters)
        self._coordinates += coordinates
        self._counters += counters
        self._survivors.append(site)

    def _check_bounds(self, coordinates: np.ndarray, counters: np.ndarray) -> None:
        offer = self.offer
        bound = int(offer.most_weight * offer.largest * offer.scale) + 1
        if np.abs(centred(coordinates, offer.bits)).max(initial=0) > bound:
            raise PeerError(
                "the contribution is beyond the plan's bounds", expected=f"ring integers to {bound} in size"
            )
        if counters.max(initial=0) > offer.most_count:
            raise PeerError("the contribution's counters are not counts", expected=f"0 to {offer.most_count}")
        if self._weighed and not 1 <= int(counters[0]) <= offer.most_weight:
            raise PeerError(
                "the contribution's weight is out of bounds", expected=f"1 to {offer.most_weight}"
            )

    def close(self) -> Mapping[str, bytes]:
        """There is no other phase."""
        return {}

    def open(self) -> Sum:
        """What was added."""
        return total_of(self.offer, self._coordinates, self._counters, self._survivors, ())
