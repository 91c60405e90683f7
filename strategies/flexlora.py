"""FlexLoRA: the mean of the sites' products, truncated to the adapter's rank.

Bai, Chen, Qian, Yao and Li, "Federated Fine-tuning of Large Language Models under Heterogeneous Tasks and
Client Resources", NeurIPS 2024, arXiv:2402.11505, section 3.2. With shares p_i = w_i / Σ w, for each module:

    s · B A ← T_r( Σ p_i · s · B_i A_i ) = T_r( G + Σ p_i (s · B_i A_i − G) ),    G = s · B A

T_r is the best approximation of rank r (an SVD), and √σ goes to each factor. The mean of the products is
exact, where the mean of factors is so to first order; what is lost is what rank r cannot hold. Heads, biases
and magnitudes are averaged as updates. A site of a lower rank has zeros in its other columns of B.

A site sends B_i − B and A_i − A, which the ring holds more finely than the factors; the server adds B and A.
Whoever only has the sum of these cannot make the mean of products, so each has to be seen. For `fold` the
result is an update again, the new factors less the old ones. A module that no site moved keeps its factors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, final

import numpy as np
from pydantic import BaseModel, Field

from wardround.core.checked import Frozen
from wardround.core.lora import Factored, Pair, balanced, dense_specs, difference, pairs
from wardround.core.packed import Array, Packed, Statistics
from wardround.strategies._individuals import require_enough
from wardround.strategies._mean_update import MeanUpdate, mean_update
from wardround.strategies.contract import Broadcast, LocalRules, ServerState, SiteMemory, SumStrategy


class FlexLoRAOptions(Frozen):
    """Options of FlexLoRA. No server optimiser: moments would be of factors that turn in every round."""

    proximal: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    """μ of FedProx (Li et al. 2020, arXiv:1812.06127, equation 2); 0 adds nothing."""


@final
class FlexLoRA(MeanUpdate[FlexLoRAOptions]):
    """The mean of products at the server, from each site's factors."""

    Options: ClassVar[type[BaseModel]] = FlexLoRAOptions
    least_sites = 1
    over_sums = "strategy=tangent"
    any_rank: bool = False
    linear: bool = False

    def combine_individuals(
        self, state: ServerState, contributions: Sequence[tuple[Statistics, float]]
    ) -> tuple[Statistics, float]:
        """New factors less old ones, times the sum of all weights, which `fold` divides by again.

        Raises:
            PeerError: There is none, as `mean_update`, or the SVD of a mean does not converge.
        """
        require_enough(contributions, self.least_sites)
        updates = [mean_update(self.layout, total, weight) for total, weight in contributions]
        weight = float(sum(weight for _, weight in contributions))
        shares = np.array([own / weight for _, own in contributions])
        made = Packed(self.layout, np.zeros(self.layout.size))
        for spec in dense_specs(self.layout):
            made[spec.name][...] = sum(
                p * update[spec.name] for p, update in zip(shares, updates, strict=True)
            )
        for pair in pairs(self.layout):
            if any(update[pair.a.name].any() or update[pair.b.name].any() for update in updates):
                b, a = balanced(
                    _mean_product(state, pair, updates, shares).truncated(pair.rank), state.adapter, pair
                )
                made[pair.b.name][...] = b - state.adapter[pair.b.name]
                made[pair.a.name][...] = a - state.adapter[pair.a.name]
        return made.with_vector(made.vector * weight), weight

    def local_rules(self, broadcast: Broadcast, memory: SiteMemory, round: int) -> LocalRules:  # noqa: ARG002 - the same for all
        """The proximal weight, 0 unless one was chosen."""
        return LocalRules(proximal=self.options.proximal)

    def step(self, mean: Statistics, slots: Mapping[str, Packed]) -> tuple[Packed, dict[str, Any]]:
        """What takes the old factors to the new ones."""
        return mean, dict(slots)

    def difference(self, expected: Broadcast, found: Broadcast) -> float:
        """Of the products and the dense tensors."""
        return difference(expected, found)


def _mean_product(state: ServerState, pair: Pair, updates: Sequence[Packed], shares: Array) -> Factored:
    """Σ p_i · s · B_i A_i: the factors beside each other."""
    b, a = (state.adapter[spec.name].astype(np.float64) for spec in (pair.b, pair.a))
    rows = zip(shares, updates, strict=True)
    left = np.hstack([p * pair.scaling * (b + update[pair.b.name]) for p, update in rows])
    return Factored(left, np.vstack([a + update[pair.a.name] for update in updates]))


STRATEGY: type[SumStrategy] = FlexLoRA
