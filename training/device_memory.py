"""Whether an error says that a device is full."""

from __future__ import annotations

from typing import Final

import torch

_WORDS: Final = ("can't allocate memory", "not enough memory", "out of memory")
"""Torch's, for the memory of a CPU or of MPS: a plain RuntimeError."""


def out_of_memory(error: BaseException) -> bool:
    """Whether it does: CUDA by an error of its own, a CPU in words alone."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _WORDS)
