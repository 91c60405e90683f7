"""Decisions by exact arithmetic: right on both sides of a boundary, however near it is."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from decimal import Context, Decimal, localcontext
from fractions import Fraction

import pytest

from wardround.core.errors import InternalError
from wardround.privacy.noise.exact import (
    Real,
    below_exponential,
    floor_of_exponential,
    normal_cdf,
    rounded_normal,
)
from wardround.privacy.noise.source import RandomSource

Scripted = Callable[[Iterable[int]], RandomSource]
NEAR = [Decimal(10) ** -power for power in (5, 16, 25, 38, 60)]


@pytest.fixture
def near_real(scripted: Scripted) -> Callable[[Decimal, int], Real]:
    """(value, bits known) → a real that is this value, and its further bits when it is asked for them."""

    def make(value: Decimal, bits: int) -> Real:
        whole = int(Fraction(value) * 2 ** (bits + 256))
        words = [whole >> shift & (2**64 - 1) for shift in (192, 128, 64, 0)]
        return Real(whole >> 256, bits, scripted(words))

    return make


@pytest.mark.parametrize("near", NEAR)
@pytest.mark.parametrize(("scale", "size"), [(1, 1), (1, 3), (7, 20), (1000, 999), (10**9, 3 * 10**9)])
def test_a_geometric_size_on_both_sides_of_an_integer(
    near: Decimal, scale: int, size: int, near_real: Callable[[Decimal, int], Real]
) -> None:
    """U a little above exp(−n/t) is n − 1, a little below it n."""
    with localcontext(Context(prec=90)):
        boundary = (Decimal(-size) / scale).exp()
        above, below = boundary * (1 + near / scale), boundary * (1 - near / scale)
    assert floor_of_exponential(near_real(above, 63), scale) == size - 1
    assert floor_of_exponential(near_real(below, 63), scale) == size


@pytest.mark.parametrize("known", [0, 1, 2**40 - 1, 2**62, 2**63 - 1])
def test_a_geometric_size_of_any_word(known: int, scripted: Scripted) -> None:
    """Also of one that says nothing yet, and of one next to U = 1."""
    size = floor_of_exponential(Real(known, 63, scripted([2**63] * 3)), 5)
    if known == 0:
        assert size == math.floor(-5 * math.log(2.0**-64))
    else:
        assert size == math.floor(-5 * math.log((known + 0.5) / 2**63))


@pytest.mark.parametrize("near", NEAR)
@pytest.mark.parametrize("exponent", [Fraction(1, 10**6), Fraction(1, 3), Fraction(7, 2), Fraction(41)])
def test_a_coin_on_both_sides_of_its_probability(
    near: Decimal, exponent: Fraction, near_real: Callable[[Decimal, int], Real]
) -> None:
    """U a little below exp(−γ) is heads."""
    with localcontext(Context(prec=90)):
        probability = (-Decimal(exponent.numerator) / exponent.denominator).exp()
        above, below = probability * (1 + near), probability * (1 - near)
    assert not below_exponential(near_real(above, 64), exponent)
    assert below_exponential(near_real(below, 64), exponent)


def test_a_coin_that_is_certain_or_hopeless(scripted: Scripted) -> None:
    """Exponents of nothing, and of far more than any U reaches."""
    assert below_exponential(Real(2**63, 64, scripted([])), Fraction(0))
    assert not below_exponential(Real(1, 64, scripted([])), Fraction(10**15))


@pytest.mark.parametrize("near", NEAR)
@pytest.mark.parametrize("tail", [0.4999, 0.25, 1e-3, 1e-9])
def test_a_rounded_normal_on_both_sides_of_a_half(
    near: Decimal, tail: float, near_real: Callable[[Decimal, int], Real]
) -> None:
    """The centre is shifted so that the value is a half-integer, give or take: it goes where it belongs."""
    deviation = Fraction(1_500_000)
    with localcontext(Context(prec=110)):
        normal = _quantile(Decimal(tail))
        half = Fraction(normal) * deviation
        boundary = Fraction(10_001, 2) - half
        shift, uniform = Fraction(near), 2 * Decimal(tail)
    for guess in (4_999, 5_000, 5_001, 5_002):
        for side, expected in ((shift, 5_001), (-shift, 5_000)):
            real = near_real(uniform, 63)
            assert rounded_normal(real, boundary + side, deviation, guess) == expected


def _quantile(probability: Decimal) -> Decimal:
    """Φ⁻¹ by Newton steps from nothing, in the current context."""
    z = Decimal(0)
    for _ in range(300):
        slope = (-z * z / 2).exp() / Decimal("2.50662827463100050241576528481104525300698674060993831662992")
        step = (normal_cdf(z) - probability) / slope
        z -= max(min(step, Decimal("0.5")), Decimal("-0.5"))
        if abs(step) < Decimal(10) ** -70:
            break
    return z


@pytest.mark.parametrize(
    ("z", "digits"),
    [
        ("0", "0.5"),
        ("1", "0.84134474606854294858523254563203067"),
        ("-1.96", "0.024997895148220435"),
        ("-6", "9.8658764503769814070"),
    ],
)
def test_the_normal_distribution_function(z: str, digits: str) -> None:
    """Published digits."""
    with localcontext(Context(prec=60)):
        found, wanted = normal_cdf(Decimal(z)), Decimal(digits)
        scale = Decimal(10) ** -10 if wanted > 1 else Decimal(1)
        assert abs(found - wanted * scale) < Decimal(10) ** -17 * max(scale, Decimal("1e-10"))


def test_what_no_number_of_bits_decides_is_a_fault_of_ours(scripted: Scripted) -> None:
    """U exactly at a boundary has probability zero: a source that insists on it is broken."""
    with pytest.raises(InternalError, match="could not be told from a boundary"):
        below_exponential(Real(2**64 - 1, 64, scripted([2**64 - 1] * 9)), Fraction(0))
