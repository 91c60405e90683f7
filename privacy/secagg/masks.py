"""Masks: keystreams of AES-256-CTR, added to or taken from a vector of ring integers.

Each key serves one mask of one lane in one attempt, so that the counter may start at zero. The stream is
taken as little-endian words of the vector's type; a ring narrower than its word is reduced when it is
packed, since 2^bits divides 2^(8·itemsize).
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from wardround.core.errors import InternalError
from wardround.core.packed import Array
from wardround.privacy.secagg.secret import Secret

CHUNK = 1 << 18
"""Bytes that all masks are applied to before the next ones: accumulator and keystream stay in the cache."""
_ZEROS = memoryview(bytes(CHUNK))
WORDS: Final = (np.uint8, np.uint16, np.uint32, np.uint64)
"""Of rings."""


@dataclass(frozen=True)
class Mask:
    """The key of one mask, and whether it is added or taken away."""

    key: Secret
    sign: Literal[1, -1]


def apply_masks(vector: Array, masks: Sequence[Mask]) -> None:
    """Vector ← vector + Σ sign · keystream(key) mod 2^(8·itemsize).

    Args:
        vector: (n,) contiguous, unsigned words of 1, 2, 4 or 8 bytes.
        masks: Any number.

    Raises:
        InternalError: The vector is of another kind.
    """
    if vector.ndim != 1 or vector.dtype not in WORDS or not vector.flags.c_contiguous:
        raise InternalError(
            "masks are applied to flat vectors of ring integers",
            found=f"{vector.dtype} {vector.shape}", expected="unsigned words, contiguous",
        )  # fmt: skip
    for _ in _under(vector, masks, in_place=True):
        pass


def under_masks(vector: Array, masks: Sequence[Mask]) -> Iterator[Array]:
    """What `apply_masks` would make of the vector, which is left as it is, piece by piece.

    Every piece but the last has an even number of values.
    """
    return _under(vector, masks, in_place=False)


def _under(vector: Array, masks: Sequence[Mask], *, in_place: bool) -> Iterator[Array]:
    word = vector.dtype.itemsize
    a_chunk = CHUNK // word
    scratch = np.empty(a_chunk, dtype=vector.dtype)
    stream = scratch.view(np.uint8)
    ciphers = [
        (
            Cipher(algorithms.AES(mask.key.reveal()), modes.CTR(bytes(16))).encryptor(),
            np.add if mask.sign > 0 else np.subtract,
        )
        for mask in masks
    ]
    for start in range(0, vector.size, a_chunk):
        part = vector[start : start + a_chunk]
        if not in_place:
            part = part.copy()
        for cipher, operation in ciphers:
            cipher.update_into(_ZEROS[: part.size * word], stream[: part.size * word].data)
            operation(part, _native(scratch[: part.size]), out=part)
        yield part


def _native(words: Array) -> Array:
    return words if sys.byteorder == "little" else words.byteswap()
