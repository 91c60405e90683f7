"""Compressed contributions: within their error, unbiased, whole with what waits, refused if hostile."""

from __future__ import annotations

import math
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from wardround.core.compression import Blocks, TopK
from wardround.core.errors import InternalError, PeerError, TrainingError
from wardround.privacy import index_sets
from wardround.privacy.block_scales import Scaled, from_bytes, levels, scaled, size_of, to_bytes
from wardround.privacy.compression import compress, compressed_size, decompress, largest_places, sent_of
from wardround.privacy.packing import word_of
from wardround.privacy.quantisation import Scale, quantise, scale_for

HEAD = 21
LARGEST = 8.0


def rng(seed: int = 0) -> np.random.Generator:
    """Of one seed."""
    return np.random.Generator(np.random.PCG64(seed))


def bounds(*, largest: float = LARGEST, norm: float = math.inf, bits: Any = 16) -> Scale:
    """Of five sites that weigh up to ten."""
    return scale_for(bits=bits, largest=largest, norm=norm, most_weight=10, sites=5)


VALUE = st.one_of(
    st.just(0.0), st.floats(-LARGEST, LARGEST, width=32), st.floats(-(2.0**-130), 2.0**-130, width=32)
)  # fmt: skip
"""Zeros and denormals among them."""
VECTORS = hnp.arrays(np.float32, st.integers(0, 200), elements=VALUE)
BLOCKS = st.builds(Blocks, bits=st.sampled_from([4, 8]), block=st.sampled_from([2, 3, 16, 64]))
TOP_K = st.builds(TopK, share=st.floats(0.001, 1.0), bits=st.sampled_from([8, 16, 32]))


@settings(deadline=None)
@given(VECTORS, BLOCKS, st.integers(0, 9))
def test_no_coordinate_is_further_off_than_its_block_s_scale(vector: Any, spec: Blocks, seed: int) -> None:
    """Rounded at random by less than a step, to the nearest by half of one; as many bytes as stated."""
    sent = compress(vector, spec, bounds(), rng(seed))
    found = decompress(sent.data, vector.size, spec, LARGEST)
    assert (len(sent.data), sent.rest, sent.clipped) == (compressed_size(vector.size, spec), None, 0)
    for random, most in ((rng(seed), 1.0), (None, 0.5)):
        values = scaled(vector, spec.bits, spec.block, random)
        steps = np.repeat(values.scales.astype(float), spec.block)[: vector.size]
        blocks = [np.abs(vector[i : i + spec.block]).max() for i in range(0, vector.size, spec.block)]
        fine = np.array(blocks, dtype=float) / levels(spec.bits)
        assert np.all(values.scales >= fine)
        assert np.all(values.scales <= fine * (1 + 2.0**-22) + 2.0**-149)
        assert np.all(np.abs(values.values() - vector) <= most * steps * (1 + 1e-9))
        if random is not None:
            assert np.array_equal(np.clip(values.values(), -LARGEST, LARGEST), found)


@pytest.mark.parametrize("bits", [4, 8])
def test_rounding_at_random_moves_no_mean(bits: Any) -> None:
    """Of a hundred thousand values of 0.137 steps the mean is right within five standard errors."""
    count, step = 100_000, 1.0 / levels(bits)
    for steps in (0.137, -0.137, 3.4):
        vector = np.full(count, steps * step)
        vector[::50] = 1.0  # what sets the scale
        values = scaled(vector, bits, 50, rng(3)).values()
        rest = np.delete(values, slice(0, None, 50))
        assert abs(rest.mean() / step - steps) < 5 * 0.5 / math.sqrt(count)


@settings(deadline=None)
@given(VECTORS, TOP_K, st.data())
def test_what_is_sent_and_what_waits_are_the_whole(vector: Any, spec: TopK, data: st.DataObject) -> None:
    """And the places are those of the k largest: no other one is larger than the least of them."""
    rest = data.draw(st.none() | hnp.arrays(np.float32, vector.size, elements=VALUE))
    whole = vector if rest is None else vector + rest
    sent = compress(vector, spec, bounds(largest=4 * LARGEST), rng(), rest)
    found = decompress(sent.data, vector.size, spec, 4 * LARGEST)
    assert len(sent.data) == compressed_size(vector.size, spec)
    assert sent.rest is not None
    assert sent.rest.dtype == np.float32
    if spec.bits == 32:
        assert np.array_equal(sent.rest + found.astype(np.float32), whole)
    assert np.all(np.abs(found + sent.rest - whole) <= 2.0**-24 * np.abs(whole) + 2.0**-149)
    if vector.size:
        places = largest_places(whole, sent_of(vector.size, spec))
        others = np.delete(np.abs(whole), places)
        assert len(set(places)) == sent_of(vector.size, spec)
        assert np.abs(whole[places]).min() >= others.max(initial=0.0)
        assert not np.delete(found, places).any()


def test_of_equal_values_the_earlier_go_first() -> None:
    """On any machine: NumPy's own partition leaves that open."""
    assert largest_places(np.array([1, -2, 2, -1, 2, 1.0]), 2).tolist() == [1, 2]
    assert largest_places(np.zeros(5), 3).tolist() == [0, 1, 2]
    assert [sent_of(n, TopK(share=0.01)) for n in (1, 100, 149, 150, 1000)] == [1, 1, 1, 2, 10]
    assert sent_of(3, TopK(share=1.0)) == 3


def test_over_rounds_everything_is_sent_but_what_waits() -> None:
    """Error feedback: the sum of all that was sent is the sum of all updates, less the last rest."""
    spec, random, rest = TopK(share=0.05, bits=8), rng(1), None
    total, arrived = np.zeros(400), np.zeros(400)
    for _ in range(60):
        update = random.standard_normal(400).astype(np.float32)
        sent = compress(update, spec, bounds(largest=100.0), rng(), rest)
        total, arrived, rest = total + update, arrived + decompress(sent.data, 400, spec, 100.0), sent.rest
    assert rest is not None
    np.testing.assert_allclose(arrived + rest, total, atol=1e-4)
    assert np.linalg.norm(rest) < np.linalg.norm(total)  # it does not grow without end


@settings(deadline=None)
@given(VECTORS, st.one_of(BLOCKS, TOP_K), st.floats(1e-3, 50.0), st.integers(1, 10))
def test_the_plan_s_bounds_hold_of_what_is_sent(vector: Any, spec: Any, norm: float, weight: int) -> None:
    """Whatever rounding, and what waited, add: the server's own encoder shortens and clips none of it."""
    scale = bounds(largest=2.0, norm=norm)
    rest = np.full(vector.size, 5.0, np.float32) if isinstance(spec, TopK) else None
    sent = compress(vector, spec, scale, rng(), rest)
    found = decompress(sent.data, vector.size, spec, 2.0)
    assert np.linalg.norm(found) <= norm
    on_ring = quantise(found, weight, scale, rng())
    assert (on_ring.shortened_by, on_ring.clipped) == (1.0, 0)
    assert sent.clipped == np.count_nonzero(np.abs(vector * sent.shortened_by) > 2.0)
    if sent.rest is not None:  # bounded first, so that what is beyond the bounds does not wait for ever
        bounded = np.clip(vector * sent.shortened_by, -2.0, 2.0).astype(np.float32) + 5.0
        np.testing.assert_allclose(found + sent.rest, bounded, rtol=1e-6)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(1, 10), min_size=2, max_size=5), st.permutations(range(5)))
def test_sums_of_what_was_read_have_the_same_bits_in_any_order(weights: list[int], order: list[int]) -> None:
    """On the ring, as uncompressed ones."""
    scale, totals = bounds(), []
    specs = [Blocks(bits=4), TopK(share=0.1), Blocks(), TopK(share=1.0, bits=32), TopK(bits=8)]
    for chosen in (range(5), order):
        total = np.zeros(50, dtype=word_of(16))
        for site in [site for site in chosen if site < len(weights)]:
            sent = compress(rng(site).standard_normal(50), specs[site], scale, rng(site))
            total += quantise(
                decompress(sent.data, 50, specs[site], LARGEST), weights[site], scale, rng(site)
            ).integers
        totals.append(total)
    assert np.array_equal(*totals)


@pytest.mark.parametrize("spec", [Blocks(), Blocks(bits=4), TopK(), TopK(bits=8), TopK(bits=32)])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_not_sent(spec: Any, value: float) -> None:
    """Refused as without compression."""
    with pytest.raises(TrainingError, match=r"not finite(?s:.*)1 of 10 values"):
        compress(np.array([0.0] * 9 + [value]), spec, bounds(), rng())


def test_a_rest_of_another_contribution_is_a_fault() -> None:
    """Of another length, or where nothing waits."""
    for spec, size in ((TopK(), 4), (Blocks(), 5)):
        with pytest.raises(InternalError, match="no such contribution"):
            compress(np.ones(5), spec, bounds(), rng(), np.zeros(size, np.float32))


@settings(deadline=None)
@given(st.data())
def test_a_set_of_places_comes_back_in_as_few_bits_as_stated(data: st.DataObject) -> None:
    """Below 2 + log2(n / k) bits a place and three bytes, and never more than a bitmap and its bits."""
    among = data.draw(st.integers(1, 3000))
    places = data.draw(st.sets(st.integers(0, among - 1), min_size=1, max_size=200))
    rising = np.array(sorted(places), dtype=np.int64)
    octets = index_sets.coded(rising, among)
    assert np.array_equal(index_sets.places_in(octets, rising.size, among), rising)
    assert len(octets) == index_sets.coded_size(rising.size, among)
    assert 8 * len(octets) <= rising.size * (2 + math.log2(among / rising.size)) + 24
    for wrong in ([0, 0], [1, 0], [-1], [among], []):
        with pytest.raises(InternalError, match="no places in rising order"):
            index_sets.coded(np.array(wrong, dtype=np.int64), among)


@settings(deadline=None, max_examples=200)
@given(VECTORS.filter(lambda v: v.size > 0), st.one_of(BLOCKS, TOP_K), st.data())
def test_altered_bytes_are_refused_or_read_as_something_bounded(
    vector: Any, spec: Any, data: st.DataObject
) -> None:
    """Never anything but a PeerError; and of places each set has one code."""
    octets = bytearray(compress(vector, spec, bounds(), rng()).data)
    place = data.draw(st.integers(0, len(octets) - 1))
    octets[place] ^= data.draw(st.integers(1, 255))
    try:
        found = decompress(bytes(octets), vector.size, spec, LARGEST)
    except PeerError:
        return
    assert place >= HEAD
    assert found.shape == vector.shape
    assert np.abs(found).max() <= LARGEST


def with_bytes(octets: bytes, start: int, new: bytes) -> bytes:
    """The same with some of them replaced."""
    return octets[:start] + new + octets[start + len(new) :]


def test_each_kind_of_hostile_bytes_is_named() -> None:
    """Lengths, forms, scales, steps, places, values."""
    spec, vector = Blocks(block=4), np.linspace(-1, 1, 10)
    good = compress(vector, spec, bounds(), rng()).data
    small, four = Blocks(bits=4, block=4), np.arange(1.0, 10.0)  # nine: half a byte is over
    of_four = compress(np.clip(four, -7, 7), small, bounds(), rng()).data
    zero = compress(np.zeros(10), spec, bounds(), rng()).data
    wide, few = TopK(share=0.5, bits=32), TopK(share=0.2, bits=8)
    values = compress(vector, wide, bounds(), rng()).data
    places = compress(np.eye(1, 20, 13)[0], few, bounds(), rng()).data
    low = HEAD  # k = 4 of 20: two low bits each, then a bitmap of 8 bits
    assert (places[low], places[low + 1]) == (0b01_10_01_00, 0b0100_0111)
    scale = struct.Struct("<f")
    for data, count, kind, match in (
        (good[:-1], 10, spec, "wrong length"),
        (good + b"\0", 10, spec, "wrong length"),
        (good, 9, spec, "wrong length"),
        (b"", 10, spec, "wrong length"),
        (b"x", 0, spec, "wrong length"),
        (with_bytes(good, 0, b"WBQ2"), 10, spec, "another form or version"),
        (with_bytes(good, 4, b"\4"), 10, spec, "another form or version"),
        (with_bytes(good, HEAD, scale.pack(math.nan)), 10, spec, "scale is not finite"),
        (with_bytes(good, HEAD, scale.pack(math.inf)), 10, spec, "scale is not finite"),
        (with_bytes(good, HEAD, scale.pack(-0.001)), 10, spec, "scale is negative"),
        (with_bytes(good, HEAD, scale.pack(-0.0)), 10, spec, "scale is negative"),
        (with_bytes(good, HEAD, scale.pack(LARGEST / 126)), 10, spec, "above the plan's bound"),
        (with_bytes(good, HEAD + 12, b"\x80"), 10, spec, "never made"),
        (with_bytes(zero, HEAD + 12, b"\1"), 10, spec, "scale zero has values"),
        (with_bytes(of_four, HEAD + 12, b"\x08"), 9, small, "never made"),
        (with_bytes(of_four, HEAD + 16, bytes([of_four[-1] | 0x10])), 9, small, "belong to none"),
        (with_bytes(values, len(values) - 4, scale.pack(math.nan)), 10, wide, "not finite"),
        (with_bytes(values, len(values) - 4, scale.pack(9.0)), 10, wide, "above the plan's bound"),
        (with_bytes(places, low + 1, b"\x07"), 20, few, "another number of places"),
        (with_bytes(places, low + 1, b"\x4f"), 20, few, "another number of places"),
        (with_bytes(places, low, b"\x65"), 20, few, "in rising order"),  # 1, 1, 2, 13
        (with_bytes(places, low, b"\x46"), 20, few, "in rising order"),  # 2, 1, 0, 13
    ):
        with pytest.raises(PeerError, match=match):
            decompress(data, count, kind, LARGEST)
    out = index_sets.coded(np.array([9]), 10)
    with pytest.raises(PeerError, match="out of range"):
        index_sets.places_in(bytes([out[0] | 7, out[1]]), 1, 10)
    with pytest.raises(PeerError, match="belong to none"):
        index_sets.places_in(bytes([out[0], out[1] | 128]), 1, 10)
    with pytest.raises(PeerError, match="another length"):
        index_sets.places_in(out + b"\0", 1, 10)
    with pytest.raises(PeerError, match="another length"):
        from_bytes(b"", 1, 8, 64, LARGEST)


@settings(deadline=None)
@given(VECTORS, st.sampled_from([4, 8, 16]), st.sampled_from([2, 5, 64]), st.floats(0, 1))
def test_blocks_come_back_from_their_bytes(vector: Any, bits: int, block: int, factor: float) -> None:
    """Steps and scales, shortened ones as well."""
    for values in (one := scaled(vector, bits, block, None), one.times(factor)):
        octets = to_bytes(values, bits)
        found = from_bytes(octets, vector.size, bits, block, LARGEST)
        assert isinstance(found, Scaled)
        assert len(octets) == size_of(vector.size, bits, block)
        assert np.array_equal(found.steps, values.steps)
        assert np.array_equal(found.scales, values.scales)


@pytest.mark.parametrize(
    ("spec", "share"),
    [(Blocks(), 0.53125), (Blocks(bits=4), 0.28125), (TopK(), 0.01563), (TopK(bits=32), 0.0253)],
)
def test_how_much_smaller_it_is(spec: Any, share: float) -> None:
    """Against 16 bits a coordinate, of a million of them."""
    assert compressed_size(1_000_000, spec) / 2_000_000 == pytest.approx(share, rel=0.01)


def test_a_long_vector_is_cut_into_pieces_and_stays_one() -> None:
    """Pieces are whole blocks: the same as block by block."""
    vector = rng().standard_normal(100_003)
    whole = scaled(vector, 8, 64, None)
    alone = [scaled(vector[i : i + 64], 8, 64, None).values() for i in range(0, vector.size, 64)]
    assert np.array_equal(whole.values(), np.concatenate(alone))
