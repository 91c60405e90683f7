"""Shamir's secret sharing over the prime 2^256 + 297, and its repair when some shares are wrong.

A secret s below 2^256 is f(0) of a random polynomial f of degree t − 1; the holder at x > 0 gets f(x). Any t
shares give f(0), fewer say nothing (Shamir 1979). Shares are a Reed–Solomon code word, so that of m shares
up to ⌊(m − t)/2⌋ wrong ones are corrected and named (Gao 2003, "A new algorithm
for decoding Reed–Solomon codes").
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence

from wardround.core.errors import InternalError, PeerError
from wardround.privacy.secagg.secret import SECRET_BYTES, Secret

PRIME = 2**256 + 297
SHARE_BYTES = 33
"""Big-endian; values below the prime."""

_Polynomial = list[int]
"""Coefficients modulo the prime, lowest first, without zeros at the end; [] is the zero polynomial."""


def split(secret: Secret, threshold: int, places: Sequence[int]) -> list[Secret]:
    """One share for each place x, from fresh randomness of the operating system.

    Args:
        secret: 32 bytes.
        threshold: So many shares give the secret back.
        places: Different and positive.

    Returns:
        Shares of `SHARE_BYTES`, in the order of `places`.

    Raises:
        InternalError: The threshold or the places are impossible.
    """
    if not 1 <= threshold <= len(places) or len(set(places)) != len(places) or min(places) < 1:
        raise InternalError(
            "a secret cannot be shared like this",
            found=f"threshold {threshold}, {len(places)} places",
            expected="different positive places, at least as many as the threshold",
        )
    if len(secret.reveal()) != SECRET_BYTES:
        raise InternalError("a secret to share has the wrong size", expected=f"{SECRET_BYTES} bytes")
    polynomial = [int.from_bytes(secret.reveal(), "big")]
    polynomial += [secrets.randbelow(PRIME) for _ in range(threshold - 1)]
    return [Secret(_value(polynomial, place).to_bytes(SHARE_BYTES, "big")) for place in places]


def weights_at_zero(places: Sequence[int]) -> list[int]:
    """Lagrange weights λ_i = Π_{j≠i} x_j / (x_j − x_i): f(0) = Σ λ_i f(x_i). One set serves many secrets."""
    weights = []
    for place in places:
        above = below = 1
        for other in places:
            if other != place:
                above = above * other % PRIME
                below = below * (other - place) % PRIME
        weights.append(above * pow(below, -1, PRIME) % PRIME)
    return weights


def combine(weights: Sequence[int], shares: Sequence[Secret]) -> Secret | None:
    """The secret of exactly the shares that `weights` were made for; None where it is none.

    Wrong shares give another value, as a rule without a sign of it: whoever combines checks what comes out
    against a commitment, and then asks `repair`.
    """
    total = sum(weight * number(share) for weight, share in zip(weights, shares, strict=True)) % PRIME
    return None if total >> 256 else Secret(total.to_bytes(SECRET_BYTES, "big"))


def repair(shares: Mapping[int, Secret], threshold: int) -> tuple[Secret, list[int]]:
    """The secret in spite of wrong shares, and the places of these (Gao 2003, Algorithm 1).

    Args:
        shares: Place → share; m of them.
        threshold: t of the sharing.

    Returns:
        The secret, and the places whose share is not on the polynomial, at most ⌊(m − t)/2⌋.

    Raises:
        PeerError: Too many are wrong.
    """
    places = sorted(shares)
    values = [number(shares[place]) for place in places]
    locator: _Polynomial = [1]  # g0 = Π (x − x_i)
    for place in places:
        locator = _times(locator, [-place % PRIME, 1])
    remainder, factor = _partial_gcd(locator, _through(places, values), (len(places) + threshold) // 2)
    polynomial, rest = _divided(remainder, factor)
    wrong = [place for place, value in zip(places, values, strict=True) if _value(polynomial, place) != value]
    secret = _value(polynomial, 0)
    if rest or len(polynomial) > threshold or 2 * len(wrong) > len(places) - threshold or secret >> 256:
        raise PeerError(
            "a shared secret cannot be put together: too many shares are wrong",
            found=f"{len(places)} shares",
            expected=f"at most {max(0, len(places) - threshold) // 2} wrong ones",
        )
    return Secret(secret.to_bytes(SECRET_BYTES, "big")), wrong


def number(share: Secret) -> int:
    """A share as a number below the prime.

    Raises:
        PeerError: It has another size, or is not below the prime.
    """
    value = int.from_bytes(share.reveal(), "big")
    if len(share.reveal()) != SHARE_BYTES or value >= PRIME:
        raise PeerError("a share is malformed", expected=f"{SHARE_BYTES} bytes below the prime")
    return value


def _value(polynomial: _Polynomial, x: int) -> int:
    total = 0
    for coefficient in reversed(polynomial):
        total = (total * x + coefficient) % PRIME
    return total


def _trimmed(polynomial: _Polynomial) -> _Polynomial:
    while polynomial and not polynomial[-1]:
        polynomial.pop()
    return polynomial


def _times(a: _Polynomial, b: _Polynomial) -> _Polynomial:
    product = [0] * (len(a) + len(b) - 1) if a and b else []
    for i, left in enumerate(a):
        for j, right in enumerate(b):
            product[i + j] = (product[i + j] + left * right) % PRIME
    return _trimmed(product)


def _minus(a: _Polynomial, b: _Polynomial) -> _Polynomial:
    size = max(len(a), len(b))
    padded = [list(p) + [0] * (size - len(p)) for p in (a, b)]
    return _trimmed([(left - right) % PRIME for left, right in zip(*padded, strict=True)])


def _divided(a: _Polynomial, b: _Polynomial) -> tuple[_Polynomial, _Polynomial]:
    """Quotient and remainder."""
    remainder, quotient = list(a), [0] * max(0, len(a) - len(b) + 1)
    inverse = pow(b[-1], -1, PRIME)
    for shift in range(len(a) - len(b), -1, -1):
        quotient[shift] = remainder[shift + len(b) - 1] * inverse % PRIME
        for index, coefficient in enumerate(b):
            remainder[shift + index] = (remainder[shift + index] - quotient[shift] * coefficient) % PRIME
    return _trimmed(quotient), _trimmed(remainder)


def _through(places: Sequence[int], values: Sequence[int]) -> _Polynomial:
    """The polynomial of degree below m through m points (Newton's divided differences)."""
    differences = list(values)
    for order in range(1, len(places)):
        for index in range(len(places) - 1, order - 1, -1):
            step = pow(places[index] - places[index - order], -1, PRIME)
            differences[index] = (differences[index] - differences[index - 1]) * step % PRIME
    polynomial: _Polynomial = []
    for place, coefficient in zip(reversed(places), reversed(differences), strict=True):
        shifted = _minus([0, *polynomial], _times([place], polynomial))
        polynomial = _minus(shifted, [-coefficient % PRIME])
    return polynomial


def _partial_gcd(a: _Polynomial, b: _Polynomial, stop: int) -> tuple[_Polynomial, _Polynomial]:
    """Euclid on (a, b) until the remainder's degree is below `stop`: remainder g and v with g ≡ v·b mod a."""
    v_before: _Polynomial = []
    v: _Polynomial = [1]
    while len(b) > stop:
        quotient, rest = _divided(a, b)
        a, b = b, rest
        v_before, v = v, _minus(v_before, _times(quotient, v))
    return b, v
