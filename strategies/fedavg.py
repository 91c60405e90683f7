"""FedAvg on the adapter's update.

McMahan, Moore, Ramage, Hampson and Agüera y Arcas, "Communication-Efficient Learning of Deep Networks
from Decentralized Data", AISTATS 2017, arXiv:1602.05629, Algorithm 1. On LoRA's factors it is FedIT: Zhang
et al., "Towards Building the Federated GPT: Federated Instruction Tuning", ICASSP 2024, arXiv:2305.05644.

    d_i = y_i − x        x ← x + Σ w_i d_i / Σ w_i

y_i is what site i has after training from x. With everybody answering this is Σ w_i y_i / Σ w_i, and with
updates it stays right when some do not answer. For LoRA's factors it is not the mean of the products:
mean(B) · mean(A) differs from mean(B · A) in second order of the updates.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, final

from pydantic import BaseModel

from wardround.core.packed import Packed, Statistics
from wardround.strategies._mean_update import MeanUpdate
from wardround.strategies._server_optimisers import ComposedOptions, server_step
from wardround.strategies.contract import Broadcast, LocalRules, SiteMemory, SumStrategy


@final
class FedAvg(MeanUpdate[ComposedOptions]):
    """The mean update is the step, unless a server optimiser was chosen; the server keeps nothing else."""

    Options: ClassVar[type[BaseModel]] = ComposedOptions
    bounded_by_update: ClassVar[bool] = True

    def local_rules(self, broadcast: Broadcast, memory: SiteMemory, round: int) -> LocalRules:  # noqa: ARG002 - the same for all
        """The proximal weight, 0 unless one was chosen."""
        return LocalRules(proximal=self.options.proximal)

    def step(self, mean: Statistics, slots: Mapping[str, Packed]) -> tuple[Packed, dict[str, Packed]]:
        """The mean update itself, or the chosen optimiser's step along it."""
        return server_step(mean, slots, self.options.server)


STRATEGY: type[SumStrategy] = FedAvg
