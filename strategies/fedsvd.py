"""FedSVD: B alone trains and is averaged, and the server makes A's rows orthogonal again after every round.

Lee, Park, Lee, Wagner, Seong, Bocklet, Lee and Hwang, "FedSVD: Adaptive Orthogonalization for Private
Federated Learning with LoRA", 2025, arXiv:2505.12805. With the one A of all sites, frozen in a round as in
FFA-LoRA (`ffa_lora.py`),

    B' = B + step(Σ w_i (B_i − B) / Σ w_i)        B' A = U Σ Vᵀ        A ← c Vᵀ,  B ← U Σ / c

so that the mean of the products is exact, and the product is the same before and after the SVD. Gradients
of B are then bounded by those of the product, which is what noise for privacy needs, and a site of a
smaller rank has the largest directions. c is 1 in the paper; here it is the mean length of A's rows as they
were drawn (of those that are independent), and stays it: a learning rate of B means in every round what it
means in the first, in which A is not orthogonal yet, and B still has all of σ.

A module whose B was not moved, and so the first rounds of one whose B stays zero, keeps its factors. Of a
direction with nothing in it B has zeros, and A another orthogonal row: V is completed from A. The SVD turns
A within its row space and leads nowhere else, since the rows of B A are of A's span: what FFA-LoRA cannot
reach is not reached here either.

Server momentum goes along: m is of B's columns, and becomes m A (c Vᵀ)⁺, which has the same product. The
adaptive server optimisers work coordinate by coordinate, and columns of B mean nothing from round to round.
"""

from __future__ import annotations

import math
from typing import Annotated, ClassVar, final

import numpy as np
from pydantic import BaseModel, Field

from wardround.core import lora
from wardround.core.lora import Factored, Pair
from wardround.core.packed import Adapter, Array, Layout, Packed, Statistics, pack, require_finite
from wardround.strategies._mean_update import mean_update, require_first, require_layout, site_update, taken
from wardround.strategies._products import ProductBroadcast, dense_part, is_zero
from wardround.strategies._server_optimisers import M, Momentum, NoOptimiser, server_step
from wardround.strategies._tangent_space import ProximalOptions
from wardround.strategies.contract import (
    Broadcast,
    LocalRules,
    LocalUpdate,
    ServerState,
    SiteMemory,
    SumStrategy,
)


class FedSVDOptions(ProximalOptions):
    """What goes with FedSVD."""

    server: Annotated[NoOptimiser | Momentum, Field(discriminator="optimiser")] = NoOptimiser()
    """How the server steps along the mean update of B: none or momentum."""


@final
class FedSVD(ProductBroadcast[FedSVDOptions]):
    """The mean update of B and of the dense tensors is the step; then B A is factored anew."""

    Options: ClassVar[type[BaseModel]] = FedSVDOptions
    bounded_by_update: ClassVar[bool] = True
    name: ClassVar[str] = "fedsvd"
    any_rank = False
    linear = True

    def __init__(self, options: FedSVDOptions, layout: Layout) -> None:
        super().__init__(options, layout)
        self.moving = Layout(tensors=tuple(spec for spec in layout.tensors if spec.role != "lora_a"))
        self.frozen = frozenset(pair.a.name for pair in self.pairs)

    def local_rules(self, broadcast: Broadcast, memory: SiteMemory, round: int) -> LocalRules:  # noqa: ARG002 - the same for all
        """No A trains."""
        return LocalRules(proximal=self.options.proximal, frozen=self.frozen)

    def statistics_layout(self, stage: int) -> Layout:
        """Each B, and the dense tensors."""
        require_first(stage)
        return self.moving

    def contribute(
        self,
        broadcast: Broadcast,  # noqa: ARG002 - `before` is the broadcast here
        local: LocalUpdate,
        memory: SiteMemory,
        round: int,  # noqa: ARG002 - the same in every round
        stage: int,
    ) -> tuple[Statistics, SiteMemory]:
        """The site's update of B and of the dense tensors.

        Raises:
            PeerError: Another layout, or not finite.
        """
        require_first(stage)
        require_layout(local.before, self.layout, "the adapter before training")
        return taken(site_update(local.before, local.after), self.moving), memory

    def fold(self, state: ServerState, total: Statistics, weight: float, stage: int) -> ServerState:
        """The step along the mean of B, and the SVD.

        Raises:
            PeerError: As `mean_update`, or the result is not finite; the state is left as it was.
        """
        require_first(stage)
        with np.errstate(over="ignore", invalid="ignore"):  # named by require_finite
            mean = mean_update(self.moving, total, weight)
            step, slots = server_step(mean, state.slots, self.options.server)
            require_finite(step, "the step")
            tensors: dict[str, Array] = {}
            turned: dict[str, Array] = {}
            for pair in self.pairs:
                b, a = state.adapter[pair.b.name], state.adapter[pair.a.name]
                if not is_zero(step[pair.b.name]):
                    b, a, turned[pair.b.name] = _factored_anew(
                        b.astype(np.float64) + step[pair.b.name], a.astype(np.float64)
                    )
                tensors |= {pair.b.name: b, pair.a.name: a}
            for name, part in dense_part(step, self.layout).items():
                tensors[name] = state.adapter[name].astype(np.float64) + part
            adapter: Adapter = pack(self.layout, tensors, np.float32)
            require_finite(adapter, "the folded adapter")
        if M in slots:
            slots = {**slots, M: _turned(slots[M], self.pairs, turned)}
        return ServerState(state.round + 1, adapter, slots)


def _factored_anew(b: Array, a: Array) -> tuple[Array, Array, Array]:
    """(U Σ/c, c Vᵀ) of a product, and what takes columns that go with the old A to the new one.

    Raises:
        PeerError: Not finite, or the SVD does not converge.
    """
    rank = a.shape[0]
    found = Factored(b, a).truncated(rank)
    used = int(np.sum(found.values > lora.DEPENDENT * found.values[0])) if found.values.size else 0
    rows = lora.orthonormal(np.hstack([found.v[:, :used], a.T]))
    rows = rows[:, np.any(rows != 0, axis=0)][:, :rank]
    length = float(np.linalg.norm(a)) / math.sqrt(rows.shape[1] or 1)
    new_b, new_a = np.zeros(b.shape), np.zeros(a.shape)
    new_b[:, :used] = found.u[:, :used] * found.values[:used] / (length or 1.0)
    new_a[: rows.shape[1]] = length * rows.T
    turn = np.zeros((rank, rank))
    turn[:, : rows.shape[1]] = (a @ rows) / (length or 1.0)
    return new_b, new_a, turn


def _turned(momentum: Packed, pairs: tuple[Pair, ...], turned: dict[str, Array]) -> Packed:
    """The momentum of each B, for the A that stands there now."""
    moved = momentum.with_vector(momentum.vector.copy())
    for pair in pairs:
        if pair.b.name in turned:
            moved[pair.b.name][...] = momentum[pair.b.name] @ turned[pair.b.name]
    return moved


STRATEGY: type[SumStrategy] = FedSVD
