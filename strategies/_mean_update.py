"""Methods that move the global adapter along the mean of the sites' updates: what they share.

A site sends its update (or some tensors of it), d_i = after_i − before, never its parameters. The server sees
Σ w_i d_i and Σ w_i, and with them the mean update d = Σ w_i d_i / Σ w_i. What differs is the step along d:

    x ← x + step(d)

Sums and moments are float64; the adapter is rounded to float32 once, at the end of a fold.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np
from pydantic import BaseModel

from wardround.core.errors import ConfigError, PeerError
from wardround.core.packed import Adapter, Layout, Packed, Statistics, pack, require_finite
from wardround.strategies.contract import Broadcast, LocalRules, LocalUpdate, ServerState, SiteMemory

O = TypeVar("O", bound=BaseModel)  # noqa: E741 - O for options, as T for type


def site_update(before: Adapter, after: Adapter) -> Statistics:
    """Update of one site, d_i = after − before, in float64.

    Raises:
        PeerError: The two have different layouts, or one of them is not finite.
    """
    require_layout(after, before.layout, "the trained adapter")
    require_finite(before, "the adapter before training")
    require_finite(after, "the trained adapter")
    return before.with_vector(after.vector.astype(np.float64) - before.vector.astype(np.float64))


def mean_update(layout: Layout, total: Statistics, weight: float) -> Statistics:
    """Mean update d = Σ w_i d_i / Σ w_i, in float64.

    Args:
        layout: Layout that the sum has to follow.
        total: Σ w_i d_i.
        weight: Σ w_i.

    Raises:
        PeerError: The sum follows another layout or is not finite, or the weight is not a positive number.
    """
    if not (math.isfinite(weight) and weight > 0):
        raise PeerError("the summed weight is not a positive number", found=weight, expected="> 0")
    require_layout(total, layout, "the sum")
    require_finite(total, "the sum")
    return total.with_vector(total.vector.astype(np.float64) / weight)


def apply_step(adapter: Adapter, step: Packed) -> Adapter:
    """The adapter x + step, rounded once to the adapter's float32; tensors that have no step stay.

    Raises:
        PeerError: The step has other tensors than the adapter, or the result is not finite in float32.
    """
    moved = adapter.with_vector(adapter.vector.copy())
    for name, part in step.tensors().items():
        if name not in adapter.layout.offsets or adapter[name].shape != part.shape:
            raise PeerError("the step has another layout", found=f"{name}, shape {part.shape}")
        with np.errstate(over="ignore"):  # named by require_finite
            moved[name][...] = (adapter[name].astype(np.float64) + part).astype(np.float32)
    require_finite(moved, "the folded adapter")
    return moved


def taken(packed: Packed, layout: Layout) -> Packed:
    """Those tensors of a packed vector that a layout has."""
    if packed.layout is layout or packed.layout.digest == layout.digest:
        return packed
    return pack(layout, {spec.name: packed[spec.name] for spec in layout.tensors}, packed.vector.dtype)


def require_layout(packed: Packed, layout: Layout, what: str) -> None:
    """Refuse what follows another layout.

    Raises:
        PeerError: Names the layouts by digest and size.
    """
    if packed.layout.digest != layout.digest:
        raise PeerError(
            f"{what} has another layout",
            found=f"{packed.layout.digest[:12]}, {packed.layout.size} values",
            expected=f"{layout.digest[:12]}, {layout.size} values",
        )


class AdapterBroadcast(ABC, Generic[O]):
    """A strategy that broadcasts the global adapter as it is. A file of its own says what sites send of it.

    Args:
        options: Checked options of the file.
        layout: The adapter's layout.
    """

    Options: ClassVar[type[BaseModel]]
    stages: ClassVar[int] = 1

    def __init__(self, options: O, layout: Layout) -> None:
        if not isinstance(options, self.Options):
            raise ConfigError(
                "the strategy's options are of another type",
                found=type(options).__name__,
                expected=self.Options.__qualname__,
                remedy="check them with core.plan.parse_options first",
            )
        self.options = options
        self.layout = layout

    @abstractmethod
    def local_rules(self, broadcast: Broadcast, memory: SiteMemory, round: int) -> LocalRules:
        """What local training must obey."""

    def begin(self, adapter: Adapter) -> ServerState:
        """State before round 1; moments are fresh."""
        require_layout(adapter, self.layout, "the initial adapter")
        require_finite(adapter, "the initial adapter")
        return ServerState(round=0, adapter=adapter)

    def broadcast_layout(self, stage: int) -> Layout:
        """The adapter's."""
        require_first(stage)
        return self.layout

    def broadcast(self, state: ServerState, round: int, stage: int) -> Broadcast:  # noqa: ARG002 - the same in every round
        """The global adapter itself."""
        require_first(stage)
        return state.adapter

    def adapter_of(self, broadcast: Broadcast) -> Adapter:
        """The broadcast itself."""
        return broadcast


class FromUpdate(AdapterBroadcast[O]):
    """Sites send what follows from their update, and remember nothing. A file of its own says what.

    Args:
        options: Checked options of the file.
        layout: The adapter's layout.
        statistics: Of what sites send.
    """

    def __init__(self, options: O, layout: Layout, statistics: Layout) -> None:
        super().__init__(options, layout)
        self.statistics = statistics

    @abstractmethod
    def sent(self, update: Statistics, local: LocalUpdate, round: int) -> Statistics:
        """What a site sends of its update (the adapter's layout, float64, finite)."""

    def statistics_layout(self, stage: int) -> Layout:
        """Of what sites send."""
        require_first(stage)
        return self.statistics

    def contribute(
        self,
        broadcast: Broadcast,  # noqa: ARG002 - `before` is the broadcast here
        local: LocalUpdate,
        memory: SiteMemory,
        round: int,
        stage: int,
    ) -> tuple[Statistics, SiteMemory]:
        """What follows from the site's update; its memory stays as it is.

        Raises:
            PeerError: Another layout, or not finite.
        """
        require_first(stage)
        require_layout(local.before, self.layout, "the adapter before training")
        return self.sent(site_update(local.before, local.after), local, round), memory


class MeanUpdate(FromUpdate[O]):
    """Sites send their update, or a part of its tensors. A file of its own says `local_rules` and `step`.

    Args:
        options: Checked options of the file.
        layout: The adapter's layout.
        shared: Tensors of it that sites send; None: all of them.
    """

    def __init__(self, options: O, layout: Layout, shared: Layout | None = None) -> None:
        super().__init__(options, layout, layout if shared is None else shared)

    @abstractmethod
    def step(self, mean: Statistics, slots: Mapping[str, Packed]) -> tuple[Packed, dict[str, Packed]]:
        """The server's step along the mean update, float64, and what the server keeps for the next one."""

    def sent(self, update: Statistics, local: LocalUpdate, round: int) -> Statistics:  # noqa: ARG002 - the same in every round
        """The shared tensors of it."""
        return taken(update, self.statistics)

    def fold(self, state: ServerState, total: Statistics, weight: float, stage: int) -> ServerState:
        """Next state: x ← x + step(Σ w_i d_i / Σ w_i).

        Raises:
            PeerError: As `mean_update` and `apply_step` say; the state is left as it was.
        """
        require_first(stage)
        with np.errstate(over="ignore"):  # named by require_finite
            step, slots = self.step(mean_update(self.statistics, total, weight), state.slots)
        for name, slot in slots.items():
            require_finite(slot, f"the server's slot {name!r}")
        return ServerState(state.round + 1, apply_step(state.adapter, step), slots)


def require_first(stage: Any) -> None:
    """Refuse a stage after the first.

    Raises:
        PeerError: It is one.
    """
    if stage != 0:
        raise PeerError("the strategy has one stage", found=f"stage {stage}", expected="stage 0")
