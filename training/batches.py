"""Which rows make which logical batch, and how a batch is cut so that it fits the machine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from wardround.core.plan import LocalWork

Indices = NDArray[np.int64]


class Long(Protocol):
    """What has a length."""

    @property
    def length(self) -> int:
        """Tokens, or whatever its memory grows with."""


def plan_batches(n: int, work: LocalWork, rng: np.random.Generator) -> list[Indices]:
    """Logical batches of one local round, as indices into `n` rows.

    By epochs: every pass is a fresh permutation, its last short batch is kept; a fractional last pass
    takes its share of a permutation, rounded to rows, at least one row in all. By steps: full batches
    cut from an endless chain of permutations, so that a batch may reach into the next pass.

    Args:
        n: Rows; none gives no batch.
        work: Amount and batch size. Batches are never larger than `n`.
        rng: From the seed tree, purpose `SHUFFLE`.

    Returns:
        Non-empty index arrays.
    """
    if n == 0:
        return []
    size = min(work.batch_size, n)
    if work.steps is not None:
        rows = work.steps * size
        chain = np.concatenate([rng.permutation(n) for _ in range(-(-rows // n))])[:rows]
        return [chain[start : start + size] for start in range(0, rows, size)]
    rows = max(1, int((work.epochs or 0.0) * n + 0.5))
    passes = [rng.permutation(n) for _ in range(-(-rows // n))]
    passes[-1] = passes[-1][: rows - n * (len(passes) - 1)]
    return [indices[start : start + size] for indices in passes for start in range(0, len(indices), size)]


def microbatches(batch: Indices, encoded: Sequence[Long], microbatch_size: int | None) -> list[Indices]:
    """Cut a logical batch into pieces that go through the model one after the other.

    Where it is cut at all, it is sorted by length first, longest rows in front: little padding, and a
    machine that is too small fails at once. A batch that fits is left as it is.

    Args:
        batch: Indices into `encoded`.
        encoded: The site's rows.
        microbatch_size: Most rows at once; None leaves the batch whole.

    Returns:
        Index arrays that together hold exactly the batch.
    """
    if microbatch_size is None or len(batch) <= microbatch_size:
        return [batch]
    order = sorted(batch.tolist(), key=lambda index: -encoded[index].length)
    return [
        np.array(order[start : start + microbatch_size], dtype=np.int64)
        for start in range(0, len(order), microbatch_size)
    ]
