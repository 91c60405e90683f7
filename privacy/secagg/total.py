"""What an attempt gives: the sum of its two lanes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from wardround.core.packed import Array
from wardround.privacy.secagg.offer import Offer


@dataclass(frozen=True)
class Sum:
    """What an attempt gives.

    Attributes:
        coordinates: (offer.coordinates,) int64: Σ of the survivors' ring integers, centred around zero.
        counters: (offer.counters,) int64, not negative.
        survivors: Whose contributions are in it, sorted.
        liars: Sites that gave a wrong share and were corrected.
    """

    coordinates: Array
    counters: Array
    survivors: tuple[str, ...]
    liars: tuple[str, ...]


def total_of(
    offer: Offer, coordinates: Array, counters: Array, survivors: Iterable[str], liars: Iterable[str]
) -> Sum:
    """The sum from its two lanes, modulo the rings and under no mask."""
    return Sum(
        centred(coordinates, offer.bits), centred(counters, 64),
        tuple(sorted(survivors)), tuple(sorted(liars)),
    )  # fmt: skip


def centred(vector: Array, bits: int) -> Array:
    """Residues modulo 2^bits, in the ring's word, as fresh int64 from −2^(bits−1) on."""
    if bits == vector.itemsize * 8:
        return vector.view(vector.dtype.str.replace("u", "i")).astype(np.int64)
    half = 1 << (bits - 1)
    return ((vector.astype(np.int64) + half) & ((1 << bits) - 1)) - half
