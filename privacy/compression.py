"""A contribution in fewer bytes than the ring's, for whoever sees it by itself: bytes out, floats in.

Masks add up in the ring alone, so that a sum of hidden contributions cannot be compressed. Where single ones
are seen, what arrives is read back to floats and put on the ring by the one encoder (`quantisation.py`): the
sum stays exact in any order, whatever its parts travelled in.

`blocks`: every coordinate, in 4 or 8 bits under its block's scale, rounded at random (`block_scales.py`).
E decoded = x, so that sites' errors cancel in a mean; any method of aggregation may have it.

`top_k`: the k largest of p = x + e, each with its place (`index_sets.py`), and e ← p − what is sent, which
waits at the site. Sparsified SGD with memory: Stich, Cordonnier & Jaggi 2018, arXiv:1809.07599, algorithm 1;
any compressor with such an error feedback: Karimireddy, Rebjock, Stich & Jaggi 2019, arXiv:1901.09847. So
values are rounded to the nearest: what that loses waits as well. It is for sums of updates of the same
parameters in every round.

The plan's bounds hold of what is sent: x is shortened and clipped as without compression, and what rounding
or e add beyond the norm, where there is one, is shortened once more.

Bytes: `WBQ1` or `WTK1`, bits, coordinates, block or k; then blocks, or places and values. How many they are
follows from plan and layout.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from wardround.core.compression import Blocks, TopK
from wardround.core.errors import InternalError, PeerError
from wardround.core.packed import Array
from wardround.privacy import block_scales, index_sets
from wardround.privacy.block_scales import Scaled
from wardround.privacy.quantisation import Scale, shortening

_HEAD: Final = struct.Struct("<4sBQQ")
_MAGIC: Final = {"blocks": b"WBQ1", "top_k": b"WTK1"}
_FLOAT: Final = 32
"""Bits of a value that is sent as it is."""
_VALUES: Final = 64
"""Values of `top_k` that share a scale, where they have one."""


@dataclass(frozen=True)
class Compressed:
    """A contribution as it travels, and what the bounds did to it.

    Attributes:
        data: All of it; empty of a vector without coordinates.
        shortened_by: Factor that brought the vector down to its norm; 1 where it was short enough.
        clipped: Coordinates beyond the largest.
        rest: (n,), float32: what waits at the site. None under `blocks`, where nothing does.
    """

    data: bytes = field(repr=False)
    shortened_by: float
    clipped: int
    rest: Array | None = field(default=None, repr=False)


def compressed_size(count: int, spec: Blocks | TopK) -> int:
    """Bytes of a contribution of so many coordinates."""
    if not count:
        return 0
    if isinstance(spec, Blocks):
        return _HEAD.size + block_scales.size_of(count, spec.bits, spec.block)
    sent = sent_of(count, spec)
    return _HEAD.size + index_sets.coded_size(sent, count) + _values_size(sent, spec.bits)


def sent_of(count: int, spec: TopK) -> int:
    """k: so many of the coordinates travel."""
    return min(count, max(1, math.floor(spec.share * count + 0.5)))


def compress(
    vector: Array, spec: Blocks | TopK, scale: Scale, rng: np.random.Generator, rest: Array | None = None
) -> Compressed:
    """A contribution, before its weight is multiplied in.

    Args:
        vector: (n,), float32 or float64.
        spec: The plan's.
        scale: Of the round: its bounds hold.
        rng: From the seed tree, for rounding at random.
        rest: (n,), float32: what the site has not sent so far, of `top_k`; None: nothing.

    Raises:
        TrainingError: A value is not finite; nothing is encoded.
        InternalError: The rest is of another length, or there is none to keep under `blocks`.
    """
    if rest is not None and (isinstance(spec, Blocks) or rest.shape != vector.shape):
        raise InternalError("this rest is of no such contribution", found=rest.shape, expected=vector.shape)
    factor, largest = shortening(vector, scale.norm), min(scale.largest, block_scales.MOST)
    bounded = vector * factor if factor < 1 else vector
    clipped = int(np.count_nonzero(np.abs(bounded) > largest))
    if clipped:
        bounded = np.clip(bounded, -largest, largest)
    if not vector.size:
        kept = None if isinstance(spec, Blocks) else np.zeros(0, np.float32)
        return Compressed(b"", factor, clipped, kept)
    if isinstance(spec, Blocks):
        values = block_scales.scaled(bounded, spec.bits, spec.block, rng)
        data = _head(spec, vector.size) + block_scales.to_bytes(_within(values, scale.norm), spec.bits)
        return Compressed(data, factor, clipped)
    whole = np.asarray(bounded, dtype=np.float32)
    if rest is not None:
        whole = whole + rest
    places = largest_places(whole, sent_of(whole.size, spec))
    chosen = np.clip(whole[places], -largest, largest)
    sent, data = _coded_values(chosen, spec.bits, largest, scale.norm)
    left = whole.copy()
    left[places] = (whole[places].astype(np.float64) - sent).astype(np.float32)
    data = _head(spec, whole.size) + index_sets.coded(places, whole.size) + data
    return Compressed(data, factor, clipped, left)


def decompress(data: bytes | memoryview, count: int, spec: Blocks | TopK, largest: float) -> Array:
    """The contribution again: (n,), float64.

    Args:
        data: What arrived.
        count: n, of the layout.
        spec: The plan's.
        largest: No coordinate may be larger in size.

    Raises:
        PeerError: Another form, version, length or number of coordinates, or as `places_in` and `from_bytes`
            say; a value that is not finite, or beyond the bound.
    """
    if len(data) != compressed_size(count, spec):
        raise PeerError(
            "a compressed contribution has the wrong length", found=f"{len(data)} bytes",
            expected=f"{compressed_size(count, spec)} bytes",
        )  # fmt: skip
    if not count:
        return np.zeros(0)
    if bytes(data[: _HEAD.size]) != _head(spec, count):
        raise PeerError(
            "a compressed contribution is of another form or version",
            found=bytes(data[: _HEAD.size]).hex(), expected=_head(spec, count).hex(),
            remedy="site and aggregator need versions of wardround, and plans, that agree",
        )  # fmt: skip
    body = data[_HEAD.size :]
    if isinstance(spec, Blocks):
        return _clipped(block_scales.from_bytes(body, count, spec.bits, spec.block, largest), largest)
    sent = sent_of(count, spec)
    cut = index_sets.coded_size(sent, count)
    out = np.zeros(count)
    out[index_sets.places_in(body[:cut], sent, count)] = _values_in(body[cut:], sent, spec.bits, largest)
    return out


def largest_places(vector: Array, count: int) -> Array:
    """Places of the so many largest in size, rising; of equal ones the earlier go first, on any machine."""
    sizes = np.abs(vector)
    least = np.partition(sizes, sizes.size - count)[sizes.size - count]
    above = np.flatnonzero(sizes > least)
    equal = np.flatnonzero(sizes == least)[: count - above.size]
    return np.sort(np.concatenate([above, equal]))


def _head(spec: Blocks | TopK, count: int) -> bytes:
    parameter = spec.block if isinstance(spec, Blocks) else sent_of(count, spec)
    return _HEAD.pack(_MAGIC[spec.method], spec.bits, count, parameter)


def _within(values: Scaled, norm: float) -> Scaled:
    """The same values, shortened to the norm that rounding may have left."""
    if math.isinf(norm):
        return values
    factor = shortening(values.values(), norm)
    return values.times(factor) if factor < 1 else values


def _values_size(count: int, bits: int) -> int:
    return 4 * count if bits == _FLOAT else block_scales.size_of(count, bits, _VALUES)


def _clipped(values: Scaled, largest: float) -> Array:
    """What is read: a scale is rounded up, and may bring a value a last bit beyond the bound."""
    return np.asarray(np.clip(values.values(), -largest, largest))


def _coded_values(chosen: Array, bits: int, largest: float, norm: float) -> tuple[Array, bytes]:
    """Values as they will be read, float64, and their bytes."""
    if bits == _FLOAT:
        factor = shortening(chosen, norm)
        exact = (chosen * np.float32(factor) if factor < 1 else chosen).astype("<f4")
        return np.clip(exact.astype(np.float64), -largest, largest), exact.tobytes()
    values = _within(block_scales.scaled(chosen, bits, _VALUES, None), norm)
    return _clipped(values, largest), block_scales.to_bytes(values, bits)


def _values_in(data: bytes | memoryview, count: int, bits: int, largest: float) -> Array:
    if bits < _FLOAT:
        return _clipped(block_scales.from_bytes(data, count, bits, _VALUES, largest), largest)
    values = np.frombuffer(data, dtype="<f4").astype(np.float64)
    if not np.isfinite(values).all():
        raise PeerError("a value of a compressed contribution is not finite")
    if np.abs(values).max(initial=0.0) > largest * (1 + 2.0**-20):
        raise PeerError(
            "a value of a compressed contribution is above the plan's bound", expected=f"at most {largest:g}"
        )
    return np.asarray(np.clip(values, -largest, largest))
