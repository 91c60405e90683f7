"""From the gradients of single examples to one clipped sum over units (patients).

S = Σ_u min(1, C / ‖h_u‖₂) h_u with h_u = Σ_{i ∈ u} g_i: Abadi et al. 2016, arXiv:1607.00133v2, Algorithm 1,
with a unit where they have an example. A unit's gradients are summed first and clipped once: clipping its K
examples one by one and then summing them has sensitivity K · C.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Final, final

import torch

from wardround.core.errors import ConfigError, InternalError

_SLACK: Final = 2.0**-20
"""How far clipping stays below C, relatively: 10⁴ units in float64 round by less than 10⁻⁷ · C in all."""
_BLOCK: Final = 1 << 15
"""Columns that are widened to float64 at once."""


@dataclass(frozen=True)
class UnitPiece:
    """A microbatch of a logical batch, in which the examples of a unit stand side by side.

    Attributes:
        examples: Indices into the logical batch.
        units: The unit of each, as a number from 0.
    """

    examples: tuple[int, ...]
    units: tuple[int, ...]


def unit_pieces(
    units: Sequence[Hashable], lengths: Sequence[int], microbatch_size: int | None
) -> list[UnitPiece]:
    """Cut a logical batch so that no unit is open in more than one place.

    Units with the longest examples come first: like lengths share a microbatch, and a machine that is too
    small fails at once. A unit larger than a microbatch runs on into the next one.

    Args:
        units: The unit of each example.
        lengths: Of each example, in whatever the memory grows with.
        microbatch_size: Most examples at once; None leaves the batch whole.

    Returns:
        Pieces that together hold exactly the batch; none of it where the batch is empty.
    """
    members: dict[Hashable, list[int]] = {}
    for example, unit in enumerate(units):
        members.setdefault(unit, []).append(example)
    groups = [sorted(group, key=lambda index: -lengths[index]) for group in members.values()]
    groups.sort(key=lambda group: -lengths[group[0]])
    size = microbatch_size or max(1, len(units))
    pieces: list[list[tuple[int, int]]] = []
    for number, group in enumerate(groups):
        entries = [(example, number) for example in group]
        room = size - len(pieces[-1]) if pieces else 0
        if len(entries) <= room:
            pieces[-1] += entries
        else:
            pieces += [entries[start : start + size] for start in range(0, len(entries), size)]
    return [UnitPiece(*(tuple(part) for part in zip(*piece, strict=True))) for piece in pieces]


@dataclass(frozen=True)
class ClippedUnits:
    """The clipped sum of a logical batch. Only `total` may leave the site, and only once it is noised.

    Attributes:
        total: (P,) float64.
        units: How many there were.
        clipped: How many were longer than the bound.
        dropped: How many were not finite and contributed zero.
        norms: (units,) float64, before clipping.
    """

    total: torch.Tensor
    units: int
    clipped: int
    dropped: int
    norms: torch.Tensor


@final
class ClippedSum:
    """Sums units of a logical batch, each clipped to the bound; microbatches change float64 rounding alone.

    Guarantee: with one unit added or taken away (its examples all at once), `total` changes by at most
    `bound` in the Euclidean norm, whatever the unit's gradients are, as long as every other unit's gradients
    stay what they were. Norms, factors and sums are float64.

    Args:
        size: P.
        bound: C, the greatest norm of a unit's contribution.
        device: Of the gradients.

    Raises:
        ConfigError: The bound is not positive and finite.
    """

    def __init__(self, size: int, bound: float, device: torch.device) -> None:
        if not (math.isfinite(bound) and bound > 0):
            raise ConfigError(
                "the clipping norm is no bound", found=bound, expected="a finite number above 0",
                remedy="set a positive clipping norm",
            )  # fmt: skip
        self._bound = bound * (1 - _SLACK)
        wide = torch.device("cpu") if device.type == "mps" else device  # MPS has no float64
        self._total = torch.zeros(size, dtype=torch.float64, device=wide)
        self._norms: list[torch.Tensor] = []
        self._seen: set[Hashable] = set()
        self._open: tuple[Hashable, torch.Tensor] | None = None

    def add(self, gradients: torch.Tensor, units: Sequence[Hashable]) -> None:
        """Add a microbatch.

        A unit may run on from the end of the last microbatch; it is clipped once another one follows.

        Args:
            gradients: (lines, P), overwritten: the sums of units are formed in place.
            units: Of each line; the lines of a unit side by side.

        Raises:
            InternalError: A unit comes again after it was closed, or shapes differ; nothing was added.
        """
        runs = [(unit, len(list(run))) for unit, run in groupby(units)]
        running_on = self._open is not None and bool(runs) and runs[0][0] == self._open[0]
        fresh = [unit for unit, _ in runs[running_on:]]
        if gradients.shape != (len(units), len(self._total)):
            raise InternalError(
                "gradients do not fit their units", found=tuple(gradients.shape),
                expected=(len(units), len(self._total)),
            )  # fmt: skip
        if len(set(fresh)) < len(fresh) or self._seen & set(fresh):
            raise InternalError(
                "a unit comes in two places of a logical batch, and would be clipped twice",
                expected="all lines of a unit side by side",
                remedy="cut the batch with unit_pieces",
            )
        if not runs:
            return
        if self._open is not None:
            if running_on:
                gradients[0] += self._open[1]
            else:
                self._fold(self._open[1].unsqueeze(0))
        start = 0
        for slot, (_, count) in enumerate(runs):
            # Row by row, so that a unit's sum has the same bits wherever the batch is cut: under cancellation
            # another order of float32 additions gives another direction, beyond any bound.
            for row in range(start + 1, start + count):
                gradients[start] += gradients[row]
            if slot != start:  # slot < start: what is overwritten has been summed already
                gradients[slot] = gradients[start]
            start += count
        self._seen.update(fresh)
        self._fold(gradients[: len(runs) - 1])
        self._open = (runs[-1][0], gradients[len(runs) - 1].clone())

    def close(self) -> ClippedUnits:
        """The sum of all that was added; zeros where there was nothing."""
        if self._open is not None:
            self._fold(self._open[1].unsqueeze(0))
            self._open = None
        norms = torch.cat(self._norms) if self._norms else self._total.new_zeros(0)
        finite = torch.isfinite(norms)
        return ClippedUnits(
            total=self._total.clone(),
            units=len(norms),
            clipped=int((finite & (norms > self._bound)).sum()),
            dropped=int((~finite).sum()),
            norms=norms,
        )

    def _fold(self, rows: torch.Tensor) -> None:
        """Clip whole units (u, P) and add them: one pass for the norms, one for the sum."""
        if not len(rows):
            return
        squares = self._total.new_zeros(len(rows))
        for place in self._blocks():
            squares += self._wide(rows[:, place]).square_().sum(1)
        norms = squares.sqrt()
        finite = torch.isfinite(norms)
        # float64 holds the squares of all float32 numbers: a norm is not finite where a gradient is not.
        factors = torch.where(finite, (self._bound / norms.clamp_min(1e-300)).clamp_max(1), 0.0)
        if not finite.all():
            rows, factors = rows[finite.to(rows.device)], factors[finite]  # 0 · NaN is NaN
        for place in self._blocks():
            self._total[place] += factors @ self._wide(rows[:, place])
        self._norms.append(norms)

    def _blocks(self) -> list[slice]:
        return [slice(start, start + _BLOCK) for start in range(0, len(self._total), _BLOCK)]

    def _wide(self, block: torch.Tensor) -> torch.Tensor:
        return block.to(self._total.device).to(torch.float64)
