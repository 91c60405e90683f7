"""Both bounds on ε of sites that have ended: the losses of schedules that differ, no more than may be."""

from __future__ import annotations

import pytest

from wardround.privacy.accounting.account import Account
from wardround.privacy.accounting.mechanisms import SampledGaussian
from wardround.simulations.privacy_record import accounting, privacy_table
from wardround.simulations.privacy_report import SiteAccount, figures_of

DELTA = 1e-5
ACCOUNTS = {
    site: SiteAccount(
        1_000, 0.01, 2.0, Account(mechanisms=(SampledGaussian(sample_rate=0.01, sigma=2.0, steps=steps),))
    )
    for site, steps in (("a", 100), ("b", 400), ("c", 100))
}


def test_a_site_has_what_it_reserved_and_what_its_losses_come_to() -> None:
    """By the two accountants; equal schedules have equal figures."""
    found = figures_of(ACCOUNTS, DELTA)
    for site, steps in (("a", 100), ("b", 400)):
        account = ACCOUNTS[site].account
        assert found[site] == {
            "units": 1_000, "sample_rate": 0.01, "sigma": 2.0, "steps": steps,
            "reserved": account.epsilon(DELTA, units=1_000).value,
            "spent": account.fixed_schedule_epsilon(DELTA, units=1_000).value,
        }  # fmt: skip
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
    found = figures_of(ACCOUNTS, DELTA, most=1)
    assert asked == [ACCOUNTS["b"].account]
    assert found["b"]["spent"] < found["b"]["reserved"]
    assert found["a"]["spent"] == found["a"]["reserved"]
    figures_of(ACCOUNTS, DELTA)
    assert len(asked) == 3


def test_a_site_that_was_never_asked_has_spent_nothing() -> None:
    """Zero, by either accountant."""
    never = figures_of({"d": SiteAccount(1_000, 0.01, 2.0, Account())}, DELTA)["d"]
    assert (never["steps"], never["reserved"], never["spent"]) == (0.0, 0.0, 0.0)


def test_who_counted_is_said() -> None:
    """Beside what was spent stands what was reserved; where they are one, that it is so."""
    assert accounting(3.1889, 3.99812) == (
        "by privacy loss distributions; ε = 3.998 was reserved, by Rényi DP"
    )
    assert "no smaller figure" in accounting(4.0, 4.0)


def test_the_table_has_what_stands_behind_each_figure() -> None:
    """Units, q, σ, steps, both bounds, and their δ; where sites are protected, one row for all of them."""
    sites = figures_of(ACCOUNTS, DELTA)
    table = privacy_table({"unit": "patient", "delta": DELTA, "sites": sites})
    spent, reserved = (f"{sites['b'][which]:.4g}" for which in ("spent", "reserved"))
    assert f"| b | 1,000 | 0.01 | 2 | 400 | {spent} | {reserved} |" in table.splitlines()
    assert "| site | patients | q | σ | steps | ε spent | ε reserved |" in table.splitlines()
    assert len([line for line in table.splitlines() if line.startswith("|")]) == 5
    assert "every ε at δ = 1e-05" in table
    one = privacy_table({"unit": "site", "delta": DELTA, "sites": sites}).splitlines()
    assert [line.split("|")[1].strip() for line in one if line.startswith("|")] == [
        "site",
        "---",
        "each of 3",
    ]
    assert privacy_table({"differential_privacy": "none"}) == ""
