"""Figures known from elsewhere: the closed form of the Gaussian, exact sums, and published values."""

from __future__ import annotations

import math
from decimal import Decimal, getcontext

import numpy as np
import pytest

from wardround.privacy.accounting.account import Account
from wardround.privacy.accounting.calibrate import planned
from wardround.privacy.accounting.mechanisms import Gaussian, Mechanism, SampledGaussian
from wardround.privacy.accounting.renyi import ORDERS, rdp_of_step

UNITS = 2_000


def analytic_epsilon(sigma: float, delta: float) -> float:
    """ε of one Gaussian release, exactly: Balle & Wang 2018, theorem 8, by bisection on ε.

    δ(ε) = Φ(1/(2σ) − εσ) − e^ε Φ(−1/(2σ) − εσ).
    """

    def phi(x: float) -> float:
        return math.erfc(-x / math.sqrt(2)) / 2

    low, high = 0.0, min(1 / (2 * sigma**2) + 40 / sigma, 700.0)
    for _ in range(200):
        middle = (low + high) / 2
        below = phi(1 / (2 * sigma) - middle * sigma)
        if below - math.exp(middle) * phi(-1 / (2 * sigma) - middle * sigma) > delta:
            low = middle
        else:
            high = middle
    return high


def exact_rdp(rate: float, sigma: float, order: int) -> Decimal:
    """ρ of the sampled Gaussian at a whole order, with 60 digits.

    (α − 1) ρ = log Σ_k C(α, k) (1 − q)^(α − k) q^k exp(k (k − 1) / (2 σ²)); Mironov et al. 2019, 3.3.
    """
    getcontext().prec = 60
    q, s = Decimal(rate), Decimal(sigma)
    total = sum(
        math.comb(order, k) * (1 - q) ** (order - k) * q**k * (Decimal(k * (k - 1)) / (2 * s * s)).exp()
        for k in range(order + 1)
    )
    return Decimal(total).ln() / (order - 1)


CLOSED_FORM = [
    # Every noise with every count at one delta; the other two deltas with one count.
    pytest.param(sigma, count, delta, marks=() if delta == 1e-5 or count == 7 else pytest.mark.slow)
    for delta in (1e-3, 1e-5, 1e-8)
    for count in (1, 7, 100)
    for sigma in (0.4, 1.0, 4.0, 20.0)
]


@pytest.mark.parametrize(("sigma", "count", "delta"), CLOSED_FORM)
def test_plain_gaussians_equal_their_closed_form(sigma: float, count: int, delta: float) -> None:
    """Many releases are one with less noise; losses meet the exact epsilon from above, Rényi DP is above."""
    account = Account(mechanisms=(Gaussian(sigma=sigma, count=count),))
    exact = analytic_epsilon(sigma / math.sqrt(count), delta)
    tight = account.fixed_schedule_epsilon(delta, units=900).value
    assert exact - 1e-7 <= tight <= exact * 1.0005 + 2e-4
    assert exact <= account.epsilon(delta, units=900).value <= exact * 1.5 + 0.1


def test_sampling_everything_is_the_plain_gaussian() -> None:
    """A rate of 1, written either way."""
    plain = Account(mechanisms=(Gaussian(sigma=2.0, count=9),))
    sampled = Account(mechanisms=(SampledGaussian(sample_rate=1.0, sigma=2.0, steps=9),))
    assert plain.epsilon(1e-5, units=UNITS) == sampled.epsilon(1e-5, units=UNITS)
    assert plain.fixed_schedule_epsilon(1e-5, units=UNITS) == sampled.fixed_schedule_epsilon(
        1e-5, units=UNITS
    )


@pytest.mark.parametrize("rate", [1e-9, 1e-5, 0.01, 0.3])
@pytest.mark.parametrize("sigma", [0.5, 1.0, 10.0, 1e4])
def test_vectors_bound_the_exact_sum(rate: float, sigma: float) -> None:
    """At whole orders, with sixty digits: never below the truth, and above it by the slack alone."""
    vector = rdp_of_step(rate, sigma)
    for order in (2, 3, 8, 32, 63, 128):
        exact = float(exact_rdp(rate, sigma, order))
        assert exact <= vector[ORDERS.index(float(order))] <= exact * (1 + 1e-9) + 2e-12


def integral_rdp(rate: float, sigma: float, order: float) -> float:
    """ρ at any order, by quadrature: (α − 1) ρ = log E[r^α], r the ratio of the mixture to N(0, σ²)."""
    x = np.linspace(-40 * sigma - 5, order + 40 * sigma, 400_001)
    log_ratio = np.logaddexp(math.log1p(-rate), math.log(rate) + (2 * x - 1) / (2 * sigma**2))
    density = np.exp(-(x**2) / (2 * sigma**2)) / math.sqrt(2 * math.pi * sigma**2)
    # E[r] = 1: taking α (r − 1) off leaves the small difference that a float can hold.
    excess = np.trapezoid(density * (np.expm1(order * log_ratio) - order * np.expm1(log_ratio)), x)
    return math.log1p(float(excess)) / (order - 1)


@pytest.mark.parametrize("rate", [1e-4, 0.01, 0.3])
@pytest.mark.parametrize("sigma", [1.0, 2.0, 10.0])
def test_broken_orders_bound_the_integral(rate: float, sigma: float) -> None:
    """The cut-off series errs upwards (low orders by a factor in places), never below the truth."""
    vector = rdp_of_step(rate, sigma)
    for order in (1.1, 1.5, 1.9, 2.3, 5.5, 7.8, 10.9):
        exact = integral_rdp(rate, sigma, order)
        assert vector[ORDERS.index(order)] >= exact * (1 - 1e-9)
        if order > 3:
            assert vector[ORDERS.index(order)] <= exact * 1.01 + 2e-12


def test_the_figures_of_a_thousand_steps() -> None:
    """σ = 1, q = 0.01, δ = 10⁻⁵: Rényi 2.1014, losses 1.828."""
    account = planned(0.01, 1.0, 1000)
    assert account.epsilon(1e-5, units=UNITS).value == pytest.approx(2.1014, abs=1e-4)
    assert account.fixed_schedule_epsilon(1e-5, units=UNITS).value == pytest.approx(1.828, abs=5e-4)


def test_a_patient_with_four_notes() -> None:
    """At ε = 0.68 per note about 3.2 per patient; bounded to K = 4, 3.14 where one clip gives 3.05."""
    note = planned(0.01, 1.866, 1000).fixed_schedule_epsilon(1e-5, units=UNITS).value
    patient = planned(0.01, 1.866, 1000, 4).epsilon(1e-5, units=UNITS).value
    assert (note, patient) == (pytest.approx(0.680, abs=2e-3), pytest.approx(3.18, abs=0.01))
    clipped_once = planned(0.016, 1.0, 1000).fixed_schedule_epsilon(1e-5, units=UNITS).value
    bounded = planned(0.004, 1.0, 1000, 4).epsilon(1e-5, units=UNITS).value
    assert (clipped_once, bounded) == (pytest.approx(3.05, abs=5e-3), pytest.approx(3.14, abs=5e-3))


@pytest.mark.slow
def test_a_mixture_of_one_is_the_sampled_gaussian() -> None:
    """K = 1: the two say the same, up to their grids."""
    for rate, sigma, steps in ((0.01, 1.0, 1000), (0.2, 2.0, 20), (1.0, 3.0, 5)):
        one = planned(rate, sigma, steps, 1).epsilon(1e-5, units=UNITS).value
        plain = planned(rate, sigma, steps).fixed_schedule_epsilon(1e-5, units=UNITS).value
        assert one == pytest.approx(plain, rel=2e-3, abs=2e-3)


def test_all_of_a_patient_s_examples_every_time_are_one_larger_clip() -> None:
    """A rate of 1: the sum moves by K clip norms, which is the plain Gaussian with σ / K."""
    mixture = planned(1.0, 12.0, 10, 4).epsilon(1e-5, units=UNITS).value
    assert mixture == pytest.approx(analytic_epsilon(3.0 / math.sqrt(10), 1e-5), rel=2e-3)


def test_ten_sites_for_fifty_rounds_as_the_unit() -> None:
    """σ = 10 every round, nobody sampled: about 2.9 at δ = 10⁻⁵ with the exact accountant."""
    site = Account(unit="site", mechanisms=(Gaussian(sigma=10.0, count=50),))
    assert site.fixed_schedule_epsilon(1e-5, units=10).value == pytest.approx(
        analytic_epsilon(10 / math.sqrt(50), 1e-5), abs=5e-4
    )


def test_rounds_with_different_rates_and_noise_compose() -> None:
    """Fifty unequal rounds lie between fifty of the weakest and fifty of the strongest."""
    weak: list[Mechanism] = [SampledGaussian(sample_rate=0.01, sigma=1.2, steps=20)] * 50
    strong: list[Mechanism] = [SampledGaussian(sample_rate=0.02, sigma=1.0, steps=20)] * 50
    found = [
        Account(mechanisms=tuple(entries)).fixed_schedule_epsilon(1e-5, units=UNITS).value
        for entries in (weak, [*weak[:25], *strong[:25]], strong)
    ]
    assert found[0] < found[1] < found[2]
