"""The server's side of a sum whose contributions it sees, and checks, one by one. One exchange."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

import numpy as np

from wardround.core.errors import PeerError, QuorumError
from wardround.privacy.packing import unpack, word_of
from wardround.privacy.secagg.offer import SignedOffer
from wardround.privacy.secagg.total import Sum, centred, total_of
from wardround.privacy.sums.cohort import CohortCollector
from wardround.privacy.sums.form import IN_THE_RING, Form

Reader: TypeAlias = Callable[[str, bytes], tuple[bytes | memoryview, bytes | memoryview]]
"""A site and its message → both packed lanes; a PeerError where they are not that site's in this attempt."""


class SeenCollector(CohortCollector):
    """The server's side: contributions in the clear (`off`), or sealed to the aggregator (`trusted`).

    Args:
        signed: What is proposed.
        reader: Reads one site's message.
        weighed: Whether the first counter is a weight, which has to be 1 to `offer.most_weight`.
        quorum: With fewer contributions the attempt is over; whoever calls judges as well.
        form: In which contributions travel.
    """

    def __init__(
        self,
        signed: SignedOffer,
        reader: Reader,
        *,
        weighed: bool,
        quorum: int = 0,
        form: Form = IN_THE_RING,
    ) -> None:
        super().__init__(signed)
        self._reader, self._weighed, self._quorum, self._form = reader, weighed, quorum, form
        self._survivors: list[str] = []
        self._coordinates = np.zeros(self.offer.coordinates, dtype=word_of(self.offer.bits))
        self._counters = np.zeros(self.offer.counters, dtype=word_of(64))

    def take(self, site: str, message: bytes) -> None:
        """Check one contribution and add it.

        Raises:
            PeerError: As the contract says, or a coordinate, counter or weight is beyond the offer's bounds.
        """
        self._settle(site)
        offer, lanes = self.offer, self._reader(site, message)
        counters = unpack(lanes[1], offer.counters, 64)
        self._check_counters(counters)
        coordinates = self._form.on_the_ring(lanes[0], offer, site, int(counters[0]))
        self._check_bounds(coordinates)
        self._coordinates += coordinates
        self._counters += counters
        self._survivors.append(site)

    def _check_bounds(self, coordinates: np.ndarray) -> None:
        offer = self.offer
        bound = int(offer.most_weight * offer.largest * offer.scale) + 1
        if np.abs(centred(coordinates, offer.bits)).max(initial=0) > bound:
            raise PeerError(
                "the contribution is beyond the plan's bounds", expected=f"ring integers to {bound} in size"
            )

    def _check_counters(self, counters: np.ndarray) -> None:
        offer = self.offer
        if counters.max(initial=0) > offer.most_count:
            raise PeerError("the contribution's counters are not counts", expected=f"0 to {offer.most_count}")
        if self._weighed and not 1 <= int(counters[0]) <= offer.most_weight:
            raise PeerError(
                "the contribution's weight is out of bounds", expected=f"1 to {offer.most_weight}"
            )

    def close(self) -> Mapping[str, bytes]:
        """There is no other phase.

        Raises:
            QuorumError: Fewer contributed than the quorum.
        """
        if len(self._survivors) < self._quorum:
            missing = sorted(set(self.offer.cohort) - set(self._survivors))
            raise QuorumError(
                "fewer sites contributed than the plan's quorum",
                found=f"{len(self._survivors)}; not: {', '.join(missing)}",
                expected=f"at least {self._quorum}",
            )
        return {}

    def open(self) -> Sum:
        """What was added."""
        return total_of(self.offer, self._coordinates, self._counters, self._survivors, ())
