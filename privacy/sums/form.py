"""The form in which a plan's contributions travel: packed ring integers, or compressed where each is seen.

What was compressed is read back to floats and put on the ring here, by the encoder and at the place of the
seed tree by which the site itself would have: from there on both are the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from wardround.core.compression import Blocks, TopK
from wardround.core.errors import ConfigError, PeerError
from wardround.core.packed import Array
from wardround.core.plan import Encoding, TrainingPlan
from wardround.core.seeds import Purpose, generator
from wardround.privacy.compression import compressed_size, decompress
from wardround.privacy.packing import packed_size, unpack
from wardround.privacy.quantisation import length_of, quantise
from wardround.privacy.secagg.offer import Offer
from wardround.privacy.secagg.policy import Mode
from wardround.privacy.sums.offers import scale_of

SEEN: Final = ("off", "trusted")
"""Modes under which somebody sees each contribution."""


@dataclass(frozen=True)
class Form:
    """How contributions to a run's sums travel.

    Attributes:
        seed: The plan's.
        encoding: The plan's; None: whatever the ring, packed.
    """

    seed: int = 0
    encoding: Encoding | None = None

    @staticmethod
    def of(plan: TrainingPlan) -> Form:
        """The plan's."""
        return Form(plan.seed, plan.encoding)

    @property
    def compression(self) -> Blocks | TopK | None:
        """Of the coordinates; None: they are packed."""
        return None if self.encoding is None else self.encoding.compression

    def lane_bytes(self, offer: Offer) -> tuple[int, int]:
        """Bytes of both lanes of one contribution."""
        return self.size(offer.coordinates, offer.bits), packed_size(offer.counters, 64)

    def size(self, coordinates: int, bits: int) -> int:
        """Bytes of so many coordinates, of a ring of so many bits where they are packed."""
        if self.compression is None:
            return packed_size(coordinates, bits)
        return compressed_size(coordinates, self.compression)

    def on_the_ring(self, lane: bytes | memoryview, offer: Offer, site: str, weight: int) -> Array:
        """What one site sent, as ring integers.

        Args:
            lane: Of its coordinates.
            offer: Of the attempt.
            site: Whose it is.
            weight: Its own, from 1 to the plan's largest where it has coordinates.

        Raises:
            PeerError: As `decompress` and `unpack`, or it is longer than the plan's norm.
        """
        if self.encoding is None or self.compression is None or not offer.coordinates:
            return unpack(lane, offer.coordinates, offer.bits)
        scale = scale_of(self.encoding, len(offer.cohort))
        vector = decompress(lane, offer.coordinates, self.compression, scale.largest)
        if length_of(vector) > scale.norm:
            raise PeerError(
                "the contribution is beyond the plan's bounds", expected=f"at most {scale.norm:g} long"
            )
        rng = generator(self.seed, Purpose.ROUNDING, round=offer.round, site=place_of(site, offer.stage))
        return quantise(vector, weight, scale, rng).integers


IN_THE_RING: Final = Form()
"""Packed, as under masks."""


def require_seen(compression: Blocks | TopK | None, mode: Mode) -> None:
    """Refuse compressed contributions where nobody could read them.

    Raises:
        ConfigError: The mode adds contributions that it hides.
    """
    if compression is not None and mode not in SEEN:
        raise ConfigError(
            "contributions that are hidden in a sum cannot be compressed: masks add up in the ring alone",
            found=f"encoding.compression.method={compression.method} with secure.mode={mode}",
            expected="secure.mode=trusted, or off",
            remedy="set encoding.compression to null, and encoding.bits to 8, the narrowest ring; or "
            "secure.mode to trusted, with an aggregator that the sites trust",
        )  # fmt: skip


def place_of(site: str, stage: int) -> str:
    """A site's place in the seed tree, where a stage draws."""
    return f"{site}\x1f{stage}" if stage else site
