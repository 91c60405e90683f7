"""SCAFFOLD over products: tangent aggregation, with control variates that move with the tangent space.

Karimireddy et al., "SCAFFOLD", ICML 2020, arXiv:1910.06378, Algorithm 1 (`scaffold.py`), and `tangent.py`. A
variate is a derivative of the loss at the broadcast adapter, along its factors:

    c = (∂/∂B, ∂/∂A) = (s Γ Aᵀ, s Bᵀ Γ)        Γ (d_out × d_in): a derivative by the weight

which is a vector of the cotangent space at G = s · B A. Locally every gradient by B and A gets c − c_i, and
a site sends tangent aggregation's message with κ (c_i⁺ − c_i), or κ (c_i⁺ − c) while every round asks all.
A fold gives other factors B' ≈ B S, A' ≈ T A, and

    c ← (c_B Tᵀ, Sᵀ c_A)

of the server's at the fold, and of a site's own from the broadcast that it last trained from to the one that
it is sent now (`core/turns.py`): linear, so that the mean of the sites' variates moves as they do while all
are asked. Of directions that the old factors did not have nothing is known, and nothing is corrected there.
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar, Final, final

import numpy as np
from pydantic import BaseModel

from wardround.core import lora
from wardround.core.packed import Adapter, Array, Layout, Packed, Statistics
from wardround.core.turns import Turn
from wardround.strategies._controls import CONTROL, ControlBroadcast, ControlOptions
from wardround.strategies._mean_update import mean_update, require_first, require_layout
from wardround.strategies.contract import (
    Broadcast,
    LocalRules,
    LocalUpdate,
    ServerState,
    SiteMemory,
    SumStrategy,
)
from wardround.strategies.tangent import Tangent, TangentOptions

FRAME: Final = "scaffold.frame"
"""Name of the adapter that a site's variate is at, in its memory."""


class TangentScaffoldOptions(ControlOptions, TangentOptions):
    """Those of tangent aggregation, and of control variates; what is null follows from the plan."""


@final
class TangentScaffold(ControlBroadcast):
    """Adapter and control variate are broadcast side by side; messages and variates are summed side by side.

    Args:
        options: Checked options.
        layout: The adapter's.
    """

    Options: ClassVar[type[BaseModel]] = TangentScaffoldOptions
    stages: ClassVar[int] = 1
    private_alternative: ClassVar[str] = "tangent"
    any_rank: bool = False
    linear: bool = False

    def __init__(self, options: TangentScaffoldOptions, layout: Layout) -> None:
        super().__init__(options, layout)
        own = TangentOptions(proximal=options.proximal, server=options.server, split=options.split)
        self.options = options
        self.tangent = Tangent(own, layout)
        self._message = self.tangent.statistics_layout(0)
        self._statistics = self.controls.beside(self._message)

    def begin(self, adapter: Adapter) -> ServerState:
        """State before round 1: c is zero."""
        return replace(self.tangent.begin(adapter), slots={CONTROL: self.controls.zero()})

    def difference(self, expected: Adapter, found: Adapter) -> float:
        """As tangent aggregation's."""
        return self.tangent.difference(expected, found)

    def local_rules(self, broadcast: Broadcast, memory: SiteMemory, round: int) -> LocalRules:
        """As tangent aggregation's; every gradient gets c − c_i as well."""
        adapter = self.adapter_of(broadcast)
        offset = self.controls.offset(broadcast, self._own(memory, adapter))
        rules = self.tangent.local_rules(adapter, memory, round)
        return replace(rules, gradient_offset=offset, mean_gradient=True)

    def statistics_layout(self, stage: int) -> Layout:
        """Tangent aggregation's, and the change of the control variate, times κ."""
        require_first(stage)
        return self._statistics

    def contribute(
        self, broadcast: Broadcast, local: LocalUpdate, memory: SiteMemory, round: int, stage: int
    ) -> tuple[Statistics, SiteMemory]:
        """The tangent message and κ times the change to c_i⁺, float64; it keeps c_i⁺ and where it is at.

        Raises:
            PeerError: Another layout, no mean gradient, or something is not finite.
        """
        require_first(stage)
        require_layout(local.before, self.layout, "the adapter before training")
        adapter = self.adapter_of(broadcast)
        message, _ = self.tangent.contribute(adapter, local, SiteMemory(), round, stage)
        sent, after = self.controls.changed(local, broadcast, self._own(memory, adapter))
        kept = SiteMemory({CONTROL: after, FRAME: adapter})
        return Packed(self._statistics, np.concatenate([message.vector, sent])), kept

    def fold(self, state: ServerState, total: Statistics, weight: float, stage: int) -> ServerState:
        """As tangent aggregation's; c moves to the factors of the next adapter.

        Raises:
            PeerError: As tangent aggregation's; the state is left as it was.
        """
        require_first(stage)
        both = mean_update(self._statistics, total, weight).vector
        message = Packed(self._message, both[: self._message.size])
        others = {name: slot for name, slot in state.slots.items() if name != CONTROL}
        found = self.tangent.fold(replace(state, slots=others), message, 1.0, stage)
        control = self.controls.folded(state.slots[CONTROL], both[self._message.size :])
        moved = moved_with(control.vector, state.adapter, found.adapter).astype(np.float32)
        return replace(found, slots={**found.slots, CONTROL: control.with_vector(moved.astype(np.float64))})

    def _own(self, memory: SiteMemory, adapter: Adapter) -> Array:
        """c_i at the broadcast adapter, float32."""
        own, frame = self.controls.kept(memory.slots.get(CONTROL)), memory.slots.get(FRAME)
        if frame is None:
            return own
        require_layout(frame, self.layout, "the adapter that this site's control variate is at")
        return moved_with(own, frame, adapter).astype(np.float32)


def moved_with(control: Array, old: Adapter, new: Adapter) -> Array:
    """A variate at the factors of another adapter; of factors that are the same, bit for bit as it was."""
    before = Packed(old.layout, control)
    after = before.with_vector(control.copy())
    for pair in lora.pairs(old.layout):
        was, now = ((of[pair.b.name], of[pair.a.name]) for of in (old, new))
        if all(np.array_equal(*factors) for factors in zip(was, now, strict=True)):
            continue
        turn = Turn.between(was, now)
        for spec in (pair.a, pair.b):
            after[spec.name][...] = turn.first(spec.role, before[spec.name])
    return after.vector


STRATEGY: type[SumStrategy] = TangentScaffold
