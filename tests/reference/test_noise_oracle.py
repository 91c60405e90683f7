"""What the exact samplers rely on, measured against mpmath; Rényi DP of lattices against Opacus."""

from __future__ import annotations

import importlib.util
import math
from decimal import Context, Decimal, localcontext

import numpy as np
import pytest

from wardround.core.packed import Array
from wardround.privacy.accounting.lattice import rdp_of_lattice_step
from wardround.privacy.accounting.renyi import ORDERS, SLACK
from wardround.privacy.noise.exact import normal_cdf

mpmath = pytest.importorskip("mpmath", reason="mpmath, the oracle, comes with dp_accounting")


def tails() -> Array:
    """Probabilities of all sizes from 2^−22 to 1/2: farther out nobody asks ndtri alone."""
    rng = np.random.default_rng(1)
    return np.concatenate(
        [rng.uniform(0, 0.5, 300), 2.0 ** rng.uniform(-22, -1, 300), [2.0**-21, 0.5 - 2.0**-54]]
    )


def test_the_inverse_of_the_normal_is_good_enough() -> None:
    """To 2^−48; the sampler allows for 2^−42."""
    from scipy.special import ndtri

    with mpmath.workdps(40):
        for tail, found in zip(tails(), ndtri(tails()), strict=True):
            exact = -mpmath.sqrt(2) * mpmath.erfinv(1 - 2 * mpmath.mpf(float(tail)))
            assert abs(exact - float(found)) < 2.0**-48


def test_logarithms_and_powers_are_good_enough() -> None:
    """To 2^−50 of the result; the sampler allows for 2^−46."""
    rng = np.random.default_rng(2)
    uniform = np.concatenate([rng.uniform(0, 1, 500), 2.0 ** rng.uniform(-63, 0, 500)])
    exponents = rng.uniform(-45, 0, 1_000)
    with mpmath.workdps(40):
        for value, found in zip(uniform, np.log(uniform), strict=True):
            exact = mpmath.log(float(value))
            assert abs(exact - float(found)) <= abs(exact) * 2.0**-50
        for value, found in zip(exponents, np.exp(exponents), strict=True):
            exact = mpmath.exp(float(value))
            assert abs(exact - float(found)) <= exact * 2.0**-50


@pytest.mark.parametrize("digits", [45, 70, 120])
def test_the_normal_distribution_function_to_any_precision(digits: int) -> None:
    """Within some units of the last digit, far into the tail."""
    with mpmath.workdps(digits + 30), localcontext(Context(prec=digits)):
        for z in ("0.001", "-0.7", "-2.5", "-6.25", "-9.3", "-13.7", "3.3"):
            exact = mpmath.ncdf(mpmath.mpf(z))
            found = mpmath.mpf(str(normal_cdf(Decimal(z))))
            assert abs(exact - found) < mpmath.mpf(10) ** (5 - digits)


@pytest.mark.skipif(importlib.util.find_spec("opacus") is None, reason="opacus, the oracle, is not installed")
@pytest.mark.parametrize("rate", [1e-3, 0.05, 0.4, 1.0])
@pytest.mark.parametrize("sigma", [0.8, 2.0, 10.0])
def test_wide_lattice_noise_agrees_with_opacus_at_whole_orders(rate: float, sigma: float) -> None:
    """Another Rényi code, for the Gaussian that the lattice stands for."""
    from opacus.accountants.analysis.rdp import compute_rdp

    orders = [int(order) for order in ORDERS if order == int(order) and order <= 128]
    theirs = compute_rdp(q=rate, noise_multiplier=sigma, steps=1, orders=orders)
    ours = rdp_of_lattice_step(rate, sigma, 1e4, 3, 10**6)
    for order, their in zip(orders, np.asarray(theirs), strict=True):
        assert ours[ORDERS.index(float(order))] == pytest.approx(float(their), rel=1e-6, abs=2 * SLACK)
    assert math.isfinite(ours.max())
