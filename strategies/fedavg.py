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

from wardround.core.checked import Frozen
from wardround.core.packed import Packed, Statistics
from wardround.strategies._mean_update import MeanUpdate
from wardround.strategies.contract import Broadcast, LocalRules, SiteMemory, SumStrategy


class FedAvgOptions(Frozen):
    """FedAvg has no options."""


@final
class FedAvg(MeanUpdate[FedAvgOptions]):
    """The mean update is the step; the server keeps nothing else."""

    Options: ClassVar[type[BaseModel]] = FedAvgOptions

    def local_rules(self, broadcast: Broadcast, memory: SiteMemory, stage: int) -> LocalRules:  # noqa: ARG002 - no rules
        """None."""
        return LocalRules()

    def step(self, mean: Statistics, slots: Mapping[str, Packed]) -> tuple[Packed, dict[str, Packed]]:
        """The mean update itself."""
        return mean, dict(slots)


STRATEGY: type[SumStrategy] = FedAvg
