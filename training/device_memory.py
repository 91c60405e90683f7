"""What a device's memory takes: an error that says it is full, and fewer rows at once where it is.

The logical batch stays: it is cut into smaller pieces, whose sums are the same (`batches.py`).
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, TypeVar

import torch

from wardround.core.errors import TrainingError

LOG = logging.getLogger(__name__)
T = TypeVar("T")
_WORDS: Final = ("can't allocate memory", "not enough memory", "out of memory")
"""Torch's, for the memory of a CPU or of MPS: a plain RuntimeError."""


@dataclass
class Fit:
    """What a machine has shown of its memory.

    Attributes:
        most: Rows at once, after more of them did not fit; None: whatever was tried did.
    """

    most: int | None = None

    def at_once(self, wanted: int | None) -> int | None:
        """Rows at once: no more than is wanted, and than fits; None: the whole batch."""
        limits = [limit for limit in (wanted, self.most) if limit is not None]
        return min(limits) if limits else None


def out_of_memory(error: BaseException) -> bool:
    """Whether a device is full: CUDA says it by an error of its own, a CPU in words alone."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _WORDS)


def fitted(
    fit: Fit, wanted: int | None, rows: int, work: Callable[[int | None], T], undo: Callable[[], None]
) -> T:
    """Do the work of one logical batch, with half as many rows at once for as long as memory does not do.

    Args:
        fit: What fitted so far; is told what fits now, so that the next batch begins there.
        wanted: Most rows at once, as the machine's settings say; None: the whole batch.
        rows: Of the batch.
        work: All of it, with at most so many rows at once.
        undo: Takes back what an attempt has left, random state and all, before the next one.

    Raises:
        TrainingError: `out_of_memory`: not one row fits. (A private step lets no single row come to that.)
    """
    while True:
        size = fit.at_once(wanted)
        tried = rows if size is None else min(size, rows)
        try:
            return work(size)
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            if tried <= 1:
                raise TrainingError(
                    "out_of_memory", "the device's memory does not hold one row's training step",
                    remedy="set machine.gradient_checkpointing: true, end what else uses the device, or take "
                    "a larger one",
                ) from error  # fmt: skip
        # Only here the error's frames are gone, and with them the tensors that they held.
        fit.most = tried // 2
        undo()
        make_room()
        LOG.warning(
            "the device's memory does not hold %d rows at once: %d at once from now on, the batch stays %d",
            tried, fit.most, rows,
        )  # fmt: skip


def make_room() -> None:
    """Give back what a failed attempt has left, once nothing holds it any more."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
