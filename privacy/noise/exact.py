"""Decisions that float64 cannot make: random reals that are read bit by bit until the answer is certain.

The fast samplers (`gaussian.py`, `discrete.py`) compute in float64, and trust what they find only where it
lies farther from the next decision than they can err. The few draws that lie nearer come here. Of a uniform
real U in [0, 1) some bits are known; where they are not enough to decide, 64 more are drawn. So the samplers
return what infinite precision would have returned, and floating point decides only how long it takes.

Arithmetic is Python's `decimal`, whose exp and ln are correctly rounded. Each interval below is widened by
far more than its last digits can be off.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from decimal import ROUND_FLOOR, Context, Decimal, localcontext
from fractions import Fraction
from typing import Final

from wardround.core.errors import InternalError
from wardround.privacy.noise.source import RandomSource

_WORD: Final = 64
_MOST_BITS: Final = 320
"""To be still undecided here has a probability below 2^−200."""
_ENOUGH: Final = 1 << 40
"""A smaller integer of known bits says too little of a logarithm, or of a tail."""
_GUARD: Final = 24
"""Decimal digits beyond those of the known bits; half of them may be wrong."""
_PI: Final = Decimal(
    "3.141592653589793238462643383279502884197169399375105820974944592307816406286208998628034825342117"
    "0679821480865132823066470938446095505822317253594081284811"
)


class Real:
    """A uniform random real U in [0, 1), of which the first bits are known: u/2^bits ≤ U < (u+1)/2^bits."""

    __slots__ = ("_bits", "_source", "_u")

    def __init__(self, u: int, bits: int, source: RandomSource) -> None:
        self._u, self._bits, self._source = u, bits, source

    def extend(self) -> None:
        """Learn 64 bits more."""
        if self._bits + _WORD > _MOST_BITS:
            raise InternalError("a random real could not be told from a boundary", found=f"{self._bits} bits")
        self._u = (self._u << _WORD) | int(self._source.words(1)[0])
        self._bits += _WORD

    def settle(self) -> None:
        """Learn so much that U is known to about twelve digits, however small it is."""
        while self._u < _ENOUGH:
            self.extend()

    def ends(self) -> tuple[Decimal, Decimal]:
        """The interval, to the digits of the current context."""
        scale = Decimal(1 << self._bits)
        return self._u / scale, (self._u + 1) / scale

    def middle(self) -> float:
        """About the middle of the interval."""
        return (self._u + 0.5) / (1 << self._bits)

    def digits(self) -> int:
        """Decimal digits that the known bits are worth."""
        return self._bits * 31 // 100 + 1


def floor_of_exponential(real: Real, scale: int) -> int:
    """⌊−scale · ln U⌋: a geometric integer, P(n or more) = exp(−n / scale)."""
    while True:
        real.settle()
        with _precision(real.digits() + len(str(scale)) + _GUARD):
            slack = Decimal(10) ** -(real.digits() + _GUARD // 2)
            low, high = real.ends()
            least = max(-scale * high.ln() - slack, Decimal(0))
            most = -scale * low.ln() + slack
            found = least.to_integral_value(ROUND_FLOOR)
            if found == most.to_integral_value(ROUND_FLOOR):
                return int(found)
        real.extend()


def below_exponential(real: Real, exponent: Fraction) -> bool:
    """Whether U < exp(−exponent), for an exponent ≥ 0."""
    while True:
        with _precision(real.digits() + _GUARD):
            slack = Decimal(10) ** -(real.digits() + _GUARD // 2)
            low, high = real.ends()
            power = (-_decimal(exponent)).exp()
            if high < power - slack:
                return True
            if low > power + slack:
                return False
        real.extend()


def rounded_normal(real: Real, centre: Fraction, deviation: Fraction, guess: int) -> int:
    """The integer nearest to centre + deviation · Φ⁻¹(U / 2): the lower half of a normal, rounded.

    Args:
        real: U; half of it is the probability of the tail.
        centre: Of the normal, in units of the grid.
        deviation: Its standard deviation, in the same.
        guess: Where to begin to look: near the answer, if it is to take no time.
    """
    real.settle()
    found = guess
    while True:
        with _precision(real.digits() + _GUARD):
            slack = Decimal(10) ** -(real.digits() + _GUARD // 2)
            low, high = (end / 2 for end in real.ends())
            below, above = (
                normal_cdf(_decimal((found + half - centre) / deviation))
                for half in (Fraction(-1, 2), Fraction(1, 2))
            )
            if high < below - slack:
                found -= 1
                continue
            if low > above + slack:
                found += 1
                continue
            if low > below + slack and high < above - slack:
                return found
        real.extend()


def normal_cdf(z: Decimal) -> Decimal:
    """Φ(z) = 1/2 + φ(z) (z + z³/3 + z⁵/15 + …), Abramowitz & Stegun 26.2.11, in the current context.

    All terms have one sign, so that only the last digits after the point are wrong.
    """
    square = z * z
    total = term = z
    odd, smallest = 1, Decimal(1).next_plus() - 1
    while abs(term) > smallest:
        odd += 2
        term = term * square / odd
        total += term
    return Decimal("0.5") + (-square / 2).exp() / (2 * _PI).sqrt() * total


def _decimal(value: Fraction) -> Decimal:
    return Decimal(value.numerator) / Decimal(value.denominator)


def _precision(digits: int) -> AbstractContextManager[Context]:
    return localcontext(Context(prec=digits))
