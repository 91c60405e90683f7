"""FedEx-LoRA: factors averaged as by FedIT, and what that misses of the mean of products added to it.

Singhal, Ponkshe and Vepakomma, "FedEx-LoRA: Exact Aggregation for Federated and Efficient Fine-Tuning of
Foundation Models", 2024, arXiv:2410.09432. With shares p_i = w_i / Σ w, for each module:

    B ← Σ p_i B_i,   A ← Σ p_i A_i
    E = Σ p_i B_i A_i − (Σ p_i B_i)(Σ p_i A_i) = Σ p_i (B_i − B)(A_i − A)

The paper adds s E to the base's weights, at every site. Here the base never changes: the plan's adapter of
rank R has r_t directions that train, its first ones, and R − r_t others that stand frozen and take E:

    s B' A' ← T_{R − r_t}( s B' A' + s E )

T_{R − r_t} is the best approximation of that rank (an SVD), √σ to each factor. E of n sites has at most rank
n r_t, and adds up over the rounds; nothing is lost while R − r_t directions hold the sum. Heads, biases and
magnitudes are averaged. A site sends the updates of its r_t directions; one of a lower rank trains the first
of them, and has the global factors in the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Final, final

import numpy as np
from pydantic import BaseModel, Field

from wardround.core import lora
from wardround.core.checked import Frozen
from wardround.core.errors import ConfigError, InternalError
from wardround.core.lora import Factored, Pair
from wardround.core.packed import Adapter, Array, Layout, Packed, Statistics, TensorSpec, pack
from wardround.core.ranks import AtRank, at_rank, beside, first_directions, layout_at
from wardround.strategies._individuals import require_enough
from wardround.strategies._mean_update import (
    FromUpdate,
    apply_step,
    mean_update,
    require_first,
    taken,
)
from wardround.strategies._products import is_zero, require_pairs, truncated_step
from wardround.strategies.contract import (
    DISCARDED,
    Broadcast,
    LocalRules,
    LocalUpdate,
    ServerState,
    SiteMemory,
    SumStrategy,
)

COLUMNS: Final = ".residual_columns"
ROWS: Final = ".residual_rows"


class FedExOptions(Frozen):
    """Options of FedEx-LoRA. No server optimiser: the residual is of the mean that the factors take."""

    trained_rank: int = Field(default=4, gt=0)
    """r_t: directions of each module that train; the adapter's rank has to be larger."""
    proximal: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    """μ of FedProx (Li et al. 2020, arXiv:1812.06127, equation 2); 0 adds nothing."""


@final
class FedEx(FromUpdate[FedExOptions]):
    """FedIT on the first directions, its residual in the others.

    Args:
        options: Checked options.
        layout: The adapter's.

    Raises:
        ConfigError: An adapter without factors, or a module without a direction for the residual.
    """

    Options: ClassVar[type[BaseModel]] = FedExOptions
    least_sites = 1
    over_sums = "strategy=tangent"
    any_rank: bool = False
    linear: bool = False

    def __init__(self, options: FedExOptions, layout: Layout) -> None:
        super().__init__(options, layout, layout)
        self.most_rank = options.trained_rank
        self.statistics = layout_at(layout, self.most_rank)
        self.pairs = require_pairs(layout, "fedex")
        for pair in self.pairs:
            if pair.rank <= self.most_rank:
                raise ConfigError(
                    f"no direction of {pair.module!r} is left for what the mean of factors misses",
                    found=f"strategy.options.trained_rank={self.most_rank}",
                    expected=f"less than the adapter's rank, {pair.rank}",
                    remedy="a larger adapter.options.r, such as four times the trained rank",
                )  # fmt: skip

    def start(self, adapter: Adapter, rank: int | None, draw: np.random.Generator) -> AtRank:
        """The first directions; the others stand frozen. Nothing is drawn."""
        return at_rank(adapter, rank or self.most_rank, draw)

    def local_rules(self, broadcast: Broadcast, memory: SiteMemory, round: int) -> LocalRules:  # noqa: ARG002 - the same for all
        """The proximal weight, 0 unless one was chosen."""
        return LocalRules(proximal=self.options.proximal)

    def sent(self, update: Statistics, local: LocalUpdate, round: int) -> Statistics:  # noqa: ARG002 - the same in every round
        """Of the trained directions and of the dense tensors."""
        return first_directions(update, self.most_rank).trained

    def combine_individuals(
        self,
        state: ServerState,  # noqa: ARG002 - E follows from the updates alone
        contributions: Sequence[tuple[Statistics, float]],
    ) -> tuple[Statistics, float]:
        """The mean update and E's factors beside it, times the sum of all weights, by which `fold` divides.

        Raises:
            PeerError: There is none, or as `mean_update`.
        """
        require_enough(contributions, self.least_sites)
        sites = [mean_update(self.statistics, total, weight) for total, weight in contributions]
        weight = float(sum(weight for _, weight in contributions))
        shares = [own / weight for _, own in contributions]
        vector = np.sum([share * site.vector for share, site in zip(shares, sites, strict=True)], axis=0)
        mean = Packed(self.statistics, vector)
        made: dict[str, Array] = dict(mean.tensors())
        for pair in self.pairs:
            b, a = mean[pair.b.name], mean[pair.a.name]
            made[pair.module + COLUMNS] = np.hstack(
                [share * (site[pair.b.name] - b) for share, site in zip(shares, sites, strict=True)]
            )
            made[pair.module + ROWS] = np.vstack([site[pair.a.name] - a for site in sites])
        found = pack(self._with_residual(len(sites)), made, np.float64)
        return found.with_vector(found.vector * weight), weight

    def fold(self, state: ServerState, total: Statistics, weight: float, stage: int) -> ServerState:
        """The mean of the trained directions, and the others with E; a sum of one site has none.

        Raises:
            PeerError: As `mean_update`, or the result is not finite; the state is left as it was.
        """
        require_first(stage)
        of_one = sum((pair.d_out + pair.d_in) * self.most_rank for pair in self.pairs)
        sites = max(0, total.layout.size - self.statistics.size) // max(1, of_one)
        with np.errstate(over="ignore", invalid="ignore"):  # named by what is not finite
            found = mean_update(self._with_residual(sites), total, weight)
            before = first_directions(state.adapter, self.most_rank)
            if before.rest is None:
                raise InternalError("an adapter without frozen directions was bound")
            trained = apply_step(before.trained, taken(found, self.statistics))
            steps = {pair.module: _residual(found, pair) if sites else None for pair in self.pairs}
            rest, cut, _ = truncated_step(before.rest, steps, {})
            whole = sum(
                (product + (steps[pair.module] or _nothing(pair)) + kept).norm() ** 2
                for (pair, product), (_, kept) in zip(
                    lora.products(trained), lora.products(before.rest), strict=True
                )
            )
        share = cut / whole if whole else 0.0
        return ServerState(state.round + 1, beside(trained, rest), {}, {DISCARDED: share})

    def difference(self, expected: Adapter, found: Adapter) -> float:
        """Of the products and dense tensors, and of the trained factors, by their coordinates."""
        own, other = (
            first_directions(adapter, self.most_rank).trained.vector for adapter in (expected, found)
        )
        apart, size = float(np.linalg.norm(other - own)), float(np.linalg.norm(own))
        return max(lora.difference(expected, found), apart / (size or 1.0))

    def _with_residual(self, sites: int) -> Layout:
        """What `fold` gets of so many sites; of none it is the statistics alone."""
        inner = self.most_rank * sites
        specs = (
            spec
            for pair in self.pairs
            for spec in (
                TensorSpec(name=pair.module + COLUMNS, shape=(pair.d_out, inner)),
                TensorSpec(name=pair.module + ROWS, shape=(inner, pair.d_in)),
            )
        )
        return Layout(tensors=(*self.statistics.tensors, *(specs if sites else ())))


def _residual(found: Packed, pair: Pair) -> Factored | None:
    """The module's s E; None where the sites' factors are one."""
    left, right = found[pair.module + COLUMNS], found[pair.module + ROWS]
    return None if is_zero(left) or is_zero(right) else Factored(left * pair.scaling, right)


def _nothing(pair: Pair) -> Factored:
    return Factored(np.zeros((pair.d_out, 0)), np.zeros((0, pair.d_in)))


STRATEGY: type[SumStrategy] = FedEx
