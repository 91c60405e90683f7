"""The floating-point operations of the work of simulators.py, and how fast this machine multiplies at best.

The count is of the products alone, of real tokens and no padding, as torch's own counter sees them in a
forward and a backward pass of one row: two a multiplication, none for the gradient of a frozen weight and
none below the first adapter, where autograd computes none.
"""

from __future__ import annotations

import time
from functools import cache
from typing import Any

import numpy as np
import torch
from _simulators_plain import Work, load_model, loss_of
from torch.utils.flop_counter import FlopCounterMode

SIZE = 2048
"""Rows and columns of the matrices that the peak is measured with."""
SECONDS = 3.0


def of_row(work: Work, length: int, model: torch.nn.Module) -> float:
    """Operations of a step over one row of so many tokens."""
    batch = {
        "input_ids": torch.ones(1, length, dtype=torch.int64),
        "attention_mask": torch.ones(1, length, dtype=torch.int64),
        "labels": torch.zeros((1,) if work.settings["classes"] else (1, length), dtype=torch.int64),
    }
    model.zero_grad()
    with FlopCounterMode(display=False) as counter:
        loss_of(model, batch).backward()  # type: ignore[no-untyped-call]  # torch leaves backward untyped
    return float(counter.get_total_flops())


def of_round(work: Work, round: int) -> float:
    """Operations of all sites' steps in a round; a + b·tokens + c·tokens² a row, from three lengths."""
    model: Any = load_model(work, attention="eager")  # its products are ones that torch counts
    lengths = np.array([16, 40, 64])
    fitted = np.polyfit(lengths, [of_row(work, int(length), model) for length in lengths], 2)
    places = work.batches[round - 1] + work.sites[:-1, None, None]
    return float(np.polyval(fitted, work.rows.lengths[places]).sum())


@cache
def peak(dtype: torch.dtype) -> float:
    """Operations a second of the best product of two large matrices, all cores at it."""
    left, right = (torch.randn(SIZE, SIZE).to(dtype) for _ in range(2))
    best, end = 0.0, time.perf_counter() + SECONDS
    while time.perf_counter() < end:
        started = time.perf_counter()
        left @ right
        best = max(best, 2 * SIZE**3 / (time.perf_counter() - started))
    return best
