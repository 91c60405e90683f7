"""A set of k places among n, in as many bytes as k and n say: about 2 + log2(n / k) bits a place.

P. Elias 1974, "Efficient Storage and Retrieval by Content and Address of Static Files", JACM 21(2), and
R. Fano 1971: of the places in rising order the low l = ⌊log2(n / k)⌋ bits stand as they are; the high rest
h_i of the i-th one sets bit h_i + i of a bitmap of k + ⌊(n − 1) / 2^l⌋ bits. Every set has one code, and its
length does not depend on the set, so that it tells nothing and can be checked before anything is read.
"""

from __future__ import annotations

import numpy as np

from wardround.core.errors import InternalError, PeerError
from wardround.core.packed import Array


def coded_size(places: int, among: int) -> int:
    """Bytes of a set of so many places.

    Args:
        places: k, from 1 to n.
        among: n.
    """
    low, high = _bits(places, among)
    return -(-places * low // 8) + -(-high // 8)


def coded(places: Array, among: int) -> bytes:
    """The set as bytes.

    Args:
        places: (k,), int64, rising, from 0 to n − 1.
        among: n.

    Raises:
        InternalError: They are not.
    """
    if places.size == 0 or places[0] < 0 or places[-1] >= among or (np.diff(places) <= 0).any():
        raise InternalError("these are no places in rising order", found=f"{places.size} among {among}")
    low, high = _bits(places.size, among)
    rest = (places[:, None] >> np.arange(low)) & 1
    bitmap = np.zeros(high, dtype=np.uint8)
    bitmap[(places >> low) + np.arange(places.size)] = 1
    return _packed(rest.reshape(-1)) + _packed(bitmap)


def places_in(data: bytes | memoryview, places: int, among: int) -> Array:
    """The places again: (k,), int64, rising.

    Raises:
        PeerError: The bytes are not those of k different places among n in rising order.
    """
    if len(data) != coded_size(places, among):
        raise PeerError(
            "a set of places has another length", found=f"{len(data)} bytes",
            expected=f"{coded_size(places, among)} bytes for {places} places among {among}",
        )  # fmt: skip
    low, high = _bits(places, among)
    cut = -(-places * low // 8)
    rest = _unpacked(data[:cut], places * low).reshape(places, low).astype(np.int64)
    set_bits = np.flatnonzero(_unpacked(data[cut:], high))
    if set_bits.size != places:
        raise PeerError("a set has another number of places", found=set_bits.size, expected=places)
    found = ((set_bits - np.arange(places)) << low) | (rest << np.arange(low)).sum(axis=1, dtype=np.int64)
    if (np.diff(found) <= 0).any():
        raise PeerError("places are not in rising order, or one stands twice")
    if found[-1] >= among:
        raise PeerError("a place is out of range", found=int(found[-1]), expected=f"0 to {among - 1}")
    return np.asarray(found)


def _bits(places: int, among: int) -> tuple[int, int]:
    """Low bits of each place, and bits of the bitmap."""
    if not 1 <= places <= among:
        raise InternalError("there is no such set", found=f"{places} places among {among}")
    low = (among // places).bit_length() - 1
    return low, places + ((among - 1) >> low)


def _packed(bits: Array) -> bytes:
    return np.packbits(bits.astype(np.uint8), bitorder="little").tobytes()


def _unpacked(data: bytes | memoryview, count: int) -> Array:
    bits = np.unpackbits(np.frombuffer(data, dtype=np.uint8), bitorder="little")
    if bits[count:].any():
        raise PeerError("a set of places ends in bits that belong to none")
    return bits[:count]
