"""FedAvgM: server momentum over FedAvg.

Hsu, Qi and Brown, "Measuring the Effects of Non-Identical Data Distribution for Federated Visual
Classification", 2019, arXiv:1909.06335, section 4.2:

    v ← β v + Δw        w ← w − v        (Δw = Σ n_k/n (w − w_k), so −Δw is our mean update d)

that is, with m = −v:  m ← β m + d,  x ← x + η m; η = 1 in the paper. β = 0 and η = 1 is FedAvg.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, final

from pydantic import BaseModel

from wardround.core.packed import Packed, Statistics
from wardround.strategies._mean_update import MeanUpdate
from wardround.strategies._server_optimisers import MomentumOptions, heavy_ball
from wardround.strategies.contract import Broadcast, LocalRules, SiteMemory, SumStrategy


@final
class FedAvgM(MeanUpdate[MomentumOptions]):
    """The mean update enters a velocity that the server keeps in the slot `m`."""

    Options: ClassVar[type[BaseModel]] = MomentumOptions
    bounded_by_update: ClassVar[bool] = True

    def local_rules(self, broadcast: Broadcast, memory: SiteMemory, round: int) -> LocalRules:  # noqa: ARG002 - no rules
        """None: sites train as in FedAvg."""
        return LocalRules()

    def step(self, mean: Statistics, slots: Mapping[str, Packed]) -> tuple[Packed, dict[str, Packed]]:
        """The optimiser's step along the mean update."""
        return heavy_ball(mean, slots, self.options)


STRATEGY: type[SumStrategy] = FedAvgM
