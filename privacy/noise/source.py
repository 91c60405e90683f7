"""What random words come from."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class RandomSource(Protocol):
    """Random 64-bit words, each uniform and apart from all others."""

    @property
    def repeatable(self) -> bool:
        """Whether somebody could draw the same words again: a seed, which protects nobody."""

    def words(self, count: int) -> NDArray[np.uint64]:
        """The next so many words, (count,)."""
