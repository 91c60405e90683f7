"""HetLoRA: factors of sites of unlike ranks, zero-padded, each weighing as much as its product is long.

Cho, Liu, Xu, Fahrezi and Joshi, "Heterogeneous LoRA for Federated Fine-tuning of On-Device Foundation
Models", EMNLP 2024, arXiv:2401.06432, sparsity-weighted aggregation. Of each module, with S_i the
directions that site i trains (the first r_i of the adapter) and d_i = after_i − before, zero in the others,

    ρ_i = ‖s B_i[:, S_i] A_i[S_i]‖_F        B, A ← B, A + step(Σ w_i ρ_i d_i / Σ w_i ρ_i)

so that a site of a small rank, whose zeros would water the mean down, counts for less. With
weighting=uniform (w_i = 1) these are the paper's weights. Two sums serve: a site multiplies its own d_i by
ρ_i, and sends ρ_i as one more coordinate a module. Heads, biases and magnitudes are averaged with w_i
alone. Other than in the paper updates are averaged, never parameters, so that nobody's zeros pull a
direction to zero that the site did not train; and ranks are given, not pruned: rank self-pruning is left
out, since a site would need another loss.

The ring holds no coordinate beyond L = `encoding.largest`. So ρ_i is a share of a public bound, at most 1,

    c = s (‖A‖₂ + L √d_in) (‖B‖_F + L √(r d_out))        of the broadcast,

ρ_i d_i is within L where d_i is, and L ρ_i is sent for ρ_i. A site beyond c counts as one at c. A mean is
held to L as well: where all ρ_i are tiny the ring's rounding could else make of it what no site has sent.

ρ_i is an exact figure of a site's rows and divides the sum: no plan with differential privacy may have it.
"""

from __future__ import annotations

import math
from typing import ClassVar, final

import numpy as np
from pydantic import BaseModel, Field

from wardround.core.errors import ConfigError
from wardround.core.lora import Factored, Pair
from wardround.core.packed import Adapter, Array, Layout, Statistics, TensorSpec, pack, require_finite
from wardround.core.plan import TrainingPlan
from wardround.strategies._mean_update import (
    FromUpdate,
    apply_step,
    mean_update,
    require_first,
)
from wardround.strategies._products import require_pairs
from wardround.strategies._server_optimisers import ComposedOptions, server_step
from wardround.strategies.contract import (
    Broadcast,
    LocalRules,
    LocalUpdate,
    ServerState,
    SiteMemory,
    SumStrategy,
)

SHARE = ".norm_share"
"""Of a module: L ρ_i in the statistics."""


class HetLoRAOptions(ComposedOptions):
    """Options of HetLoRA; what is null follows from the plan."""

    largest_update: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """L. Null: the plan's `encoding.largest`."""

    def of_plan(self, plan: TrainingPlan) -> HetLoRAOptions:
        """The same options without a null.

        Raises:
            ConfigError: The plan has differential privacy.
        """
        if plan.privacy is not None:
            raise ConfigError(
                "strategy hetlora divides by the sum of exact figures of the sites' training: with noise on "
                "it that is no mean",
                found="strategy.name=hetlora with privacy", expected="weights that a plan can bound",
                remedy="set strategy.name to tangent or ffa_lora, or privacy to null",
            )  # fmt: skip
        return self.model_copy(update={"largest_update": self.largest_update or plan.encoding.largest})


@final
class HetLoRA(FromUpdate[HetLoRAOptions]):
    """The server divides one sum by the other, module by module.

    Args:
        options: Checked options; where L is null it is 1, and means are not held to it.
        layout: The adapter's.
    """

    Options: ClassVar[type[BaseModel]] = HetLoRAOptions

    def __init__(self, options: HetLoRAOptions, layout: Layout) -> None:
        self.pairs = require_pairs(layout, "hetlora")
        shares = (TensorSpec(name=pair.module + SHARE) for pair in self.pairs)
        super().__init__(options, layout, Layout(tensors=(*layout.tensors, *shares)))
        self.largest = options.largest_update or 1.0

    def local_rules(self, broadcast: Broadcast, memory: SiteMemory, round: int) -> LocalRules:  # noqa: ARG002 - the same for all
        """The proximal weight, 0 unless one was chosen."""
        return LocalRules(proximal=self.options.proximal)

    def sent(self, update: Statistics, local: LocalUpdate, round: int) -> Statistics:  # noqa: ARG002 - the same in every round
        """ρ_i d_i and L ρ_i of each module, and the dense tensors' updates."""
        tensors: dict[str, Array] = dict(update.tensors())
        for pair in self.pairs:
            trained = np.any(update[pair.b.name] != 0, axis=0) | np.any(update[pair.a.name] != 0, axis=1)
            length = Factored(
                pair.scaling * local.after[pair.b.name][:, trained].astype(np.float64),
                local.after[pair.a.name][trained].astype(np.float64),
            ).norm()
            share = min(1.0, length / self._bound(local.before, pair))
            for spec in (pair.a, pair.b):
                tensors[spec.name] = share * update[spec.name]
            tensors[pair.module + SHARE] = np.array(share * self.largest)
        return pack(self.statistics, tensors, np.float64)

    def fold(self, state: ServerState, total: Statistics, weight: float, stage: int) -> ServerState:
        """Next state: the step along Σ w_i ρ_i d_i / Σ w_i ρ_i; none in a module where nobody has a weight.

        Raises:
            PeerError: As `mean_update` and `apply_step` say; the state is left as it was.
        """
        require_first(stage)
        mean = mean_update(self.statistics, total, weight)
        tensors: dict[str, Array] = {spec.name: mean[spec.name] for spec in self.layout.tensors}
        with np.errstate(over="ignore", invalid="ignore"):  # named by require_finite
            for pair in self.pairs:
                share = float(mean[pair.module + SHARE]) / self.largest
                for spec in (pair.a, pair.b):
                    tensors[spec.name] = (
                        self._held(tensors[spec.name] / share) if share > 0 else 0.0 * mean[spec.name]
                    )
            update = pack(self.layout, tensors, np.float64)
            require_finite(update, "the mean update")
            step, slots = server_step(update, state.slots, self.options.server)
        for name, slot in slots.items():
            require_finite(slot, f"the server's slot {name!r}")
        return ServerState(state.round + 1, apply_step(state.adapter, step), slots)

    def _held(self, mean: Array) -> Array:
        """Within L, where the plan has one."""
        most = self.options.largest_update
        return mean if most is None else np.clip(mean, -most, most)

    def _bound(self, broadcast: Adapter, pair: Pair) -> float:
        """The c of a module."""
        b, a = (broadcast[spec.name].astype(np.float64) for spec in (pair.b, pair.a))
        rows = float(np.linalg.norm(a, 2)) + self.largest * math.sqrt(pair.d_in)
        return pair.scaling * rows * (float(np.linalg.norm(b)) + self.largest * math.sqrt(b.size))


STRATEGY: type[SumStrategy] = HetLoRA
