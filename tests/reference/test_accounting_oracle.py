"""Opacus's accountants as the oracle: another Rényi code, and a PRV accountant of its own."""

from __future__ import annotations

import importlib.util
import math
from functools import cache

import pytest

from wardround.privacy.accounting.account import Account
from wardround.privacy.accounting.mechanisms import SampledGaussian
from wardround.privacy.accounting.renyi import ORDERS, best_epsilon, epsilon_at

if importlib.util.find_spec("opacus") is None:
    pytest.skip("opacus, the oracle, is not installed: `make test` installs it", allow_module_level=True)

History = tuple[tuple[float, float, int], ...]
"""(σ, q, steps) of each phase, as Opacus writes it."""
GRID: list[History] = [
    *(
        ((sigma, rate, steps),)
        for sigma in (0.7, 1.0, 4.0)
        for rate in (1e-3, 0.01, 0.1)
        for steps in (1, 100, 5_000)
    ),
    ((1.0, 1.0, 1),),
    ((8.0, 1.0, 40),),
    ((1.0, 0.01, 500), (1.5, 0.02, 500)),
    ((2.0, 0.05, 20), (1.1, 0.004, 300), (0.9, 0.001, 50)),
]
COMPOSED = [
    h for h in GRID if sum(steps for *_, steps in h) <= 1_000 and any(s > 1 and q < 1 for _, q, s in h)
]
FINE: list[History] = [
    ((1.0, 0.01, 1000),), ((0.7, 0.01, 100),), ((0.7, 0.1, 100),), ((1.0, 0.1, 100),), ((4.0, 0.1, 100),),
    ((1.0, 0.01, 500), (1.5, 0.02, 500)),
]  # fmt: skip


def account(history: History) -> Account:
    """The same in our words."""
    return Account(
        mechanisms=tuple(SampledGaussian(sample_rate=q, sigma=sigma, steps=n) for sigma, q, n in history)
    )


@cache
def renyi_oracle(history: History, delta: float) -> float:
    """Opacus's Rényi accountant, at our orders: the grid is a choice, the numbers are not."""
    from opacus.accountants import RDPAccountant

    accountant = RDPAccountant()
    accountant.history = list(history)
    return float(accountant.get_epsilon(delta, alphas=list(ORDERS)))


@pytest.mark.filterwarnings("ignore:Optimal order is the (largest|smallest) alpha:UserWarning")
@pytest.mark.parametrize("history", GRID, ids=str)
@pytest.mark.parametrize("delta", [1e-5, 1e-8])
def test_renyi_agrees(history: History, delta: float) -> None:
    """To three digits below ε = 7, above it on the safe side (we say 0 where δ alone covers it).

    There the best order is broken and low. Of such an order `dp_accounting` cuts an infinite series off and
    bounds the rest, which errs upwards: by 0.25 % of ε at orders from 2, and by up to a half of it below,
    where it may find no bound at all. At whole orders the series is finite, and the two agree whatever ε is
    (the next test).
    """
    ours, theirs = account(history).epsilon(delta, units=1_000).value, renyi_oracle(history, delta)
    order = best_epsilon(account(history).rdp(), delta)[1]
    if ours == 0:
        assert theirs < 0.05
    elif ours < 7:
        assert ours == pytest.approx(theirs, rel=5e-4, abs=1e-5)
    else:
        assert theirs * (1 - 5e-4) <= ours <= theirs * (1.0025 if order >= 2 else 1.5)


@pytest.mark.filterwarnings("ignore:Optimal order is the (largest|smallest) alpha:UserWarning")
@pytest.mark.parametrize("history", GRID, ids=str)
@pytest.mark.parametrize("delta", [1e-5, 1e-8])
def test_renyi_agrees_at_whole_orders_whatever_epsilon_is(history: History, delta: float) -> None:
    """Up to ε = 341: six digits, whole schedules included."""
    from opacus.accountants import RDPAccountant

    accountant = RDPAccountant()
    accountant.history = list(history)
    theirs = float(accountant.get_epsilon(delta, alphas=[order for order in ORDERS if order.is_integer()]))
    rdp = account(history).rdp()
    ours = min(
        epsilon_at(order, float(each), delta)
        for order, each in zip(ORDERS, rdp, strict=True)
        if order.is_integer()
    )
    if ours == 0:
        assert theirs < 0.05
    else:
        assert ours == pytest.approx(theirs, rel=1e-6, abs=1e-6)


@pytest.mark.filterwarnings("ignore:Optimal order is the (largest|smallest) alpha:UserWarning")
@pytest.mark.parametrize("history", COMPOSED, ids=str)
def test_losses_agree_with_prv(history: History) -> None:
    """Two discretisations of one truth: each within its stated error of the other."""
    from opacus.accountants import PRVAccountant

    accountant = PRVAccountant()
    accountant.history = list(history)
    error = 0.01
    above = float(accountant.get_epsilon(1e-5, eps_error=error, delta_error=1e-8))
    ours = account(history).fixed_schedule_epsilon(1e-5, units=1_000).value
    assert above - 2 * error - 1e-3 <= ours <= above + 1e-3


@pytest.mark.filterwarnings("ignore:Optimal order is the (largest|smallest) alpha:UserWarning")
@pytest.mark.parametrize("history", FINE, ids=str)
def test_losses_agree_with_prv_to_three_digits(history: History) -> None:
    """With ten times finer a grid of theirs, from ε = 0.98 to 14.6: 1.828 at σ = 1, q = 0.01, 1,000 steps.

    What they give is their estimate and the error that they were asked for on top of it.
    """
    from opacus.accountants import PRVAccountant

    accountant, error = PRVAccountant(), 1e-3
    accountant.history = list(history)
    estimate = float(accountant.get_epsilon(1e-5, eps_error=error, delta_error=1e-9)) - error
    ours = account(history).fixed_schedule_epsilon(1e-5, units=1_000).value
    assert ours == pytest.approx(estimate, rel=1e-4)


def test_the_published_pair_of_figures() -> None:
    """2.1014 by either Rényi code; 1.838 by PRV at its usual error."""
    from opacus.accountants import PRVAccountant

    history: History = ((1.0, 0.01, 1000),)
    assert renyi_oracle(history, 1e-5) == pytest.approx(2.1014, abs=1e-4)
    accountant = PRVAccountant()
    accountant.history = list(history)
    assert accountant.get_epsilon(1e-5) == pytest.approx(1.838, abs=1e-3)
    assert math.isfinite(account(history).epsilon(1e-5, units=2_000).value)
