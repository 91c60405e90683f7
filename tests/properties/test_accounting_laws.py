"""Laws of accounting: what may only cost more, what may not matter, and what survives."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wardround.privacy.accounting.account import Account
from wardround.privacy.accounting.cap import Cap
from wardround.privacy.accounting.mechanisms import (
    BoundedMixture,
    Gaussian,
    Mechanism,
    NoPrivacy,
    SampledDiscreteGaussians,
    SampledGaussian,
)

UNITS, DELTA = 1_000, 1e-5
# Few values, in all combinations: a vector of a new pair takes a fraction of a second.
rates = st.sampled_from((1e-3, 0.01, 0.1, 1.0))
noises = st.sampled_from((0.9, 1.5, 4.0))
counts = st.integers(1, 2_000)
sampled = st.builds(SampledGaussian, sample_rate=rates, sigma=noises, steps=counts)
gaussians = st.builds(Gaussian, sigma=noises, count=st.integers(1, 50))
mixtures = st.builds(
    BoundedMixture, sample_rate=rates, sigma=noises, most_examples=st.integers(1, 50), steps=counts
)
lattices = st.builds(
    SampledDiscreteGaussians,
    sample_rate=rates,
    sigma=noises,
    share_sigma=st.sampled_from((1.0, 25.0)),
    shares=st.sampled_from((1, 3)),
    coordinates=st.sampled_from((10, 10**5)),
    steps=counts,
)
plain: st.SearchStrategy[Mechanism] = sampled | gaussians
bounded: st.SearchStrategy[Mechanism] = plain | lattices
anything: st.SearchStrategy[Mechanism] = bounded | mixtures | st.just(NoPrivacy())
few = settings(max_examples=5, deadline=None)
many = settings(max_examples=30, deadline=None)


def renyi(*mechanisms: Mechanism) -> float:
    """By the quick accountant."""
    return Account(mechanisms=mechanisms).epsilon(DELTA, units=UNITS).value


def losses(*mechanisms: Mechanism) -> float:
    """By the tight one."""
    return Account(mechanisms=mechanisms).fixed_schedule_epsilon(DELTA, units=UNITS).value


@many
@given(
    sampled | lattices,
    st.integers(1, 2_000),
    st.sampled_from((1.0, 1.5, 3.0)),
    st.sampled_from((1.0, 1.2, 2.0)),
)
def test_more_of_anything_never_costs_less(
    mechanism: SampledGaussian | SampledDiscreteGaussians, more: int, wider: float, quieter: float
) -> None:
    """Steps, sample rate, and less noise."""
    before = renyi(mechanism)
    rate = min(1.0, mechanism.sample_rate * wider)
    for change in (
        {"steps": mechanism.steps + more},
        {"sample_rate": rate},
        {"sigma": mechanism.sigma / quieter},
    ):
        # A cut-off series at broken orders, and one order that may not converge, leave this much.
        assert renyi(mechanism.model_copy(update=change)) >= before * (1 - 1e-6) - 1e-6


@pytest.mark.slow
@few
@given(sampled, st.integers(1, 2_000), st.floats(1.1, 3.0), st.floats(1.1, 3.0))
def test_the_same_by_losses(mechanism: SampledGaussian, more: int, wider: float, quieter: float) -> None:
    """Up to the grid, whose width may differ between two accounts."""
    before = losses(mechanism)
    rate = min(1.0, mechanism.sample_rate * wider)
    for change in (
        {"steps": mechanism.steps + more},
        {"sample_rate": rate},
        {"sigma": mechanism.sigma / quieter},
    ):
        assert losses(mechanism.model_copy(update=change)) >= before * (1 - 1e-3) - 2e-3


@many
@given(st.lists(bounded, max_size=8), bounded)
def test_one_mechanism_more_never_costs_less(entries: list[Mechanism], following: Mechanism) -> None:
    """In every order of Rényi DP, and so in epsilon."""
    before, after = Account(mechanisms=tuple(entries)), Account(mechanisms=(*entries, following))
    assert (after.rdp() >= before.rdp()).all()
    assert after.epsilon(DELTA, units=UNITS).value >= before.epsilon(DELTA, units=UNITS).value


@many
@given(st.lists(bounded, max_size=8), st.randoms(use_true_random=False))
def test_the_order_of_entries_does_not_matter(entries: list[Mechanism], shuffled: random.Random) -> None:
    """To the last bit: a ledger that is read back in another order says the same."""
    mixed = shuffled.sample(entries, len(entries))
    assert renyi(*mixed) == renyi(*entries)


@pytest.mark.slow
@few
@given(st.lists(bounded, min_size=2, max_size=4), st.randoms(use_true_random=False))
def test_nor_does_it_by_losses(entries: list[Mechanism], shuffled: random.Random) -> None:
    """Convolutions in one fixed order."""
    assert losses(*shuffled.sample(entries, len(entries))) == losses(*entries)


@many
@given(sampled | lattices, st.integers(1, 2_000))
def test_a_run_in_parts_is_the_run(mechanism: SampledGaussian | SampledDiscreteGaussians, more: int) -> None:
    """Two entries of equal rate and noise are one with both their steps."""
    rest = mechanism.model_copy(update={"steps": more})
    whole = mechanism.model_copy(update={"steps": mechanism.steps + more})
    assert renyi(mechanism, rest) == renyi(whole)


@many
@given(st.lists(bounded, max_size=5), st.lists(bounded, max_size=5))
def test_renyi_vectors_add(first: list[Mechanism], second: list[Mechanism]) -> None:
    """Rounds of any rate and noise compose by adding, order by order."""
    whole = Account(mechanisms=(*first, *second)).rdp()
    parts = Account(mechanisms=tuple(first)).rdp() + Account(mechanisms=tuple(second)).rdp()
    np.testing.assert_allclose(whole, parts, rtol=1e-12)


@pytest.mark.slow
@few
@given(st.lists(plain, min_size=1, max_size=3))
def test_losses_are_never_above_renyi(entries: list[Mechanism]) -> None:
    """Up to the grid; of lattices that are narrow, losses give away more."""
    loose = renyi(*entries)
    assert losses(*entries) <= loose * (1 + 1e-3) + 2e-3


@many
@given(st.lists(anything, max_size=6), st.sampled_from(["patient", "site"]))
def test_accounts_survive_their_json(entries: list[Mechanism], unit: str) -> None:
    """Bytes → value → the same bytes."""
    account = Account.model_validate({"unit": unit, "mechanisms": entries})
    assert Account.parse(account.canonical()) == account
    assert Account.parse(account.canonical()).canonical() == account.canonical()


@many
@given(st.lists(anything, max_size=4))
def test_nothing_makes_a_release_without_privacy_good(entries: list[Mechanism]) -> None:
    """Infinite at every place, whatever stands around it."""
    account = Account(mechanisms=(*entries, NoPrivacy()))
    assert account.epsilon(DELTA, units=UNITS).value == math.inf


@many
@given(st.lists(bounded, min_size=1, max_size=12), st.floats(0.5, 20.0))
def test_what_a_cap_lets_through_stays_under_it(offered: list[Mechanism], epsilon: float) -> None:
    """Whatever is offered; and a mechanism that does not fit is no obstacle to a smaller one."""
    cap = Cap.for_any(epsilon, DELTA, units=UNITS)
    account = Account()
    for mechanism in offered:
        if cap.fits(account, mechanism):
            account = cap.admit(account, mechanism)
    assert cap.used(account) <= 1
    assert account.epsilon(DELTA, units=UNITS).value <= epsilon * (1 + 1e-12)
