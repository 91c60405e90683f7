"""The two sides of one sum, whatever protects it: bytes in, bytes out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np

from wardround.core.packed import Array
from wardround.privacy.packing import Bits, packed
from wardround.privacy.secagg.offer import Offer
from wardround.privacy.secagg.total import Sum

TRAINING: Final = "training"
EVALUATION: Final = "evaluation"
SUMS: Final = (TRAINING, EVALUATION)
GROUPS: Final = "groups"
"""Not a sum: the draw of the groups, before the first round (`secagg/draw.py`)."""


def name_of(sum: str, group: int) -> str:
    """Name by which the server tells the sums of several groups apart; a site knows its own one only."""
    return f"{sum}.{group}"


def plain_name(name: str) -> str:
    """Name of a sum without its group, as a site knows it."""
    return name.partition(".")[0]


@dataclass(frozen=True)
class Lanes:
    """What one site adds.

    Attributes:
        coordinates: (offer.coordinates,) integers of the ring, in its word; of a compressed contribution its
            bytes, uint8.
        counters: (offer.counters,) uint64.
    """

    coordinates: Array
    counters: Array

    def packed(self, bits: Bits) -> tuple[memoryview, memoryview]:
        """Both lanes as they travel, of a ring of so many bits."""
        first, counters = self.coordinates, packed(self.counters, 64)
        return (first.data if first.dtype == np.uint8 else packed(first, bits)), counters


class Party(Protocol):
    """A site's side of a run's sums of one name, one attempt after the other."""

    def check(self, offer: bytes, broadcast: bytes) -> Offer:
        """The offer, unless this site would refuse it; nothing is remembered.

        Args:
            offer: What the server proposes.
            broadcast: Digest of the state that this site was really sent.

        Raises:
            PolicyError: The site's own rules refuse.
            PeerError: The offer is not the server's, or contradicts itself, the plan, an earlier one.
        """

    def confirmed(self, round: int) -> Mapping[int, tuple[str, ...]]:
        """Stage → the survivors whose sum this site helped to open in that round, if it is the last one."""

    def begin(self, offer: bytes, broadcast: bytes, lanes: Lanes) -> bytes:
        """Accept the offer; the first answer. Raises as `check`."""

    def step(self, message: bytes) -> bytes:
        """The answer to the message of the next phase.

        Raises:
            PolicyError: The site's own rules refuse.
            PeerError: The message is malformed, or contradicts an earlier one.
        """


class Collector(Protocol):
    """The server's side of one attempt at one sum.

    begin → (take … close) for every phase → open

    Attributes:
        offer: What was proposed.
        liars: Sites that were caught.
        burning: Whether a site may have answered the unmask request: there is no other attempt after that.
    """

    offer: Offer
    liars: set[str]
    burning: bool

    @property
    def waiting(self) -> frozenset[str]:
        """Sites that are asked in this phase and have not been settled."""

    def begin(self) -> Mapping[str, bytes]:
        """Site → what it is sent first."""

    def take(self, site: str, message: bytes) -> None:
        """One site's answer; whatever comes of it, the site is settled in this phase.

        Raises:
            PeerError: The message is malformed, of another attempt, or out of bounds.
        """

    def leave(self, site: str) -> None:
        """The site does not answer in this phase."""

    def close(self) -> Mapping[str, bytes]:
        """End the phase: site → what it is sent next; empty after the last phase.

        Raises:
            QuorumError: Too few sites, or a site was caught: the attempt is over.
        """

    def open(self) -> Sum:
        """The sum, after the last phase.

        Raises:
            PeerError: It cannot be opened, in spite of everything; what can be said of a site is in `liars`.
        """
