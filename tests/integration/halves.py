"""A strategy of two stages for the tests: FedAvg, one half of the coordinates after the other.

    stage 0: sites send d[:h]        m₀ = Σ w d[:h] / Σ w
    stage 1: broadcast m₀; sites send d[h:] + mean(m₀) + (rounds that they have taken part in)
             x ← x + (m₀, Σ w (…) / Σ w − mean(m₀) − the same count)

So stage 1 is right only if its broadcast, the site's training of stage 0 and the site's memory are all there.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from wardround.core.checked import Frozen
from wardround.core.packed import Adapter, Layout, Packed, Statistics, TensorSpec
from wardround.strategies.contract import LocalRules, LocalUpdate, ServerState, SiteMemory

SCALAR = Layout(tensors=(TensorSpec(name="count"),))


class HalvesOptions(Frozen):
    """None."""


class Halves:
    """Memory `count`: stages that the site has contributed to, which has to be twice the round less one."""

    Options = HalvesOptions
    stages: ClassVar[int] = 2

    def __init__(self, options: HalvesOptions, layout: Layout) -> None:
        self.layout = layout
        self.half = layout.size // 2
        self.parts = tuple(
            Layout(tensors=(TensorSpec(name=f"half_{stage}", shape=(size,)),))
            for stage, size in enumerate((self.half, layout.size - self.half))
        )

    def begin(self, adapter: Adapter) -> ServerState:
        return ServerState(0, adapter)

    def broadcast_layout(self, stage: int) -> Layout:
        return self.layout if stage == 0 else self.parts[0]

    def broadcast(self, state: ServerState, round: int, stage: int) -> Packed:
        if stage == 0:
            return state.adapter
        first = state.slots["first"]
        return first.with_vector(first.vector.astype(np.float32))

    def adapter_of(self, broadcast: Packed) -> Adapter:
        assert broadcast.layout == self.layout
        return broadcast

    def local_rules(self, broadcast: Packed, memory: SiteMemory, round: int) -> LocalRules:
        return LocalRules()

    def statistics_layout(self, stage: int) -> Layout:
        return self.parts[stage]

    def contribute(
        self, broadcast: Packed, local: LocalUpdate, memory: SiteMemory, round: int, stage: int
    ) -> tuple[Statistics, SiteMemory]:
        update = local.after.vector.astype(np.float64) - local.before.vector
        count = float(memory.slots["count"].vector[0]) if memory.slots else 0.0
        kept = SiteMemory({"count": Packed(SCALAR, np.array([count + 1.0]))})
        if stage == 0:
            return Packed(self.parts[0], update[: self.half]), kept
        return Packed(self.parts[1], update[self.half :] + float(broadcast.vector.mean()) + count), kept

    def fold(self, state: ServerState, total: Statistics, weight: float, stage: int) -> ServerState:
        mean = total.with_vector(total.vector / weight)
        if stage == 0:
            return ServerState(state.round, state.adapter, {"first": mean})
        first = state.slots["first"].vector
        sent = float(first.astype(np.float32).mean()) + 2 * state.round + 1
        update = np.concatenate([first, mean.vector - sent])
        moved = (state.adapter.vector.astype(np.float64) + update).astype(np.float32)
        return ServerState(state.round + 1, state.adapter.with_vector(moved))


STRATEGY: Any = Halves
