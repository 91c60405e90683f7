"""Caps: an order fixed beforehand, and nothing let through that would go beyond it."""

from __future__ import annotations

import math

import numpy as np
import pytest
from pydantic import ValidationError

from wardround.core.errors import BudgetError, ConfigError, PolicyError
from wardround.privacy.accounting.account import Account
from wardround.privacy.accounting.cap import Cap
from wardround.privacy.accounting.mechanisms import BoundedMixture, Gaussian, NoPrivacy, SampledGaussian
from wardround.privacy.accounting.renyi import ORDERS, budget_at, epsilon_at

UNITS = 2_000
STEP = SampledGaussian(sample_rate=0.01, sigma=1.0, steps=10)


def cap(epsilon: float = 3.0) -> Cap:
    """Chosen for a thousand steps."""
    schedule = Account(mechanisms=(STEP.model_copy(update={"steps": 1000}),))
    return Cap.for_schedule(epsilon, 1e-5, schedule, units=UNITS)


def fill(limit: Cap, *kinds: SampledGaussian | Gaussian) -> Account:
    """Takes turns until the next one does not fit."""
    account, turn = Account(), 0
    while limit.fits(account, kinds[turn % len(kinds)]):
        account = limit.admit(account, kinds[turn % len(kinds)])
        turn += 1
    return account


def test_a_schedule_that_was_planned_fits_to_its_last_step() -> None:
    """The order is the schedule's best, so that nothing of its Rényi epsilon is lost."""
    schedule = Account(mechanisms=(STEP.model_copy(update={"steps": 1000}),))
    needs = schedule.epsilon(1e-5, units=UNITS).value
    enough = Cap.for_schedule(needs * 1.0001, 1e-5, schedule, units=UNITS)
    assert 0.999 < enough.used(schedule) <= 1
    short = Cap.for_schedule(needs * 0.999, 1e-5, schedule, units=UNITS)
    assert not short.fits(Account(), schedule.mechanisms[0])


@pytest.mark.parametrize("kinds", [(STEP,), (STEP, Gaussian(sigma=30.0)), (Gaussian(sigma=20.0),)])
def test_what_was_let_through_keeps_the_cap(kinds: tuple[SampledGaussian | Gaussian, ...]) -> None:
    """Whatever came, epsilon at the cap's own order is at most the cap's; one more would exceed it."""
    limit = cap()
    account = fill(limit, *kinds)
    assert account.mechanisms
    spent = float(account.rdp()[ORDERS.index(limit.order)])
    assert epsilon_at(limit.order, spent, limit.delta) <= limit.epsilon
    assert account.epsilon(1e-5, units=UNITS).value <= limit.epsilon
    beyond = account.plus(*kinds)
    spent = float(beyond.rdp()[ORDERS.index(limit.order)])
    assert epsilon_at(limit.order, spent, limit.delta) > limit.epsilon


def test_room_at_another_order_does_not_count() -> None:
    """Many weak steps leave room at high orders; the cap's order is the one that was fixed."""
    early = Cap(epsilon=1.0, delta=1e-5, order=512.0)
    late = Cap(epsilon=1.0, delta=1e-5, order=25.0)
    step = Gaussian(sigma=30.0, count=10)
    assert late.fits(Account(), step)
    assert not early.fits(Account(), step)


def test_what_does_not_fit_is_refused_with_the_number() -> None:
    """And the account stays as it was."""
    limit = cap()
    account = fill(limit, STEP)
    with pytest.raises(BudgetError, match=r"10\d\.\d% of the budget .* (100|99)\.\d% before it"):
        limit.admit(account, STEP)
    with pytest.raises(BudgetError, match="inf% of the budget"):
        limit.admit(Account(), NoPrivacy())
    assert not limit.fits(Account(mechanisms=(NoPrivacy(),)), STEP)


def test_mixtures_are_not_let_through() -> None:
    """There is no filter for them: an unknown budget means stop."""
    mixture = BoundedMixture(sample_rate=0.01, sigma=1.0, most_examples=4)
    for ask in (cap().fits, cap().admit):
        with pytest.raises(BudgetError, match="no Rényi bound"):
            ask(Account(), mixture)
    with pytest.raises(BudgetError, match="no Rényi bound"):
        Cap.for_schedule(3.0, 1e-5, Account(mechanisms=(mixture,)), units=UNITS)


@pytest.mark.parametrize("order", [1.0, 1.15, 64.0, 2048.0, math.nan, math.inf])
def test_an_order_is_one_of_the_grid(order: float) -> None:
    """Any other has no vectors behind it."""
    with pytest.raises(ValidationError):
        Cap(epsilon=3.0, delta=1e-5, order=order)


def test_an_order_without_room_is_no_cap() -> None:
    """Low orders turn even no loss into more than a small epsilon."""
    with pytest.raises(ValidationError, match="no room at all"):
        Cap(epsilon=0.5, delta=1e-5, order=2.0)
    with pytest.raises(ConfigError, match="no Rényi order leaves room"):
        Cap.for_any(1e-4, 1e-5, units=UNITS)


@pytest.mark.parametrize("epsilon", [0.0, -1.0, math.nan, math.inf])
def test_a_cap_is_a_positive_number(epsilon: float) -> None:
    """Infinity would be no cap."""
    with pytest.raises((ValidationError, ConfigError)):
        Cap.for_any(epsilon, 1e-5, units=UNITS)


@pytest.mark.parametrize(("epsilon", "delta"), [(20.0, 1e-2), (60.0, 1e-2), (60.0, 1e-5), (1000.0, 1e-5)])
def test_a_generous_cap_admits_what_a_small_one_would(epsilon: float, delta: float) -> None:
    """Most room for plain Gaussians is at orders at which a sampled one has no bound in our series."""
    generous = Cap.for_any(epsilon, delta, units=50)
    for rate, sigma in ((0.4, 0.7), (0.4, 1.0), (0.1, 1.0), (0.01, 0.6)):
        assert generous.used(Account(mechanisms=(SampledGaussian(sample_rate=rate, sigma=sigma),))) < 0.1


def test_the_delta_of_a_cap_obeys_the_same_rule() -> None:
    """At or above 1/units there is no cap to make."""
    with pytest.raises(PolicyError, match="below 1/units"):
        Cap.for_any(3.0, 1 / UNITS, units=UNITS)


def test_a_cap_survives_its_json() -> None:
    """Its order is what a ledger has to keep."""
    limit = cap()
    assert Cap.model_validate_json(limit.model_dump_json()) == limit
    assert limit.order == 6.7


@pytest.mark.parametrize("epsilon", [0.3, 1.0, 3.0, 8.0])
def test_the_budget_is_the_conversion_backwards(epsilon: float) -> None:
    """At every order with room: budget → epsilon gives the epsilon that it came from."""
    budgets = np.array([budget_at(order, epsilon, 1e-5) for order in ORDERS])
    assert (budgets > 0).any()
    for order, budget in zip(ORDERS, budgets, strict=True):
        if budget > 1e-9:
            assert epsilon_at(order, budget, 1e-5) == pytest.approx(epsilon, rel=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_a_cunning_chooser_stays_under_the_cap(seed: int) -> None:
    """The next noise depends on the loss so far; over all paths the tail of the loss is what δ allows.

    One Gaussian draw after another between two neighbours, exactly simulated: E[exp((α − 1) loss)] is what
    the filter bounds, by exp((α − 1) B). 20,000 paths; the false-alarm rate is below 10⁻⁴ a seed (4
    standard errors).
    """
    limit = Cap(epsilon=2.0, delta=1e-2, order=3.0)
    rng = np.random.default_rng(seed)
    paths, budget = 20_000, limit.budget
    loss, spent = np.zeros(paths), np.zeros(paths)
    for _ in range(60):
        # Less noise for those who lead: the chooser hopes to end where the loss is already large.
        sigma = np.where(loss > 0.3, 4.0, 9.0)
        cost = limit.order / (2 * sigma**2)
        goes = spent + cost <= budget
        drawn = rng.normal(1 / (2 * sigma**2), 1 / sigma)
        loss += np.where(goes, drawn, 0.0)
        spent += np.where(goes, cost, 0.0)
    moment = np.exp((limit.order - 1) * (loss - budget))
    assert moment.mean() <= 1 + 4 * moment.std() / math.sqrt(paths)
    exceeds = np.maximum(0.0, 1 - np.exp(limit.epsilon - loss))
    assert exceeds.mean() <= limit.delta + 4 * exceeds.std() / math.sqrt(paths)
