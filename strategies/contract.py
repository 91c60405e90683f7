"""What an aggregation algorithm is: four pure functions over sums.

A strategy never sees an individual contribution: `fold` gets the weighted sum over the survivors. Who has to
see them is of another type (`IndividualStrategy`), and is refused where contributions are hidden.

Law (tests/contract): with d_i = contribute(broadcast, local_i) and weights w_i,
fold(state, Σ w_i d_i, Σ w_i) equals the method's definition on the individuals.

A method with a second pass has two stages. In stage 0 a site trains and contributes; in stage 1 the server
broadcasts what it made of the first sum, and a site contributes again from the same training. `fold` advances
the round in the last stage only; between the stages what it has found waits in the state's slots.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final, Protocol, runtime_checkable

import numpy as np
from pydantic import BaseModel

from wardround.core.errors import PeerError
from wardround.core.packed import Adapter, Layout, Packed, Statistics
from wardround.core.plan import TrainingPlan
from wardround.core.ranks import AtRank


@dataclass(frozen=True)
class ServerState:
    """The global state between rounds.

    Attributes:
        round: Rounds folded so far; 0 is the plan's initial state. It grows with the last stage of a round.
        adapter: Global adapter, float32.
        slots: What the algorithm keeps at the server, by name (moments, control variates).
        figures: What the last fold says of itself, by name; told, and kept nowhere.
    """

    round: int
    adapter: Adapter
    slots: dict[str, Packed] = field(default_factory=dict)
    figures: dict[str, float] = field(default_factory=dict, compare=False)


DISCARDED: Final = "discarded_energy"
"""Figure of a fold: share of the squared norm of all products that truncation to the global rank cut off."""

Broadcast = Packed
"""What the server sends to everybody; in stage 0 of most methods the adapter itself."""


@dataclass(frozen=True)
class LocalRules:
    """What local training must obey.

    Attributes:
        proximal: FedProx μ ≥ 0: adds μ/2 · ‖θ − θ_broadcast‖² to the loss.
        frozen: Names of adapter tensors that do not train this round.
        gradient_offset: Added to every gradient (control variates), adapter layout, or None.
        mean_gradient: Whether `LocalUpdate.gradient` is wanted.
    """

    proximal: float = 0.0
    frozen: frozenset[str] = frozenset()
    gradient_offset: Adapter | None = None
    mean_gradient: bool = False


@dataclass(frozen=True)
class LocalUpdate:
    """What a site's training of one round gave.

    Attributes:
        before: Adapter that it loaded, float32.
        after: Adapter after the last step, float32.
        gradient: Mean over the steps of the loss's own gradient, without offset, proximal term or clipping,
            and zero where a tensor was frozen. None unless the local rules asked for it.
    """

    before: Adapter
    after: Adapter
    gradient: Packed | None = None


@runtime_checkable
class OptionsOfPlan(Protocol):
    """Options that the plan completes: what a person leaves null there follows from the rest of it.

    The plan itself, and so its digest, keeps what the person wrote.
    """

    def of_plan(self, plan: TrainingPlan) -> BaseModel:
        """The same options without a null.

        Raises:
            ConfigError: The rest of the plan does not go with the strategy.
        """


@dataclass(frozen=True)
class SiteMemory:
    """What a strategy keeps at one site between rounds, and between the stages of one; it never leaves."""

    slots: dict[str, Packed] = field(default_factory=dict)


class SumStrategy(Protocol):
    """An algorithm that works on sums, and so under secure aggregation.

    Class attributes:
        Options: Model of the options in the plan.
        stages: Passes a round needs, 1 or 2.
        bounded_by_update: May be left out, which is False. True: `is_bounded_by_update` says what of.
    """

    Options: ClassVar[type[BaseModel]]
    stages: ClassVar[int]

    def __init__(self, options: Any, layout: Layout) -> None:
        """Bind the options to the adapter's layout."""

    def begin(self, adapter: Adapter) -> ServerState:
        """State before round 1."""

    def broadcast_layout(self, stage: int) -> Layout:
        """Layout of what everybody gets in a stage.

        A slot that is broadcast beside the adapter stands in it under the slot's name: a site that missed a
        round takes it from there, where that is all that the server keeps.
        """

    def broadcast(self, state: ServerState, round: int, stage: int) -> Broadcast:
        """What everybody gets in a stage of the round that comes next."""

    def adapter_of(self, broadcast: Broadcast) -> Adapter:
        """The adapter that a site loads before it trains or evaluates, from the broadcast of stage 0.

        Where that broadcast has the adapter's layout, it is the adapter. Of round 1 it is the plan's initial
        adapter.

        Raises:
            PeerError: The broadcast is beyond what the plan allows.
        """

    def local_rules(self, broadcast: Broadcast, memory: SiteMemory, round: int) -> LocalRules:
        """What local training must obey in a round; sites train in stage 0."""

    def statistics_layout(self, stage: int) -> Layout:
        """Layout of what a site contributes."""

    def contribute(
        self, broadcast: Broadcast, local: LocalUpdate, memory: SiteMemory, round: int, stage: int
    ) -> tuple[Statistics, SiteMemory]:
        """Linear statistics of one site (not yet weighted), and its next memory.

        `local` is what the site trained in stage 0, also in a later stage; `memory` is what the stage before
        (or the last round) left.
        """

    def fold(self, state: ServerState, total: Statistics, weight: float, stage: int) -> ServerState:
        """Next state from Σ w_i · statistics_i (float64) and Σ w_i > 0.

        The sites of a later stage are those of the first, with the same weights.
        """


@runtime_checkable
class GroupStrategy(SumStrategy, Protocol):
    """An algorithm of one stage that gets a sum of each group of sites, where others get one sum of all.

    Groups are drawn once for a run. A group's sum may be missing in a round.

    Attributes:
        group_size: Least number of sites in a group.
        least_groups: So few sums are enough for a round.
    """

    group_size: int
    least_groups: int

    def combine(self, sums: Sequence[tuple[Statistics, float]]) -> tuple[Statistics, float]:
        """What `fold` gets, from (Σ w_i · statistics_i, Σ w_i) of each group.

        Raises:
            PeerError: There are fewer than `least_groups`.
        """


@runtime_checkable
class IndividualStrategy(SumStrategy, Protocol):
    """An algorithm of one stage that has to see each site's contribution by itself.

    So somebody sees them all: a trusted aggregator, or whoever runs the server. No site is told another's
    contribution, and none can hold a broadcast against it.

    Attributes:
        least_sites: So many contributions are enough for a round, beside the plan's quorum.
        over_sums: What to set in a plan to have the nearest that works on sums: `strategy=group_median`.
    """

    least_sites: int
    over_sums: str

    def combine_individuals(
        self, state: ServerState, contributions: Sequence[tuple[Statistics, float]]
    ) -> tuple[Statistics, float]:
        """What `fold` gets, from (w_i · statistics_i, w_i) of each site: a sum of one.

        `state` is the one from which the sites trained.

        Raises:
            PeerError: There are fewer than `least_sites`.
        """


@runtime_checkable
class RememberingStrategy(SumStrategy, Protocol):
    """An algorithm whose memory at a site follows from the site's rows exactly, and steers what it sends.

    Under differential privacy no such memory may be: the plan is refused. A contribution that is in no sum
    leaves no memory either, where the site learns of it before it trains again.

    Class attributes:
        private_alternative: What to take instead, for people.
    """

    private_alternative: ClassVar[str]


@runtime_checkable
class PersonalStrategy(SumStrategy, Protocol):
    """An algorithm by which a part of the adapter stays at each site, in its memory.

    What a site trains, scores and ends with is its own whole adapter; what federates is no usable one and is
    never released as such. Sites end with the last round: of earlier ones nobody keeps their own parts. The
    broadcast follows from the state's adapter alone, so that a site can make its adapter of what the server
    signed in the end.
    """

    def own_adapter(self, broadcast: Broadcast, memory: SiteMemory) -> Adapter:
        """The site's whole adapter: what everybody gets, with what the site has kept."""


@runtime_checkable
class ProductStrategy(SumStrategy, Protocol):
    """An algorithm over products s · B A: the factors of its adapter stand for their product alone.

    So its statistics are hardly ever linear in after − before, and two servers' factors of one state may
    differ.

    Attributes:
        any_rank: Whether a site may train more directions than the plan's adapter has.
        linear: Whether its statistics are linear in after − before all the same.
    """

    any_rank: bool
    linear: bool

    def difference(self, expected: Adapter, found: Adapter) -> float:
        """How far a global adapter is from another, relatively.

        Of the products, and of whatever else of the factors decides how a site trains from them.
        """


@runtime_checkable
class StartingStrategy(SumStrategy, Protocol):
    """An algorithm that says itself which directions a site trains, and which stand frozen beside them.

    `LocalUpdate` then has both: the trained directions first, and the frozen ones after them.

    Attributes:
        most_rank: So many directions train at a site that has no rank of its own, and at no site more.
    """

    most_rank: int

    def start(self, adapter: Adapter, rank: int | None, draw: np.random.Generator) -> AtRank:
        """What a site trains in a round, and what stands frozen.

        Args:
            adapter: The global one, as the site got it.
            rank: The site's own, from 1 to `most_rank`; None: it has none.
            draw: Of this round and site, for directions that begin anew.
        """


def is_bounded_by_update(strategy: SumStrategy) -> bool:
    """Whether a strategy says of itself that a site sends its update, a part of it or less, and no more.

    That is: `contribute` is linear in after − before, whatever broadcast, memory and round are, and its
    statistics are no longer than that (tests/contract holds all who say so to it). Then noise that is
    sized for the clipped update covers what is sent. Silence is no, and a class does not inherit it: one that
    sends something else says nothing by being derived from one that does not.
    """
    return vars(type(strategy)).get("bounded_by_update", False) is True


def adapter_at(strategy: SumStrategy, broadcast: Broadcast, memory: SiteMemory) -> Adapter:
    """The adapter that a site loads, from the broadcast of stage 0 and what the strategy keeps there.

    Raises:
        PeerError: As `adapter_of`.
    """
    if isinstance(strategy, PersonalStrategy):
        return strategy.own_adapter(broadcast, memory)
    return strategy.adapter_of(broadcast)


def combined(strategy: SumStrategy, sums: Sequence[tuple[Statistics, float]]) -> tuple[Statistics, float]:
    """What `fold` gets from the sums of one stage: the one sum, or what a group strategy makes of them.

    Raises:
        PeerError: There are too few or too many.
    """
    if isinstance(strategy, GroupStrategy):
        return strategy.combine(sums)
    if len(sums) != 1:
        raise PeerError("a stage has not one sum", found=len(sums), expected=1)
    return sums[0]
