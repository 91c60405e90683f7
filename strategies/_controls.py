"""SCAFFOLD's control variates: what c and c_i are, how a site's changes, how it goes through the ring.

`scaffold.py` has the equations; `tangent_scaffold.py` moves them with the factors. A variate is as long as
the adapter and in its order: derivatives of the loss by the adapter's numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Final, Self

import numpy as np
from pydantic import BaseModel, Field

from wardround.core.checked import Frozen
from wardround.core.errors import ConfigError, PeerError
from wardround.core.packed import Adapter, Array, Layout, Packed, TensorSpec, require_finite
from wardround.core.plan import TrainingPlan
from wardround.strategies._mean_update import require_first, require_layout
from wardround.strategies.contract import Broadcast, LocalUpdate, ServerState

CONTROL: Final = "scaffold.control"
"""Name of c in the broadcast and among the server's slots, of κ (c_i⁺ − c_i) in the statistics, and of c_i in
a site's memory: one tensor as long as the adapter, in its order."""


class ControlOptions(Frozen):
    """Of control variates; what is null follows from the plan."""

    largest_change: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """C: of a coordinate, from c (p = 1) or from c_i. Null: a quarter of `local.max_grad_norm`, or of 1."""
    participation: float | None = Field(default=None, gt=0, le=1)
    """p. Null: the plan's `rounds.participation`."""
    largest_update: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """L. Null: the plan's `encoding.largest`."""

    def of_plan(self, plan: TrainingPlan) -> Self:
        """The same options without a null.

        Raises:
            ConfigError: The plan shortens what a site sends, so that c and c_i would part.
        """
        if plan.privacy is None and plan.encoding.norm is not None:
            raise ConfigError(
                f"a plan that shortens contributions does not go with {plan.strategy.name}: control variates "
                "would be cut at the server and not at the site",
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


@dataclass(frozen=True)
class Controls:
    """Control variates of adapters of one layout; a null option is 1: so sums are in units of the gradient.

    Attributes:
        layout: The adapter's.
        options: Checked options.
    """

    layout: Layout
    options: ControlOptions

    @property
    def largest_change(self) -> float:
        """C."""
        return self.options.largest_change or 1.0

    @property
    def participation(self) -> float:
        """P."""
        return self.options.participation or 1.0

    @property
    def unit(self) -> float:
        """κ: so much of an update stands for one of a gradient."""
        return (self.options.largest_update or 1.0) / self.largest_change

    @property
    def alone(self) -> Layout:
        """Of a variate by itself."""
        return Layout(tensors=(TensorSpec(name=CONTROL, shape=(self.layout.size,)),))

    def beside(self, layout: Layout) -> Layout:
        """A layout with a variate after it."""
        return Layout(tensors=(*layout.tensors, *self.alone.tensors))

    def zero(self) -> Packed:
        """C before round 1, float64."""
        return Packed(self.alone, np.zeros(self.layout.size))

    def broadcast(self, adapter: Adapter, control: Packed) -> Broadcast:
        """The global adapter, and c."""
        both = np.concatenate([adapter.vector, control.vector.astype(adapter.vector.dtype)])
        return Packed(self.beside(self.layout), both)

    def adapter_of(self, broadcast: Broadcast) -> Adapter:
        """The global adapter.

        Raises:
            PeerError: Another layout.
        """
        require_layout(broadcast, self.beside(self.layout), "the broadcast")
        return Packed(self.layout, broadcast.vector[: self.layout.size])

    def of_broadcast(self, broadcast: Broadcast) -> Array:
        """The server's variate c."""
        require_layout(broadcast, self.beside(self.layout), "the broadcast")
        return broadcast.vector[self.layout.size :]

    def kept(self, packed: Packed | None) -> Array:
        """c_i, float32; zero of a site that has none yet.

        Raises:
            PeerError: What it kept has another layout.
        """
        if packed is None:
            return np.zeros(self.layout.size, dtype=np.float32)
        require_layout(packed, self.alone, "the control variate that this site has kept")
        return packed.vector

    def offset(self, broadcast: Broadcast, own: Array) -> Packed:
        """What every local gradient gets, c − c_i."""
        return Packed(self.layout, (self.of_broadcast(broadcast) - own).astype(np.float32))

    def changed(self, local: LocalUpdate, broadcast: Broadcast, own: Array) -> tuple[Array, Packed]:
        """What a site sends of its new variate, κ times the change, float64; and c_i⁺, which it keeps.

        Raises:
            PeerError: No mean gradient, another layout, or it is not finite.
        """
        if local.gradient is None:
            raise PeerError("the local round gave no mean gradient")
        require_layout(local.gradient, self.layout, "the mean gradient")
        require_finite(local.gradient, "the mean gradient")
        before = self.of_broadcast(broadcast) if self.participation == 1 else own
        most, before = self.largest_change, before.astype(np.float64)
        change = np.clip(local.gradient.vector - before, -most, most)
        after = (before + change).astype(np.float32)
        return np.clip(after - before, -most, most) * self.unit, Packed(self.alone, after)

    def folded(self, control: Packed, mean: Array) -> Packed:
        """The server's next c, of the mean of what sites sent of theirs.

        Raises:
            PeerError: It is not finite.
        """
        with np.errstate(over="ignore"):  # named by require_finite
            moved = control.vector + self.participation * mean / self.unit
            # As it is broadcast, in float32, so that server and sites go on from one value.
            found = Packed(self.alone, moved.astype(np.float32).astype(np.float64))
        require_finite(found, f"the server's slot {CONTROL!r}")
        return found


class ControlBroadcast:
    """What a strategy with control variates broadcasts: the global adapter, and c beside it.

    Args:
        options: Checked options.
        layout: The adapter's.
    """

    Options: ClassVar[type[BaseModel]]

    def __init__(self, options: ControlOptions, layout: Layout) -> None:
        if not isinstance(options, self.Options):
            raise ConfigError(
                "the strategy's options are of another type", found=type(options).__name__,
                expected=self.Options.__qualname__, remedy="check them with core.plan.parse_options first",
            )  # fmt: skip
        self.layout = layout
        self.controls = Controls(layout, options)
        self._both = self.controls.beside(layout)

    def broadcast_layout(self, stage: int) -> Layout:
        """The adapter's, and c."""
        require_first(stage)
        return self._both

    def broadcast(self, state: ServerState, round: int, stage: int) -> Broadcast:  # noqa: ARG002 - the same in every round
        """The global adapter, and c."""
        require_first(stage)
        return self.controls.broadcast(state.adapter, state.slots[CONTROL])

    def adapter_of(self, broadcast: Broadcast) -> Adapter:
        """The global adapter."""
        return self.controls.adapter_of(broadcast)
