"""The tangent space at the broadcast, and what a site sends of it: what tangent methods share.

Of the manifold of rank-r matrices at G = s · B A, with U = orth(B) and P = orth(Aᵀ), ΔW_i of any rank:

    M₁ = ΔW_i P               (d_out × r)
    M₂ = Uᵀ ΔW_i (I − P Pᵀ)   (r × d_in)
    P_T(ΔW_i) = M₁ Pᵀ + U M₂

Where B is zero there is no column space yet: A is frozen in such a round, all sites share it, and the message
M₁ is exact. M₁ and M₂ are divided by 2 s · max(‖A P‖₁, ‖Uᵀ B‖_∞), the largest sum of a column and of a row,
which everybody knows: where no coordinate of B or A moves beyond the plan's bound, hardly one of these does.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

import numpy as np
from pydantic import Field

from wardround.core import lora
from wardround.core.checked import Frozen
from wardround.core.lora import Factored, Pair
from wardround.core.packed import Adapter, Array, Layout, Packed, Statistics, TensorSpec, pack
from wardround.strategies._mean_update import require_first
from wardround.strategies._products import (
    ProductBroadcast,
    is_zero,
    product_update,
    require_same_modules,
)
from wardround.strategies.contract import Broadcast, LocalRules, LocalUpdate, SiteMemory

COLUMNS: Final = ".tangent_columns"
ROWS: Final = ".tangent_rows"
HEADROOM: Final = 2.0
"""M₁ has a part of either factor, B's as a rule the larger one; the ring's steps get coarser by as much."""


class ProximalOptions(Frozen):
    """What goes with any of them."""

    proximal: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    """μ of FedProx (Li et al. 2020, arXiv:1812.06127, equation 2); 0 adds nothing."""


O = TypeVar("O", bound=ProximalOptions)  # noqa: E741 - O for options, as T for type


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

    def outside(self, change: Factored) -> Factored:
        """(I − U Uᵀ) ΔW (I − P Pᵀ): what no message has."""
        return Factored(off_columns(change.left, self.columns), off_columns(change.right.T, self.rows).T)


def off_columns(matrix: Array, basis: Array) -> Array:
    """A matrix without its part in the span of orthonormal columns (or zero ones)."""
    return np.asarray(matrix - basis @ (basis.T @ matrix))


def basis_at(adapter: Adapter, pair: Pair) -> Basis:
    """The tangent space at an adapter's module."""
    b, a = adapter[pair.b.name].astype(np.float64), adapter[pair.a.name].astype(np.float64)
    columns, rows = lora.orthonormal(b), lora.orthonormal(a.T)
    reach = max(np.abs(a @ rows).sum(axis=0).max(), np.abs(columns.T @ b).sum(axis=1).max())
    return Basis(columns, rows, HEADROOM * pair.scaling * float(reach or 1.0))


class TangentBroadcast(ProductBroadcast[O], Generic[O]):
    """Sites send M₁ and M₂ of each module, what a file adds of its own, and the dense tensors' updates."""

    def __init__(self, options: O, layout: Layout) -> None:
        super().__init__(options, layout)
        factors = (
            spec
            for pair in self.pairs
            for spec in (
                TensorSpec(name=pair.module + COLUMNS, shape=(pair.d_out, pair.rank)),
                TensorSpec(name=pair.module + ROWS, shape=(pair.rank, pair.d_in)),
                *self.further(pair),
            )
        )
        self._statistics = Layout(tensors=(*factors, *self.dense))

    @abstractmethod
    def further(self, pair: Pair) -> tuple[TensorSpec, ...]:
        """What a site sends of a module beside its message."""

    @abstractmethod
    def sent_further(self, pair: Pair, basis: Basis, change: Factored, round: int) -> dict[str, Array]:
        """The values of `further`, of an update in its own units."""

    def local_rules(self, broadcast: Broadcast, memory: SiteMemory, round: int) -> LocalRules:  # noqa: ARG002 - the same for all
        """No A trains whose B is zero."""
        still = frozenset(pair.a.name for pair in self.pairs if is_zero(broadcast[pair.b.name]))
        return LocalRules(proximal=self.options.proximal, frozen=still)

    def statistics_layout(self, stage: int) -> Layout:
        """M₁ and M₂ of each module, what goes with them, and the dense tensors."""
        require_first(stage)
        return self._statistics

    def contribute(
        self, broadcast: Broadcast, local: LocalUpdate, memory: SiteMemory, round: int, stage: int
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
            change = product_update(local.before, local.after, pair)
            first, second = basis.message(change)
            tensors[pair.module + COLUMNS], tensors[pair.module + ROWS] = (
                first / basis.unit,
                second / basis.unit,
            )
            tensors |= self.sent_further(pair, basis, change, round)
        for spec in self.dense:
            before = local.before[spec.name].astype(np.float64)
            tensors[spec.name] = local.after[spec.name].astype(np.float64) - before
        return pack(self._statistics, tensors, np.float64), memory

    def in_units(self, mean: Statistics, bases: dict[str, Basis]) -> Statistics:
        """The mean message in the products' own units."""
        own = mean.with_vector(mean.vector.copy())
        for module, basis in bases.items():
            own[module + COLUMNS][...] *= basis.unit
            own[module + ROWS][...] *= basis.unit
        return own

    def tangent_vector(self, step: Packed, module: str, basis: Basis) -> Factored | None:
        """What a message in the products' own units stands for; None where it is zero."""
        first, second = step[module + COLUMNS], step[module + ROWS]
        return None if is_zero(first, second) else basis.vector(first, second)
