"""Blocks of patients in turn: who is in which step, and what a private step refuses."""

from __future__ import annotations

from collections import Counter
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from wardround.core.errors import BudgetError, ConfigError, InternalError, PolicyError
from wardround.privacy.accounting.banded import coefficients
from wardround.privacy.accounting.mechanisms import BandedGaussian
from wardround.privacy.noise.correlated import CorrelatedNoise, NoiseState
from wardround.training.private import gradient
from wardround.training.private.blocks import BlockBatch, BlockSampler, Pattern, block_of
from wardround.training.private.clipping import Adaptive, Flat
from wardround.training.private.gradient import Correlated, private_gradients

KEY = bytes(range(32))
UNITS = [f"p{number // 2}" for number in range(120)]


def drawn(units: list[str], bands: int, steps: int, **options: Any) -> list[BlockBatch]:
    """The batches of a run."""
    pattern = Pattern(units, bands, KEY)
    sampler = BlockSampler(pattern, units, 0, options.pop("source"), **options)
    return [sampler.draw() for _ in range(steps)]


def test_every_unit_is_in_every_b_th_step_with_all_its_rows(seeded: Any) -> None:
    """And in no other; the blocks together are everybody."""
    bands, steps = 7, 23
    batches = drawn(UNITS, bands, steps, source=seeded(0))
    for unit in set(UNITS):
        rows = {row for row, owner in enumerate(UNITS) if owner == unit}
        taken = [step for step, batch in enumerate(batches) if rows & set(batch.indices)]
        assert taken == list(range(block_of(unit, bands, KEY), steps, bands))
        assert all(rows <= set(batches[step].indices) for step in taken)
    for batch in batches:
        owners = [UNITS[row] for row in batch.indices]
        assert Counter(zip(owners, batch.units, strict=True)) == Counter(
            dict.fromkeys(zip(owners, batch.units, strict=True), 2)
        )


def test_one_unit_less_moves_nobody_else(seeded: Any) -> None:
    """Neighbours under adding or removing one differ in that unit's steps alone."""
    less = [unit for unit in UNITS if unit != "p3"]
    whole, without = (drawn(units, 5, 10, source=seeded(0)) for units in (UNITS, less))
    for some, fewer in zip(whole, without, strict=True):
        assert {UNITS[row] for row in some.indices} - {"p3"} == {less[row] for row in fewer.indices}


def test_blocks_are_about_as_large_as_each_other_and_others_under_another_key() -> None:
    """By a hash: nobody chooses them."""
    many = [f"patient {number}" for number in range(20_000)]
    sizes = Counter(block_of(unit, 10, KEY) for unit in many)
    assert all(abs(size - 2000) < 5 * np.sqrt(1800) for size in sizes.values())
    other = sum(block_of(unit, 10, KEY) == block_of(unit, 10, bytes(32)) for unit in many)
    assert abs(other - 2000) < 5 * np.sqrt(1800)


def test_of_a_unit_with_many_rows_some_are_chosen_anew(seeded: Any) -> None:
    """At most K a step, and all of them in time."""
    units = ["ann"] * 9 + ["bob"]
    batches = drawn(units, 2, 60, source=seeded(0), most_examples=3)
    seen = [{row for row in batch.indices if units[row] == "ann"} for batch in batches]
    assert {len(rows) for rows in seen} == {0, 3}
    assert set().union(*seen) == set(range(9))
    with pytest.raises(ConfigError, match="leaves none"):
        drawn(units, 2, 1, source=seeded(0), most_examples=0)


@contextmanager
def banded(bench: Any, rows: Any, units: list[str], seeded: Any, **options: Any) -> Any:
    """Private gradients of a run, its sampler and its noise."""
    bands, steps = options.get("bands", 3), options.get("steps", 6)
    noise = CorrelatedNoise(bands, steps, NoiseState(KEY, 0, np.zeros((0, 0))))
    pattern = Pattern(units, bands, KEY)
    run = Correlated(BandedGaussian(sigma=2.0, bands=bands, steps=steps), noise, pattern)
    with private_gradients(
        bench, bench.parameters(), rows, run, options.get("clipping", Flat(0.5)), expected_batch=2.0,
        source=options.get("source", seeded(1)), simulation=options.get("simulation", True),
    ) as gradients:  # fmt: skip
        words = seeded(0, repeatable=options.get("simulation", True))
        yield gradients, BlockSampler(pattern, units, 0, words), noise


@pytest.fixture
def cohort(opened: Any, toys: Any) -> tuple[Any, Any, list[str]]:
    """A bench, rows, and their patients."""
    rows = toys.rows(12, longest=9)
    return opened("bert"), rows, [f"p{number // 2}" for number in range(len(rows))]


def stepped(bench: Any, gradients: Any, stepping: Any) -> np.ndarray:
    """What a step wrote, times B; a small step is taken."""
    written = stepping.written(bench).double().numpy() * 2.0
    with np.errstate(all="ignore"):
        for parameter in bench.parameters().values():
            parameter.data.add_(1e-4)
    gradients.stepped()
    return written


def test_a_step_writes_its_blocks_sum_and_the_runs_noise(
    cohort: Any, seeded: Any, stepping: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whitened by C what is beside the clipped sums is N(0, σ² C²), in empty blocks as well."""
    bench, rows, units = cohort
    sums: list[np.ndarray] = []
    plain = gradient.add_correlated

    def spy(total: np.ndarray, *rest: Any) -> np.ndarray:
        sums.append(total.copy())
        return plain(total, *rest)

    monkeypatch.setattr(gradient, "add_correlated", spy)
    written, variances = [], []
    with banded(bench, rows, units, seeded) as (gradients, sampler, noise):
        for _ in range(6):
            batch = sampler.draw()
            variances.append(noise.variance)
            gradients.write(batch)
            assert gradients.noise_variance == pytest.approx((2.0 * 0.5 / 2.0) ** 2 * variances[-1])
            written.append(stepped(bench, gradients, stepping))
    assert all(np.linalg.norm(total) <= 0.5 * 6 for total in sums)
    noises = np.stack(written) - np.stack(sums)
    c = coefficients(3)
    fresh = np.stack([sum(c[i] * noises[t - i] for i in range(min(t, 2) + 1)) for t in range(6)])
    assert fresh.std() == pytest.approx(1.0, rel=4 / np.sqrt(2 * fresh.size))
    assert noise.done == 6


def test_what_does_not_follow_the_pattern_is_refused(cohort: Any, seeded: Any, stepping: Any) -> None:
    """Another step's block, a stranger in it, a patient in two pieces, a Poisson draw, one step too many."""
    bench, rows, units = cohort
    with banded(bench, rows, units, seeded, steps=3) as (gradients, sampler, _):
        first, second, third = (sampler.draw() for _ in range(3))
        stranger = next(row for row in range(12) if row not in first.indices)
        own = max((first, second, third), key=lambda batch: len(batch.indices))
        assert len(own.indices) > 1
        wrong = [
            second,
            replace(first, bands=4),
            replace(first, population=11),
            replace(first, indices=(*first.indices, stranger), units=(*first.units, 99)),
            stepping.batch(units, 1.0),
        ]
        for batch in wrong:
            with pytest.raises(InternalError):
                gradients.write(batch)
        for batch in (first, second, third):
            split = replace(batch, units=tuple(range(len(batch.units))))
            twice = replace(batch, indices=batch.indices * 2, units=batch.units * 2)
            if batch.indices:
                for bad in (split, twice):
                    with pytest.raises(InternalError, match="pattern"):
                        gradients.write(bad)
            gradients.write(batch)
            stepped(bench, gradients, stepping)
            with pytest.raises(InternalError, match="serves one step"):
                gradients.write(batch)
        with pytest.raises(BudgetError, match="more private steps"):
            gradients.write(sampler.draw())


def test_a_seed_protects_nobody_here_either(cohort: Any, seeded: Any) -> None:
    """Batches and noise, where nothing says simulation; and no clipping that would move."""
    bench, rows, units = cohort
    real = seeded(1, repeatable=False)
    with banded(bench, rows, units, seeded, simulation=False, source=real) as (gradients, sampler, _):
        batch = replace(sampler.draw(), repeatable=True)
        with pytest.raises(PolicyError, match="comes from a seed"):
            gradients.write(batch)
    with (
        pytest.raises(PolicyError, match="noise of a private step"),
        banded(bench, rows, units, seeded, simulation=False),
    ):
        pass
    adaptive = Adaptive(0.5, 2.0, 10.0)
    with (
        pytest.raises(InternalError, match="one scale"),
        banded(bench, rows, units, seeded, clipping=adaptive),
    ):
        pass
