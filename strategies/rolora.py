"""RoLoRA: B and A train in turn, each in its own rounds, and the one that trains is averaged.

Chen, Guo, Ju, Dalal, Zhu and Khisti, "Robust Federated Finetuning of LLMs via Alternating Optimization of
LoRA", NeurIPS 2025, arXiv:2502.01755, Algorithm 1. With the one A of all sites in a round of B, and the one B
in a round of A,

    mean(B_i) A = mean(B_i A)        B mean(A_i) = mean(B A_i)

so that averaging is exact, half of FedIT's floats travel a round, and both factors learn. Odd rounds train B,
even ones A: B begins with zero, and A would learn nothing. Heads, biases and magnitudes train in every round.

Statistics are as long as the longer half, in every round, and zero beyond the shorter one.
"""

from __future__ import annotations

from typing import ClassVar, Final, final

import numpy as np
from pydantic import BaseModel

from wardround.core import lora
from wardround.core.packed import Layout, Packed, Statistics, TensorSpec, require_finite
from wardround.strategies._mean_update import (
    FromUpdate,
    apply_step,
    mean_update,
    require_first,
    taken,
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

HALF: Final = "rolora.half"
"""Name of the half that trained, in the statistics."""
_TURNS: Final = ("lora_a", "lora_b")
"""By round modulo two."""


@final
class RoLoRA(FromUpdate[ComposedOptions]):
    """The mean update of the round's factor is its step; a server optimiser keeps its slots for each half."""

    Options: ClassVar[type[BaseModel]] = ComposedOptions
    bounded_by_update: ClassVar[bool] = True

    def __init__(self, options: ComposedOptions, layout: Layout) -> None:
        require_pairs(layout, "rolora")
        self._halves = {
            role: Layout(tensors=tuple(spec for spec in layout.tensors if spec.role == role))
            for role in _TURNS
        }
        longest = max(half.size for half in self._halves.values())
        self._dense = Layout(tensors=lora.dense_specs(layout))
        half = TensorSpec(name=HALF, shape=(longest,))
        super().__init__(options, layout, Layout(tensors=(half, *self._dense.tensors)))

    def local_rules(self, broadcast: Broadcast, memory: SiteMemory, round: int) -> LocalRules:  # noqa: ARG002 - the same for all
        """The factor whose turn it is not does not train."""
        other = self._halves[_TURNS[(round + 1) % 2]]
        return LocalRules(
            proximal=self.options.proximal, frozen=frozenset(spec.name for spec in other.tensors)
        )

    def sent(self, update: Statistics, local: LocalUpdate, round: int) -> Statistics:  # noqa: ARG002 - of the update alone
        """Of the round's factor, and of the dense tensors."""
        sent = Packed(self.statistics, np.zeros(self.statistics.size))
        half = taken(update, self._halves[_TURNS[round % 2]]).vector
        sent[HALF][: half.size] = half
        sent.vector[sent[HALF].size :] = taken(update, self._dense).vector
        return sent

    def fold(self, state: ServerState, total: Statistics, weight: float, stage: int) -> ServerState:
        """Next state: the round's factor and the dense tensors have moved.

        Raises:
            PeerError: As `mean_update` and `apply_step` say; the state is left as it was.
        """
        require_first(stage)
        role = _TURNS[(state.round + 1) % 2]
        half, adapter = self._halves[role], state.adapter
        slots: dict[str, Packed] = {}
        with np.errstate(over="ignore"):  # named by require_finite
            mean = mean_update(self.statistics, total, weight)
            for part, vector in (
                (half, mean[HALF][: half.size]),
                (self._dense, mean.vector[mean[HALF].size :]),
            ):
                prefix = f"{role if part is half else 'dense'}."
                own = {
                    name.removeprefix(prefix): slot
                    for name, slot in state.slots.items()
                    if name.startswith(prefix)
                }
                step, left = server_step(Packed(part, vector), own, self.options.server)
                adapter = apply_step(adapter, step)
                slots |= {prefix + name: slot for name, slot in left.items()}
        for name, slot in slots.items():
            require_finite(slot, f"the server's slot {name!r}")
        return ServerState(state.round + 1, adapter, {**state.slots, **slots})


STRATEGY: type[SumStrategy] = RoLoRA
