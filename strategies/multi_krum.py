"""Multi-Krum: the mean of the updates that lie nearest to others.

Blanchard, El Mhamdi, Guerraoui and Stainer, "Machine Learning with Adversaries: Byzantine Tolerant Gradient
Descent", NeurIPS 2017, arXiv:1703.02757, sections 4 and 6. With n sites, f of them hostile, n ≥ 2f + 3:

    s_i = Σ ‖d_i − d_j‖² over the n − f − 2 sites j nearest to i
    x ← x + mean of the m updates of least s_i

Distances are of the whole adapter's update in its own coordinates: LoRA's two factors count as they are, and
so does a head beside them. Weights do not count. A site whose score is that of the last one chosen is chosen
as well, so that no order of the sites decides.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Final, final

import numpy as np
from pydantic import BaseModel, Field

from wardround.core.packed import Array
from wardround.strategies._individuals import RobustMean, square_distances, weighted
from wardround.strategies._server_optimisers import ComposedOptions
from wardround.strategies.contract import SumStrategy

EQUAL: Final = 1e-12
"""Scores that differ by less, relatively, are one score: the order of a float64 sum must not choose."""


class MultiKrumOptions(ComposedOptions):
    """Options of Multi-Krum."""

    attackers: int = Field(default=1, ge=0)
    """f: so many hostile sites are borne. It takes 2f + 3 contributions."""
    selected: int | None = Field(default=None, ge=1)
    """m: so many updates are averaged; 1 is Krum itself, null is the most, n − f − 2."""


@final
class MultiKrum(RobustMean[MultiKrumOptions]):
    """The mean of the m updates that have the nearest neighbours."""

    Options: ClassVar[type[BaseModel]] = MultiKrumOptions

    def needed(self) -> int:
        """Both 2f + 3 and m + f + 2."""
        attackers = self.options.attackers
        return max(2 * attackers + 3, (self.options.selected or 1) + attackers + 2)

    def aggregate(self, updates: Sequence[Array], weights: Array) -> Array:  # noqa: ARG002 - one site, one vote
        """N of (d,) → (d,)."""
        chosen = [update for update, taken in zip(updates, self.chosen(updates), strict=True) if taken]
        return weighted(chosen, np.ones(len(chosen)))

    def chosen(self, updates: Sequence[Array]) -> Array:
        """Which of n updates are averaged, (n,) of bool."""
        near = len(updates) - self.options.attackers - 2
        distances = square_distances(updates)
        np.fill_diagonal(distances, np.inf)  # nobody is its own neighbour
        scores = np.sort(distances, axis=1)[:, :near].sum(axis=1)
        last = np.sort(scores)[(self.options.selected or near) - 1]
        return np.asarray(scores <= last * (1 + EQUAL))


STRATEGY: type[SumStrategy] = MultiKrum
