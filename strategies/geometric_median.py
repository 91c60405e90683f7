"""RFA: the geometric median of the updates, by a smoothed Weiszfeld iteration.

Pillutla, Kakade and Harchaoui, "Robust Aggregation for Federated Learning", IEEE Transactions on Signal
Processing 70, 2022, arXiv:1912.13445, Algorithm 2. With a_i = w_i / Σ w:

    z* = argmin_z Σ a_i ‖z − d_i‖,    by    b_i = a_i / max(ν, ‖z − d_i‖),    z ← Σ b_i d_i / Σ b_i
    x ← x + z*

Distances are of the whole adapter's update in its own coordinates. With hostile sites of less than half of
the weight, z* stays within a constant times the spread of the honest ones; so weights have to be such that no
site can claim much of them, as they are with `weighting: uniform`. In the paper an iteration is an exchange
with the sites, and there are few; here all updates are in one place, and it goes on until z rests. It begins
with the weighted median of each coordinate, which an update of any length does not move far.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Final, final

import numpy as np
from pydantic import BaseModel, Field

from wardround.core.packed import Array
from wardround.strategies._individuals import (
    RobustMean,
    RobustOptions,
    by_coordinate,
    distances_from,
    weighted,
)
from wardround.strategies.contract import SumStrategy

RESTS: Final = 1e-9
"""Once z moves by less than so much of its median distance from the updates, it rests."""
EVEN: Final = 1e-12
"""By so little a sum of shares misses a half that it should be."""


class GeometricMedianOptions(RobustOptions):
    """Options of RFA."""

    smoothing: float = Field(default=1e-6, gt=0)
    """ν: nearer than this, in the adapter's units, no update pulls harder."""
    iterations: int = Field(default=100, ge=1)
    """Most steps of the iteration in a round; each reads all updates once."""


@final
class GeometricMedian(RobustMean[GeometricMedianOptions]):
    """The point of least weighted distance from all updates."""

    Options: ClassVar[type[BaseModel]] = GeometricMedianOptions

    def needed(self) -> int:
        """As the options say."""
        return self.options.least_sites

    def aggregate(self, updates: Sequence[Array], weights: Array) -> Array:
        """N of (d,), (n,) → (d,)."""
        shares = weights / weights.sum()
        found = by_coordinate(updates, lambda rows: weighted_median(rows, shares))
        for _ in range(self.options.iterations):
            apart = distances_from(found, updates)
            before, found = found, weighted(updates, shares / np.maximum(self.options.smoothing, apart))
            if np.linalg.norm(found - before) <= RESTS * float(np.median(apart)):
                break
        return found


def weighted_median(rows: Array, shares: Array) -> Array:
    """Where half of the weight is on either side, (n, c) → (c,); between two, their mean."""
    order = np.argsort(rows, axis=0)
    ordered, below = np.take_along_axis(rows, order, axis=0), np.cumsum(shares[order], axis=0)
    sides = [np.argmax(below >= half, axis=0) for half in (0.5 - EVEN, 0.5 + EVEN)]
    return np.asarray(np.mean([np.take_along_axis(ordered, side[None], axis=0)[0] for side in sides], axis=0))


STRATEGY: type[SumStrategy] = GeometricMedian
