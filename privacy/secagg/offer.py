"""What the relay proposes for one attempt: everything that all its members have to agree on.

Its digest, the context, stands in front of whatever anybody signs or derives in this attempt: two sites that
were shown different offers (another plan, another broadcast, another cohort) never build a common sum.
"""

from __future__ import annotations

from functools import cached_property
from typing import Annotated, ClassVar, Literal

from pydantic import ConfigDict, Field, StringConstraints

from wardround.core.checked import Frozen
from wardround.core.errors import PeerError
from wardround.privacy.packing import Bits
from wardround.privacy.secagg.hashing import DIGEST_BYTES, digest
from wardround.privacy.secagg.identity import SIGNATURE_BYTES, Signer, check, statement

_NAME = r"^[^\s\p{C}/\\.]([^\p{C}/\\]{0,98}[^\s\p{C}/\\])?$"
SiteName = Annotated[str, StringConstraints(pattern=_NAME, strict=True)]
"""Printable, and without slash, leading dot or space at its ends, since it names a folder."""
Digest = Annotated[bytes, Field(min_length=DIGEST_BYTES, max_length=DIGEST_BYTES)]
MOST_SITES = 100_000
MOST_COORDINATES = 2**32


class Wire(Frozen):
    """A value that comes from the other side: strict types, base64 for bytes."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False,
        ser_json_bytes="base64", val_json_bytes="base64",
    )  # fmt: skip
    SHARED: ClassVar[bool] = False
    """Whether all sites of a round are sent the same head."""


class Offer(Wire):
    """One attempt at one sum.

    Two lanes are summed: `coordinates` integers of the ring of 2^bits, and `counters` of the ring of 2^64.
    """

    protocol: Literal[1] = 1
    run_id: Annotated[str, Field(min_length=1, max_length=256)]
    round: int = Field(ge=1, lt=2**31)
    stage: int = Field(default=0, ge=0, le=7)
    attempt: int = Field(default=0, ge=0, lt=2**31)
    plan: Digest
    roster: Digest
    broadcast: Digest
    """Of the state that everybody trains from."""
    layout: Digest
    """Of the statistics, and so of the order of the coordinates."""
    counters_layout: Digest
    cohort: Annotated[tuple[SiteName, ...], Field(min_length=1, max_length=MOST_SITES)]
    """Sorted. A round's first offer fixes it and the threshold: later attempts change but their number."""
    threshold: int = Field(ge=1)
    """So many confirmations open the sum, and in the complete graph so many shares a secret."""
    degree: int = Field(default=0, ge=0)
    """k of the regular graph; 0 is the complete graph."""
    share_threshold: int = Field(default=0, ge=0)
    """Shares that give a secret back in the regular graph; 0 in the complete one, where `threshold` does."""
    coordinates: int = Field(ge=0, le=MOST_COORDINATES)
    counters: int = Field(ge=1, le=1_000_000)
    bits: Bits = 16
    scale: float = Field(gt=0)
    """Ring integers for one unit of weight · value."""
    largest: float = Field(gt=0)
    """No coordinate is larger in size, before its weight is multiplied in."""
    most_weight: int = Field(ge=1, le=2**32)
    most_count: int = Field(ge=1, lt=2**62)
    """No counter of one site is larger."""

    @cached_property
    def context(self) -> bytes:
        """Digest of every field."""
        return digest("offer", self.model_dump_json())

    @cached_property
    def terms(self) -> bytes:
        """Digest of every field but the attempt: what a round's later attempts have to repeat."""
        return digest("terms", self.model_copy(update={"attempt": 0}).model_dump_json())

    @cached_property
    def members(self) -> bytes:
        """Digest of cohort and threshold, which no stage or attempt of a round may change."""
        return digest("members", self.threshold, *self.cohort)

    @property
    def place(self) -> tuple[int, int, int]:
        """Round, stage and attempt, which only ever grow."""
        return self.round, self.stage, self.attempt

    @property
    def shares_needed(self) -> int:
        """Shares that give a secret back."""
        return self.share_threshold or self.threshold

    def index_of(self, site: str) -> int:
        """The place x at which the site holds its shares."""
        return self._places[site]

    @cached_property
    def _places(self) -> dict[str, int]:
        return {site: place for place, site in enumerate(self.cohort, start=1)}

    @cached_property
    def sites(self) -> frozenset[str]:
        """The cohort, as a set."""
        return frozenset(self.cohort)

    @cached_property
    def _in_order(self) -> bool:
        """Whether the cohort is sorted, and names nobody twice."""
        return list(self.cohort) == sorted(self.sites)

    def check(self) -> None:
        """Refuse what contradicts itself, whoever sent it.

        Raises:
            PeerError: Names what is wrong.
        """
        members = len(self.cohort)
        if not self._in_order:
            raise PeerError("the cohort is not sorted, or names a site twice", found=f"{members} names")
        if self.threshold > members:
            raise PeerError("the threshold is above the cohort", found=f"{self.threshold} of {members}")
        if bool(self.degree) != bool(self.share_threshold):
            raise PeerError("the offer states a graph's degree or its share threshold without the other")
        if self.degree and (
            self.degree % 2 or self.degree >= members or self.share_threshold > self.degree + 1
        ):
            raise PeerError(
                "there is no graph of this degree", found=f"degree {self.degree}, {members} sites",
                expected="an even degree below the cohort, and a share threshold of at most degree + 1",
            )  # fmt: skip
        if members * (self.most_weight * self.largest * self.scale + 1) >= 2 ** (self.bits - 1):
            raise PeerError(
                "the ring could overflow", found=f"{members} sites in {self.bits} bits",
                expected="cohort · (most_weight · largest · scale + 1) below half the ring",
                remedy="a smaller scale, or a wider ring in the plan",
            )  # fmt: skip
        if members * self.most_count >= 2**63:
            raise PeerError(
                "the counters could overflow", found=f"{members} sites", expected="sums below 2^63"
            )


class SignedOffer(Wire):
    """An offer under the key that the consortium gave its server."""

    SHARED: ClassVar[bool] = True

    offer: Offer
    signature: Annotated[bytes, Field(min_length=SIGNATURE_BYTES, max_length=SIGNATURE_BYTES)]

    @staticmethod
    def by(signer: Signer, offer: Offer) -> SignedOffer:
        """Sign an offer."""
        return SignedOffer(offer=offer, signature=signer.sign(_signed_bytes(offer)))

    def check(self, key: bytes) -> Offer:
        """The offer, if the holder of `key` signed it.

        Raises:
            PeerError: It did not.
        """
        check(key, self.signature, _signed_bytes(self.offer), "the server")
        return self.offer


def _signed_bytes(offer: Offer) -> bytes:
    return statement("offer", offer.context, "server")
