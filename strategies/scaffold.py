"""SCAFFOLD: a control variate takes what a site's own rows would bend out of its local steps.

Karimireddy, Kale, Mohri, Reddi, Stich and Suresh, "SCAFFOLD: Stochastic Controlled Averaging for Federated
Learning", ICML 2020, arXiv:1910.06378, Algorithm 1, on the adapter. With x and c of the server, c_i of a site
(zero before it first trains), g the gradient of its loss, K local steps and S of the sites asked:

    local       every gradient is  g(y) − c_i + c
    memory      c_i⁺ = the mean of g over the K local steps
    a site sends  (y_i − x,  c_i⁺ − c_i)
    x ← x + step(Σ w_i (y_i − x) / Σ w_i)         c ← c + p · Σ w_i (c_i⁺ − c_i) / Σ w_i

p is the share of the sites that a round asks, |S|/N. Under plain SGD of one rate η,
y_i = x − η Σ (g − c_i + c), so that c_i⁺ is the paper's option II, c_i − c + (x − y_i)/(K η). Taken from the
gradients themselves it means the same under any optimiser, schedule and clipping. The paper weighs all sites
alike; here w_i are FedAvg's, and c is the weighted mean of the c_i while everybody is asked.

While every round asks everybody (p = 1), c is the mean of the c_i, and a site sends c_i⁺ − c in place of
c_i⁺ − c_i: the same mean, but nothing that went wrong in an earlier round stays in c. For p < 1 it does. A
site whose contribution is in no sum goes on from the c_i before it, if it is asked in the next round; where
it is not, or where fewer answer than were asked, c is off by that much from there on.

A gradient is not of an update's size, and one ring carries both. A site sends κ times its change, κ = L/C,
with L the plan's bound of a coordinate (`encoding.largest`) and C that of the change (`largest_change`). What
is beyond C is cut, and of c_i⁺ as well, so that c and c_i stay in step. The sum's rounding has no bias: about
√sites · C / 2^bits a coordinate, and for p < 1 that of all rounds together, √rounds times as much.
"""

from __future__ import annotations

from typing import ClassVar, final

import numpy as np
from pydantic import BaseModel

from wardround.core.packed import Adapter, Layout, Packed, Statistics, require_finite
from wardround.strategies._controls import CONTROL, ControlBroadcast, ControlOptions
from wardround.strategies._mean_update import (
    apply_step,
    mean_update,
    require_first,
    require_layout,
    site_update,
)
from wardround.strategies._server_optimisers import ComposedOptions, server_step
from wardround.strategies.contract import (
    Broadcast,
    LocalRules,
    LocalUpdate,
    ServerState,
    SiteMemory,
    SumStrategy,
)


class ScaffoldOptions(ControlOptions, ComposedOptions):
    """Options of SCAFFOLD; what is null follows from the plan."""


@final
class Scaffold(ControlBroadcast):
    """Adapter and control variate are broadcast side by side; both are summed side by side.

    Args:
        options: Checked options.
        layout: The adapter's.
    """

    Options: ClassVar[type[BaseModel]] = ScaffoldOptions
    stages: ClassVar[int] = 1
    private_alternative: ClassVar[str] = "fedprox"

    def __init__(self, options: ScaffoldOptions, layout: Layout) -> None:
        super().__init__(options, layout)
        self.options = options

    def begin(self, adapter: Adapter) -> ServerState:
        """State before round 1: c is zero."""
        require_layout(adapter, self.layout, "the initial adapter")
        require_finite(adapter, "the initial adapter")
        return ServerState(0, adapter, {CONTROL: self.controls.zero()})

    def local_rules(self, broadcast: Broadcast, memory: SiteMemory, round: int) -> LocalRules:  # noqa: ARG002 - the same in every round
        """Every gradient gets c − c_i, and the proximal weight, 0 unless one was chosen."""
        own = self.controls.kept(memory.slots.get(CONTROL))
        return LocalRules(
            proximal=self.options.proximal,
            gradient_offset=self.controls.offset(broadcast, own),
            mean_gradient=True,
        )

    def statistics_layout(self, stage: int) -> Layout:
        """The adapter's, and the change of the control variate, times κ."""
        require_first(stage)
        return self._both

    def contribute(
        self,
        broadcast: Broadcast,
        local: LocalUpdate,
        memory: SiteMemory,
        round: int,  # noqa: ARG002 - the same in every round
        stage: int,
    ) -> tuple[Statistics, SiteMemory]:
        """The site's update and κ times the change to c_i⁺, float64; it keeps c_i⁺, float32.

        Raises:
            PeerError: Another layout, no mean gradient, or something is not finite.
        """
        require_first(stage)
        require_layout(local.before, self.layout, "the adapter before training")
        update = site_update(local.before, local.after)
        own = self.controls.kept(memory.slots.get(CONTROL))
        sent, after = self.controls.changed(local, broadcast, own)
        return Packed(self._both, np.concatenate([update.vector, sent])), SiteMemory({CONTROL: after})

    def fold(self, state: ServerState, total: Statistics, weight: float, stage: int) -> ServerState:
        """The next x and c.

        Raises:
            PeerError: As `mean_update` and `apply_step` say; the state is left as it was.
        """
        require_first(stage)
        mean = mean_update(self._both, total, weight).vector
        update = Packed(self.layout, mean[: self.layout.size])
        others = {name: slot for name, slot in state.slots.items() if name != CONTROL}
        with np.errstate(over="ignore"):  # named by require_finite
            step, slots = server_step(update, others, self.options.server)
        for name, slot in slots.items():
            require_finite(slot, f"the server's slot {name!r}")
        control = self.controls.folded(state.slots[CONTROL], mean[self.layout.size :])
        return ServerState(state.round + 1, apply_step(state.adapter, step), {**slots, CONTROL: control})


STRATEGY: type[SumStrategy] = Scaffold
