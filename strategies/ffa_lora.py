"""FFA-LoRA: A is frozen as it was drawn, B alone trains and is averaged.

Sun, Li, Li and Ding, "Improving LoRA in Privacy-preserving Federated Learning", ICLR 2024, arXiv:2403.12313,
section 4. With the one A of all sites

    mean(B_i A) = mean(B_i) A        B ← B + Σ w_i (B_i − B) / Σ w_i

so that averaging is exact, half of FedIT's floats travel, and noise on B stays linear in the product. Heads,
biases and magnitudes train as well. The adapter reaches no direction outside the row space of the first A.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, final

from pydantic import BaseModel

from wardround.core.packed import Layout, Packed, Statistics
from wardround.strategies._mean_update import MeanUpdate
from wardround.strategies._products import require_pairs
from wardround.strategies._server_optimisers import ComposedOptions, server_step
from wardround.strategies.contract import Broadcast, LocalRules, SiteMemory, SumStrategy


@final
class FFALoRA(MeanUpdate[ComposedOptions]):
    """The mean update of B and of the dense tensors is the step, or what a server optimiser makes of it."""

    Options: ClassVar[type[BaseModel]] = ComposedOptions
    bounded_by_update: ClassVar[bool] = True

    def __init__(self, options: ComposedOptions, layout: Layout) -> None:
        moving = tuple(spec for spec in layout.tensors if spec.role != "lora_a")
        super().__init__(options, layout, Layout(tensors=moving))
        self.frozen = frozenset(pair.a.name for pair in require_pairs(layout, "ffa_lora"))

    def local_rules(self, broadcast: Broadcast, memory: SiteMemory, round: int) -> LocalRules:  # noqa: ARG002 - the same for all
        """No A trains."""
        return LocalRules(proximal=self.options.proximal, frozen=self.frozen)

    def step(self, mean: Statistics, slots: Mapping[str, Packed]) -> tuple[Packed, dict[str, Packed]]:
        """The mean update itself, or the chosen optimiser's step along it."""
        return server_step(mean, slots, self.options.server)


STRATEGY: type[SumStrategy] = FFALoRA
