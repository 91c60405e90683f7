"""What an aggregation algorithm is: four pure functions over sums.

A strategy never sees an individual contribution: `fold` gets the weighted sum over the survivors.

Law (tests/contract): with d_i = contribute(broadcast, before, after_i) and weights w_i,
fold(state, Σ w_i d_i, Σ w_i) equals the method's definition on the individuals.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

from pydantic import BaseModel

from wardround.core.packed import Adapter, Layout, Packed, Statistics


@dataclass(frozen=True)
class ServerState:
    """The global state between rounds.

    Attributes:
        round: Rounds folded so far; 0 is the plan's initial state.
        adapter: Global adapter, float32.
        slots: What the algorithm keeps at the server, by name (moments, control variates).
    """

    round: int
    adapter: Adapter
    slots: dict[str, Packed] = field(default_factory=dict)


Broadcast = Packed
"""What the server sends to everybody; for most methods the adapter itself."""


@dataclass(frozen=True)
class LocalRules:
    """What local training must obey.

    Attributes:
        proximal: FedProx μ ≥ 0: adds μ/2 · ‖θ − θ_broadcast‖² to the loss.
        frozen: Names of adapter tensors that do not train this round.
        gradient_offset: Added to every gradient (control variates), adapter layout, or None.
    """

    proximal: float = 0.0
    frozen: frozenset[str] = frozenset()
    gradient_offset: Adapter | None = None


@dataclass(frozen=True)
class SiteMemory:
    """What a strategy keeps at one site between rounds; it never leaves."""

    slots: dict[str, Packed] = field(default_factory=dict)


class SumStrategy(Protocol):
    """An algorithm that works on sums, and so under secure aggregation.

    Class attributes:
        Options: Model of the options in the plan.
        stages: Passes a round needs, 1 or 2.
    """

    Options: ClassVar[type[BaseModel]]
    stages: ClassVar[int]

    def __init__(self, options: Any, layout: Layout) -> None:
        """Bind the options to the adapter's layout."""

    def begin(self, adapter: Adapter) -> ServerState:
        """State before round 1."""

    def broadcast_layout(self) -> Layout:
        """Layout of what everybody gets."""

    def broadcast(self, state: ServerState, round: int) -> Broadcast:
        """What everybody gets."""

    def adapter_of(self, broadcast: Broadcast) -> Adapter:
        """The adapter that a site loads before it trains or evaluates."""

    def local_rules(self, broadcast: Broadcast, memory: SiteMemory, stage: int) -> LocalRules:
        """What local training must obey."""

    def statistics_layout(self, stage: int) -> Layout:
        """Layout of what a site contributes."""

    def contribute(
        self, broadcast: Broadcast, before: Adapter, after: Adapter, memory: SiteMemory, stage: int
    ) -> tuple[Statistics, SiteMemory]:
        """Linear statistics of one site (not yet weighted), and its next memory."""

    def fold(self, state: ServerState, total: Statistics, weight: float, stage: int) -> ServerState:
        """Next state from Σ w_i · statistics_i (float64) and Σ w_i > 0."""
