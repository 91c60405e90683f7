"""FedProx: FedAvg whose sites are held near the broadcast adapter while they train.

Li, Sahu, Zaheer, Sanjabi, Talwalkar and Smith, "Federated Optimization in Heterogeneous Networks",
MLSys 2020, arXiv:1812.06127, Algorithm 2 and equation 2. Site i minimises

    h_i(y; x) = F_i(y) + μ/2 · ‖y − x‖²

over the adapter's trained tensors, and the server folds as FedAvg does. μ = 0 is FedAvg.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, final

from pydantic import BaseModel, Field

from wardround.core.checked import Frozen
from wardround.core.packed import Packed, Statistics
from wardround.strategies._mean_update import MeanUpdate
from wardround.strategies.contract import Broadcast, LocalRules, SiteMemory, SumStrategy


class FedProxOptions(Frozen):
    """The paper tunes μ over 0.001, 0.01, 0.1 and 1."""

    mu: float = Field(default=0.01, ge=0, allow_inf_nan=False)
    """μ, weight of the proximal term."""


@final
class FedProx(MeanUpdate[FedProxOptions]):
    """The mean update is the step; what differs from FedAvg is local."""

    Options: ClassVar[type[BaseModel]] = FedProxOptions
    bounded_by_update: ClassVar[bool] = True

    def local_rules(self, broadcast: Broadcast, memory: SiteMemory, round: int) -> LocalRules:  # noqa: ARG002 - the same for all
        """The proximal weight μ."""
        return LocalRules(proximal=self.options.mu)

    def step(self, mean: Statistics, slots: Mapping[str, Packed]) -> tuple[Packed, dict[str, Packed]]:
        """The mean update itself."""
        return mean, dict(slots)


STRATEGY: type[SumStrategy] = FedProx
