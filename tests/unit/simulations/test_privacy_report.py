"""Both bounds on ε of sites that have ended: the losses of schedules that differ, no more than may be."""

from __future__ import annotations

import pytest

from wardround.privacy.accounting.account import Account
from wardround.privacy.accounting.mechanisms import SampledGaussian
from wardround.simulations.privacy_record import accounting
from wardround.simulations.privacy_report import both_bounds

DELTA = 1e-5
ACCOUNTS = {
    site: (1_000, Account(mechanisms=(SampledGaussian(sample_rate=0.01, sigma=2.0, steps=steps),)))
    for site, steps in (("a", 100), ("b", 400), ("c", 100))
}


def test_a_site_has_what_it_reserved_and_what_its_losses_come_to() -> None:
    """By the two accountants; equal schedules have equal figures."""
    found = both_bounds(ACCOUNTS, DELTA)
    for site, (units, account) in ACCOUNTS.items():
        assert found[site]["reserved"] == account.epsilon(DELTA, units=units).value
        assert found[site]["spent"] == account.fixed_schedule_epsilon(DELTA, units=units).value
        assert found[site]["spent"] < found[site]["reserved"]
    assert found["a"] == found["c"] != found["b"]


def test_beyond_so_many_schedules_what_was_reserved_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those with most reserved come first, and each is composed once."""
    asked: list[Account] = []
    plain = Account.reported_epsilon

    def counting(account: Account, delta: float, *, units: int) -> object:
        asked.append(account)
        return plain(account, delta, units=units)

    monkeypatch.setattr(Account, "reported_epsilon", counting)
    found = both_bounds(ACCOUNTS, DELTA, most=1)
    assert asked == [ACCOUNTS["b"][1]]
    assert found["b"]["spent"] < found["b"]["reserved"]
    assert found["a"]["spent"] == found["a"]["reserved"]
    both_bounds(ACCOUNTS, DELTA)
    assert len(asked) == 3


def test_a_site_that_was_never_asked_has_spent_nothing() -> None:
    """Zero, by either accountant."""
    assert both_bounds({"d": (1_000, Account())}, DELTA) == {"d": {"reserved": 0.0, "spent": 0.0}}


def test_who_counted_is_said() -> None:
    """Beside what was spent stands what was reserved; where they are one, that it is so."""
    assert accounting(3.1889, 3.99812) == (
        "by privacy loss distributions; ε = 3.998 was reserved, by Rényi DP"
    )
    assert "no smaller figure" in accounting(4.0, 4.0)
