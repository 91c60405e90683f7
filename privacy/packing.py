"""Ring integers as bytes, at their own width: 1, 1.5, 2, 2.5, 3, 4 or 8 bytes a value, little-endian.

A vector of the ring of 2^bits is held in the next wider machine word; only the low bits count, and only they
travel. Reducing modulo 2^bits is therefore what packing does, and nothing else has to.
"""

from __future__ import annotations

from typing import Any, Final, Literal, TypeAlias, get_args

import numpy as np

from wardround.core.errors import InternalError, PeerError
from wardround.core.packed import Array

Bits: TypeAlias = Literal[8, 12, 16, 20, 24, 32, 64]
_WORDS: Final = {
    8: np.uint8, 12: np.uint16, 16: np.uint16, 20: np.uint32, 24: np.uint32, 32: np.uint32, 64: np.uint64,
}  # fmt: skip


def word_of(bits: int) -> np.dtype[Any]:
    """The unsigned word that holds a ring of 2^bits.

    Raises:
        InternalError: No such ring.
    """
    if bits not in get_args(Bits):
        raise InternalError("there is no ring of this width", found=bits, expected=f"one of {get_args(Bits)}")
    return np.dtype(_WORDS[bits]).newbyteorder("<")


def packed_size(count: int, bits: int) -> int:
    """Bytes of `count` packed values."""
    return -(-count * bits // 8)


def pack(vector: Array, bits: Bits) -> bytes:
    """As `packed`, in bytes of their own."""
    return packed(vector, bits).tobytes()


def packed(vector: Array, bits: Bits) -> memoryview:
    """The low `bits` of every value: read-only, and where the word is whole a view of `vector`.

    Args:
        vector: (n,), of the ring's word.
        bits: Width of the ring.

    Raises:
        InternalError: The vector is of another type.
    """
    word = word_of(bits)
    if vector.ndim != 1 or vector.dtype != word:
        raise InternalError("a vector of another ring was packed", found=vector.dtype, expected=word)
    octets = np.ascontiguousarray(vector, dtype=word).view(np.uint8).reshape(vector.size, word.itemsize)
    match bits:
        case 24:
            octets = octets[:, :3].copy()
        case 12 | 20:
            octets = _pack_halves(octets, bits)
    return octets.reshape(-1).data.toreadonly()


def unpack(data: bytes | memoryview, count: int, bits: Bits) -> Array:
    """The values again, (count,), of the ring's word; read-only, and of whole words a view of `data`.

    Raises:
        PeerError: The bytes are not of `count` values, or bits that belong to none are set.
    """
    if len(data) != packed_size(count, bits):
        raise PeerError(
            "packed values have another length", found=f"{len(data)} bytes",
            expected=f"{packed_size(count, bits)} bytes for {count} values of {bits} bits",
        )  # fmt: skip
    word = word_of(bits)
    octets = np.frombuffer(data, dtype=np.uint8)
    match bits:
        case 24:
            wide = np.zeros((count, 4), dtype=np.uint8)
            wide[:, :3] = octets.reshape(count, 3)
        case 12 | 20:
            wide = _unpack_halves(octets, count, bits)
        case _:
            wide = octets
    values = wide.reshape(-1).view(word)
    values.flags.writeable = False
    return values


def _pack_halves(octets: Array, bits: int) -> Array:
    """Two values of w + ½ bytes in 2w + 1.

    Of 20 bits: a₀ a₁ (a₂ low | b₀ low) (b₀ high | b₁ low) (b₁ high | b₂ low).
    """
    (count, word), whole = octets.shape, bits // 8
    pairs = np.zeros((-(-count // 2) * 2, word), dtype=np.uint8)
    pairs[:count] = octets
    a, b = pairs[0::2], pairs[1::2]
    out = np.empty((len(a), 2 * whole + 1), dtype=np.uint8)
    out[:, :whole] = a[:, :whole]
    out[:, whole] = (a[:, whole] & 15) | (b[:, 0] << 4)
    out[:, whole + 1 :] = (b[:, :whole] >> 4) | (b[:, 1 : whole + 1] << 4)
    return out.reshape(-1)[: packed_size(count, bits)]


def _unpack_halves(octets: Array, count: int, bits: int) -> Array:
    whole = bits // 8
    padded = np.zeros(-(-count // 2) * (2 * whole + 1), dtype=np.uint8)
    padded[: octets.size] = octets
    if count % 2 and padded[-whole - 1] >> 4:
        raise PeerError("packed values end in bits that belong to none")
    pairs = padded.reshape(-1, 2 * whole + 1)
    wide = np.zeros((len(pairs) * 2, word_of(bits).itemsize), dtype=np.uint8)
    a, b = wide[0::2], wide[1::2]
    a[:, :whole], a[:, whole] = pairs[:, :whole], pairs[:, whole] & 15
    b[:, :whole] = (pairs[:, whole:-1] >> 4) | (pairs[:, whole + 1 :] << 4)
    b[:, whole] = pairs[:, -1] >> 4
    return wide[:count].copy()
