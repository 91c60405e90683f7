"""Packing ring integers keeps exactly their low bits, at the width that it says."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wardround.core.errors import InternalError, PeerError
from wardround.privacy.packing import Bits, pack, packed, packed_size, unpack, word_of
from wardround.privacy.secagg.total import centred

WIDTHS: list[Bits] = [8, 12, 16, 20, 24, 32, 64]


@given(st.sampled_from(WIDTHS), st.lists(st.integers(0, 2**64 - 1), max_size=40))
def test_what_is_packed_comes_back_reduced(bits: Bits, values: list[int]) -> None:
    """As many bytes as the width asks for; every value modulo 2^bits."""
    word = word_of(bits)
    vector = np.array([value % 2 ** (8 * word.itemsize) for value in values], dtype=word)
    data = pack(vector, bits)
    assert len(data) == packed_size(len(values), bits) == -(-len(values) * bits // 8)
    back = unpack(data, len(values), bits)
    assert back.dtype == word
    assert not back.flags.writeable
    assert back.tolist() == [value % 2**bits for value in values]


@pytest.mark.parametrize("bits", WIDTHS)
def test_values_of_whole_words_stay_where_they_are(bits: Bits) -> None:
    """Packed and read as views, which nobody can write into; `pack` and `centred` give what is their own."""
    vector = np.arange(7, dtype=word_of(bits))
    whole = bits == 8 * vector.itemsize
    view, data = packed(vector, bits), b"x" + pack(vector, bits)
    back = unpack(memoryview(data)[1:], 7, bits)
    assert view.readonly
    assert np.shares_memory(np.frombuffer(view, dtype=np.uint8), vector) == whole
    assert np.shares_memory(np.frombuffer(data, dtype=np.uint8), back) == whole
    signed = centred(back, bits)
    signed += 1
    assert back.tolist() == vector.tolist() == list(range(7))
    assert pack(vector[::2], bits) == pack(vector[::2].copy(), bits)


@given(st.sampled_from(WIDTHS), st.lists(st.integers(0, 2**64 - 1), max_size=9))
def test_residues_are_centred_around_zero(bits: Bits, values: list[int]) -> None:
    """Beside Python's own integers; in narrow rings the bits beyond do not count."""
    vector = np.array([value % 2 ** (8 * word_of(bits).itemsize) for value in values], dtype=word_of(bits))
    half = 1 << (bits - 1)
    found = centred(vector, bits)
    assert found.dtype == np.int64
    assert found.tolist() == [(value + half) % 2**bits - half for value in values]


@given(st.sampled_from(WIDTHS), st.lists(st.integers(0, 2**16 - 1), min_size=1, max_size=9), st.data())
def test_the_bytes_are_the_number_written_little_endian(
    bits: Bits, values: list[int], data: st.DataObject
) -> None:
    """A slow twin: all values as one long number, the first in its lowest bits."""
    values = [data.draw(st.integers(0, 2**bits - 1)) for _ in values]
    number = sum(value << (bits * place) for place, value in enumerate(values))
    expected = number.to_bytes(packed_size(len(values), bits), "little")
    assert pack(np.array(values, dtype=word_of(bits)), bits) == expected


@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize("change", [-1, 1])
def test_another_length_is_refused(bits: Bits, change: int) -> None:
    """One byte more or fewer."""
    data = bytes(packed_size(7, bits) + change)
    with pytest.raises(PeerError, match="another length"):
        unpack(data, 7, bits)


@pytest.mark.parametrize("bits", [12, 20])
def test_bits_that_belong_to_no_value_are_refused(bits: Bits) -> None:
    """An odd number of values leaves half a byte over: it has to be zero."""
    data = bytearray(pack(np.zeros(3, dtype=word_of(bits)), bits))
    data[-1] |= 0x80
    with pytest.raises(PeerError, match="belong to none"):
        unpack(bytes(data), 3, bits)


def test_a_vector_of_another_ring_is_a_fault_of_ours() -> None:
    """Wrong word, wrong width."""
    with pytest.raises(InternalError, match="another ring"):
        pack(np.zeros(3, dtype=np.int64), 64)
    with pytest.raises(InternalError, match="no ring of this width"):
        word_of(10)
