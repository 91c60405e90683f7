"""Noise that is correlated over steps: the dense matrix's, from a stream that can be left and taken up."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from wardround.core.errors import ConfigError, InternalError
from wardround.core.seeds import Purpose
from wardround.privacy.accounting.banded import coefficients, inverse
from wardround.privacy.noise.correlated import KEY_BYTES, CorrelatedNoise, NoiseState
from wardround.privacy.noise.gaussian import GRID_BITS
from wardround.privacy.noise.source import RepeatableSource

BANDS, STEPS, SIGMA = 4, 11, 3.0


def seeded(seed: int = 0) -> RepeatableSource:
    """Words."""
    return RepeatableSource(seed, Purpose.NOISE, round=1, site="w")


def matrix(column: np.ndarray, steps: int) -> np.ndarray:
    """Lower triangular and Toeplitz."""
    padded = np.concatenate([column, np.zeros(steps)])[:steps]
    return np.array([[padded[t - s] if t >= s else 0.0 for s in range(steps)] for t in range(steps)])


def stream(totals: np.ndarray, seed: int = 0, leave_at: tuple[int, ...] = ()) -> np.ndarray:
    """What is released, step by step; at some of them the noise is left and taken up again."""
    source = seeded(seed)
    noise = CorrelatedNoise(BANDS, len(totals), NoiseState.begin(seeded(9)))
    released = []
    for step, total in enumerate(totals):
        if step in leave_at:
            noise = CorrelatedNoise(BANDS, len(totals), noise.state)
        released.append(noise.add(total, SIGMA, source))
    return np.stack(released)


def test_streamed_noise_is_the_dense_product() -> None:
    """That is x + C⁻¹ z, for the z that the same words give alone: to what rounding to the grid moves."""
    totals = np.random.default_rng(1).normal(size=(STEPS, 200))
    source = seeded()
    alone = CorrelatedNoise(1, STEPS, NoiseState.begin(seeded(9)))
    fresh = np.stack([alone.add(np.zeros(200), SIGMA, source) for _ in range(STEPS)])
    expected = totals + matrix(inverse(BANDS, STEPS), STEPS) @ fresh
    assert np.abs(stream(totals) - expected).max() < 10 * SIGMA * 2.0**-GRID_BITS


def test_noise_that_was_left_goes_on_bit_by_bit() -> None:
    """From its state, at any step."""
    totals = np.random.default_rng(1).normal(size=(STEPS, 50))
    np.testing.assert_array_equal(stream(totals), stream(totals, leave_at=(0, 1, 3, 10)))


def test_its_covariance_is_that_of_the_matrix() -> None:
    """C⁻¹ C⁻ᵀ σ² between steps, nothing between coordinates; whitened by C it is N(0, σ²)."""
    count = 20_000
    released = stream(np.zeros((STEPS, count)))
    root = matrix(inverse(BANDS, STEPS), STEPS)
    found = released @ released.T / count
    assert np.abs(found - SIGMA**2 * root @ root.T).max() < 6 * SIGMA**2 * 1.4 / np.sqrt(count)
    white = matrix(np.array(coefficients(BANDS)), STEPS) @ released / SIGMA
    assert stats.kstest(white.ravel(), "norm").pvalue > 1e-3
    assert abs(float((white[:, 1:] * white[:, :-1]).mean())) < 4 / np.sqrt(white[:, 1:].size)


def test_every_release_lies_on_the_grid() -> None:
    """Whatever the sums are: the last bits say nothing of them."""
    totals = np.random.default_rng(3).normal(size=(STEPS, 50)) * np.pi
    grid = 2.0 ** (1 - GRID_BITS)  # of σ = 3
    released = stream(totals) / grid
    np.testing.assert_array_equal(released, np.rint(released))


def test_the_variance_that_is_told_is_that_of_the_next_step() -> None:
    """For optimisers that take it out, and for the figures of a step."""
    noise = CorrelatedNoise(BANDS, STEPS, NoiseState.begin(seeded()))
    source = seeded()
    found = [(noise.variance, noise.add(np.zeros(20_000), 1.0, source).var()) for _ in range(STEPS)]
    told, seen = np.array(found).T
    assert told[0] == 1.0
    assert (told[1:] > 1.2).all()
    np.testing.assert_allclose(seen, told, rtol=0.05)


def test_what_is_no_step_of_the_run_is_refused() -> None:
    """One too many, other parameters, and a state of another run."""
    noise = CorrelatedNoise(BANDS, 2, NoiseState.begin(seeded()))
    assert len(noise.key) == KEY_BYTES
    noise.add(np.zeros(3), 1.0, seeded())
    with pytest.raises(ConfigError, match="the same parameters in every step"):
        noise.add(np.zeros(4), 1.0, seeded())
    noise.add(np.zeros(3), 1.0, seeded())
    with pytest.raises(InternalError, match="more steps"):
        noise.add(np.zeros(3), 1.0, seeded())
    assert noise.done == 2
    for bands, steps in ((2, 2), (4, 1)):
        with pytest.raises(InternalError, match="of another run"):
            CorrelatedNoise(bands, steps, noise.state)


def test_one_band_keeps_nothing() -> None:
    """All units in every step, and noise of its own for each."""
    noise = CorrelatedNoise(1, 3, NoiseState.begin(seeded()))
    first, second = (noise.add(np.zeros(2000), 1.0, seeded(seed)) for seed in (1, 2))
    assert noise.state.kept.size == 0
    assert noise.variance == 1.0
    assert abs(float(np.corrcoef(first, second)[0, 1])) < 0.1
