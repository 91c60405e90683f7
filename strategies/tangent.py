"""Tangent aggregation: the mean of what sites learnt, in the tangent space at the broadcast.

Ours (docs/algorithms.md). With G = s · B A the broadcast adapter of a module, U = orth(B), P = orth(Aᵀ) and
ΔW_i = s_i B_i A_i − s_i B_i⁰ A_i⁰ what site i has learnt, at any rank r_i, a site sends

    M₁ = ΔW_i P               (d_out × r)
    M₂ = Uᵀ ΔW_i (I − P Pᵀ)   (r × d_in)

and the server makes X = (Σ w_i M₁ Pᵀ + U Σ w_i M₂) / Σ w_i = P_T(D) of the mean update D, and the next
adapter T_r(G + X), by QR and an SVD of size 3r, with √σ on each side. T is the tangent space at G of the
manifold of rank-r matrices, T_r truncation (Vandereycken 2013, "Low-rank matrix completion by Riemannian
optimization", SIAM J. Optim. 23(2): the projection, and truncation as its retraction).

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

from dataclasses import dataclass
from typing import Annotated, ClassVar, Final, final

import numpy as np
from pydantic import BaseModel, Field

from wardround.core import lora
from wardround.core.checked import Frozen
from wardround.core.lora import Factored, Pair
from wardround.core.packed import Adapter, Array, Layout, Packed, Statistics, TensorSpec, pack, require_finite
from wardround.strategies._mean_update import mean_update, require_first
from wardround.strategies._products import (
    ProductBroadcast,
    dense_part,
    is_zero,
    product_update,
    require_same_modules,
    stepped,
)
from wardround.strategies._server_optimisers import M, Momentum, NoOptimiser, server_step
from wardround.strategies.contract import (
    DISCARDED,
    Broadcast,
    LocalRules,
    LocalUpdate,
    ServerState,
    SiteMemory,
    SumStrategy,
)

COLUMNS: Final = ".tangent_columns"
ROWS: Final = ".tangent_rows"
HEADROOM: Final = 2.0
"""M₁ has a part of either factor, B's as a rule the larger one; the ring's steps get coarser by as much."""


class TangentOptions(Frozen):
    """What goes with tangent aggregation."""

    proximal: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    """μ of FedProx (Li et al. 2020, arXiv:1812.06127, equation 2); 0 adds nothing."""
    server: Annotated[NoOptimiser | Momentum, Field(discriminator="optimiser")] = NoOptimiser()
    """How the server steps along the mean update: none or momentum."""


@dataclass(frozen=True)
class Basis:
    """The tangent space at one module's broadcast.

    Attributes:
        columns: U (d_out, r); a column is zero where B has no further direction.
        rows: P (d_in, r); likewise of Aᵀ.
        unit: What a message is divided by.
    """

    columns: Array
    rows: Array
    unit: float

    def message(self, change: Factored) -> tuple[Array, Array]:
        """M₁ (d_out, r) and M₂ (r, d_in) of an update, in its own units."""
        first = change.left @ (change.right @ self.rows)
        second = (self.columns.T @ change.left) @ change.right
        return first, second - (second @ self.rows) @ self.rows.T

    def vector(self, first: Array, second: Array) -> Factored:
        """M₁ Pᵀ + U M₂."""
        return Factored(np.hstack([first, self.columns]), np.vstack([self.rows.T, second]))


def basis_at(adapter: Adapter, pair: Pair) -> Basis:
    """The tangent space at an adapter's module."""
    b, a = adapter[pair.b.name].astype(np.float64), adapter[pair.a.name].astype(np.float64)
    columns, rows = lora.orthonormal(b), lora.orthonormal(a.T)
    reach = max(np.abs(a @ rows).sum(axis=0).max(), np.abs(columns.T @ b).sum(axis=1).max())
    return Basis(columns, rows, HEADROOM * pair.scaling * float(reach or 1.0))


@final
class Tangent(ProductBroadcast[TangentOptions]):
    """The server keeps the momentum, where there is one, as messages in the present tangent space."""

    Options: ClassVar[type[BaseModel]] = TangentOptions
    name: ClassVar[str] = "tangent"

    def __init__(self, options: TangentOptions, layout: Layout) -> None:
        super().__init__(options, layout)
        factors = (
            spec
            for pair in self.pairs
            for spec in (
                TensorSpec(name=pair.module + COLUMNS, shape=(pair.d_out, pair.rank)),
                TensorSpec(name=pair.module + ROWS, shape=(pair.rank, pair.d_in)),
            )
        )
        self._statistics = Layout(tensors=(*factors, *self.dense))

    def local_rules(self, broadcast: Broadcast, memory: SiteMemory, round: int) -> LocalRules:  # noqa: ARG002 - the same for all
        """No A trains whose B is zero."""
        still = frozenset(pair.a.name for pair in self.pairs if is_zero(broadcast[pair.b.name]))
        return LocalRules(proximal=self.options.proximal, frozen=still)

    def statistics_layout(self, stage: int) -> Layout:
        """M₁ and M₂ of each module, and the dense tensors."""
        require_first(stage)
        return self._statistics

    def contribute(
        self,
        broadcast: Broadcast,
        local: LocalUpdate,
        memory: SiteMemory,
        round: int,  # noqa: ARG002 - the same in every round
        stage: int,
    ) -> tuple[Statistics, SiteMemory]:
        """The update's projection on the tangent space at the broadcast; the site's rank may be another.

        Raises:
            PeerError: Other modules, two ranks, or not finite.
        """
        require_first(stage)
        require_same_modules(local.before, self.layout, "the adapter before training")
        require_same_modules(local.after, local.before.layout, "the trained adapter")
        tensors: dict[str, Array] = {}
        for pair in self.pairs:
            basis = basis_at(broadcast, pair)
            first, second = basis.message(product_update(local.before, local.after, pair))
            tensors[pair.module + COLUMNS], tensors[pair.module + ROWS] = (
                first / basis.unit,
                second / basis.unit,
            )
        for spec in self.dense:
            before = local.before[spec.name].astype(np.float64)
            tensors[spec.name] = local.after[spec.name].astype(np.float64) - before
        return pack(self._statistics, tensors, np.float64), memory

    def fold(self, state: ServerState, total: Statistics, weight: float, stage: int) -> ServerState:
        """T_r(G + X), or the step along the momentum; the share of energy cut off is among the figures.

        Raises:
            PeerError: As `mean_update`, or the result is not finite; the state is left as it was.
        """
        require_first(stage)
        bases = {pair.module: basis_at(state.adapter, pair) for pair in self.pairs}
        with np.errstate(over="ignore", invalid="ignore"):  # named by require_finite
            mean = mean_update(self._statistics, total, weight)
            step, slots = server_step(
                mean.with_vector(self._in_units(mean, bases)), state.slots, self.options.server
            )
        require_finite(step, "the step")
        adapter, discarded = stepped(
            state.adapter,
            {module: self._vector(step, module, basis) for module, basis in bases.items()},
            dense_part(step, self.layout),
        )
        if M in slots:
            slots = {**slots, M: self._transported(slots[M], bases, adapter)}
        return ServerState(state.round + 1, adapter, slots, {DISCARDED: discarded})

    def _in_units(self, mean: Statistics, bases: dict[str, Basis]) -> Array:
        """The mean update in the products' own units."""
        own = mean.with_vector(mean.vector.copy())
        for module, basis in bases.items():
            own[module + COLUMNS][...] *= basis.unit
            own[module + ROWS][...] *= basis.unit
        return own.vector

    def _vector(self, step: Packed, module: str, basis: Basis) -> Factored | None:
        first, second = step[module + COLUMNS], step[module + ROWS]
        return None if is_zero(first, second) else basis.vector(first, second)

    def _transported(self, momentum: Packed, bases: dict[str, Basis], adapter: Adapter) -> Packed:
        """The momentum, projected onto the tangent space at the next adapter."""
        moved = momentum.with_vector(momentum.vector.copy())
        for pair in self.pairs:
            vector = self._vector(momentum, pair.module, bases[pair.module])
            if vector is not None:
                first, second = basis_at(adapter, pair).message(vector)
                moved[pair.module + COLUMNS][...], moved[pair.module + ROWS][...] = first, second
        return moved


STRATEGY: type[SumStrategy] = Tangent
