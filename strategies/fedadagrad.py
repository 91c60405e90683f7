"""FedAdagrad: Adagrad at the server, over FedAvg.

Reddi, Charles, Zaheer, Garrett, Rush, Konečný, Kumar and McMahan, "Adaptive Federated Optimization",
ICLR 2021, arXiv:2003.00295, Algorithm 2, with the mean update d, m from 0 and v from τ²:

    m ← β1 m + (1 − β1) d        v ← v + d²        x ← x + η m / (√v + τ)

The step shrinks with every round; good for few rounds and sparse updates.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, final

from pydantic import BaseModel

from wardround.core.packed import Packed, Statistics
from wardround.strategies._mean_update import MeanUpdate
from wardround.strategies._server_optimisers import AdagradOptions, adagrad
from wardround.strategies.contract import Broadcast, LocalRules, SiteMemory, SumStrategy


@final
class FedAdagrad(MeanUpdate[AdagradOptions]):
    """Moments `m` and `v` stay at the server, float64."""

    Options: ClassVar[type[BaseModel]] = AdagradOptions
    bounded_by_update: ClassVar[bool] = True

    def local_rules(self, broadcast: Broadcast, memory: SiteMemory, round: int) -> LocalRules:  # noqa: ARG002 - no rules
        """None: sites train as in FedAvg."""
        return LocalRules()

    def step(self, mean: Statistics, slots: Mapping[str, Packed]) -> tuple[Packed, dict[str, Packed]]:
        """The optimiser's step along the mean update."""
        return adagrad(mean, slots, self.options)


STRATEGY: type[SumStrategy] = FedAdagrad
