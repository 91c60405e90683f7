"""The first test of the gate: take any unit out of a batch, and the clipped sum moves by C at most.

Through the whole step but its noise: the task's own losses, gradients by example, sums of units, clipping.
So it sees a clip that is missing or made of single rows, a loss that is divided by the batch's tokens, a row
that is not finite and spoils the sum. It sees nothing of noise and sampling.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np

from wardround.core.errors import TrainingError
from wardround.training.private.audit.findings import Finding
from wardround.training.private.audit.stage import Stage
from wardround.training.private.gradient import PrivateGradients
from wardround.training.private.rounding import FINE, rounds_coarsely

_EXACT: Final = 1e-6
"""Rows that run one by one give the same bits with and without their neighbours; and in half precision what
batches round stands in the bound already (`rounding.py`)."""
_LENGTHS: Final = (0.9, 3.0, 0.25, 1e3)
"""Median length of a unit's gradient, over C: at, above, below, and far above the bound."""
_OUTLIERS: Final = (1.0, 1e12, math.inf)
"""How much louder one row is than the others."""
_CUTS: Final = (1, None)
_UNITS: Final = (2, 3)
_ROWS: Final = (1, 2, 3)
_SOME: Final = 8


@dataclass(frozen=True)
class _Neighbours:
    """A batch, and how it is made loud.

    Attributes:
        units: The rows of each.
        length: Of a median unit's gradient, over C.
        outlier: Factor of the first unit's first row.
    """

    units: tuple[tuple[int, ...], ...]
    length: float
    outlier: float


def sensitivity(stage: Stage, *, batches: int = 12, seed: int = 0) -> list[Finding]:
    """How far the clipped sum moves when one unit is taken out, over C, at most.

    Args:
        stage: Of the audit.
        batches: How many are tried, in each way of cutting them.
        seed: Which ones.

    Returns:
        One finding for rows one by one, where nothing rounds, and one for batches as a whole.

    Raises:
        TrainingError: No row has a gradient, so that nothing can be seen.
    """
    rng = np.random.default_rng(seed)
    median = _median_length(stage)
    bound = stage.clipping().bound
    tried = [_drawn(stage, rng, number) for number in range(batches)]
    farthest: dict[int | None, float] = {}
    for size in _CUTS:
        moves = [0.0]
        with stage.step(size) as step:
            for neighbours in tried:
                stage.loud.factor = neighbours.length * bound / median
                moves += _moves(stage, step, neighbours)
        stage.loud.factor, stage.loud.rows = 1.0, {}
        # NaN is farther than anything, and max() does not know.
        farthest[size] = math.inf if any(math.isnan(move) for move in moves) else max(moves) / bound
    slack = _EXACT if rounds_coarsely(stage.bench.model) else FINE
    pairs = f"{batches} batches, every unit taken out"
    return [
        Finding("sensitivity, rows one by one", farthest[1], 0.0, 1 + _EXACT, f"over C; {pairs}"),
        Finding("sensitivity, whole batches", farthest[None], 0.0, 1 + slack, f"over C; {pairs}"),
    ]


def _median_length(stage: Stage) -> float:
    """Of the gradients of some rows, each a unit.

    Raises:
        TrainingError: There is none.
    """
    with stage.step(1) as step:
        some = range(min(len(stage.rows), _SOME))
        _, figures = step.clipped_sum(stage.batch([[row] for row in some]))
    if not (math.isfinite(figures.median_norm) and figures.median_norm > 0):
        raise TrainingError(
            "no_gradient", "the rows have no gradient, so that an audit sees nothing",
            found=f"a median length of {figures.median_norm:g}", expected="a finite length above 0",
        )  # fmt: skip
    return figures.median_norm


def _drawn(stage: Stage, rng: np.random.Generator, number: int) -> _Neighbours:
    """Every second batch is any rows; the others are one long row among short ones."""
    order = sorted(range(len(stage.rows)), key=lambda row: stage.rows[row].length)
    counts = rng.choice(_ROWS, rng.choice(_UNITS))
    if number % 2 == 0:
        short = order[: max(1, len(order) // 4)]
        units = [(order[-1],), *(tuple(rng.choice(short, count).tolist()) for count in counts)]
    else:
        units = [tuple(rng.choice(order, count).tolist()) for count in counts]
    return _Neighbours(
        tuple(units), _LENGTHS[number % len(_LENGTHS)], _OUTLIERS[number // 2 % len(_OUTLIERS)]
    )


def _moves(stage: Stage, step: PrivateGradients, neighbours: _Neighbours) -> list[float]:
    """How far the sum moves without each of the units."""
    units = neighbours.units
    loud = stage.rows[units[0][0]]
    stage.loud.rows = {id(loud): neighbours.outlier}
    whole = step.clipped_sum(stage.batch(units))[0].total
    return [
        float((whole - step.clipped_sum(stage.batch([*units[:out], *units[out + 1 :]]))[0].total).norm())
        for out in range(len(units))
    ]
