"""The two-pass range finder: the mean product near its best rank-k approximation, from two sums.

Halko, Martinsson and Tropp, "Finding Structure with Randomness", SIAM Review 53(2), 2011, arXiv:0909.4061,
Algorithm 4.1 and section 5, with the two passes over sites; on LoRA that is FedASK: Wen, Zhu, Xu, Zhou and
Han, "Differentially Private Federated Low Rank Adaptation Beyond Fixed-Matrix", 2025, arXiv:2507.09990. With
ΔW_i what site i has learnt of a module, at any rank, D = Σ w_i ΔW_i / Σ w_i, and Ω (d_in × k) Gaussian,
k = r + p:

    stage 0: sites send Y_i = ΔW_i Ω / u        the server: Q = orth(Σ w_i Y_i), and broadcasts Q/u
    stage 1: sites send Z_i = (Q/u)ᵀ ΔW_i       the server: X = u Q Σ w_i Z_i / Σ w_i

and the next adapter is T_r(G + X), √σ on each side. X is D where D has rank k or less. Ω is drawn from the
layout's digest and the round, so that everybody has the same; it hides nothing. u = s · max(‖A‖, ‖B‖) of the
broadcast (spectral norms) brings what is sent to about the size of an update of B, as in `tangent.py`.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import ClassVar, Final, final

import numpy as np
from pydantic import BaseModel, Field

from wardround.core import lora
from wardround.core.checked import Frozen
from wardround.core.errors import PeerError
from wardround.core.lora import Factored, Pair
from wardround.core.packed import Array, Layout, Packed, Statistics, TensorSpec, pack
from wardround.strategies._mean_update import mean_update, require_layout
from wardround.strategies._products import (
    ProductBroadcast,
    dense_part,
    is_zero,
    product_update,
    public_draw,
    require_same_modules,
    stepped,
    unit_of,
)
from wardround.strategies.contract import (
    DISCARDED,
    Broadcast,
    LocalRules,
    LocalUpdate,
    ServerState,
    SiteMemory,
    SumStrategy,
)

RANGE: Final = "range"
"""Slot of Q/u between the two stages."""
COLUMNS, ROWS = ".range_columns", ".range_rows"


class TwoPassOptions(Frozen):
    """The sketch is wider than the rank by a few columns."""

    oversampling: int = Field(default=4, ge=0, le=64)
    """p; Halko et al. advise 5 to 10 where it costs little."""
    proximal: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    """μ of FedProx (Li et al. 2020, arXiv:1812.06127, equation 2); 0 adds nothing."""


@final
class TwoPass(ProductBroadcast[TwoPassOptions]):
    """Between the stages Q/u waits in the slot `range`; nothing else is kept."""

    Options: ClassVar[type[BaseModel]] = TwoPassOptions
    name: ClassVar[str] = "two_pass"
    stages: ClassVar[int] = 2

    def __init__(self, options: TwoPassOptions, layout: Layout) -> None:
        super().__init__(options, layout)
        self._range = Layout(
            tensors=tuple(
                TensorSpec(name=pair.module + COLUMNS, shape=(pair.d_out, self._width(pair)))
                for pair in self.pairs
            )
        )
        rows = (
            TensorSpec(name=pair.module + ROWS, shape=(self._width(pair), pair.d_in)) for pair in self.pairs
        )
        self._rows = Layout(tensors=(*rows, *self.dense))

    def _width(self, pair: Pair) -> int:
        """The k of a module: no wider than the module itself."""
        return min(pair.rank + self.options.oversampling, pair.d_out, pair.d_in)

    def broadcast_layout(self, stage: int) -> Layout:
        """The adapter's, then that of Q/u."""
        _require_one_of_two(stage)
        return self._range if stage else self.layout

    def broadcast(self, state: ServerState, round: int, stage: int) -> Broadcast:
        """The global adapter, then Q/u."""
        if stage == 0:
            return super().broadcast(state, round, stage)
        _require_one_of_two(stage)
        return Packed(self._range, state.slots[RANGE].vector.astype(np.float32))

    def local_rules(self, broadcast: Broadcast, memory: SiteMemory, round: int) -> LocalRules:  # noqa: ARG002 - the same for all
        """The proximal weight."""
        return LocalRules(proximal=self.options.proximal)

    def statistics_layout(self, stage: int) -> Layout:
        """Y of each module; then Z of each, and the dense tensors."""
        _require_one_of_two(stage)
        return self._rows if stage else self._range

    def contribute(
        self, broadcast: Broadcast, local: LocalUpdate, memory: SiteMemory, round: int, stage: int
    ) -> tuple[Statistics, SiteMemory]:
        """Y_i, or Z_i and the dense tensors' updates.

        Raises:
            PeerError: Other modules, two ranks, or not finite.
        """
        _require_one_of_two(stage)
        require_same_modules(local.before, self.layout, "the adapter before training")
        require_same_modules(local.after, local.before.layout, "the trained adapter")
        if stage:
            require_layout(broadcast, self._range, "the broadcast range")
        tensors: dict[str, Array] = {}
        for pair in self.pairs:
            change = product_update(local.before, local.after, pair)
            if stage:
                range_ = broadcast[pair.module + COLUMNS].astype(np.float64)
                tensors[pair.module + ROWS] = (range_.T @ change.left) @ change.right
            else:
                sketch = change.left @ (change.right @ self._test_matrix(pair, round))
                tensors[pair.module + COLUMNS] = sketch / unit_of(broadcast, pair)
        if not stage:
            return pack(self._range, tensors, np.float64), memory
        for spec in self.dense:
            before = local.before[spec.name].astype(np.float64)
            tensors[spec.name] = local.after[spec.name].astype(np.float64) - before
        return pack(self._rows, tensors, np.float64), memory

    def fold(self, state: ServerState, total: Statistics, weight: float, stage: int) -> ServerState:
        """Q from the first sum; T_r(G + X) from the second.

        Raises:
            PeerError: As `mean_update`, or the result is not finite; the state is left as it was.
        """
        _require_one_of_two(stage)
        mean = mean_update(self.statistics_layout(stage), total, weight)
        units = {pair.module: unit_of(state.adapter, pair) for pair in self.pairs}
        if stage == 0:
            found = {
                module + COLUMNS: lora.orthonormal(mean[module + COLUMNS]) / unit
                for module, unit in units.items()
            }
            # As it is broadcast in float32, so that server and sites compute with one value.
            rounded = pack(self._range, found, np.float32)
            kept = rounded.with_vector(rounded.vector.astype(np.float64))
            return replace(state, slots={**state.slots, RANGE: kept})
        range_ = state.slots[RANGE]
        steps: dict[str, Factored | None] = {}
        for module, unit in units.items():
            rows = mean[module + ROWS]
            steps[module] = None if is_zero(rows) else Factored(range_[module + COLUMNS] * unit**2, rows)
        adapter, discarded = stepped(state.adapter, steps, dense_part(mean, self.layout))
        return ServerState(state.round + 1, adapter, {}, {DISCARDED: discarded})

    def _test_matrix(self, pair: Pair, round: int) -> Array:
        """Ω (d_in, k) of a module and round, its columns about of length one."""
        draw = public_draw(self.layout, pair, round)
        return draw.standard_normal((pair.d_in, self._width(pair))) / math.sqrt(pair.d_in)


def _require_one_of_two(stage: int) -> None:
    if stage not in (0, 1):
        raise PeerError("the strategy has two stages", found=f"stage {stage}", expected="stage 0 or 1")


STRATEGY: type[SumStrategy] = TwoPass
