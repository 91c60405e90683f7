"""From the gradients of single examples to one clipped sum over units (patients).

S = Σ_u f(‖h_u‖) h_u with h_u = Σ_{i ∈ u} g_i and the factor f of a clipping rule (`clipping.py`): Abadi et
al. 2016, arXiv:1607.00133v2, Algorithm 1, with a unit where they have an example. A unit's gradients are
summed first and clipped once: clipping its K examples one by one and then summing them has sensitivity K · C.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Final, final

import torch

from wardround.core.errors import InternalError
from wardround.training.private.clipping import Clipping, Groups

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
        clipped: How many were longer than the bound (or than a group's share of it).
        dropped: How many were not finite and contributed zero.
        norms: (units,) float64, before clipping.
    """

    total: torch.Tensor
    units: int
    clipped: int
    dropped: int
    norms: torch.Tensor

    @property
    def balance(self) -> float:
        """Σ_u (b_u − ½), b_u = 1 where u is not clipped: what adaptive clipping noises.

        A unit that contributes nothing counts for nothing, so that none moves it by more than ½.
        """
        return (self.units - self.dropped) / 2 - self.clipped


@final
class ClippedSum:
    """Sums units of a logical batch, each clipped by the rule; microbatches change float64 rounding alone.

    Guarantee: with one unit added or taken away (its examples all at once), `total` changes by at most the
    rule's `bound` in the Euclidean norm, whatever the unit's gradients are, as long as every other unit's
    gradients stay what they were. Norms, factors and sums are float64.

    Args:
        size: P.
        clipping: How a unit is shortened.
        device: Of the gradients.

    Raises:
        InternalError: The rule's groups do not hold every column once.
    """

    def __init__(self, size: int, clipping: Clipping, device: torch.device) -> None:
        self._clipping = clipping
        self._blocks = _blocks(clipping.groups or ((slice(0, size),),), size)
        wide = torch.device("cpu") if device.type == "mps" else device  # MPS has no float64
        self._total = torch.zeros(size, dtype=torch.float64, device=wide)
        self._norms: list[torch.Tensor] = []
        self._longer: list[torch.Tensor] = []
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
        return ClippedUnits(
            total=self._total.clone(),
            units=len(norms),
            clipped=sum(int(longer.sum()) for longer in self._longer),
            dropped=int((~torch.isfinite(norms)).sum()),
            norms=norms,
        )

    def _fold(self, rows: torch.Tensor) -> None:
        """Clip whole units (u, P) and add them: one pass for the norms, one for the sum."""
        if not len(rows):
            return
        limits = self._total.new_tensor(self._clipping.limits).unsqueeze(1)
        squares = self._total.new_zeros(len(limits), len(rows))
        for group, place in self._blocks:
            squares[group] += self._wide(rows[:, place]).square_().sum(1)
        norms, whole = squares.sqrt(), squares.sum(0).sqrt()
        # float64 holds the squares of all float32 numbers: a norm is not finite where a gradient is not.
        finite = torch.isfinite(whole)
        factors = torch.where(finite, self._clipping.factors(norms), 0.0)
        self._longer.append((finite & (norms > limits)).any(0))
        if not finite.all():
            rows, factors = rows[finite.to(rows.device)], factors[:, finite]  # 0 · NaN is NaN
        for group, place in self._blocks:
            self._total[place] += factors[group] @ self._wide(rows[:, place])
        self._norms.append(whole)

    def _wide(self, block: torch.Tensor) -> torch.Tensor:
        return block.to(self._total.device).to(torch.float64)


def _blocks(groups: Groups, size: int) -> list[tuple[int, slice]]:
    """(group, columns) in pieces that are widened at once.

    Raises:
        InternalError: A column is in no group, or in two.
    """
    places = sorted((place.start, place.stop) for group in groups for place in group)
    ends = [0, *(stop for _, stop in places)]
    if [start for start, _ in places] != ends[:-1] or ends[-1] != size:
        raise InternalError(
            "the groups of a clipping rule do not hold every column once",
            found=f"{len(groups)} groups", expected=f"{size} columns",
        )  # fmt: skip
    return [
        (number, slice(start, min(start + _BLOCK, place.stop)))
        for number, group in enumerate(groups)
        for place in group
        for start in range(place.start, place.stop, _BLOCK)
    ]
