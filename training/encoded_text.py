"""A text as a model reads it: what the tasks on texts make of a row."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class EncodedText:
    """One example, or several that were packed into one sequence. It is an `Encoded` (`tasks/contract.py`).

    Attributes:
        tokens: Input ids, int32, 1-D.
        targets: For a causal LM, int32 like `tokens`, −100 where no loss falls; else empty.
        label: Class index, or −1.
        segments: Token type ids where the model has them (pairs), else empty.
        positions: Position ids where several rows were packed (each restarts at 0), else empty.
        cut: Tokens that truncation dropped.
        text_bytes: UTF-8 bytes of the text under loss, for bits per byte.
        example: Index of the example in the list it was encoded from, or −1 where packed.
    """

    tokens: NDArray[np.int32]
    targets: NDArray[np.int32] = field(default_factory=lambda: np.empty(0, np.int32))
    label: int = -1
    segments: NDArray[np.int32] = field(default_factory=lambda: np.empty(0, np.int32))
    positions: NDArray[np.int32] = field(default_factory=lambda: np.empty(0, np.int32))
    cut: int = 0
    text_bytes: int = 0
    example: int = -1

    @property
    def length(self) -> int:
        """Tokens."""
        return int(self.tokens.size)

    @property
    def rows(self) -> int:
        """Rows of the source in it: more than one where rows were packed."""
        return max(1, int((self.positions == 0).sum()))
