"""Vectors in few bits a value: blocks of values that share a scale.

Dettmers, Lewis, Shleifer & Zettlemoyer 2022, "8-bit Optimizers via Block-wise Quantization",
arXiv:2110.02861, section 2.1, here with evenly spaced levels. With L = 2^(bits − 1) − 1 and a block x:

    s = max|x| / L, as float32, rounded up       q_i = x_i / s, rounded       decoded: s q_i

Rounded at random (⌊x/s + u⌋, u uniform in [0, 1); Alistarh et al. 2017, "QSGD", arXiv:1610.02132, section
3.1) E s q_i = x_i and |s q_i − x_i| < s; to the nearest, |s q_i − x_i| ≤ s/2. One large value costs its own
block alone the others' precision.

Bytes: every block's scale (float32, little-endian), then the values: two's complement in 4, 8 or 16 bits, of
4 bits the earlier value in the low half. −2^(bits − 1) is never made, and refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from wardround.core.errors import PeerError
from wardround.core.packed import Array

_AT_ONCE: Final = 1 << 15
"""Values at a time, about: all of a piece's arrays stay in the cache."""
_BYTE: Final = 8
MOST: Final = 1e38
"""No value may be larger: its scale has to be a float32."""


@dataclass(frozen=True)
class Scaled:
    """Values in blocks.

    Attributes:
        scales: (⌈n / block⌉,), float32, zero where a block is.
        steps: (n,), int8 or int16, −L to L.
        block: Values that share a scale.
    """

    scales: Array
    steps: Array
    block: int

    def values(self) -> Array:
        """What they stand for, s q: (n,), float64."""
        count = self.steps.size
        out = np.empty(count)
        for start, stop, blocks in _pieces(count, self.block):
            scales = np.repeat(self.scales[blocks].astype(np.float64), self.block)[: stop - start]
            np.multiply(self.steps[start:stop], scales, out=out[start:stop])
        return out

    def times(self, factor: float) -> Scaled:
        """All values times a factor from 0 to 1, in the same steps."""
        scales = (self.scales * np.float32(factor)).astype(np.float32)
        gone = np.repeat(scales == 0, self.block)[: self.steps.size]
        return Scaled(scales, np.where(gone, self.steps.dtype.type(0), self.steps), self.block)


def levels(bits: int) -> int:
    """L: the largest step of so many bits."""
    return (1 << (bits - 1)) - 1


def scaled(vector: Array, bits: int, block: int, rng: np.random.Generator | None) -> Scaled:
    """A vector in blocks.

    Args:
        vector: (n,), float32 or float64, finite, of at most `MOST` in size.
        bits: 4, 8 or 16.
        block: Values that share a scale.
        rng: Rounds at random; None rounds to the nearest.
    """
    most, count = levels(bits), vector.size
    scales = np.zeros(-(-count // block), dtype=np.float32)
    steps = np.zeros(count, dtype=_word(bits))
    for start, stop, blocks in _pieces(count, block):
        part = np.zeros((blocks.stop - blocks.start, block))
        part.reshape(-1)[: stop - start] = vector[start:stop]
        largest = np.abs(part).max(axis=1)
        found = (largest / most).astype(np.float32)
        short = found.astype(np.float64) * most < largest
        found[short] = np.nextafter(found[short], np.float32(np.inf))
        scales[blocks] = found
        part /= np.where(found > 0, found, 1).astype(np.float64)[:, None]
        if rng is None:
            np.rint(part, out=part)
        else:
            part += rng.random(part.shape)
            np.floor(part, out=part)
        np.clip(part, -most, most, out=part)  # float64 may round up what u brought to the next step
        steps[start:stop] = part.reshape(-1)[: stop - start]
    return Scaled(scales, steps, block)


def size_of(count: int, bits: int, block: int) -> int:
    """Bytes of so many values."""
    return 4 * -(-count // block) + -(-count * bits // 8)


def to_bytes(values: Scaled, bits: int) -> bytes:
    """Scales, then steps."""
    steps: Array = values.steps.astype(_word(bits), copy=False).view(np.uint8)
    if bits < _BYTE:
        pairs = np.zeros(-(-steps.size // 2) * 2, dtype=np.uint8)
        pairs[: steps.size] = steps & 15
        steps = pairs[0::2] | pairs[1::2] << 4
    return values.scales.astype("<f4").tobytes() + steps.tobytes()


def from_bytes(data: bytes | memoryview, count: int, bits: int, block: int, largest: float) -> Scaled:
    """The blocks again.

    Args:
        data: What arrived.
        count: Values.
        bits: 4, 8 or 16.
        block: Values that share a scale.
        largest: No value may be larger in size.

    Raises:
        PeerError: Another length; a scale that is negative, not finite, or lets values beyond the bound
            through; a step that is never made; steps under a scale of zero; bits that belong to none.
    """
    if len(data) != size_of(count, bits, block):
        raise PeerError(
            "values in blocks have another length", found=f"{len(data)} bytes",
            expected=f"{size_of(count, bits, block)} bytes for {count} values of {bits} bits",
        )  # fmt: skip
    cut = 4 * -(-count // block)
    scales = np.frombuffer(data[:cut], dtype="<f4")
    if not np.isfinite(scales).all():
        raise PeerError("a block's scale is not finite")
    if np.signbit(scales).any():
        raise PeerError("a block's scale is negative")
    most = levels(bits)
    if scales.max(initial=0.0).astype(np.float64) * most > largest * (1 + 2.0**-20) + 2.0**-140:
        raise PeerError("a block's scale is above the plan's bound", expected=f"at most {largest:g} / {most}")
    steps = _steps(data[cut:], count, bits)
    if steps.min(initial=0) < -most:
        raise PeerError("a value in a block is one that is never made", expected=f"steps to {most} in size")
    if steps[np.repeat(scales == 0, block)[:count]].any():
        raise PeerError("a block of scale zero has values")
    return Scaled(scales, steps, block)


def _steps(data: bytes | memoryview, count: int, bits: int) -> Array:
    octets = np.frombuffer(data, dtype=np.uint8)
    if bits >= _BYTE:
        return octets.view(_word(bits))
    wide = np.empty(2 * octets.size, dtype=np.uint8)
    wide[0::2], wide[1::2] = octets & 15, octets >> 4
    if wide[count:].any():
        raise PeerError("values in blocks end in bits that belong to none")
    return np.asarray((wide[:count] << 4).view(np.int8) >> 4)


def _word(bits: int) -> np.dtype[Any]:
    """What holds a step."""
    return np.dtype("<i2" if bits > _BYTE else "i1")


def _pieces(count: int, block: int) -> list[tuple[int, int, slice]]:
    """Start and end of pieces of whole blocks, and which blocks."""
    blocks = max(1, _AT_ONCE // block)
    total = -(-count // block)
    return [
        (first * block, min(count, (first + blocks) * block), slice(first, min(total, first + blocks)))
        for first in range(0, total, blocks)
    ]
