"""FLoRA: the sites' new directions stacked, and what they have learnt added as it is.

Wang, Shen, He, Sun, Wang, Lyu and Li, "FLoRA: Federated Fine-Tuning Large Language Models with Heterogeneous
Low-Rank Adaptations", NeurIPS 2024, arXiv:2409.05976. In each round a site trains factors of its own rank k_i
from new, B_i = 0 and A_i drawn, on the model of the round before. With shares p_i = w_i / Σ w, for each
module:

    [p_1 B_1 … p_n B_n] [A_1; …; A_n] = Σ p_i B_i A_i         G ← T_R( G + s Σ p_i B_i A_i )

The stack is the exact mean of the products, at any mix of ranks. The paper adds it to the base's weights and
sends the stack to every site. Here the base never changes: G is the global adapter of the plan's rank R, and
stands frozen beside a site's new directions. T_R is the best approximation of rank R (an SVD), √σ to each
factor; nothing is lost while G and the stack together have no higher rank than R. Heads, biases
and magnitudes are averaged as updates.

A site sends B_i and A_i, zero beyond its own rank. A_i starts within ±1/√d_in, where an update stays within
the plan's bound L on a coordinate: it travels divided by 1 + 1/(L √d_in), so that the bound lets it through.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar, final

import numpy as np
from pydantic import BaseModel, Field

from wardround.core.checked import Frozen
from wardround.core.errors import ConfigError, PeerError
from wardround.core.lora import Factored, Pair, dense_specs, difference, pairs
from wardround.core.packed import Adapter, Array, Layout, Packed, Statistics, pack
from wardround.core.plan import TrainingPlan
from wardround.core.ranks import AtRank, fresh_beside, layout_at
from wardround.strategies._individuals import require_enough
from wardround.strategies._mean_update import AdapterBroadcast, mean_update, require_first, require_layout
from wardround.strategies._products import (
    dense_part,
    is_zero,
    require_pairs,
    require_same_modules,
    stepped,
)
from wardround.strategies.contract import (
    DISCARDED,
    Broadcast,
    LocalRules,
    LocalUpdate,
    ServerState,
    SiteMemory,
    SumStrategy,
)


class FLoRAOptions(Frozen):
    """Options of FLoRA; what is null follows from the plan."""

    site_rank: int | None = Field(default=None, gt=0)
    """k: a site trains so many directions, or fewer by a rank of its own. Null: the adapter's rank."""
    proximal: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    """μ of FedProx (Li et al. 2020, arXiv:1812.06127, equation 2); 0 adds nothing."""
    largest_update: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """L. Null: the plan's `encoding.largest`."""

    def of_plan(self, plan: TrainingPlan) -> FLoRAOptions:
        """The same options with the plan's L.

        Raises:
            ConfigError: The plan shortens what a site sends, or keeps moments of directions that are gone.
        """
        if plan.encoding.norm is not None:
            raise ConfigError(
                "a plan that shortens contributions does not go with flora, which sends A whole",
                found=f"encoding.norm={plan.encoding.norm:g}", expected="null",
                remedy="set encoding.norm to null, or take strategy=tangent",
            )  # fmt: skip
        if plan.local.optimiser_state == "keep":
            raise ConfigError(
                "flora trains new directions in every round, and a site keeps the moments of the old ones",
                found="local.optimiser_state=keep", expected="reset",
                remedy="set local.optimiser_state to reset",
            )  # fmt: skip
        return self.model_copy(update={"largest_update": self.largest_update or plan.encoding.largest})


@final
class FLoRA(AdapterBroadcast[FLoRAOptions]):
    """The stack of all sites' new directions, added to the global adapter.

    Args:
        options: Checked options; without a plan L is 1.
        layout: The adapter's.
    """

    Options: ClassVar[type[BaseModel]] = FLoRAOptions
    least_sites = 1
    over_sums = "strategy=tangent"
    any_rank: bool = False
    linear: bool = False

    def __init__(self, options: FLoRAOptions, layout: Layout) -> None:
        super().__init__(options, layout)
        self.pairs = require_pairs(layout, "flora")
        self.most_rank = options.site_rank or max((pair.rank for pair in self.pairs), default=0)
        self._statistics = layout_at(layout, self.most_rank)

    def start(self, adapter: Adapter, rank: int | None, draw: np.random.Generator) -> AtRank:
        """New directions, and the whole adapter frozen beside them."""
        return fresh_beside(adapter, rank or self.most_rank, draw)

    def local_rules(self, broadcast: Broadcast, memory: SiteMemory, round: int) -> LocalRules:  # noqa: ARG002 - the same for all
        """The proximal weight, 0 unless one was chosen."""
        return LocalRules(proximal=self.options.proximal)

    def statistics_layout(self, stage: int) -> Layout:
        """The adapter's at the sites' largest rank."""
        require_first(stage)
        return self._statistics

    def contribute(
        self,
        broadcast: Broadcast,  # noqa: ARG002 - `before` has it, frozen
        local: LocalUpdate,
        memory: SiteMemory,
        round: int,  # noqa: ARG002 - the same in every round
        stage: int,
    ) -> tuple[Statistics, SiteMemory]:
        """The new directions' factors, with zeros to the largest rank, and the dense tensors' updates.

        Raises:
            PeerError: Other modules, no new direction or too many, or not finite.
        """
        require_first(stage)
        require_same_modules(local.before, self.layout, "the adapter before training")
        require_same_modules(local.after, local.before.layout, "the trained adapter")
        require_layout(local.after, local.before.layout, "the trained adapter")
        sent = Packed(self._statistics, np.zeros(self._statistics.size))
        for pair, own in zip(self.pairs, pairs(local.after.layout), strict=True):
            rank = own.rank - pair.rank
            if not 1 <= rank <= self.most_rank:
                raise PeerError(
                    "the trained adapter has another layout", found=f"{rank} new directions",
                    expected=f"1 to {self.most_rank}, of {pair.module!r}",
                )  # fmt: skip
            sent[pair.b.name][:, :rank] = local.after[own.b.name][:, :rank]
            sent[pair.a.name][:rank] = local.after[own.a.name][:rank] / self._unit(pair)
        for spec in dense_specs(self.layout):
            before = local.before[spec.name].astype(np.float64)
            sent[spec.name][...] = local.after[spec.name].astype(np.float64) - before
        return sent, memory

    def combine_individuals(
        self,
        state: ServerState,  # noqa: ARG002 - the stack is the same from any state
        contributions: Sequence[tuple[Statistics, float]],
    ) -> tuple[Statistics, float]:
        """The stack of all directions, shares in B, times the sum of all weights, by which `fold` divides.

        Raises:
            PeerError: There is none, or as `mean_update`.
        """
        require_enough(contributions, self.least_sites)
        sites = [mean_update(self._statistics, total, weight) for total, weight in contributions]
        weight = float(sum(weight for _, weight in contributions))
        shares = [own / weight for _, own in contributions]
        rows = list(zip(shares, sites, strict=True))
        made: dict[str, Array] = {
            spec.name: np.asarray(sum(share * site[spec.name] for share, site in rows))
            for spec in dense_specs(self.layout)
        }
        for pair in self.pairs:
            made[pair.b.name] = np.hstack([share * site[pair.b.name] for share, site in rows])
            made[pair.a.name] = np.vstack([site[pair.a.name] for site in sites])
        stack = pack(self._stacked(len(sites)), made, np.float64)
        return stack.with_vector(stack.vector * weight), weight

    def fold(self, state: ServerState, total: Statistics, weight: float, stage: int) -> ServerState:
        """T_R(G + the stack); one site's contribution is a stack of one.

        Raises:
            PeerError: As `mean_update`, or the result is not finite; the state is left as it was.
        """
        require_first(stage)
        inner = max((pair.rank for pair in pairs(total.layout)), default=0)
        with np.errstate(over="ignore", invalid="ignore"):  # named by what is not finite
            mean = mean_update(self._stacked(max(1, inner // max(1, self.most_rank))), total, weight)
            adapter, discarded = stepped(
                state.adapter, {pair.module: self._learnt(mean, pair) for pair in self.pairs},
                dense_part(mean, self.layout),
            )  # fmt: skip
        return ServerState(state.round + 1, adapter, {}, {DISCARDED: discarded})

    def difference(self, expected: Adapter, found: Adapter) -> float:
        """Of the products and the dense tensors: sites train beside the product, whatever its factors."""
        return difference(expected, found)

    def _learnt(self, stack: Packed, pair: Pair) -> Factored | None:
        """The module's s Σ p_i B_i A_i; None where no site has moved."""
        b = stack[pair.b.name]
        if is_zero(b):
            return None
        return Factored(b * pair.scaling, stack[pair.a.name] * self._unit(pair))

    def _stacked(self, sites: int) -> Layout:
        return layout_at(self.layout, self.most_rank * sites)

    def _unit(self, pair: Pair) -> float:
        return 1 + 1 / ((self.options.largest_update or 1.0) * math.sqrt(pair.d_in))


STRATEGY: type[SumStrategy] = FLoRA
