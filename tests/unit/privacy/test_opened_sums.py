"""A sum after it was opened: what no honest sites can have made is refused, the rest travels as it was."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from wardround.core.counting import TRAIN_LOSS, TRAIN_TARGETS, TRAINING_LAYOUT, WEIGHT
from wardround.core.errors import PeerError
from wardround.core.packed import Layout, TensorSpec
from wardround.core.plan import Encoding
from wardround.privacy.quantisation import quantise
from wardround.privacy.secagg.total import Sum, centred
from wardround.privacy.sums.offers import scale_of
from wardround.privacy.sums.opened import ImpossibleSumError, opened, read_opened, statistics_of

LAYOUT = Layout(tensors=(TensorSpec(name="a", shape=(6,)),))
SITES = ("a", "b", "c", "d", "e")


def total_of(coordinates: Any, weight: int, loss: int = 0, targets: int = 0, sites: Any = SITES) -> Sum:
    """A sum as it is opened."""
    counters = np.array([weight, loss, targets], np.int64)
    return Sum(np.array(coordinates, np.int64), counters, tuple(sites), ())


def statistics(total: Sum, encoding: Encoding, cohort: int = 5) -> Any:
    """What is folded of it."""
    return statistics_of(total, LAYOUT, encoding, cohort=cohort)


@pytest.mark.parametrize("bits", [8, 12, 16, 20, 24, 32, 64])
def test_the_largest_honest_sum_passes_in_every_ring(bits: Any) -> None:
    """Every site at its largest coordinate, weight and length; out comes Σ w x, to the stated error."""
    largest = 0.5
    encoding = Encoding(bits=bits, largest=largest, norm=largest * 6**0.5, most_weight=40)
    scale = scale_of(encoding, 5)
    vector = np.array([largest, -largest] * 3)
    parts = [quantise(vector, 40, scale, np.random.default_rng(index)) for index in range(5)]
    assert {part.clipped for part in parts} == {0}
    coordinates = sum(centred(part.integers, bits) for part in parts)
    found, counters = statistics(total_of(coordinates, 200, 12, 34), encoding)
    np.testing.assert_allclose(found.vector, 200 * vector, rtol=1e-12, atol=5 * scale.quantum)
    assert (found.layout, counters.layout) == (LAYOUT, TRAINING_LAYOUT)
    assert [int(counters[name]) for name in (WEIGHT, TRAIN_LOSS, TRAIN_TARGETS)] == [200, 12, 34]


@pytest.mark.parametrize("sites", [SITES, SITES[:4], SITES[:1]], ids=len)
def test_the_summed_weight_is_that_of_so_many_sites(sites: tuple[str, ...]) -> None:
    """From one a site to the plan's largest a site, of those that are in the sum and not of all asked."""
    encoding, count = Encoding(largest=0.5, most_weight=40), len(sites)
    weights = {-1: False, 0: False, count - 1: False, count: True, 40 * count: True, 40 * count + 1: False}
    for weight, possible in weights.items():
        total = total_of([0] * 6, weight, sites=sites)
        assert_possible(total, encoding, possible=possible, reason="summed weight")


def assert_possible(total: Sum, encoding: Encoding, *, possible: bool, reason: str) -> None:
    """It is folded, or refused for this reason."""
    if possible:
        statistics(total, encoding)
        return
    with pytest.raises(ImpossibleSumError, match=reason):
        statistics(total, encoding)


@pytest.mark.parametrize("place", [1, 2])
def test_no_counter_of_a_sum_is_negative(place: int) -> None:
    """Counters are sums of counts."""
    counters = {1: {"loss": -1}, 2: {"targets": -1}}[place]
    assert_possible(
        total_of([0] * 6, 50, **counters), Encoding(largest=0.5, most_weight=40), possible=False,
        reason="summed weight",
    )  # fmt: skip


@pytest.mark.parametrize("sign", [1, -1])
def test_no_coordinate_is_beyond_the_summed_weight_times_the_bound_of_one_site(sign: int) -> None:
    """To the rounding of so many sites; a smaller weight allows less."""
    encoding = Encoding(largest=0.5, most_weight=40)
    scale = scale_of(encoding, 5)
    for weight in (200, 50):
        edge = int(weight * 0.5 * scale.integers_per_unit) + 5
        at = [0, 0, sign * edge, 0, 0, 0]
        beyond = [0, 0, sign * (edge + 2), 0, 0, 0]
        assert_possible(total_of(at, weight), encoding, possible=True, reason="")
        assert_possible(total_of(beyond, weight), encoding, possible=False, reason="beyond the plan's bounds")


def test_no_sum_is_longer_than_the_summed_weight_times_the_length_of_one_contribution() -> None:
    """Each coordinate alone would pass; without a norm in the plan nobody asks."""
    encoding = Encoding(bits=32, largest=0.5, norm=0.6, most_weight=40)
    scale = scale_of(encoding, 5)

    def spread(length: float) -> Sum:
        one = length * 100 / 6**0.5 * scale.integers_per_unit
        return total_of([int(one)] * 6, 100)

    assert_possible(spread(0.6), encoding, possible=True, reason="")
    assert_possible(spread(0.601), encoding, possible=False, reason="beyond the plan's bounds")
    without = encoding.model_copy(update={"norm": None})
    assert_possible(spread(0.601), without, possible=True, reason="")


@pytest.mark.parametrize("bits", [8, 12, 16, 20, 24, 32, 64])
def test_an_opened_sum_comes_back_as_it_was(bits: Any) -> None:
    """Negative sums and the ends of the ring included; it is as wide as one contribution."""
    ends = [-(2 ** (bits - 1)), 2 ** (bits - 1) - 1, -1, 0, 1, 7]
    total = total_of(ends, 123, 2**61, 5)
    data = opened(total, round=3, stage=1, cohort=6, bits=bits)
    message, back = read_opened(data, LAYOUT, bits)
    assert (message.round, message.stage, message.cohort) == (3, 1, 6)
    assert back.coordinates.tolist() == ends
    assert back.counters.tolist() == [123, 2**61, 5]
    assert (back.survivors, back.liars) == (SITES, ())
    assert len(data) < 6 * bits // 8 + 3 * 8 + 250


@pytest.mark.parametrize("change", ["shorter", "longer", "another layout", "another ring", "no message"])
def test_an_opened_sum_of_another_size_is_refused(change: str) -> None:
    """Whoever sent it."""
    data = opened(total_of([1] * 6, 10), round=3, stage=0, cohort=5, bits=16)
    layout = Layout(tensors=(TensorSpec(name="a", shape=(5,)),)) if change == "another layout" else LAYOUT
    bits: Any = 32 if change == "another ring" else 16
    data = {"shorter": data[:-1], "longer": data + b"\0", "no message": b""}.get(change, data)
    with pytest.raises(PeerError):
        read_opened(data, layout, bits)


def test_sums_of_one_head_keep_their_own_numbers() -> None:
    """Heads are read once, whoever is sent them; what follows them is each message's."""
    totals = [total_of([number] * 6, 5, loss=number) for number in (3, 4, 3)]
    sent = [opened(total, round=2, stage=0, cohort=5, bits=16) for total in totals]
    assert sent[0] == sent[2]
    for data, total in zip(sent, totals, strict=True):
        message, found = read_opened(data, LAYOUT, 16)
        np.testing.assert_array_equal(found.coordinates, total.coordinates)
        np.testing.assert_array_equal(found.counters, total.counters)
        assert (message.round, found.survivors) == (2, SITES)
    with pytest.raises(PeerError, match="wrong length"):
        read_opened(sent[0][:-1], LAYOUT, 16)
