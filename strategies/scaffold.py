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

from typing import ClassVar, Final, final

import numpy as np
from pydantic import BaseModel, Field

from wardround.core.errors import ConfigError, PeerError
from wardround.core.packed import Adapter, Array, Layout, Packed, Statistics, TensorSpec, require_finite
from wardround.core.plan import TrainingPlan
from wardround.strategies._mean_update import apply_step, mean_update, require_layout, site_update
from wardround.strategies._server_optimisers import ComposedOptions, server_step
from wardround.strategies.contract import (
    Broadcast,
    LocalRules,
    LocalUpdate,
    ServerState,
    SiteMemory,
    SumStrategy,
)

CONTROL: Final = "scaffold.control"
"""Name of c in the broadcast and among the server's slots, of κ (c_i⁺ − c_i) in the statistics, and of c_i in
a site's memory: one tensor as long as the adapter, in its order."""


class ScaffoldOptions(ComposedOptions):
    """Options of SCAFFOLD; what is null follows from the plan."""

    largest_change: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """C: of a coordinate, from c (p = 1) or from c_i. Null: a quarter of `local.max_grad_norm`, or of 1."""
    participation: float | None = Field(default=None, gt=0, le=1)
    """p. Null: the plan's `rounds.participation`."""
    largest_update: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """L. Null: the plan's `encoding.largest`."""

    def of_plan(self, plan: TrainingPlan) -> ScaffoldOptions:
        """The same options without a null.

        Raises:
            ConfigError: The plan shortens what a site sends, so that c and c_i would part.
        """
        if plan.privacy is None and plan.encoding.norm is not None:
            raise ConfigError(
                "a plan that shortens contributions does not go with scaffold: control variates would be cut "
                "at the server and not at the site",
                found=f"encoding.norm={plan.encoding.norm:g}", expected="null",
                remedy="set encoding.norm to null",
            )  # fmt: skip
        return self.model_copy(
            update={
                "largest_change": self.largest_change or (plan.local.max_grad_norm or 1.0) / 4,
                "participation": self.participation or plan.rounds.participation,
                "largest_update": self.largest_update or plan.encoding.largest,
            }
        )


@final
class Scaffold:
    """Adapter and control variate are broadcast side by side; both are summed side by side.

    Args:
        options: Checked options; a null is 1: so the sums are in units of the gradient.
        layout: The adapter's.
    """

    Options: ClassVar[type[BaseModel]] = ScaffoldOptions
    stages: ClassVar[int] = 1
    private_alternative: ClassVar[str] = "fedprox"

    def __init__(self, options: ScaffoldOptions, layout: Layout) -> None:
        if not isinstance(options, ScaffoldOptions):
            raise ConfigError(
                "the strategy's options are of another type", found=type(options).__name__,
                expected="ScaffoldOptions", remedy="check them with core.plan.parse_options first",
            )  # fmt: skip
        self.options = options
        self.layout = layout
        self.largest_change = options.largest_change or 1.0
        self.participation = options.participation or 1.0
        self.unit = (options.largest_update or 1.0) / self.largest_change
        """κ: so much of an update stands for one of a gradient."""
        self._control = Layout(tensors=(TensorSpec(name=CONTROL, shape=(layout.size,)),))
        self._both = Layout(tensors=(*layout.tensors, *self._control.tensors))

    def begin(self, adapter: Adapter) -> ServerState:
        """State before round 1: c is zero."""
        require_layout(adapter, self.layout, "the initial adapter")
        require_finite(adapter, "the initial adapter")
        return ServerState(0, adapter, {CONTROL: Packed(self._control, np.zeros(self.layout.size))})

    def broadcast_layout(self, stage: int) -> Layout:
        """The adapter's, and c."""
        _require_first(stage)
        return self._both

    def broadcast(self, state: ServerState, round: int, stage: int) -> Broadcast:  # noqa: ARG002 - the same in every round
        """The global adapter, and c."""
        _require_first(stage)
        control = state.slots[CONTROL].vector.astype(state.adapter.vector.dtype)
        return Packed(self._both, np.concatenate([state.adapter.vector, control]))

    def adapter_of(self, broadcast: Broadcast) -> Adapter:
        """The global adapter."""
        require_layout(broadcast, self._both, "the broadcast")
        return Packed(self.layout, broadcast.vector[: self.layout.size])

    def local_rules(self, broadcast: Broadcast, memory: SiteMemory, round: int) -> LocalRules:  # noqa: ARG002 - the same in every round
        """Every gradient gets c − c_i, and the proximal weight, 0 unless one was chosen."""
        offset = broadcast.vector[self.layout.size :] - self._kept(memory)
        return LocalRules(
            proximal=self.options.proximal,
            gradient_offset=Packed(self.layout, offset.astype(np.float32)),
            mean_gradient=True,
        )

    def statistics_layout(self, stage: int) -> Layout:
        """The adapter's, and the change of the control variate, times κ."""
        _require_first(stage)
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
        _require_first(stage)
        require_layout(local.before, self.layout, "the adapter before training")
        update = site_update(local.before, local.after)
        if local.gradient is None:
            raise PeerError("the local round gave no mean gradient")
        require_layout(local.gradient, self.layout, "the mean gradient")
        require_finite(local.gradient, "the mean gradient")
        require_layout(broadcast, self._both, "the broadcast")
        before = broadcast.vector[self.layout.size :] if self.participation == 1 else self._kept(memory)
        most, before = self.largest_change, before.astype(np.float64)
        change = np.clip(local.gradient.vector - before, -most, most)
        after = (before + change).astype(np.float32)
        sent = np.clip(after - before, -most, most) * self.unit
        return (
            Packed(self._both, np.concatenate([update.vector, sent])),
            SiteMemory({CONTROL: Packed(self._control, after)}),
        )

    def fold(self, state: ServerState, total: Statistics, weight: float, stage: int) -> ServerState:
        """The next x and c.

        Raises:
            PeerError: As `mean_update` and `apply_step` say; the state is left as it was.
        """
        _require_first(stage)
        mean = mean_update(self._both, total, weight).vector
        update = Packed(self.layout, mean[: self.layout.size])
        others = {name: slot for name, slot in state.slots.items() if name != CONTROL}
        with np.errstate(over="ignore"):  # named by require_finite
            step, slots = server_step(update, others, self.options.server)
            moved = state.slots[CONTROL].vector + self.participation * mean[self.layout.size :] / self.unit
            # As it is broadcast, in float32, so that server and sites go on from one value.
            control = moved.astype(np.float32).astype(np.float64)
        slots = {**slots, CONTROL: Packed(self._control, control)}
        for name, slot in slots.items():
            require_finite(slot, f"the server's slot {name!r}")
        return ServerState(state.round + 1, apply_step(state.adapter, step), slots)

    def _kept(self, memory: SiteMemory) -> Array:
        """c_i, float32."""
        kept = memory.slots.get(CONTROL)
        if kept is None:
            return np.zeros(self.layout.size, dtype=np.float32)
        require_layout(kept, self._control, "the control variate that this site has kept")
        return kept.vector


def _require_first(stage: int) -> None:
    if stage != 0:
        raise PeerError("the strategy has one stage", found=f"stage {stage}", expected="stage 0")


STRATEGY: type[SumStrategy] = Scaffold
