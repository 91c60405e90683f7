"""Laws of the fixed-point ring: order never changes a bit, the error is bounded, nothing wraps unseen."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wardround.core.errors import InternalError, PeerError
from wardround.core.plan import Encoding
from wardround.privacy.ring import MOST_WEIGHT, add, decode, encode

COORDINATE = st.floats(-8, 8, width=32)
SITES = st.integers(1, 6).flatmap(
    lambda n: st.lists(
        st.tuples(st.lists(COORDINATE, min_size=5, max_size=5), st.integers(1, 4000)), min_size=n, max_size=n
    )
)
F = Encoding().fraction_bits


def total_of(parts: list[np.ndarray[Any, Any]]) -> np.ndarray[Any, Any]:
    """Ring sum, one after the other."""
    total = np.zeros_like(parts[0])
    for part in parts:
        add(total, part)
    return total


@settings(deadline=None)
@given(sites=SITES, data=st.data())
def test_order_never_changes_a_bit(sites: list[tuple[list[float], int]], data: st.DataObject) -> None:
    """The sum has the same 64 bits in every order, masks that wrap included."""
    parts = [encode(np.array(x, np.float32), w, Encoding(), sites=len(sites)) for x, w in sites]
    mask = np.array(data.draw(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=5, max_size=5)), np.int64)
    order = data.draw(st.permutations([*parts, mask, -mask]))
    np.testing.assert_array_equal(total_of(order), total_of(parts))


@settings(deadline=None)
@given(sites=SITES, bits=st.integers(8, 40))
def test_error_is_half_a_quantum_a_site(sites: list[tuple[list[float], int]], bits: int) -> None:
    """Against exact rationals, the decoded sum is off by at most n/2 quanta (and float64's last bit)."""
    encoding = Encoding(fraction_bits=bits)
    parts = [encode(np.array(x, np.float32), w, encoding, sites=len(sites)) for x, w in sites]
    decoded = decode(total_of(parts), encoding)
    for i in range(5):
        exact = sum((Fraction(x[i]) * w for x, w in sites), Fraction(0))
        bound = Fraction(len(sites), 2) / 2**bits + abs(exact) / 2**53
        assert abs(Fraction(float(decoded[i])) - exact) <= bound


@settings(deadline=None)
@given(x=st.floats(-1e12, 1e12), w=st.integers(1, MOST_WEIGHT), bits=st.integers(8, 48), n=st.integers(1, 9))
def test_what_is_accepted_never_wraps(x: float, w: int, bits: int, n: int) -> None:
    """All n contributions of the accepted kind sum to what they are; everything else is refused."""
    encoding = Encoding(fraction_bits=bits)
    exact = abs(Fraction(x)) * w * 2**bits * n
    slack = exact / 2**50 + n  # rounding to an integer and to float64
    if exact >= 2**63 + slack:
        with pytest.raises(PeerError, match="does not fit the ring"):
            encode(np.array([x]), w, encoding, sites=n)
    if exact >= 2**63 - slack:
        return
    part = encode(np.array([x]), w, encoding, sites=n)
    summed = total_of([part] * n)
    assert int(summed[0]) == n * int(part[0])


def test_the_bound_is_sharp_and_named() -> None:
    """One step below 2^63 passes, 2^63 itself is refused; the message has bound and remedy, no value."""
    encoding = Encoding(fraction_bits=8)
    edge = 2.0**55
    assert int(encode(np.array([np.nextafter(edge, 0)]), 1, encoding, sites=1)[0]) < 2**63
    for weight, sites in ((1, 1), (2, 1), (1, 2)):
        with pytest.raises(PeerError, match=r"remedy: .*learning rate") as caught:
            encode(np.array([0.0, -edge]), weight, encoding, sites=sites)
        assert f"{edge / weight / sites:.6g}" in str(caught.value)
    with pytest.raises(PeerError, match="does not fit"):
        encode(np.array([1e308]), MOST_WEIGHT, encoding, sites=1)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_counted(value: float) -> None:
    """NaN and infinity are refused with their number."""
    with pytest.raises(PeerError, match="2 of 3 values"):
        encode(np.array([value, 1.0, value]), 1, Encoding(), sites=1)


@pytest.mark.parametrize("weight", [0, -1, MOST_WEIGHT + 1, 1.5, True])
def test_weights_out_of_bounds_are_refused(weight: Any) -> None:
    """A weight is a whole number from 1 to its bound."""
    with pytest.raises(PeerError, match="weight"):
        encode(np.array([1.0]), weight, Encoding(), sites=1)


@pytest.mark.parametrize("vector", [np.array([1]), np.zeros((1, 1)), np.array([1.0], np.float16)])
def test_only_flat_floats_are_encoded(vector: np.ndarray[Any, Any]) -> None:
    """Integers, matrices and half precision do not slip through."""
    with pytest.raises(InternalError):
        encode(vector, 1, Encoding(), sites=1)


def test_other_types_are_neither_added_nor_decoded() -> None:
    """A float or a scalar never broadcasts into the sum."""
    total = np.zeros(3, np.int64)
    for part in (np.zeros(3), np.zeros(1, np.int64), np.zeros(3, np.int32)):
        with pytest.raises(InternalError):
            add(total, part)
    with pytest.raises(InternalError):
        decode(np.zeros(3), Encoding())
    with pytest.raises(InternalError):
        encode(np.zeros(3), 1, Encoding(), sites=0)


def test_frozen_vectors() -> None:
    """The encoding of these inputs never changes: halves go to even, weights multiply before rounding."""
    encoding = Encoding(fraction_bits=8)
    values = np.array([0.0, -0.0, 1.0, -1.0, 1.5 / 256, 2.5 / 256, -0.5 / 256, 1 / 3], np.float64)
    np.testing.assert_array_equal(encode(values, 1, encoding, sites=4), [0, 0, 256, -256, 2, 2, 0, 85])
    np.testing.assert_array_equal(encode(values, 3, encoding, sites=4), [0, 0, 768, -768, 4, 8, -2, 256])
    np.testing.assert_array_equal(decode(np.array([256, -384], np.int64), encoding), [1.0, -1.5])
    assert F == 36
