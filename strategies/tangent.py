"""Tangent aggregation: the mean of what sites learnt, in the tangent space at the broadcast.

Ours (docs/algorithms.md). With G = s · B A the broadcast adapter of a module, U = orth(B), P = orth(Aᵀ) and
ΔW_i = s_i B_i A_i − s_i B_i⁰ A_i⁰ what site i has learnt, at any rank r_i, a site sends

    M₁ = ΔW_i P               (d_out × r)
    M₂ = Uᵀ ΔW_i (I − P Pᵀ)   (r × d_in)

and the server makes X = (Σ w_i M₁ Pᵀ + U Σ w_i M₂) / Σ w_i = P_T(D) of the mean update D, and the next
adapter T_r(G + X), by QR and an SVD of size 2r, with √σ on each side, or as `split` says. T is the tangent
space at G of the manifold of rank-r matrices, T_r truncation (Vandereycken 2013, "Low-rank matrix completion
by Riemannian optimization", SIAM J. Optim. 23(2): the projection, and truncation as its retraction).

Properties (tests/properties/test_tangent_laws.py): linear in ΔW_i and so fit for sums; invariant under
B → B R, A → R⁻¹ A; isometric up to one public factor a module; exact where one factor trains; the result
differs from the exact T_r(G + D) in third order of the updates where sites train the broadcast's own r
directions, in second order where they train more.

Where B is zero there is no column space yet: A is frozen in such a round, all sites share it, and the message
M₁ is exact. M₁ and M₂ are divided by 2 s · max(‖A P‖₁, ‖Uᵀ B‖_∞), the largest sum of a column and of a row,
which everybody knows: where no coordinate of B or A moves beyond the plan's bound, hardly one of these does.

Server momentum lives in the tangent space: m ← β m + X, the step is η m, and m is projected onto the next
tangent space (vector transport by projection, Absil, Mahony and Sepulchre 2008, section 8.1.3). The adaptive
server optimisers work coordinate by coordinate, and coordinates of factors mean nothing from round to round.
"""

from __future__ import annotations

import math
from typing import Annotated, ClassVar, Final, Literal, final

import numpy as np
from pydantic import BaseModel, Field

from wardround.core import lora
from wardround.core.lora import Factored, Pair
from wardround.core.packed import Adapter, Array, Packed, Statistics, TensorSpec, require_finite
from wardround.strategies._mean_update import mean_update, require_first
from wardround.strategies._products import dense_part, is_zero, stepped
from wardround.strategies._server_optimisers import M, Momentum, NoOptimiser, server_step
from wardround.strategies._tangent_space import (
    COLUMNS,
    ROWS,
    Basis,
    ProximalOptions,
    TangentBroadcast,
    basis_at,
)
from wardround.strategies.contract import DISCARDED, ServerState, SumStrategy

ROW_LENGTH: Final = 1 / math.sqrt(3)
"""Of a row of A as LoRA draws it: uniform within ±1/√d_in."""


class TangentOptions(ProximalOptions):
    """What goes with tangent aggregation."""

    server: Annotated[NoOptimiser | Momentum, Field(discriminator="optimiser")] = NoOptimiser()
    """How the server steps along the mean update: none or momentum."""
    split: Literal["even", "rows"] = "even"
    """How the next factors share a product: √σ each, or rows of A of LoRA's usual length and B the rest."""


@final
class Tangent(TangentBroadcast[TangentOptions]):
    """The server keeps the momentum, where there is one, as messages in the present tangent space."""

    Options: ClassVar[type[BaseModel]] = TangentOptions
    name: ClassVar[str] = "tangent"

    def further(self, pair: Pair) -> tuple[TensorSpec, ...]:  # noqa: ARG002 - the same for every module
        """Nothing."""
        return ()

    def sent_further(self, pair: Pair, basis: Basis, change: Factored, round: int) -> dict[str, Array]:  # noqa: ARG002 - nothing is sent
        """Nothing."""
        return {}

    def fold(self, state: ServerState, total: Statistics, weight: float, stage: int) -> ServerState:
        """T_r(G + X), or the step along the momentum; the share of energy cut off is among the figures.

        Raises:
            PeerError: As `mean_update`, or the result is not finite; the state is left as it was.
        """
        require_first(stage)
        bases = {pair.module: basis_at(state.adapter, pair) for pair in self.pairs}
        with np.errstate(over="ignore", invalid="ignore"):  # named by require_finite
            mean = self.in_units(mean_update(self._statistics, total, weight), bases)
            step, slots = server_step(mean, state.slots, self.options.server)
        require_finite(step, "the step")
        wholes = {
            pair.module: self._moved_to(state.adapter, pair, step, bases[pair.module]) for pair in self.pairs
        }
        adapter, discarded = stepped(
            state.adapter, wholes, dense_part(step, self.layout), with_adapter=True,
            row_length=ROW_LENGTH if self.options.split == "rows" else None,
        )  # fmt: skip
        if M in slots:
            slots = {**slots, M: self._transported(slots[M], bases, adapter)}
        return ServerState(state.round + 1, adapter, slots, {DISCARDED: discarded})

    def _moved_to(self, adapter: Adapter, pair: Pair, step: Packed, basis: Basis) -> Factored | None:
        """G + X of a module, of inner size 2 r: G = (s B (A P)) Pᵀ lies in the tangent space as well."""
        first, second = step[pair.module + COLUMNS], step[pair.module + ROWS]
        if is_zero(first, second):
            return None
        own = lora.product(adapter, pair)
        return basis.vector(own.left @ (own.right @ basis.rows) + first, second)

    def _transported(self, momentum: Packed, bases: dict[str, Basis], adapter: Adapter) -> Packed:
        """The momentum, projected onto the tangent space at the next adapter."""
        moved = momentum.with_vector(momentum.vector.copy())
        for pair in self.pairs:
            vector = self.tangent_vector(momentum, pair.module, bases[pair.module])
            if vector is not None:
                first, second = basis_at(adapter, pair).message(vector)
                moved[pair.module + COLUMNS][...], moved[pair.module + ROWS][...] = first, second
        return moved


STRATEGY: type[SumStrategy] = Tangent
