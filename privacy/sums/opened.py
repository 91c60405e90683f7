"""A sum after it was opened: checked by the plan's bounds, and sent to the sites with the next broadcast."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field

from wardround.core.counting import TRAINING_LAYOUT, WEIGHT
from wardround.core.errors import PeerError
from wardround.core.packed import Counters, Layout, Packed, Statistics
from wardround.core.plan import Encoding
from wardround.privacy.packing import Bits, pack, packed_size, unpack, word_of
from wardround.privacy.quantisation import dequantise
from wardround.privacy.secagg.messages import Laned, decode, encode
from wardround.privacy.secagg.offer import MOST_SITES, SiteName
from wardround.privacy.secagg.total import Sum, centred
from wardround.privacy.sums.noise import RingNoise
from wardround.privacy.sums.offers import scale_of


class ImpossibleSumError(PeerError):
    """No honest sites can have made this sum."""


class OpenedSum(Laned):
    """The sum of one stage's contributions, in the ring as it was opened."""

    SHARED: ClassVar[bool] = True

    kind: Literal["opened_sum"] = "opened_sum"
    round: int = Field(ge=1)
    stage: int = Field(ge=0, le=7)
    cohort: int = Field(ge=1, le=MOST_SITES)
    """Sites that were asked: the scale is theirs."""
    group: int = Field(default=0, ge=0, le=MOST_SITES)
    survivors: Annotated[tuple[SiteName, ...], Field(min_length=1, max_length=MOST_SITES)]


def opened(total: Sum, *, round: int, stage: int, cohort: int, bits: Bits, group: int = 0) -> bytes:
    """What is sent to the sites: as wide as one contribution."""
    return encode(
        OpenedSum(
            round=round,
            stage=stage,
            cohort=cohort,
            group=group,
            survivors=total.survivors,
            coordinates=pack(total.coordinates.astype(np.int64).view(np.uint64).astype(word_of(bits)), bits),
            counters=pack(total.counters.astype(np.int64).view(np.uint64).astype(word_of(64)), 64),
        )
    )


def read_opened(data: bytes, statistics: Layout, bits: Bits) -> tuple[OpenedSum, Sum]:
    """The sum again.

    Raises:
        PeerError: Another layout, kind or length.
    """
    counters = TRAINING_LAYOUT.size
    message = decode(data, OpenedSum, lanes=(packed_size(statistics.size, bits), packed_size(counters, 64)))
    return message, Sum(
        centred(unpack(message.coordinates, statistics.size, bits), bits),
        centred(unpack(message.counters, counters, 64), 64),
        message.survivors,
        (),
    )


def sites_in(data: bytes, statistics: Layout, bits: Bits) -> tuple[str, ...]:
    """The sites whose contributions are in a sum, without reading the rest of it.

    Raises:
        PeerError: Another layout, kind or length.
    """
    lanes = (packed_size(statistics.size, bits), packed_size(TRAINING_LAYOUT.size, 64))
    return decode(data, OpenedSum, lanes=lanes).survivors


def statistics_of(
    total: Sum, layout: Layout, encoding: Encoding, *, cohort: int, noise: RingNoise | None = None
) -> tuple[Statistics, Counters]:
    """The weighted sum in float64 and its counters, if honest sites can have made them.

    Args:
        total: What was opened.
        layout: Of the statistics.
        encoding: The plan's bounds.
        cohort: Sites that were asked.
        noise: What the plan has added to the sum.

    Raises:
        ImpossibleSumError: Σw is not from n to n·w_max, or the sum is beyond Σw times the bound of one site.
    """
    scale, counters = scale_of(encoding, cohort), Packed(TRAINING_LAYOUT, total.counters)
    sites, weight = len(total.survivors), int(counters[WEIGHT])
    if not sites <= weight <= sites * scale.most_weight or (total.counters < 0).any():
        raise ImpossibleSumError(
            "the summed weight is not possible", expected=f"{sites} to {sites * scale.most_weight}"
        )
    vector = dequantise(total.coordinates, scale)
    rounding = sites * scale.quantum
    most, longest = weight * scale.largest + rounding, weight * scale.norm + rounding * vector.size**0.5
    if noise is not None:  # its tail has room in `largest`; all coordinates together are longer
        longest += noise.longest * scale.quantum
    slack = 1 + 1e-9  # a wide ring has more bits than float64
    if np.abs(vector).max(initial=0.0) > slack * most or np.linalg.norm(vector) > slack * longest:
        raise ImpossibleSumError(
            "the sum is beyond the plan's bounds", expected="Σ weight · the bound of one site"
        )
    return Packed(layout, vector), counters
