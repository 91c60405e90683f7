"""A clip norm that follows a quantile of the units' norms: how it moves, and what its noised count costs.

Andrew, Thakkar, McMahan & Ramaswamy 2021, arXiv:1905.03871v5, Algorithm 1. With each noised sum of clipped
vectors goes a noised count s = Σ_u (b_u − ½) + N(0, σ_b²), b_u = 1 where unit u was not longer than C, and

    C ← C · exp(−η (b̃ − γ)),   b̃ = ½ + s/n

Counting b_u − ½ instead of b_u is what makes one unit move the count by ½ at most (their § 2.2). DP-SGD at a
site (`training/private/clipping.py`) and the server's noise on whole sites' updates
(`strategies/adaptive_norm.py`) use the same two formulas.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from wardround.core.errors import ConfigError


def vector_sigma(sigma: float, count_sigma: float) -> float:
    """z_Δ of a planned z: more noise on the vectors pays for the count (their Theorem 1).

    Guarantee: noise of z_Δ C on the vectors and of σ_b on the count together cost as much as noise z C on the
        vectors alone: as vectors over their noise, one unit moves both by at most √(1/z_Δ² + ¼/σ_b²) = 1/z.

    Args:
        sigma: z, over the clip norm.
        count_sigma: σ_b, over one unit of the count.

    Returns:
        (z⁻² − (2 σ_b)⁻²)^(−½), above z.

    Raises:
        ConfigError: The count alone would cost as much as was planned, or more.
    """
    if 2 * count_sigma <= sigma:
        raise ConfigError(
            "the noised count of adaptive clipping costs more than the whole release may",
            found=f"count_noise {count_sigma:g}, sigma {sigma:g}",
            expected=f"count_noise above {sigma / 2:g}",
            remedy="raise privacy.adaptive.count_noise; a twentieth of the units that are counted is usual",
        )
    return 1 / math.sqrt(sigma**-2 - (2 * count_sigma) ** -2)


def next_norm(
    norm: float, share: float, *, quantile: float, rate: float, smallest: float, largest: float
) -> float:
    """C of the next release: C · exp(−η (b̃ − γ)), within its limits.

    Args:
        norm: C now, positive.
        share: b̃, the noised share of units that were not longer; anything but NaN.
        quantile: γ, the share that is to be.
        rate: η.
        smallest: C never goes below.
        largest: C never goes above.
    """
    longest = math.log(norm) - rate * (share - quantile)
    # Within its limits before exp, which a far-off share would overflow.
    moved = math.exp(min(max(longest, math.log(smallest)), math.log(largest)))
    return min(max(moved, smallest), largest)


@dataclass(frozen=True)
class JointLength:
    """How one vector of length C holds a clipped vector and a count, so that one noise of z C serves both.

    Guarantee: vector² + (count / 2)² = C², so that clipping the first to `vector` and sending ±½ `count` is
        no longer than C; and z C is z_Δ · `vector` and σ_b · `count`.

    Attributes:
        vector: C z/z_Δ: as long as the clipped vector may be.
        count: C z/σ_b: what stands for 1 of the count.
    """

    vector: float
    count: float

    @staticmethod
    def of(norm: float, sigma: float, count_sigma: float) -> JointLength:
        """Of C, z and σ_b.

        Raises:
            ConfigError: As `vector_sigma`.
        """
        return JointLength(norm * sigma / vector_sigma(sigma, count_sigma), norm * sigma / count_sigma)
