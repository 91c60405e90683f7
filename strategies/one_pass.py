"""The anchored one-pass sketch: tangent aggregation, and a sketch of what lies outside the tangent space.

Ours, of known parts (docs/algorithms.md). Tangent aggregation (`tangent.py`) has P_T(D) of the mean update
D and leaves R = (I − U Uᵀ) D (I − P Pᵀ), which is of second order in the updates, or of first order where a
site trains more directions than the adapter has. R is small, so that a few columns may do. Beside M₁ and M₂
a site sends

    Y_i = R_i Ω        (d_out × p)
    Z_i = Ψ R_i        (p × d_in)
    C_i = Φ R_i Ξᵀ     (s × s, s = 8 p + 1)        R_i = (I − U Uᵀ) ΔW_i (I − P Pᵀ)

all linear in ΔW_i, with Gaussian Ω, Ψ, Φ, Ξ that everybody draws from the layout's digest and the round.
From their means Y, Z, C the server has

    Q = orth(Y),  V = orth(Zᵀ),  K = (Φ Q)⁺ C ((Ξ V)⁺)ᵀ,  R̂ = Q K Vᵀ

and the next adapter T_r(G + P_T(D) + R̂), √σ on each side. The sketch is that of Tropp, Yurtsever, Udell
and Cevher, "Streaming Low-Rank Matrix Approximation with an Application to Scientific Simulation", SIAM J.
Sci. Comput. 41(4), 2019, arXiv:1902.08651, section 2 (their "Practical Sketching Algorithms for Low-Rank
Matrix Approximation", SIAM J. Matrix Anal. Appl. 38(4), 2017, arXiv:1609.00048, has no core). R̂ = R where
R has rank p or less; else what Q and V miss of R comes into K as well. s is therefore wider than their 2 p
+ 1, with which a sketch of a flat R was worse than none: the core costs little beside Y and Z (no wider
than the module is needed).

Y, Z and C are divided by a public factor as M₁ and M₂ are (`_tangent_space.py`), twice as large: a Gaussian
column gathers a whole row of R. No server momentum, which lives in a tangent space: a step along R leaves it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Final, final

import numpy as np
from pydantic import BaseModel, Field

from wardround.core import lora
from wardround.core.errors import PeerError
from wardround.core.lora import Factored, Pair
from wardround.core.packed import Array, Statistics, TensorSpec, require_finite
from wardround.strategies._mean_update import mean_update, require_first
from wardround.strategies._products import dense_part, is_zero, public_draw, stepped
from wardround.strategies._tangent_space import (
    Basis,
    ProximalOptions,
    TangentBroadcast,
    basis_at,
    off_columns,
)
from wardround.strategies.contract import DISCARDED, ServerState, SumStrategy

RANGE, CORANGE, CORE = ".outside_columns", ".outside_rows", ".outside_core"
HEADROOM: Final = 4.0
"""Of a sketch's coordinates beyond those of a message: normal variables reach four of their deviations."""


class OnePassOptions(ProximalOptions):
    """How wide the sketch is."""

    columns: int = Field(default=4, ge=1, le=64)
    """p: rank of what is found outside the tangent space."""


@dataclass(frozen=True)
class Gaussians:
    """The test matrices of one module and round.

    Attributes:
        columns: Ω (d_in, p), variance 1.
        rows: Ψ (p, d_out), variance d_in/d_out: Z is about as large as Y.
        left: Φ (s, d_out), variance 1/d_out.
        right: Ξ (s, d_in), variance 1.
    """

    columns: Array
    rows: Array
    left: Array
    right: Array

    def sketch(self, outside: Factored) -> tuple[Array, Array, Array]:
        """Y, Z and C of a matrix."""
        return (
            outside.left @ (outside.right @ self.columns),
            (self.rows @ outside.left) @ outside.right,
            (self.left @ outside.left) @ (outside.right @ self.right.T),
        )

    def found(self, y: Array, z: Array, core: Array, basis: Basis) -> Factored:
        """R̂ = Q K Vᵀ; what rounding has put into the tangent space is left out.

        Raises:
            PeerError: A least-squares problem does not converge.
        """
        q = lora.orthonormal(off_columns(y, basis.columns))
        v = lora.orthonormal(off_columns(z.T, basis.rows))
        try:
            half = np.linalg.lstsq(self.left @ q, core, rcond=None)[0]
            inner = np.linalg.lstsq(self.right @ v, half.T, rcond=None)[0].T
        except np.linalg.LinAlgError as error:
            raise PeerError("the core of a sketch has no solution") from error
        return Factored(q @ inner, v.T)


@final
class OnePass(TangentBroadcast[OnePassOptions]):
    """The server keeps nothing but the adapter."""

    Options: ClassVar[type[BaseModel]] = OnePassOptions
    name: ClassVar[str] = "one_pass"

    def further(self, pair: Pair) -> tuple[TensorSpec, ...]:
        """Y, Z and C."""
        width, core = self._widths(pair)
        shapes = {RANGE: (pair.d_out, width), CORANGE: (width, pair.d_in), CORE: (core, core)}
        return tuple(TensorSpec(name=pair.module + name, shape=shape) for name, shape in shapes.items())

    def sent_further(self, pair: Pair, basis: Basis, change: Factored, round: int) -> dict[str, Array]:
        """Y_i, Z_i and C_i."""
        sketch = self._gaussians(pair, round).sketch(basis.outside(change))
        unit = HEADROOM * basis.unit
        return {
            pair.module + name: part / unit for name, part in zip((RANGE, CORANGE, CORE), sketch, strict=True)
        }

    def fold(self, state: ServerState, total: Statistics, weight: float, stage: int) -> ServerState:
        """T_r(G + P_T(D) + R̂); the share of energy cut off is among the figures.

        Raises:
            PeerError: As `mean_update`, or the result is not finite; the state is left as it was.
        """
        require_first(stage)
        bases = {pair.module: basis_at(state.adapter, pair) for pair in self.pairs}
        with np.errstate(over="ignore", invalid="ignore"):  # named by require_finite
            step = self.in_units(mean_update(self._statistics, total, weight), bases)
            require_finite(step, "the step")
            steps: dict[str, Factored | None] = {}
            for pair in self.pairs:
                basis = bases[pair.module]
                inside = self.tangent_vector(step, pair.module, basis)
                outside = self._outside(step, pair, basis, state.round + 1)
                steps[pair.module] = outside if inside is None else inside + outside if outside else inside
        adapter, discarded = stepped(state.adapter, steps, dense_part(step, self.layout))
        return ServerState(state.round + 1, adapter, {}, {DISCARDED: discarded})

    def _outside(self, step: Statistics, pair: Pair, basis: Basis, round: int) -> Factored | None:
        """R̂ of a module; None where nothing was found."""
        y, z, core = (step[pair.module + name] for name in (RANGE, CORANGE, CORE))
        if is_zero(y, z, core):
            return None
        found = self._gaussians(pair, round).found(y, z, core, basis)
        return found.scaled(HEADROOM * basis.unit)

    def _widths(self, pair: Pair) -> tuple[int, int]:
        """p, no wider than the module, and s."""
        width = min(self.options.columns, pair.d_out, pair.d_in)
        return width, min(8 * width + 1, max(2 * width + 1, min(pair.d_out, pair.d_in)))

    def _gaussians(self, pair: Pair, round: int) -> Gaussians:
        draw, (width, core) = public_draw(self.layout, pair, round), self._widths(pair)
        return Gaussians(
            draw.standard_normal((pair.d_in, width)),
            draw.standard_normal((width, pair.d_out)) * math.sqrt(pair.d_in / pair.d_out),
            draw.standard_normal((core, pair.d_out)) / math.sqrt(pair.d_out),
            draw.standard_normal((core, pair.d_in)),
        )


STRATEGY: type[SumStrategy] = OnePass
