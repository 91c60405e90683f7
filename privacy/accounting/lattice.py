"""What a Poisson-sampled sum of discrete Gaussian shares costs, beside the Gaussian that it stands for.

W_v is the discrete Gaussian, P(z) ∝ exp(−z² / 2v) on the integers; Z the sum of m independent W_(σ²), with
v = m σ², in each of d coordinates. A step releases Z, or Z + Δ with probability q, for an integer vector Δ
of length at most D. (All else that it draws, such as the other units and how they are rounded, is held
fixed: divergences are jointly convex, so that the worst case bounds the mean.) By Poisson summation, for
every real μ,

    Σ_z exp(−(z − μ)² / 2v) = √(2πv) ϑ,    1 − h(v) ≤ ϑ ≤ 1 + h(v),    h(v) = 2 Σ_(j ≥ 1) exp(−2π² v j²),

and ϑ is largest where μ is an integer. (θ below is that sum for μ = 0.)

**1. A sum is nearly one.** W_(kσ²) + W_(σ²) has P(z) ∝ exp(−z² / 2(k+1)σ²) ϑ_μ(s), with s = σ² k / (k+1)
and μ depending on z; with its normalisation it is within exp(±c_k) of W_((k+1)σ²) at every z, where

    c_k = −log(1 − h(s)) + log(1 + h(kσ²)) + log(1 + h(σ²)).

One summand after the other: Z is within exp(±c) of W_v at every z, c = Σ_(k<m) c_k, and within exp(±A), A =
d c, in d coordinates. (Kairouz, Liu & Steinke 2021, arXiv:2102.06387, have 5 Σ_k exp(−2π² σ² k / (k+1)) for
c: half the τ of their theorem 1.)

**2. Rényi DP.** Let P be Z's distribution, P_Δ that of Z + Δ, M = (1 − q) P + q P_Δ.

- *One way round is enough.* P is symmetric, so that ν(z) = Δ − z swaps P and P_Δ. On a pair {z, ν(z)} with
  P = a, b (a ≤ b) and M = a + t, b − t (0 ≤ t ≤ b − a), use

      x^α y^(1−α) − y^α x^(1−α) = 2 √(xy) sinh((α − ½) log(x/y)):

  D_α(M‖P) − D_α(P‖M) has the sign of a sum of t [g(log((a+t)/a)) − g(log(b/(b−t)))], where
  g(L) = sinh((α − ½) L) / sinh(L/2) grows with L, and (a + t)/a ≥ b/(b − t). So D_α(P‖M) ≤ D_α(M‖P), which
  Mironov, Talwar & Zhang 2019, arXiv:1908.10530, section 3.1, show for densities.
- *At an integer α*, E_P (M/P)^α = Σ_k C(α, k) (1 − q)^(α−k) q^k E_P (P_Δ/P)^k. The moments k = 0 and 1 are 1.
  For W_v instead of Z, the k-th is exp(k(k−1) |Δ|² / 2v) Σ_z exp(−|z − kΔ|² / 2v) / θ^d, and the last
  quotient *is* 1, since kΔ is an integer vector: the Gaussian's own moment, without an error. For Z itself
  P_Δ^k P^(1−k) costs at most exp((2k − 1) A) more. So

      (α − 1) ρ(α) = log(1 + Σ_(k ≥ 2) C(α, k) (1 − q)^(α−k) q^k (exp(k(k−1) D² / 2v + (2k − 1) A) − 1)).

- *Between integers* (α − 1) D_α is convex in α, and 0 at α = 1: the chord bounds it.
- *Without sampling* (q = 1) the same moment at k = α holds for every real α > 1, since the quotient is at
  most 1: ρ(α) = α D² / 2v + A (2α − 1) / (α − 1).

**3. Losses.** Let r² < v, X ~ N(0, v − r²), and round X to an integer z by P(z) ∝ exp(−(z − X)² / 2r²). As
that is normalised by √(2π) r (1 ± h(r²)), the result is within exp(±η) of W_v, η = log((1 + h) / (1 − h)):
the convolution that Peikert 2010 ("An efficient and parallel Gaussian sampler for lattices") rounds with.
It commutes with integer shifts. So what is released is within exp(±A'), A' = d (c + η), of a
*post-processing* of the sampled Gaussian with variance v − r². T adaptive steps have at most exp(T A')
times the δ that such Gaussians have at ε − 2 T A'; and ρ(α) is at most that Gaussian's own + A' (2α − 1) /
(α − 1), at every α > 1.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Final

import numpy as np

from wardround.core.packed import Array
from wardround.privacy.accounting.renyi import ORDERS, SLACK, rdp_of_step

_ROUNDING_VARIANCE: Final = 4.0
"""r² of section 3, where v allows it: η is below 10⁻³³ a coordinate."""
LEAST_SHARE_SIGMA: Final = 0.5
"""Below it, the bounds on ϑ say nothing."""


@lru_cache(maxsize=4096)
def closeness(share_sigma: float, shares: int) -> float:
    """The c of section 1: |log P(Z = z) − log P(W_v = z)| ≤ c in every z; 0 for one share.

    Args:
        share_sigma: σ of one share, at least `LEAST_SHARE_SIGMA`.
        shares: m, at least 1.
    """
    variance = share_sigma * share_sigma
    k = np.arange(1, shares, dtype=np.float64)
    with np.errstate(under="ignore"):
        steps = (
            -np.log1p(-_beyond_one(variance * (k / (k + 1))))
            + np.log1p(_beyond_one(variance * k))
            + np.log1p(_beyond_one(np.float64(variance)))
        )
    return float(steps.sum())


def dominating(sigma: float, share_sigma: float, shares: int, coordinates: int) -> tuple[float, float]:
    """(σ', A') of section 3: the sampled Gaussian that it is a post-processing of, within exp(±A').

    Args:
        sigma: √v / D.
        share_sigma: As in `closeness`.
        shares: m.
        coordinates: d.
    """
    variance = shares * share_sigma * share_sigma
    rounding = min(_ROUNDING_VARIANCE, variance / 2)
    h = float(_beyond_one(np.float64(rounding)))
    eta = math.log1p(h) - math.log1p(-h)
    # The factor keeps float64's own rounding on the safe side.
    left = math.sqrt(1 - rounding / variance) * (1 - 1e-12)
    return sigma * left, coordinates * (closeness(share_sigma, shares) + eta)


@lru_cache(maxsize=4096)
def rdp_of_lattice_step(
    sample_rate: float, sigma: float, share_sigma: float, shares: int, coordinates: int
) -> Array:
    """ρ(α) of one step, (len(ORDERS),) float64, read-only: at each order the lesser of sections 2 and 3.

    Args:
        sample_rate: q, in (0, 1].
        sigma: √v / D, like the other arguments as in `dominating`.
        share_sigma: Of one share.
        shares: m.
        coordinates: d.
    """
    orders = np.array(ORDERS)
    excess = coordinates * closeness(share_sigma, shares)
    plain_sigma, plain_excess = dominating(sigma, share_sigma, shares, coordinates)
    with np.errstate(over="ignore", under="ignore", divide="ignore", invalid="ignore"):
        per_excess = (2 * orders - 1) / (orders - 1)
        processed = rdp_of_step(sample_rate, plain_sigma) + per_excess * plain_excess
        if sample_rate == 1:
            own = rdp_of_step(1.0, sigma) + per_excess * excess
        else:
            below, above = np.floor(orders), np.ceil(orders)
            at = {k: _log_moment(int(k), sample_rate, sigma, excess) for k in {*below, *above}}
            low, high = (np.array([at[k] for k in ends]) for ends in (below, above))
            own = (low + (orders - below) * (high - low)) / (orders - 1) + SLACK
    rdp = np.fmin(own, processed)
    rdp[np.isnan(rdp)] = np.inf
    rdp.flags.writeable = False
    return np.asarray(rdp)


def _log_moment(order: int, q: float, sigma: float, excess: float) -> float:
    """(α − 1) ρ(α) at an integer α; 0 at 1."""
    if order == 1:
        return 0.0
    k = np.arange(2, order + 1)
    log_factorials = np.cumsum(np.log(np.maximum(np.arange(order + 1), 1)))
    choose = log_factorials[order] - log_factorials[k] - log_factorials[order - k]
    exponent = k * (k - 1) / (2 * np.square(np.float64(sigma))) + (2 * k - 1) * excess
    # log(exp(x) − 1), whether x is tiny or far too large for exp
    excess_moment = np.where(
        exponent < 1, np.log(np.expm1(np.minimum(exponent, 1))), exponent + np.log1p(-np.exp(-exponent))
    )
    terms = choose + k * math.log(q) + (order - k) * math.log1p(-q) + excess_moment
    return float(np.logaddexp(0.0, np.logaddexp.reduce(terms)))


def _beyond_one(variance: Array | np.float64) -> Array:
    """h(v): 2 (q + q⁴ + q⁹ + …) ≤ 2 q / (1 − q³) with q = exp(−2π² v)."""
    q = np.exp(-2 * math.pi**2 * variance)
    return np.asarray(2 * q / (1 - q**3))
