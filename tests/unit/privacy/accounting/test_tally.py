"""A tally is an account that is counted: the same figures, added and lowered in any order."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wardround.core.errors import BudgetError, InternalError
from wardround.privacy.accounting.account import Account
from wardround.privacy.accounting.cap import Cap
from wardround.privacy.accounting.mechanisms import (
    BoundedMixture,
    Gaussian,
    Mechanism,
    NoPrivacy,
    SampledGaussian,
)
from wardround.privacy.accounting.renyi import ORDERS, rdp_of_step, rdp_of_step_at
from wardround.privacy.accounting.steps import Step, steps_of
from wardround.privacy.accounting.tally import Tally

KINDS: tuple[Mechanism, ...] = (
    SampledGaussian(sample_rate=0.01, sigma=2.0, steps=10),
    SampledGaussian(sample_rate=0.02, sigma=2.0, steps=3),
    SampledGaussian(sample_rate=1.0, sigma=30.0, steps=2),
    Gaussian(sigma=30.0, count=4),
)


def tallied(*mechanisms: Mechanism) -> Tally:
    """A tally of them."""
    tally = Tally()
    for mechanism in mechanisms:
        tally.add(mechanism)
    return tally


@settings(max_examples=30, deadline=None)
@given(st.lists(st.sampled_from(KINDS), max_size=12), st.randoms(use_true_random=False))
def test_it_costs_what_the_account_costs(mechanisms: list[Mechanism], random: object) -> None:
    """At every order, to rounding; the order of the entries changes not one bit."""
    tally = tallied(*mechanisms)
    account = Account(mechanisms=tuple(mechanisms))
    np.testing.assert_allclose(tally.rdp(), account.rdp(), rtol=1e-13)
    mixed = list(mechanisms)
    random.shuffle(mixed)  # type: ignore[attr-defined]  # Hypothesis gives a Random
    again = tallied(*mixed)
    for order in (1.5, 7.0, 64.0 - 1, 512.0):
        assert tally.rdp_at(order) == again.rdp_at(order)
        assert tally.rdp_at(order) == pytest.approx(float(tally.rdp()[ORDERS.index(order)]), rel=1e-13)
    assert tally.account().epsilon(1e-5, units=10).value == pytest.approx(
        account.epsilon(1e-5, units=10).value, rel=1e-12
    )


@settings(max_examples=30, deadline=None)
@given(st.lists(st.sampled_from(KINDS), min_size=1, max_size=8), st.data())
def test_what_was_lowered_is_gone_to_the_last_bit(mechanisms: list[Mechanism], data: st.DataObject) -> None:
    """As if it had never been counted."""
    kept = data.draw(st.integers(0, len(mechanisms)))
    tally = tallied(*mechanisms)
    for mechanism in mechanisms[kept:]:
        found = steps_of(mechanism)
        assert found is not None
        tally.lower(*found)
    assert tally == tallied(*mechanisms[:kept])
    assert tally.rdp_at(7.0) == tallied(*mechanisms[:kept]).rdp_at(7.0)


def test_one_order_alone_has_the_bits_of_all() -> None:
    """Also where the series has no bound."""
    for q, sigma in ((0.01, 1.0), (0.5, 0.7), (1.0, 2.0), (1e-4, 0.01)):
        alone = [rdp_of_step_at(order, q, sigma) for order in ORDERS]
        np.testing.assert_array_equal(alone, rdp_of_step(q, sigma))


def test_not_more_is_taken_back_than_was_counted() -> None:
    """A ledger that did would charge less than was done."""
    tally = tallied(KINDS[0])
    for count in (11, -1):
        with pytest.raises(InternalError, match="taken back"):
            tally.lower(Step(0.01, 2.0), count)
    with pytest.raises(InternalError, match="taken back"):
        tally.lower(Step(0.5, 2.0), 1)
    assert tally == tallied(KINDS[0])


def test_a_release_is_kept_beside_the_count() -> None:
    """Its account is infinite; what had noise is still known."""
    tally = tallied(KINDS[0], NoPrivacy())
    assert tally.released
    assert tally.account().epsilon(1e-5, units=10).value == float("inf")
    assert tally.rdp_at(7.0) == tallied(KINDS[0]).rdp_at(7.0)
    assert Tally.total([tallied(KINDS[1]), tally]).released


def test_mixtures_have_no_renyi_bound_but_the_two_that_are_gaussians() -> None:
    """One example a patient, or every example in every step."""
    one = BoundedMixture(sample_rate=0.01, sigma=2.0, most_examples=1, steps=10)
    every = BoundedMixture(sample_rate=1.0, sigma=60.0, most_examples=2, steps=4)
    assert tallied(one, every) == tallied(KINDS[0], KINDS[3])
    mixture = BoundedMixture(sample_rate=0.01, sigma=2.0, most_examples=2)
    tally = tallied(KINDS[0], mixture)
    assert tally.needs_losses
    assert tally.account() == Account(mechanisms=(KINDS[0], mixture))
    for ask in (tally.rdp, lambda: tally.rdp_at(7.0)):
        with pytest.raises(BudgetError, match="no Rényi bound"):
            ask()


def test_a_cap_checks_a_running_sum_as_it_checks_an_account() -> None:
    """The same answer at every entry, up to the last that fits."""
    cap = Cap.for_any(3.0, 1e-5, units=100)
    account, tally = Account(), Tally()
    big = SampledGaussian(sample_rate=0.01, sigma=2.0, steps=500)
    while cap.fits(account, big):
        before = tally.rdp_at(cap.order)
        account = cap.admit(account, big)
        tally.add(big)
        cap.check(before, tally.rdp_at(cap.order))
    spent = tally.rdp_at(cap.order)
    assert cap.reached(spent) <= 3.0
    tally.add(big)
    with pytest.raises(BudgetError, match=r"(?s)ε = 3\.\d+, not 3.*at most ε = 3 .* per patient"):
        cap.check(spent, tally.rdp_at(cap.order))
