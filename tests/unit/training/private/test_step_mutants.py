"""Sensitivity, and noise as it was really added: both hold, and notice what is broken on purpose.

Bounds on chi-squares would raise a false alarm once in 10⁶ fresh seeds; seeds are fixed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from mutants import clip_by_example, no_clip, noise_times
from scipy import stats

from wardround.training.private import gradient, summing
from wardround.training.private.units import ClippedSum
from wardround.training.workbench import Machine

RARE = 1e-6
UNITS = (0, 1, 1, 2, 3, 3, 3)
BOUND, SIGMA, EXPECTED = 0.3, 1.3, 5.0
SIZES = (1, 2, None)


@pytest.fixture
def rows(toys: Any) -> list[Any]:
    """Short ones that are alike, and a long one: what it is divided by shows."""
    whole = toys.rows(1, seed=5, longest=90)[0]
    assert whole.length > 60
    cut = [replace(whole, tokens=whole.tokens[:n], targets=whole.tokens[:n]) for n in (4, 60)]
    return [cut[index == 3] for index in range(len(UNITS))]


@pytest.fixture
def at(opened: Any) -> Any:
    """`at(size)`: a bench with microbatches of so many rows."""
    return lambda size: opened("llama", machine=Machine(device="cpu", microbatch_size=size), r=4)


def farthest(bench: Any, rows: list[Any], stepping: Any) -> float:
    """How far the sum moves when one unit is taken away, over C, at most; for short and long C."""

    def total(kept: list[int], bound: float) -> torch.Tensor:
        with stepping.open(bench, [rows[row] for row in kept], bound=bound) as steps:
            return steps.clipped_sum(stepping.batch([UNITS[row] for row in kept]))[0].total

    found = []
    for bound in (BOUND, 2.0):
        whole = total(list(range(len(UNITS))), bound)
        rests = [total([row for row, each in enumerate(UNITS) if each != unit], bound) for unit in set(UNITS)]
        found += [float((whole - rest).norm()) / bound for rest in rests]
    return max(found)


def spread(bench: Any, rows: list[Any], stepping: Any, draws: int = 2) -> tuple[float, int]:
    """Σ (noise / σ C)², and over how many values: noise is what `.grad` has beside the sum."""
    statistic, count = 0.0, 0
    for seed in range(draws):
        with stepping.open(bench, rows, bound=BOUND, sigma=SIGMA, expected=EXPECTED, seed=seed) as steps:
            steps.write(stepping.batch(UNITS))
            written = stepping.written(bench).double() * EXPECTED
        with stepping.open(bench, rows, bound=BOUND, seed=seed) as steps:
            noise = written - steps.clipped_sum(stepping.batch(UNITS))[0].total
        statistic += float((noise / (SIGMA * BOUND)).square().sum())
        count += len(noise)
    return statistic, count


def as_planned(statistic: float, count: int) -> bool:
    """Two-sided: less noise is no privacy, more of it no model."""
    low, high = stats.chi2.ppf([RARE / 2, 1 - RARE / 2], count)
    return bool(low < statistic < high)


@pytest.mark.parametrize("size", SIZES)
def test_one_unit_moves_the_sum_by_no_more_than_the_bound(
    size: int | None, at: Any, rows: list[Any], stepping: Any
) -> None:
    """Through the whole step; other units' gradients round otherwise in a batch without it."""
    assert 0.9 < farthest(at(size), rows, stepping) <= 1 + 1e-5


@pytest.mark.parametrize("size", SIZES)
def test_noise_is_added_once(size: int | None, at: Any, rows: list[Any], stepping: Any) -> None:
    """σ C over the logical batch, however it is cut."""
    assert as_planned(*spread(at(size), rows, stepping))


def test_the_deviation_is_what_was_planned(at: Any, rows: list[Any], stepping: Any) -> None:
    """To one per cent, on batches that happen to be empty."""
    bench, statistic, count = at(None), 0.0, 0
    with stepping.open(
        bench, rows, rate=1e-12, bound=BOUND, sigma=SIGMA, expected=EXPECTED, steps=60
    ) as steps:
        for seed in range(60):
            steps.write(stepping.batch(UNITS, 1e-12, seed))
            noise = stepping.written(bench).double() * EXPECTED / (SIGMA * BOUND)
            statistic, count = statistic + float(noise.square().sum()), count + len(noise)
            with torch.no_grad():
                next(iter(bench.parameters().values())).add_(1.0)  # whatever steps here
            steps.stepped()
    assert as_planned(statistic, count)
    assert not as_planned(statistic * 0.99**2, count)


@pytest.mark.parametrize("size", SIZES)
def test_cuts_change_no_bit_of_the_noise(size: int | None, at: Any, rows: list[Any], stepping: Any) -> None:
    """Equal sources give equal noise for any microbatches: nothing is drawn on the way."""
    found = []
    for each in (size, 3):
        bench = at(each)
        with stepping.open(bench, rows, bound=BOUND, sigma=SIGMA) as steps:
            steps.write(stepping.batch(UNITS))
            found.append(stepping.written(bench))
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=1e-5)


def mean_over_tokens(patch: pytest.MonkeyPatch) -> None:
    """The mean of the batch's tokens, as Hugging Face's `labels=` has it."""
    patch.setattr(
        summing,
        "example_means",
        lambda task, model, tensors, counts: task.example_losses(model, tensors) / counts.sum() * len(counts),
    )


def noise_in_pieces(split: bool) -> Callable[[pytest.MonkeyPatch], None]:
    """Noise with each microbatch, whole or its share of the deviation, and none at the end."""

    def patched(patch: pytest.MonkeyPatch) -> None:
        rng = np.random.default_rng(1)
        pieces = 4  # of two rows
        deviation = SIGMA * BOUND / (pieces if split else 1)

        def fold(total: ClippedSum, gradients: torch.Tensor, units: Any) -> None:
            total.add(gradients, units)
            total._total += torch.from_numpy(rng.normal(0, deviation, len(total._total)))

        patch.setattr(summing, "fold_piece", fold)
        patch.setattr(gradient, "add_noise", lambda total, *_: total)

    return patched


SENSITIVITY = {"no clip": no_clip, "clip by example": clip_by_example, "token mean": mean_over_tokens}
NOISE = {
    "half the noise": noise_times(0.5),
    "a tenth less noise": noise_times(0.9),
    "no noise": noise_times(1e-3),
    "noise with each microbatch": noise_in_pieces(split=False),
    "noise split over microbatches": noise_in_pieces(split=True),
}


@pytest.mark.parametrize("name", SENSITIVITY)
def test_broken_sensitivity_is_noticed(
    name: str, at: Any, rows: list[Any], stepping: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the sensitivity test."""
    bench = at(None)
    SENSITIVITY[name](monkeypatch)
    assert farthest(bench, rows, stepping) > 1.05


@pytest.mark.parametrize("name", NOISE)
def test_broken_noise_is_noticed(
    name: str, at: Any, rows: list[Any], stepping: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the chi-square."""
    bench = at(2)
    with stepping.open(bench, rows, bound=BOUND) as steps:
        total = steps.clipped_sum(stepping.batch(UNITS))[0].total
    NOISE[name](monkeypatch)
    with stepping.open(bench, rows, bound=BOUND, sigma=SIGMA, expected=EXPECTED) as steps:
        steps.write(stepping.batch(UNITS))
    noise = stepping.written(bench).double() * EXPECTED - total
    assert not as_planned(float((noise / (SIGMA * BOUND)).square().sum()), len(noise))


# torch 2.13 says of Opacus 1.6's hooks that they fire for outputs alone where no input needs a gradient.
@pytest.mark.filterwarnings("ignore:Full backward hook is firing:UserWarning")
def test_opacus_takes_the_same_step(tiny_bert: Any, toys: Any, rows_of_gradients: Any, stepping: Any) -> None:
    """Its hooks, clipping and division; every row a unit."""
    from opacus.grad_sample import GradSampleModule
    from opacus.optimizers import DPOptimizer

    rows = toys.rows(6)

    def bench() -> Any:
        made = rows_of_gradients.stirred(toys.bench(tiny_bert, toys.classifier, base_dropout="off"))
        made.model.base_model.model.dropout.p = 0.0
        return made

    ours, theirs = bench(), bench()
    bound = float(rows_of_gradients.slow(ours, rows).norm(dim=1).median())
    with stepping.open(ours, rows, bound=bound, noise=False, expected=4.0) as steps:
        optimiser = torch.optim.SGD(ours.parameters().values(), lr=0.5)
        figures = steps.write(stepping.batch(range(6)))
        optimiser.step()
        steps.stepped()
    hooked = GradSampleModule(theirs.model, loss_reduction="sum", strict=False)
    try:
        plain = torch.optim.SGD(theirs.parameters().values(), lr=0.5)
        optimiser = DPOptimizer(plain, noise_multiplier=0.0, max_grad_norm=bound, expected_batch_size=4)
        theirs.task.example_losses(hooked, theirs.task.collate(rows, theirs.data)).sum().backward()
        optimiser.step()
    finally:
        hooked.remove_hooks()
    assert 0 < figures.clipped < 6
    start = bench().read_adapter().vector
    found, expected = ours.read_adapter().vector - start, theirs.read_adapter().vector - start
    assert np.linalg.norm(found - expected) < 1e-5 * np.linalg.norm(expected)


def test_the_noise_of_an_entry_is_normal(at: Any, rows: list[Any], stepping: Any) -> None:
    """Its shape as well: Kolmogorov and Smirnov."""
    bench = at(None)
    with stepping.open(bench, rows, bound=BOUND) as steps:
        total = steps.clipped_sum(stepping.batch(UNITS))[0].total
    with stepping.open(bench, rows, bound=BOUND, sigma=SIGMA) as steps:
        steps.write(stepping.batch(UNITS))
    noise = (stepping.written(bench).double() - total) / (SIGMA * BOUND)
    assert stats.kstest(noise.numpy(), "norm").pvalue > RARE
    assert abs(float(noise.mean())) < 5 / math.sqrt(len(noise))
