"""Whole sites' updates clipped to a norm that follows a quantile of theirs: around any strategy of one stage.

Andrew, Thakkar, McMahan & Ramaswamy 2021, arXiv:1905.03871v5, Algorithm 1 with geometric updates. With x_i
what site i contributes to the strategy, n sites, and b_i = 1 where ‖x_i‖ ≤ C:

    a site sends      x_i · min(1, C/‖x_i‖) · L/C   and   (b_i − ½) · k
    the server adds   N(0, (z C_1)²) to every coordinate of the sum    (`privacy/sums/noise.py`)
    fold              with the first sum times C/L, as the strategy says
    C ← C · exp(−η (b̃ − γ)),   b̃ = ½ + (the second sum)/(k n)

L and k are constants of the plan (`privacy/clip_norm.py:JointLength`): what a site sends is never longer than
the plan's C_1, whatever C is, so that the ring, its scale and its noise are those of fixed clipping, the sum
cannot wrap, and every round costs the same. After the fold the noise is z_Δ C on the sum of updates, and σ_b
on the count. No site's own b_i is seen: it is a coordinate of the secure sum, under the same noise.

n is what the strategy divides by: who took part is public. C follows from noised sums alone; it is broadcast
beside the adapter, and stands among the server's slots.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import ClassVar, Final, final

import numpy as np
from pydantic import BaseModel

from wardround.core.errors import PeerError
from wardround.core.packed import Adapter, Layout, Packed, Statistics, TensorSpec
from wardround.core.privacy_rules import AdaptiveClipping, PrivacyRules
from wardround.privacy.clip_norm import JointLength, next_norm
from wardround.privacy.quantisation import length_of
from wardround.strategies.contract import (
    Broadcast,
    LocalRules,
    LocalUpdate,
    ProductStrategy,
    ServerState,
    SiteMemory,
    SumStrategy,
)

NORM: Final = "privacy.clip_norm"
"""Name of C in the broadcast, and of the slot that keeps it."""
COUNT: Final = "privacy.unclipped"
"""Name of Σ (b_i − ½) k in the statistics."""
_BELOW: Final = 1 - 2.0**-20
"""How far clipping stays below C, relatively: float64 must not make a joint vector longer than the plan's."""
_SCALAR: Final = Layout(tensors=(TensorSpec(name=NORM),))


def clip_norm_of(state: ServerState) -> float | None:
    """C of the round after this state; None where the server does not move it."""
    return float(state.slots[NORM].vector[0]) if NORM in state.slots else None


def product_strategy(strategy: SumStrategy) -> ProductStrategy | None:
    """The strategy over products that this one is, or is made around; None where there is none."""
    own = strategy.inner if isinstance(strategy, AdaptiveNorm) else strategy
    return own if isinstance(own, ProductStrategy) else None


@final
class AdaptiveNorm:
    """The strategy that it is made around, with every site's statistics clipped to C.

    Guarantee: one site moves the sum of statistics (after the fold's factor) by at most C, the count by ½,
        and the vector that is noised by at most the plan's clip norm, whatever it trained.

    Args:
        inner: A strategy of one stage that gets one sum of all sites.
        rules: The plan's; `clip_norm` is C of the first round.
        joint: How a contribution is split between update and count.
    """

    Options: ClassVar[type[BaseModel]] = AdaptiveClipping
    stages: ClassVar[int] = 1

    def __init__(self, inner: SumStrategy, rules: PrivacyRules, joint: JointLength) -> None:
        self.inner = inner
        self.rules = rules
        self.joint = joint
        self._broadcast = _longer(inner.broadcast_layout(0), NORM)
        self._statistics = _longer(inner.statistics_layout(0), COUNT)

    def begin(self, adapter: Adapter) -> ServerState:
        """The strategy's own, with the plan's C."""
        state = self.inner.begin(adapter)
        return replace(state, slots={**state.slots, NORM: _packed(self.rules.clip_norm)})

    def broadcast_layout(self, stage: int) -> Layout:
        """The strategy's, and C."""
        _require_first(stage)
        return self._broadcast

    def broadcast(self, state: ServerState, round: int, stage: int) -> Broadcast:
        """The strategy's, and C."""
        own = self.inner.broadcast(_without_norm(state), round, stage)
        norm = state.slots[NORM].vector.astype(own.vector.dtype)
        return Packed(self.broadcast_layout(stage), np.concatenate([own.vector, norm]))

    def adapter_of(self, broadcast: Broadcast) -> Adapter:
        """The strategy's.

        Raises:
            PeerError: C is beyond the plan's limits.
        """
        self._norm_of(broadcast)
        return self.inner.adapter_of(self._own(broadcast))

    def local_rules(self, broadcast: Broadcast, memory: SiteMemory, round: int) -> LocalRules:
        """The strategy's."""
        return self.inner.local_rules(self._own(broadcast), memory, round)

    def statistics_layout(self, stage: int) -> Layout:
        """The strategy's, and the count."""
        _require_first(stage)
        return self._statistics

    def contribute(
        self, broadcast: Broadcast, local: LocalUpdate, memory: SiteMemory, round: int, stage: int
    ) -> tuple[Statistics, SiteMemory]:
        """The clipped statistics at their part of the joint length, and this site's part of the count.

        Raises:
            PeerError: As the strategy's, or C is beyond the plan's limits.
        """
        norm = self._norm_of(broadcast)
        found, left = self.inner.contribute(self._own(broadcast), local, memory, round, stage)
        length, limit = length_of(found.vector), norm * _BELOW
        factor = self.joint.vector / norm
        if limit < length < math.inf:  # of what is not finite it is none, and the ring refuses the vector
            factor = limit / length * factor
        sent = np.empty(found.vector.size + 1)
        np.multiply(found.vector, factor, out=sent[:-1], dtype=np.float64)
        sent[-1] = (0.5 if length <= norm else -0.5) * self.joint.count
        return Packed(self.statistics_layout(stage), sent), left

    def fold(self, state: ServerState, total: Statistics, weight: float, stage: int) -> ServerState:
        """The strategy's next state, and the next C.

        Raises:
            PeerError: As the strategy's, or the sum has another layout or is not finite.
        """
        if total.layout.digest != self.statistics_layout(stage).digest:
            raise PeerError("the sum has another layout", found=f"{total.layout.size} values")
        norm = float(state.slots[NORM].vector[0])
        vector, balance = total.vector[:-1], float(total.vector[-1]) / self.joint.count
        if not math.isfinite(balance):
            raise PeerError(f"the sum is not finite: {COUNT!r}")
        with np.errstate(over="ignore"):  # named by the strategy
            own = Packed(self.inner.statistics_layout(stage), vector * (norm / self.joint.vector))
        folded = self.inner.fold(_without_norm(state), own, weight, stage)
        limits = self.rules.adaptive
        moved = next_norm(
            norm, 0.5 + balance / weight, quantile=limits.quantile, rate=limits.rate,
            smallest=limits.smallest, largest=limits.largest,
        )  # fmt: skip
        return replace(folded, slots={**folded.slots, NORM: _packed(moved)})

    def _own(self, broadcast: Broadcast) -> Broadcast:
        return Packed(self.inner.broadcast_layout(0), broadcast.vector[:-1])

    def _norm_of(self, broadcast: Broadcast) -> float:
        norm, limits = broadcast.vector[-1], self.rules.adaptive
        if not np.float32(limits.smallest) <= norm <= np.float32(limits.largest):
            raise PeerError(
                "the clip norm is beyond the plan's limits", found=f"{norm:g}",
                expected=f"{limits.smallest:g} to {limits.largest:g}",
                remedy="the server does not follow the plan: tell the consortium",
            )  # fmt: skip
        return float(norm)


def _require_first(stage: int) -> None:
    if stage != 0:
        raise PeerError("the strategy has one stage", found=f"stage {stage}", expected="stage 0")


def _longer(layout: Layout, name: str) -> Layout:
    return Layout(tensors=(*layout.tensors, TensorSpec(name=name)))


def _packed(norm: float) -> Packed:
    """As it is broadcast in float32, so that server and sites compute with one value."""
    return Packed(_SCALAR, np.array([norm], dtype=np.float32).astype(np.float64))


def _without_norm(state: ServerState) -> ServerState:
    return replace(state, slots={name: slot for name, slot in state.slots.items() if name != NORM})
