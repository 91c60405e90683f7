"""Quantisation: unbiased, within its stated error, never wrapping, and honest about what it clipped."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wardround.core.errors import ConfigError, InternalError, TrainingError
from wardround.privacy.packing import Bits, pack, unpack, word_of
from wardround.privacy.quantisation import CHUNK, dequantise, quantise, scale_for
from wardround.privacy.secagg.total import centred

WIDTHS: list[Bits] = [8, 12, 16, 20, 24, 32, 64]


def rng(seed: int = 0) -> np.random.Generator:
    """Of one seed."""
    return np.random.Generator(np.random.PCG64(seed))


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_the_sum_is_within_the_stated_error_and_never_wraps(data: st.DataObject) -> None:
    """Even where every site sends its largest value with its largest weight; through packing, in the ring."""
    bits = data.draw(st.sampled_from(WIDTHS))
    sites = data.draw(st.integers(2, 40))
    most_weight = data.draw(st.integers(1, 5000))
    largest = data.draw(st.floats(1e-6, 1e3))
    scale = scale_for(bits=bits, largest=largest, most_weight=most_weight, sites=sites)
    value = st.one_of(st.just(largest), st.just(-largest), st.floats(-largest, largest))
    vectors = [np.array(data.draw(st.lists(value, min_size=3, max_size=3))) for _ in range(sites)]
    weights = [data.draw(st.one_of(st.just(most_weight), st.integers(1, most_weight))) for _ in range(sites)]
    total = np.zeros(3, dtype=word_of(bits))
    for index, (vector, weight) in enumerate(zip(vectors, weights, strict=True)):
        quantised = quantise(vector, weight, scale, rng(index))
        assert (quantised.clipped, quantised.shortened_by) == (0, 1.0)
        total += unpack(pack(quantised.integers, bits), 3, bits)
    exact = sum(w * v for w, v in zip(weights, vectors, strict=True))
    got = dequantise(centred(unpack(pack(total, bits), 3, bits), bits), scale)
    rounding = sites * most_weight * largest * 2.0**-50  # of float64, where the quantum is below it
    assert np.all(np.abs(got - exact) <= sites * scale.quantum + rounding)
    assert scale.error_of_mean(sum(weights)) == pytest.approx(sites * scale.quantum / sum(weights))


@pytest.mark.parametrize("bits", [8, 12, 16, 20, 24, 32])
def test_rounding_is_unbiased_far_below_one_quantum(bits: Bits) -> None:
    """A value of 0.137 quanta in a hundred thousand places: the mean is right within five standard errors."""
    scale = scale_for(bits=bits, largest=1.0, most_weight=1, sites=10)
    count = 100_000
    for quanta in (0.137, -0.137, 3.5, -3.5):
        vector = np.full(count, quanta * scale.quantum)
        mean = dequantise(centred(quantise(vector, 1, scale, rng(5)).integers, bits), scale).mean()
        assert abs(mean / scale.quantum - quanta) < 5 * 0.5 / math.sqrt(count)


def test_a_vector_that_is_too_long_is_shortened_and_counted() -> None:
    """To its bound and never a hair above, in float32 as well; the direction stays."""
    vector = rng().standard_normal(100_000).astype(np.float32)
    scale = scale_for(bits=32, largest=1.0, norm=2.0, most_weight=3, sites=5)
    quantised = quantise(vector, 3, scale, rng())
    back = dequantise(centred(quantised.integers, 32), scale) / 3
    assert np.linalg.norm(back) <= 2.0
    assert np.linalg.norm(back) > 2.0 * 0.999
    assert quantised.shortened_by == pytest.approx(2.0 / np.linalg.norm(vector), rel=1e-3)
    assert np.dot(back, vector) / (np.linalg.norm(back) * np.linalg.norm(vector)) > 0.9999


def test_coordinates_that_are_too_large_are_clipped_and_counted() -> None:
    """And only those."""
    scale = scale_for(bits=16, largest=0.5, most_weight=2, sites=5)
    vector = np.array([0.4, 0.6, -7.0, 0.5, -0.5, 1e30], dtype=np.float32)
    quantised = quantise(vector, 2, scale, rng())
    assert quantised.clipped == 3
    back = dequantise(centred(quantised.integers, 16), scale) / 2
    assert np.allclose(back, [0.4, 0.5, -0.5, 0.5, -0.5, 0.5], atol=scale.quantum)


@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("size", [0, 1, CHUNK, 2 * CHUNK + 1])
def test_the_integers_are_those_of_the_whole_vector_at_once(bits: Bits, dtype: Any, size: int) -> None:
    """A slow twin with the same random numbers; the vector has gaps, and must not be written to."""
    vector = np.repeat(rng(1).standard_normal(size), 2).astype(dtype)[::2]
    vector.flags.writeable = False
    scale = scale_for(bits=bits, largest=2.0, most_weight=3, sites=1)
    bound = 3 * 2.0 * scale.integers_per_unit
    scaled = np.clip(vector.astype(np.float64) * (3 * scale.integers_per_unit), -bound, bound)
    expected = np.floor(scaled + rng(2).random(size)).astype(np.int64)
    quantised = quantise(vector, 3, scale, rng(2))
    assert np.array_equal(quantised.integers, expected.view(np.uint64).astype(word_of(bits)))
    assert quantised.clipped == (np.abs(vector) > 2).sum()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_what_is_not_finite_is_refused(bad: float, dtype: Any) -> None:
    """With the count, not the value; also where only the square overflows."""
    scale = scale_for(bits=16, largest=1.0, most_weight=1, sites=5)
    vector = np.zeros(200_000, dtype=dtype)
    vector[[3, 150_000]] = bad
    with pytest.raises(TrainingError, match="found: 2 of 200000 values"):
        quantise(vector, 1, scale, rng())


@pytest.mark.parametrize(
    ("bits", "sites", "largest"), [(16, 20_000, 1.0), (16, 5, 0.0), (16, 5, math.inf), (16, 5, math.nan)]
)
def test_impossible_scales_are_refused(bits: Bits, sites: int, largest: float) -> None:
    """Too many sites for the ring, or a bound that is none."""
    with pytest.raises(ConfigError, match="no scale"):
        scale_for(bits=bits, largest=largest, most_weight=1, sites=sites)


@pytest.mark.parametrize("weight", [0, 3])
def test_a_weight_beyond_the_scale_is_a_fault_of_ours(weight: int) -> None:
    """The caller caps it; beyond it the sum could wrap."""
    scale = scale_for(bits=16, largest=1.0, most_weight=2, sites=5)
    with pytest.raises(InternalError, match="cannot be quantised"):
        quantise(np.zeros(3), weight, scale, rng())


def test_equal_seeds_give_equal_integers_on_every_machine() -> None:
    """Frozen: a run can be repeated."""
    scale = scale_for(bits=16, largest=1.0, most_weight=4, sites=5)
    vector = np.linspace(-1, 1, 9)
    integers = centred(quantise(vector, 4, scale, rng(42)).integers, 16)
    assert integers.tolist() == FROZEN


FROZEN = [-6551, -4914, -3275, -1638, 0, 1638, 3276, 4914, 6551]


@pytest.mark.parametrize(("bits", "most"), [(8, 42), (12, 682)])
def test_a_narrow_ring_has_room_for_so_many_sites(bits: Bits, most: int) -> None:
    """The numbers of docs/configuration.md."""
    scale_for(bits=bits, largest=1.0, most_weight=1, sites=most)
    with pytest.raises(ConfigError, match="no scale"):
        scale_for(bits=bits, largest=1.0, most_weight=1, sites=most + 1)
