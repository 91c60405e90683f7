"""Robust means of single updates: what the strategies that see individuals share.

A site sends its update d_i = after_i − before, and its weight w_i; each reaches the server by itself. One
file says what takes the place of the mean:

    x ← x + step(aggregate(d_1, …, d_n; w_1, …, w_n))

All vectors are the whole adapter's update in its own coordinates, float64. They are read a chunk of
coordinates at a time: beside the contributions themselves nothing of their size times n is held.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final, TypeVar

import numpy as np
from pydantic import Field

from wardround.core.errors import PeerError
from wardround.core.packed import Array, Layout, Packed, Statistics
from wardround.strategies._mean_update import MeanUpdate, mean_update
from wardround.strategies._server_optimisers import ComposedOptions, server_step
from wardround.strategies.contract import Broadcast, LocalRules, ServerState, SiteMemory

CHUNK: Final = 1 << 14
"""Coordinates of each site at a time."""


class RobustOptions(ComposedOptions):
    """Options of a robust mean that asks for no number of its own."""

    least_sites: int = Field(default=3, ge=1)
    """With fewer contributions a round does not count; of two, one hostile site is half of them."""


R = TypeVar("R", bound=ComposedOptions)


class RobustMean(MeanUpdate[R]):
    """A strategy of one stage that steps along a robust mean of the sites' updates.

    A file of its own says `needed` and `aggregate`.
    """

    least_sites: int
    over_sums = "strategy=group_median"

    def __init__(self, options: R, layout: Layout) -> None:
        super().__init__(options, layout)
        self.least_sites = self.needed()

    @abstractmethod
    def needed(self) -> int:
        """Contributions that a round needs, by the options."""

    @abstractmethod
    def aggregate(self, updates: Sequence[Array], weights: Array) -> Array:
        """What takes the place of the mean, (d,), from n updates (d,) and weights (n,) > 0."""

    def combine_individuals(
        self,
        state: ServerState,  # noqa: ARG002 - the update alone counts
        contributions: Sequence[tuple[Statistics, float]],
    ) -> tuple[Statistics, float]:
        """The robust mean times the sum of all weights, which `fold` divides by again.

        Raises:
            PeerError: Fewer than `least_sites`; as `mean_update`.
        """
        require_enough(contributions, self.least_sites)
        updates = [mean_update(self.layout, total, weight).vector for total, weight in contributions]
        weights = np.array([weight for _, weight in contributions], dtype=np.float64)
        weight = float(weights.sum())
        return Packed(self.layout, self.aggregate(updates, weights) * weight), weight

    def local_rules(self, broadcast: Broadcast, memory: SiteMemory, round: int) -> LocalRules:  # noqa: ARG002 - the same for all
        """The proximal weight, 0 unless one was chosen."""
        return LocalRules(proximal=self.options.proximal)

    def step(self, mean: Statistics, slots: Mapping[str, Packed]) -> tuple[Packed, dict[str, Packed]]:
        """The robust mean itself, or the chosen optimiser's step along it."""
        return server_step(mean, slots, self.options.server)


def require_enough(contributions: Sequence[Any], least: int) -> None:
    """Refuse too few contributions.

    Raises:
        PeerError: There are fewer than `least`.
    """
    if len(contributions) < least:
        raise PeerError(
            "too few sites contributed for this strategy",
            found=len(contributions),
            expected=f"at least {least}",
        )


def chunks(size: int) -> Iterator[slice]:
    """Slices that cover so many coordinates."""
    return (slice(start, min(start + CHUNK, size)) for start in range(0, size, CHUNK))


def by_coordinate(updates: Sequence[Array], vote: Callable[[Array], Array]) -> Array:
    """A vote that takes each coordinate by itself.

    Args:
        updates: n of (d,).
        vote: (n, c) → (c,).
    """
    made = np.empty(updates[0].size)
    for part in chunks(made.size):
        made[part] = vote(np.stack([update[part] for update in updates]))
    return made


def weighted(updates: Sequence[Array], weights: Array) -> Array:
    """Σ b_i d_i / Σ b_i, (d,); by shares, so that a weight near float64's limit does not overflow."""
    shares = weights / weights.sum()
    made = np.zeros(updates[0].size)
    for share, update in zip(shares, updates, strict=True):
        for part in chunks(made.size):
            made[part] += share * update[part]
    return made


def square_distances(updates: Sequence[Array]) -> Array:
    """‖d_i − d_j‖², (n, n): of the differences themselves, since products of long vectors would cancel."""
    made = np.zeros((len(updates), len(updates)))
    for part in chunks(updates[0].size):
        rows = np.stack([update[part] for update in updates])
        for index in range(1, len(rows)):
            with np.errstate(over="ignore"):  # beyond float64 is far away
                apart = rows[:index] - rows[index]
                made[index, :index] += np.einsum("ij,ij->i", apart, apart)
    return made + made.T


def distances_from(centre: Array, updates: Sequence[Array]) -> Array:
    """‖d_i − z‖, (n,)."""
    made = np.zeros(len(updates))
    for part in chunks(centre.size):
        for index, update in enumerate(updates):
            apart = update[part] - centre[part]
            with np.errstate(over="ignore"):  # beyond float64 is far away
                made[index] += apart @ apart
    return np.sqrt(made)
