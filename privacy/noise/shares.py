"""Distributed noise: each site adds a share of it, and the opened sum has what the guarantee needs.

Per round and site, in ring units (integers per unit of the statistics, `privacy/quantisation.py`):

    clip each unit's vector to C (the norm is then s C) → round → add one discrete Gaussian share a coordinate
    → reduce modulo the ring

Nothing is clipped or refused after the noise. Rounding lengthens what one unit can change (the sensitivity);
a sum of shares is no discrete Gaussian itself, and what that costs is accounted for
(`accounting/lattice.py`). Kairouz, Liu & Steinke 2021, arXiv:2102.06387.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np

from wardround.core.errors import ConfigError, InternalError
from wardround.core.packed import Array
from wardround.privacy.noise.source import RandomSource

LEAST_SHARE_DEVIATION: Final = 4.0
"""Ring units. Below it rounding adds to the noise as much as it hides, and bounds on sums of shares begin to
cost; from it on they differ from one discrete Gaussian by less than 10⁻⁶⁰."""
BETA: Final = math.exp(-0.5)
"""β of conditional rounding, as the paper has it: at most this share of roundings is drawn again."""
_MOST_TRIES: Final = 1_000
_SHORTER: Final = 1e-9
"""Lengths are compared with this much to spare: float64 sums of some millions of squares."""


def honest_shares(*, least_survivors: int, colluders: int, site_is_adversary: bool) -> int:
    """How many shares nobody who attacks can take off again, in the smallest sum that is ever opened.

    Args:
        least_survivors: Of a round: no sum over fewer sites is opened.
        colluders: Sites assumed to tell the server their shares.
        site_is_adversary: Whether one site more, which colludes with nobody, is to learn nothing either: it
            knows its own share.

    Raises:
        ConfigError: None is left.
    """
    honest = least_survivors - colluders - bool(site_is_adversary)
    if colluders < 0 or honest < 1:
        raise ConfigError(
            "no noise would be left that an attacker does not know",
            found=f"{least_survivors} survivors at least, {colluders} assumed to collude"
            + (", and one site as the adversary" if site_is_adversary else ""),
            expected="at least one share beside those",
            remedy="more survivors (quorum, threshold), fewer assumed colluders, or noise at each site alone",
        )
    return honest


def share_variance(
    sigma_units: float, *, least_survivors: int, colluders: int, site_is_adversary: bool
) -> float:
    """Variance of one site's share, so that σ is left in the worst case; in squares of ring units.

    σ² / (least survivors − colluders − 1 where a site is the adversary too), rounded up.

    Args:
        sigma_units: σ that has to be left: noise multiplier times sensitivity after rounding, in ring units.
        least_survivors: As in `honest_shares`, like the other arguments.

    Raises:
        ConfigError: No share is left, σ is none, or the share's is below `LEAST_SHARE_DEVIATION`.
    """
    honest = honest_shares(
        least_survivors=least_survivors, colluders=colluders, site_is_adversary=site_is_adversary
    )
    variance = sigma_units * sigma_units / honest * (1 + 2.0**-50)
    if not (sigma_units > 0 and LEAST_SHARE_DEVIATION**2 <= variance < math.inf):
        raise ConfigError(
            "a share of the noise is too narrow for the ring's integers",
            found=f"σ of {sigma_units:.4g} ring units, left by {honest} shares",
            expected=f"a share's σ of at least {LEAST_SHARE_DEVIATION:g}, so"
            f" {LEAST_SHARE_DEVIATION * math.sqrt(honest):.4g} in all",
            remedy="more integers a unit (a wider ring), or more noise",
        )
    return variance


def guaranteed(variance: float, *, least_survivors: int, colluders: int, site_is_adversary: bool) -> float:
    """σ that is left of shares of this variance in the worst case, in ring units: what is accounted for.

    Raises:
        ConfigError: No share is left.
    """
    honest = honest_shares(
        least_survivors=least_survivors, colluders=colluders, site_is_adversary=site_is_adversary
    )
    return math.sqrt(honest * variance)


def surplus(sites: int, *, least_survivors: int, colluders: int, site_is_adversary: bool) -> float:
    """σ of the sum when no site is lost, over the guaranteed one: 1 or more, and what caution costs.

    Raises:
        ConfigError: No share is left, or there are fewer sites than have to survive.
    """
    if sites < least_survivors:
        raise ConfigError(
            "more sites would have to survive than there are", found=f"{least_survivors} of {sites}",
            expected="at most all of them",
        )  # fmt: skip
    honest = honest_shares(
        least_survivors=least_survivors, colluders=colluders, site_is_adversary=site_is_adversary
    )
    return math.sqrt(sites / honest)


def wrap_probability(*, bits: int, variance: float, largest: float, coordinates: int) -> float:
    """Bound on the probability that noise takes any coordinate of an opened sum out of its ring.

    The headroom is 2^(bits − 1) − largest. Discrete Gaussians are sub-Gaussian, E exp(t X) ≤ exp(t² σ² / 2)
    (Canonne, Kamath & Steinke 2020, arXiv:2004.00010), and so is their sum, with the sum of the variances:
    one coordinate wraps with probability at most 2 exp(−headroom² / (2 variance)). A wrapped coordinate harms
    nobody's privacy, only the round.

    Args:
        bits: Width of the ring.
        variance: Of the noise in the whole sum: all sites times a share's.
        largest: No coordinate of the sum without noise is larger in size; ring units.
        coordinates: How many.

    Raises:
        ConfigError: There is no headroom at all, or a number is none.
    """
    headroom = 2.0 ** (bits - 1) - largest
    if not (headroom > 0 and largest >= 0 and variance > 0 and coordinates >= 1):
        raise ConfigError(
            "the ring has no room for noise", found=f"{bits} bits, a sum of up to {largest:g} without noise",
            expected=f"less than 2^{bits - 1}, and noise of a positive variance",
            remedy="a wider ring, fewer integers a unit, or fewer units in a batch",
        )  # fmt: skip
    return min(1.0, 2.0 * coordinates * math.exp(-headroom * headroom / (2 * variance)))


def rounded_sensitivity(norm: float, coordinates: int, *, beta: float | None = None) -> float:
    """How much one unit can move the sum of integers (L2), if its vector of floats is at most `norm` long.

    A site rounds in one of two ways (c = norm, d = coordinates):

    - Its **sum**, by `round_randomly`: c + √d. For each draw of the fractions u, ⌊x + v + u⌋ − ⌊x + u⌋ is
      less than 1 from v in every coordinate; the draw may be public.
    - Each **unit's vector**, by `round_conditionally`, and then it adds up integers: the square root of
      c² + d/4 + √(2 ln(1/β)) (c + √d/2), where that is smaller. A rounded vector's squared length is at most
      c² + d/4 on average, each R_j² lies in a range of at most 2 |x_j| + 1, and Hoeffding gives the rest:
      longer with probability at most β. Kairouz, Liu & Steinke 2021, theorem 1. Longer ones are never used.

    Args:
        norm: s C, in ring units; what clipping really keeps, arithmetic included.
        coordinates: d.
        beta: β of conditional rounding; None where the sum is rounded.

    Raises:
        ConfigError: A number is none.
    """
    if not (0 < norm < math.inf) or coordinates < 1 or not (beta is None or 0 < beta < 1):
        raise ConfigError(
            "no sensitivity follows from these", found=f"norm {norm}, {coordinates} coordinates, beta {beta}",
            expected="a positive norm, at least one coordinate, and a beta between 0 and 1",
        )  # fmt: skip
    plain = norm + math.sqrt(coordinates)
    if beta is None:
        return plain
    spread = math.sqrt(-2 * math.log(beta)) * (norm + math.sqrt(coordinates) / 2)
    return min(plain, math.sqrt(norm * norm + coordinates / 4 + spread))


def round_randomly(vector: Array, source: RandomSource) -> Array:
    """⌊x + u⌋ with u uniform in [0, 1), coordinate by coordinate: the mean is x.

    Args:
        vector: Any shape, float64, in ring units.
        source: Random words.

    Returns:
        The same shape, int64.
    """
    uniform = np.multiply((source.words(vector.size) >> np.uint64(11)).view(np.int64), 2.0**-53)
    uniform = uniform.reshape(vector.shape)
    uniform += vector
    return np.floor(uniform, out=uniform).astype(np.int64)


def round_conditionally(vector: Array, source: RandomSource, *, norm: float, beta: float = BETA) -> Array:
    """One unit's vector as integers, drawn again until it is no longer than the bound.

    Guarantee: the result is never longer (L2) than `rounded_sensitivity(norm, d, beta=beta)`.

    Args:
        vector: (d,) float64 of *one unit*, at most `norm` long: clipped, in ring units.
        source: Random words.
        norm: As in `rounded_sensitivity`.
        beta: As there.

    Returns:
        (d,) int64. The condition moves the mean by at most √d β / (1 − β), and in fact by far less.

    Raises:
        ConfigError: A number is none.
        InternalError: The vector was not clipped, or is not finite.
    """
    bound = rounded_sensitivity(norm, vector.size, beta=beta) * (1 - _SHORTER)
    if not _length(vector) <= norm * (1 + _SHORTER):
        raise InternalError(
            "a vector is to be rounded that was not clipped", found="longer than its bound, or not finite",
            expected=f"at most {norm:g} ring units",
        )  # fmt: skip
    for _ in range(_MOST_TRIES):
        rounded = round_randomly(vector, source)
        if _length(rounded) <= bound:
            return rounded
    raise InternalError("no rounding of a clipped vector was short enough", found=f"{_MOST_TRIES} tries")


def _length(vector: Array) -> float:
    floats = vector.astype(np.float64)
    # Not np.dot: BLAS may wake its threads, and their number would decide the last bit.
    return math.sqrt(float(np.einsum("i,i->", floats, floats)))
