"""Where random words come from: the operating system, or, in a simulation, the seed tree.

What protects somebody (noise, which patients a private batch holds) is drawn from a `SystemSource`. A
`RepeatableSource` protects nobody: whoever knows the seed can take the noise off again. A simulation may use
one and then says "not private" in every output; `repeatable` is there so that nothing else can.
"""

from __future__ import annotations

import os
from typing import Final, NoReturn, Protocol, final

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from wardround.core.errors import InternalError
from wardround.core.packed import Array
from wardround.core.seeds import Purpose, generator

_KEY_BYTES: Final = 32
_CHUNK: Final = 1 << 18
"""Bytes of keystream at a time, so that the zeros under it stay in the cache."""
_ZEROS: Final = memoryview(bytes(_CHUNK))


class RandomSource(Protocol):
    """Uniform 64-bit words; no two calls give the same ones."""

    @property
    def repeatable(self) -> bool:
        """Whether somebody who knows a seed can draw the same words again."""
        ...

    def words(self, count: int) -> Array:
        """The next (count,) uint64, each uniform and apart from all others.

        Raises:
            InternalError: A negative count.
        """
        ...


@final
class SystemSource:
    """Keystream of AES-256-CTR under a key from the operating system, a fresh one for every call.

    No key outlives the call that it was drawn for. So there is nothing that a fork, a thread or a pickle
    could make a second copy of, and words that were handed out say nothing of earlier or later ones. A key
    costs some microseconds: ask for thousands of words at a time. (A copy of a whole *machine*, such as a
    snapshot that is started twice, is the operating system's to notice.)

    Args:
        purpose: What the words are for; shows in the repr, and in nothing else.
    """

    __slots__ = ("_purpose",)

    def __init__(self, purpose: str) -> None:
        self._purpose = purpose

    @property
    def repeatable(self) -> bool:
        """Never."""
        return False

    def words(self, count: int) -> Array:
        """As in `RandomSource`; the operating system's generator stands behind it."""
        words = _room(count)
        stream = words.view(np.uint8).data
        # The key is used once, so that its counter may start at zero.
        cipher = Cipher(algorithms.AES(os.urandom(_KEY_BYTES)), modes.CTR(bytes(16))).encryptor()
        for start in range(0, len(stream), _CHUNK):
            part = stream[start : start + _CHUNK]
            cipher.update_into(_ZEROS[: len(part)], part)
        return words

    def __repr__(self) -> str:
        return f"SystemSource({self._purpose!r})"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a source of secret words is neither pickled nor copied")


@final
class RepeatableSource:
    """Words from the seed tree: the same again for the same place. Not private.

    Args:
        root: Root seed.
        purpose: What the words are for.
        round: Of the run; 0 outside a round.
        site: Empty where no site is meant.
    """

    __slots__ = ("_bits", "_place")

    def __init__(self, root: int, purpose: Purpose, *, round: int, site: str) -> None:
        self._place = f"{purpose.value}, round {round}, site {site!r}"
        self._bits = generator(root, purpose, round=round, site=site).bit_generator

    @property
    def repeatable(self) -> bool:
        """Always."""
        return True

    def words(self, count: int) -> Array:
        """As in `RandomSource`, and the same on every machine."""
        words = _room(count)
        words[:] = self._bits.random_raw(count)
        return words

    def __repr__(self) -> str:
        return f"RepeatableSource({self._place}; not private)"


def _room(count: int) -> Array:
    if count < 0:
        raise InternalError("no such number of random words", found=count, expected="0 or more")
    return np.empty(count, dtype=np.uint64)
