"""The second test of the gate: the noise as it was really added.

What lies in `.grad` after a step, times B, less the clipped sum of the same batch, is the noise. Each of its
P entries should be N(0, (σ C)²), apart from the others and from those of other steps, whatever the batch
holds and however it is cut: an empty batch is noise alone. Over the planned deviation, N entries have a sum
of squares with a chi-square distribution of N degrees of freedom.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from wardround.core.errors import InternalError
from wardround.privacy.accounting.banded import coefficients
from wardround.privacy.noise.correlated import NoiseState
from wardround.training.private.audit.findings import RARE, Finding
from wardround.training.private.audit.stage import CUTS, Stage, written
from wardround.training.private.clipping import Clipping
from wardround.training.private.per_example import columns_of

_KEPT: Final = 1 << 16
"""Coordinates of a step that are kept, to compare steps with each other."""
_A_CUT: Final = 2
"""Steps of a run with correlated noise, of each cut."""
_FULL: Final = 4
"""Units of a batch that is not empty: more than one microbatch where rows are cut."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Noise:
    """Of one step, over its planned deviation.

    Attributes:
        kept: Some of its coordinates, the same ones of every step.
        squares: Tensor → Σ z², and over how many.
        total: Σ z over all coordinates.
        count: How many these are.
        kind: How the batch was cut, and whether it was empty.
    """

    kept: Floats
    squares: dict[str, tuple[float, int]]
    total: float
    count: int
    kind: str


def noise_of_steps(stages: Sequence[Stage], *, repeats: int = 1) -> list[Finding]:
    """Deviation, mean, independence between steps, and shape of the noise.

    Args:
        stages: One, or several rounds or sites on one model, whose noise has to be independent as well.
        repeats: How often each kind of batch is taken.

    Raises:
        InternalError: Stages of adapters of other sizes.
    """
    return judged([noise for stage in stages for _ in range(repeats) for noise in _observed(stage)])


def noise_of_run(stages: Sequence[Stage]) -> list[Finding]:
    """The same of noise that is correlated over the steps of a run: of what is fresh in each of them.

    Whoever knows the steps before can take their part off, and nobody more than that: what is left is the z
    that the account counts on.

    Args:
        stages: Of runs with bands: several rounds or sites, whose noise has to be independent as well.

    Raises:
        InternalError: Stages of adapters of other sizes.
    """
    return judged([noise for stage in stages for noise in _fresh(stage)])


def judged(found: Sequence[Noise], *, shape: bool = True) -> list[Finding]:
    """The findings on some steps' noise; `shape`: that of a continuous distribution.

    Raises:
        InternalError: Steps of different adapters.
    """
    if len({(noise.count, len(noise.kept)) for noise in found}) != 1:
        raise InternalError("there is no noise to compare, or it has several sizes", found=len(found))
    kept, count = np.stack([noise.kept for noise in found]), found[0].count
    findings = [_deviation(found), _mean(found, count), _between(kept)]
    return [*findings, _shape(kept)] if shape else findings


def planned_deviation(stage: Stage, rule: Clipping) -> float:
    """σ C, written out once more: of adaptive clipping z_Δ C (Andrew et al. 2021, theorem 1)."""
    sigma, rules = stage.private.cost.sigma, stage.private.rules
    if rules.clipping == "adaptive":
        sigma = (sigma**-2 - (2 * rules.adaptive.count_noise) ** -2) ** -0.5
    return sigma * rule.bound


def _observed(stage: Stage) -> Iterator[Noise]:
    """The noise of an empty batch and of a full one, cut in every way."""
    parameters = stage.bench.parameters()
    columns = columns_of(parameters)
    rows = range(min(len(stage.rows), _FULL))
    full = [[row] for row in rows]
    for size in CUTS:
        with stage.step(size) as step:
            for name, units in (("empty", []), ("full", full)):
                total = step.clipped_sum(stage.batch(units))[0].total.cpu()
                deviation = planned_deviation(stage, step.clipping)
                step.write(stage.batch(units))
                values = (written(parameters) * stage.private.expected_batch - total).numpy() / deviation
                step.stepped()
                yield _summed(values, columns, f"{name}, cut into {size or 'one'}")


def _fresh(stage: Stage) -> Iterator[Noise]:
    """What is fresh in the first steps of a run over the rows, cut in every way."""
    parameters = stage.bench.parameters()
    columns = columns_of(parameters)
    private = replace(
        stage.private, units=[str(row) for row in range(len(stage.rows))],
        cost=replace(stage.private.cost, steps=_A_CUT * len(CUTS), rounds=1),
        state=NoiseState.begin(stage.private.batches),
    )  # fmt: skip
    steps = private.steps()
    sampler, same = private.sampler(steps), private.sampler(steps)
    earlier: list[Floats] = []
    for size in CUTS:
        with stage.step(size, steps) as step:
            for _ in range(_A_CUT):
                total = step.clipped_sum(same.draw())[0].total.cpu()
                step.write(sampler.draw())
                earlier.insert(0, (written(parameters) * private.expected_batch - total).numpy())
                step.stepped()
                of_before = zip(coefficients(private.cost.bands), earlier, strict=False)
                fresh = sum((c * noise for c, noise in of_before), np.zeros(len(total)))
                values = fresh / planned_deviation(stage, step.clipping)
                yield _summed(values, columns, f"cut into {size or 'one'}")


def _summed(values: Floats, columns: dict[str, slice], kind: str) -> Noise:
    squares = {
        name: (float(np.square(values[place]).sum()), place.stop - place.start)
        for name, place in columns.items()
    }
    every = max(1, len(values) // _KEPT)
    return Noise(values[::every].copy(), squares, float(values.sum()), len(values), kind)


def _deviation(found: Sequence[Noise]) -> Finding:
    """The group of entries (all, a kind of batch, a tensor) whose chi-square is least likely."""
    groups: dict[str, tuple[float, int]] = {}

    def add(name: str, squares: float, count: int) -> None:
        before = groups.get(name, (0.0, 0))
        groups[name] = before[0] + squares, before[1] + count

    for noise in found:
        for tensor, (squares, count) in noise.squares.items():
            add("all entries", squares, count)
            add(f"batch {noise.kind}", squares, count)
            add(f"tensor {tensor}", squares, count)
    rare = RARE / len(groups)

    def chance(group: tuple[float, int]) -> float:
        if not math.isfinite(group[0]):
            return -1.0
        chi = stats.chi2(group[1])
        return float(min(chi.cdf(group[0]), chi.sf(group[0])))

    name, (squares, count) = min(groups.items(), key=lambda item: chance(item[1]))
    low, high = stats.chi2.ppf(rare / 2, count), stats.chi2.isf(rare / 2, count)
    ratio, least, most = (math.sqrt(value / count) for value in (squares, low, high))
    note = f"over σ C; worst of {len(groups)} groups: {name}, {count} values"
    return Finding("noise, deviation", ratio, least, most, note)


def _mean(found: Sequence[Noise], count: int) -> Finding:
    total = sum(noise.total for noise in found) / math.sqrt(count * len(found))
    limit = float(stats.norm.isf(RARE / 2))
    return Finding("noise, mean", total, -limit, limit, "in standard errors")


def _between(kept: Floats) -> Finding:
    """⟨z_s, z_t⟩ / ‖z_s‖ is N(0, 1) for steps s ≠ t, whatever z_s is."""
    scaled = kept / np.maximum(np.linalg.norm(kept, axis=1, keepdims=True), 1e-300)
    pairs = [float(scaled[s] @ kept[t]) for s, t in combinations(range(len(kept)), 2)]
    limit = float(stats.norm.isf(RARE / 2 / max(1, len(pairs))))
    worst = max(pairs, key=abs, default=0.0)
    return Finding("noise, between steps", worst, -limit, limit, f"in standard errors; {len(pairs)} pairs")


def _shape(kept: Floats) -> Finding:
    """Kolmogorov and Smirnov against the normal distribution."""
    chance = float(stats.kstest(kept.reshape(-1), "norm").pvalue)
    return Finding("noise, shape", chance, RARE, 1.0, f"probability if normal; {kept.size} values")
