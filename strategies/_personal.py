"""Personalised methods: a part of the adapter federates as FedAvg does, the rest stays at each site.

With P the coordinates that are shared and Q the others:

    a site loads   (P of the broadcast, Q that it kept; of the plan's initial adapter before it first trains)
    sends          P of y_i − x_i        and keeps Q of y_i
    P of x ← P of x + step(Σ w_i d_i / Σ w_i);   Q of x stays that of the initial adapter

What federates is no model: every site ends with one of its own.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, Final, Generic, TypeVar

import numpy as np
from pydantic import BaseModel

from wardround.core.errors import ConfigError, PeerError
from wardround.core.packed import Adapter, Layout, Packed, Statistics, TensorSpec, require_finite
from wardround.strategies._mean_update import apply_step, mean_update, require_layout, site_update
from wardround.strategies._server_optimisers import ComposedOptions, server_step
from wardround.strategies.contract import Broadcast, LocalRules, LocalUpdate, ServerState, SiteMemory

OWN: Final = "own"
"""Name of Q of the site's adapter in its memory: one tensor, in the adapter's order."""
Part = tuple[slice, ...]
"""Which of a tensor's entries are shared, a slice a dimension: `()` is the whole of it."""

O = TypeVar("O", bound=ComposedOptions)  # noqa: E741 - O for options, as T for type


class PartlyShared(ABC, Generic[O]):
    """A strategy of one stage that shares a part of each tensor. A file of its own says which part.

    Args:
        options: Checked options of the file.
        layout: The adapter's layout, which is also that of the broadcast.
    """

    Options: ClassVar[type[BaseModel]]
    stages: ClassVar[int] = 1
    private_alternative: ClassVar[str] = "fedavg or ffa_lora"

    def __init__(self, options: O, layout: Layout) -> None:
        if not isinstance(options, self.Options):
            raise ConfigError(
                "the strategy's options are of another type", found=type(options).__name__,
                expected=self.Options.__qualname__, remedy="check them with core.plan.parse_options first",
            )  # fmt: skip
        self.options = options
        self.layout = layout
        mask, specs = np.zeros(layout.size, dtype=bool), []
        for name, (start, spec) in layout.offsets.items():
            part = self.shared(spec)
            if part is None:
                continue
            inside = np.zeros(spec.shape, dtype=bool)
            inside[part] = True
            shape = inside[part].shape
            mask[start : start + spec.size] = inside.reshape(-1)
            specs.append(spec.model_copy(update={"shape": shape, "name": name}))
        if layout.tensors and (mask.all() or not mask.any()):
            raise ConfigError(
                "a personalised strategy leaves a part of the adapter at each site and shares the other; of "
                "this adapter one of the two is empty",
                found=f"{np.count_nonzero(mask)} of {layout.size} values are shared",
                expected="some, and not all",
                remedy="set adapter.method=lora with targets, or strategy.name=fedavg",
            )  # fmt: skip
        self._mask = mask
        self._shared = Layout(tensors=tuple(specs))
        self._own = Layout(tensors=(TensorSpec(name=OWN, shape=(int(np.count_nonzero(~mask)),)),))

    @abstractmethod
    def shared(self, spec: TensorSpec) -> Part | None:
        """Which entries of a tensor are shared; None: none of them."""

    def begin(self, adapter: Adapter) -> ServerState:
        """State before round 1; moments are fresh."""
        require_layout(adapter, self.layout, "the initial adapter")
        require_finite(adapter, "the initial adapter")
        return ServerState(0, adapter)

    def broadcast_layout(self, stage: int) -> Layout:
        """The adapter's."""
        _require_first(stage)
        return self.layout

    def broadcast(self, state: ServerState, round: int, stage: int) -> Broadcast:  # noqa: ARG002 - the same in every round
        """The shared part, in the plan's initial adapter."""
        _require_first(stage)
        return state.adapter

    def adapter_of(self, broadcast: Broadcast) -> Adapter:
        """The broadcast itself: what a site begins with."""
        return broadcast

    def own_adapter(self, broadcast: Broadcast, memory: SiteMemory) -> Adapter:
        """The site's whole adapter: the shared part as it is broadcast, the rest as the site has kept it.

        Raises:
            PeerError: What it has kept is of another adapter.
        """
        require_layout(broadcast, self.layout, "the broadcast")
        kept = memory.slots.get(OWN)
        if kept is None:
            return broadcast
        require_layout(kept, self._own, "the part of the adapter that this site has kept")
        whole = broadcast.vector.copy()
        whole[~self._mask] = kept.vector
        return broadcast.with_vector(whole)

    def local_rules(self, broadcast: Broadcast, memory: SiteMemory, round: int) -> LocalRules:  # noqa: ARG002 - the same for all
        """The proximal weight, 0 unless one was chosen; it holds the site's own part as well."""
        return LocalRules(proximal=self.options.proximal)

    def statistics_layout(self, stage: int) -> Layout:
        """That of the shared part."""
        _require_first(stage)
        return self._shared

    def contribute(
        self,
        broadcast: Broadcast,  # noqa: ARG002 - `before` has the shared part of it
        local: LocalUpdate,
        memory: SiteMemory,  # noqa: ARG002 - it went into `before`
        round: int,  # noqa: ARG002 - the same in every round
        stage: int,
    ) -> tuple[Statistics, SiteMemory]:
        """The update of the shared part; the site keeps the rest of what it trained."""
        _require_first(stage)
        require_layout(local.before, self.layout, "the adapter before training")
        update = site_update(local.before, local.after)
        kept = Packed(self._own, local.after.vector[~self._mask].astype(np.float32))
        return Packed(self._shared, update.vector[self._mask]), SiteMemory({OWN: kept})

    def fold(self, state: ServerState, total: Statistics, weight: float, stage: int) -> ServerState:
        """Next state: the shared part moves, the rest stays that of the initial adapter.

        Raises:
            PeerError: As `mean_update` and `apply_step` say; the state is left as it was.
        """
        _require_first(stage)
        with np.errstate(over="ignore"):  # named by require_finite
            part, slots = server_step(
                mean_update(self._shared, total, weight), state.slots, self.options.server
            )
        for name, slot in slots.items():
            require_finite(slot, f"the server's slot {name!r}")
        step = np.zeros(self.layout.size)
        step[self._mask] = part.vector
        return ServerState(state.round + 1, apply_step(state.adapter, state.adapter.with_vector(step)), slots)


def _require_first(stage: int) -> None:
    if stage != 0:
        raise PeerError("the strategy has one stage", found=f"stage {stage}", expected="stage 0")
