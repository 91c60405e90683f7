"""Sums of discrete Gaussian shares: bounds, against direct summation in one and two dimensions."""

from __future__ import annotations

import itertools
import math
from functools import cache

import numpy as np
import pytest
from pydantic import ValidationError
from scipy.stats import norm

from wardround.core.errors import BudgetError
from wardround.core.packed import Array
from wardround.privacy.accounting.account import Account
from wardround.privacy.accounting.cap import Cap
from wardround.privacy.accounting.lattice import closeness, dominating, rdp_of_lattice_step
from wardround.privacy.accounting.mechanisms import (
    BoundedMixture,
    Gaussian,
    NoPrivacy,
    SampledDiscreteGaussians,
    SampledGaussian,
)
from wardround.privacy.accounting.privacy_loss import composed_epsilon
from wardround.privacy.accounting.renyi import ORDERS, SLACK, rdp_of_step

UNITS = 2_000
RUN = SampledDiscreteGaussians(
    sample_rate=0.01, sigma=1.0, share_sigma=40.0, shares=4, coordinates=100_000, steps=1000
)
MOST_SHIFT = 5
SHARES = [(0.5, 2), (0.5, 5), (0.7, 1), (1.0, 2), (1.6, 1), (2.0, 3)]
"""(σ of a share, shares). In two dimensions only the narrow ones: the others' grids are large."""
SHIFTS = [(1,), (2,), (5,), (1, 1), (2, 1)]
CASES = [(*noise, shift) for noise in SHARES for shift in SHIFTS if len(shift) == 1 or noise[0] < 1]


@cache
def log_probabilities(share_sigma: float, shares: int) -> Array:
    """The logarithm of P(Z = z) for z = −reach … reach, summed as logarithms: tails decide Rényi moments."""
    reach = math.ceil(45 * share_sigma * math.sqrt(shares)) + MOST_SHIFT * 16
    z = np.arange(-reach, reach + 1)
    one = -np.square(z) / (2 * share_sigma**2)
    one -= np.logaddexp.reduce(one)
    total = one
    for _ in range(shares - 1):
        padded = np.concatenate([np.full(2 * reach, -np.inf), total, np.full(2 * reach, -np.inf)])
        windows = np.lib.stride_tricks.sliding_window_view(padded, one.size)[reach : reach + one.size]
        total = np.logaddexp.reduce(windows + one, axis=1)
    return np.asarray(total)


def pair(share_sigma: float, shares: int, shift: tuple[int, ...], rate: float) -> tuple[Array, Array]:
    """(log P, log M) on all of the integers that matter: without and with the unit."""
    one = log_probabilities(share_sigma, shares)
    moved = []
    for step in shift:
        far = np.full(step, -np.inf)
        moved.append((np.concatenate([one, far]), np.concatenate([far, one])))
    plain, other = moved[0]
    for along, across in moved[1:]:
        plain, other = np.add.outer(plain, along), np.add.outer(other, across)
    keep = np.isfinite(plain) & np.isfinite(other)  # what is cut off has probability exp(−1,000)
    plain, other = plain[keep], other[keep]
    with np.errstate(divide="ignore"):
        mixed = np.logaddexp(np.log1p(-rate) + plain, math.log(rate) + other) if rate < 1 else other
    return plain, mixed


def divergence(p: Array, q: Array, order: float) -> float:
    """D_α(P‖Q) by summing."""
    return float(np.logaddexp.reduce(order * p + (1 - order) * q)) / (order - 1)


@pytest.mark.parametrize(("share_sigma", "shares"), SHARES)
def test_a_sum_of_shares_is_as_close_as_stated(share_sigma: float, shares: int) -> None:
    """At every integer; met exactly by two shares; half of what the paper allows."""
    total = log_probabilities(share_sigma, shares)
    reach = (total.size - 1) // 2
    one = -np.square(np.arange(-reach, reach + 1)) / (2 * shares * share_sigma**2)
    one -= np.logaddexp.reduce(one)
    near = slice(reach - 12, reach + 13)
    apart = float(np.abs(total[near] - one[near]).max())
    stated = closeness(share_sigma, shares)
    assert apart <= stated * (1 + 1e-9) + 1e-12
    if shares == 2 and share_sigma < 1.5:
        assert stated <= apart * 1.01
    published = 5 * sum(math.exp(-2 * math.pi**2 * share_sigma**2 * k / (k + 1)) for k in range(1, shares))
    assert stated <= published


@pytest.mark.parametrize(("share_sigma", "shares", "shift"), CASES)
@pytest.mark.parametrize("rate", [0.1, 1.0])
def test_no_shift_costs_more_than_the_bound(
    share_sigma: float, shares: int, shift: tuple[int, ...], rate: float
) -> None:
    """Both ways round, at whole and broken orders, for a unit that moves the sum by as much as it may."""
    plain, mixed = pair(share_sigma, shares, shift, rate)
    sigma = share_sigma * math.sqrt(shares) / math.hypot(*shift)
    bound = rdp_of_lattice_step(rate, sigma, share_sigma, shares, len(shift))
    for order in (1.1, 1.5, 2.0, 2.3, 3.0, 4.5, 6.0, 9.9, 16.0):
        there, back = divergence(mixed, plain, order), divergence(plain, mixed, order)
        stated = bound[ORDERS.index(order)]
        assert back <= there * (1 + 1e-9) + 1e-12
        assert there <= stated * (1 + 1e-9) + 1e-12
        if shares == 1 and order == int(order):
            assert stated <= there * (1 + 1e-6) + 2 * SLACK


@pytest.mark.parametrize(("rate", "sigma"), [(1e-4, 0.7), (0.01, 1.0), (0.3, 1.0), (0.3, 4.0)])
def test_wide_noise_costs_what_the_gaussian_costs(rate: float, sigma: float) -> None:
    """At whole orders exactly; between them hardly more, or less where the series of the other is loose."""
    ours, theirs = rdp_of_lattice_step(rate, sigma, 100.0, 4, 10**6), rdp_of_step(rate, sigma)
    whole = np.array([order == int(order) for order in ORDERS])
    np.testing.assert_allclose(ours[whole], theirs[whole], rtol=1e-9, atol=2 * SLACK)
    known = np.isfinite(theirs)
    assert (ours[known] <= theirs[known] * 1.01 + 2 * SLACK).all()


def test_unsampled_wide_noise_costs_what_the_gaussian_costs() -> None:
    """At every order."""
    np.testing.assert_allclose(
        rdp_of_lattice_step(1.0, 3.0, 100.0, 4, 10**6), rdp_of_step(1.0, 3.0), rtol=1e-12
    )


def test_narrow_shares_cost_more() -> None:
    """More of them, and in more coordinates."""
    costs = [
        rdp_of_lattice_step(0.1, 1.0, share_sigma, shares, coordinates)[ORDERS.index(4.0)]
        for share_sigma, shares, coordinates in [
            (9.0, 2, 10),
            (1.0, 2, 10),
            (1.0, 5, 10),
            (1.0, 5, 10**4),
            (0.6, 5, 10**4),
        ]
    ]
    assert costs == sorted(costs)
    assert costs[1] > costs[0] * (1 + 1e-6)
    assert costs[3] > costs[2] * 1.01


def hockey_stick(p: Array, q: Array, epsilon: float) -> float:
    """δ(ε): Σ (P − e^ε Q)₊."""
    return float(np.maximum(np.exp(p) - np.exp(epsilon + q), 0).sum())


def gaussian_hockey_sticks(sigma: float, rate: float, epsilon: float) -> tuple[float, float]:
    """δ(ε) of the sampled Gaussian, both ways round: M against P, and P against M."""
    power = math.exp(epsilon)

    def below(bound: float) -> tuple[float, float]:
        """P and M of everything up to there."""
        plain = float(norm.cdf(bound / sigma))
        return plain, (1 - rate) * plain + rate * float(norm.cdf((bound - 1) / sigma))

    def crossing(ratio: float) -> float:
        """Where M is `ratio` times P."""
        return sigma**2 * math.log((ratio - 1 + rate) / rate) + 0.5 if ratio > 1 - rate else -math.inf

    plain, mixed = below(crossing(power))
    there = (1 - mixed) - power * (1 - plain)
    plain, mixed = below(crossing(1 / power))
    return there, plain - power * mixed


@pytest.mark.parametrize(("share_sigma", "shares", "shift"), CASES)
@pytest.mark.parametrize("rate", [0.05, 0.5, 1.0])
def test_the_dominating_gaussian_dominates(
    share_sigma: float, shares: int, shift: tuple[int, ...], rate: float
) -> None:
    """At every ε the integers have at most exp(A') times its δ at ε − 2 A', both ways round."""
    plain, mixed = pair(share_sigma, shares, shift, rate)
    own = share_sigma * math.sqrt(shares) / math.hypot(*shift)
    sigma, excess = dominating(own, share_sigma, shares, len(shift))
    for epsilon in (0.0, 0.1, 0.7, 1.5, 3.0, 6.0):
        there, back = gaussian_hockey_sticks(sigma, rate, epsilon - 2 * excess)
        assert hockey_stick(mixed, plain, epsilon) <= math.exp(excess) * there * (1 + 1e-9) + 1e-12
        assert hockey_stick(plain, mixed, epsilon) <= math.exp(excess) * back * (1 + 1e-9) + 1e-12


def test_losses_bound_the_direct_sum() -> None:
    """ε as reported over two steps really has its δ, both ways round, and is not far above."""
    plain, mixed = pair(4.0, 2, (3,), 0.2)
    near = plain > -60
    plain, mixed = (np.add.outer(values[near], values[near]).ravel() for values in (plain, mixed))
    step = SampledDiscreteGaussians(
        sample_rate=0.2, sigma=4 * math.sqrt(2) / 3, share_sigma=4.0, shares=2, coordinates=1
    )
    epsilon = composed_epsilon({step: 2}, 1e-4)
    found = max(hockey_stick(mixed, plain, epsilon), hockey_stick(plain, mixed, epsilon))
    assert found <= 1e-4
    assert hockey_stick(mixed, plain, 0.85 * epsilon) > 1e-4


def test_the_dominating_gaussian() -> None:
    """Four ring units of variance less, or half of a narrow one's; next to nothing beside."""
    sigma, excess = dominating(1.0, 10.0, 4, 10**6)
    assert sigma == pytest.approx(math.sqrt(1 - 4 / 400))
    assert 0 <= excess < 1e-26
    sigma, excess = dominating(2.0, 0.6, 2, 1)
    assert sigma == pytest.approx(2 * math.sqrt(0.5))
    assert excess > closeness(0.6, 2)


def test_an_account_of_distributed_noise() -> None:
    """Close to the Gaussian's by either accountant, a little above, and by Rényi where nothing else asks."""
    plain = Account(mechanisms=(SampledGaussian(sample_rate=0.01, sigma=1.0, steps=1000),))
    ours = Account(mechanisms=(RUN,))
    assert not ours.needs_losses
    for ask in ("epsilon", "fixed_schedule_epsilon"):
        reference, found = (getattr(account, ask)(1e-5, units=UNITS) for account in (plain, ours))
        assert found.accountant == reference.accountant
        assert reference.value * (1 - 1e-3) <= found.value <= reference.value * 1.003
    both = Account(mechanisms=(RUN, *plain.mechanisms))
    assert both.epsilon(1e-5, units=UNITS).value > 1.2 * ours.epsilon(1e-5, units=UNITS).value
    assert both.rdp() == pytest.approx(plain.rdp() + ours.rdp())


def test_steps_add_up() -> None:
    """In one entry or in many."""
    half = RUN.model_copy(update={"steps": 500})
    assert Account(mechanisms=(half, half)).rdp().tolist() == Account(mechanisms=(RUN,)).rdp().tolist()


def test_a_cap_counts_distributed_noise() -> None:
    """It is let through while there is room, and refused with the number."""
    limit = Cap.for_schedule(2.5, 1e-5, Account(mechanisms=(RUN,)), units=UNITS)
    account = limit.admit(Account(), RUN)
    assert 0.5 < limit.used(account) <= 1
    with pytest.raises(BudgetError, match="of the budget with this mechanism"):
        limit.admit(account, RUN)


def test_beside_a_mixture_losses_compose_the_whole() -> None:
    """Whichever came first."""
    mixture = BoundedMixture(sample_rate=0.0025, sigma=2.0, most_examples=4, steps=10)
    few = RUN.model_copy(update={"steps": 20})
    account = Account(mechanisms=(few, mixture))
    with pytest.raises(BudgetError, match="no Rényi bound"):
        account.rdp()
    found = account.epsilon(1e-5, units=UNITS)
    assert found.accountant == "losses"
    assert found.value > Account(mechanisms=(few,)).fixed_schedule_epsilon(1e-5, units=UNITS).value


def test_noise_too_small_for_arithmetic_is_no_privacy() -> None:
    """Nothing overflows into a finite epsilon; narrow shares in many coordinates are no privacy either."""
    for mechanism in (
        RUN.model_copy(update={"sigma": 1e-200}),
        RUN.model_copy(update={"sigma": 1e-200, "sample_rate": 1.0}),
        RUN.model_copy(update={"share_sigma": 0.5, "coordinates": 10**12}),
    ):
        for account in (Account(mechanisms=(mechanism,)), Account(mechanisms=(mechanism, NoPrivacy()))):
            assert account.epsilon(1e-5, units=UNITS).value > 1e6
            assert account.fixed_schedule_epsilon(1e-5, units=UNITS).value > 1e6


def test_steps_that_round_to_nothing_still_cost() -> None:
    """A billion of them, each below what float64 can say."""
    tiny = RUN.model_copy(update={"sample_rate": 1e-9, "sigma": 1e4, "steps": 10**9})
    assert (Account(mechanisms=(tiny,)).rdp() >= 10**9 * SLACK * 0.999).all()


def test_an_excess_is_charged_by_losses() -> None:
    """For each step: ε is reported at a smaller δ, and raised."""
    narrow = SampledDiscreteGaussians(sample_rate=1.0, sigma=5.0, share_sigma=1.0, shares=2, coordinates=10)
    sigma, excess = dominating(5.0, 1.0, 2, 10)
    assert excess > 1e-3
    found = composed_epsilon({narrow: 3}, 1e-5)
    without = composed_epsilon({Gaussian(sigma=sigma): 3}, 1e-5 * math.exp(-3 * excess))
    assert found == pytest.approx(without + 6 * excess, rel=1e-9)


def test_cached_vectors_cannot_be_written() -> None:
    """Whoever changed one would change every account."""
    with pytest.raises(ValueError, match="read-only"):
        rdp_of_lattice_step(*RUN.step())[0] = 0


@pytest.mark.parametrize(
    ("field", "value"),
    list(
        itertools.chain(
            (("share_sigma", value) for value in (0.49, 0.0, -1.0, math.nan, math.inf, None)),
            (("shares", value) for value in (0, -1, 1.5, 10**6 + 1, True, None)),
            (("coordinates", value) for value in (0, -1, 1.5, 10**12 + 1, None)),
        )
    ),
)
def test_nonsense_is_refused_by_name(field: str, value: object) -> None:
    """Also shares so narrow that no bound holds."""
    with pytest.raises(ValidationError) as caught:
        SampledDiscreteGaussians(**(RUN.model_dump() | {field: value}))
    assert [fault["loc"] for fault in caught.value.errors()] == [(field,)]


def test_many_shares_take_no_time() -> None:
    """A million of them are a short sum."""
    assert 0 < closeness(4.0, 2) <= closeness(4.0, 10**6) < 1e-60
