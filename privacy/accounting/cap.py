"""The cap on a unit's account: a filter that holds whatever is chosen, and after whatever was seen.

Feldman & Zrnic 2021, arXiv:2008.11193 (the Rényi privacy filter): fix an order α and a budget B beforehand.
If each mechanism may depend on all that came out before, and the next one runs only while the sum of
ρ_i(α), itself included, stays at or under B, then everything together is (α, B)-RDP. The proof takes one α:
exp((α − 1) (loss − Σ ρ_i(α))) is a supermartingale at each order, but *which order will be best* depends on
what came out. Hence the order here is a field of the cap, chosen before the account's first entry, and B is
the largest ρ that proposition 12 of Canonne, Kamath & Steinke 2020 (arXiv:2004.00010) turns into no more
than the cap's ε at its δ.

Letting a mechanism through because *some* order still has room would be another filter, and this proof does
not cover it. A privacy loss distribution gives no filter either: mixtures cannot be let through here.
"""

from __future__ import annotations

import math
from typing import Annotated, Final

from pydantic import Field, field_validator, model_validator

from wardround.core.checked import Frozen
from wardround.core.errors import BudgetError, ConfigError
from wardround.privacy.accounting.account import Account, Unit, check_delta
from wardround.privacy.accounting.mechanisms import Mechanism
from wardround.privacy.accounting.renyi import ORDERS, budget_at, epsilon_at

LEAST_WITHOUT_SCHEDULE: Final = 2.0


class Cap(Frozen):
    """No account goes beyond ε at δ, however its mechanisms are chosen.

    Kept with the account from its first entry on: a cap whose order was chosen later, or a second cap tried
    after the first has refused, is not what the theorem is about.

    Guarantee: all that `admit` let through is (epsilon, delta)-DP for the account's unit, under adding or
        removing one, if every entry was admitted before its mechanism ran.
    """

    epsilon: Annotated[float, Field(gt=0)]
    delta: Annotated[float, Field(gt=0, lt=1)]
    order: float
    """α, one of `renyi.ORDERS`; `for_schedule` and `for_any` choose it."""

    @field_validator("order")
    @classmethod
    def _on_the_grid(cls, order: float) -> float:
        if order not in ORDERS:
            raise ValueError("no order of the grid: 1.1, 1.2, … 10.9, 11, 12, … 63, 128, 256, 512 or 1024")
        return order

    @model_validator(mode="after")
    def _has_room(self) -> Cap:
        if not self.budget > 0:
            raise ValueError("at this order the cap leaves no room at all: choose a larger one")
        return self

    @property
    def budget(self) -> float:
        """B: no more ρ than this at the cap's order."""
        return budget_at(self.order, self.epsilon, self.delta)

    @staticmethod
    def for_schedule(epsilon: float, delta: float, schedule: Account, *, units: int) -> Cap:
        """The cap whose order has most room for a planned schedule; the plan may still change underway.

        Raises:
            BudgetError: The schedule holds a mixture.
            ConfigError: No order of the grid leaves any room.
            PolicyError: δ ≥ 1/units.
        """
        planned = schedule.rdp()
        return _roomiest(epsilon, delta, units, [float(rdp) for rdp in planned])

    @staticmethod
    def for_any(epsilon: float, delta: float, *, units: int) -> Cap:
        """The cap whose order has most room for plain Gaussians; for want of a schedule.

        Orders below 2 are left out: there the series for a sampled Gaussian mostly finds no bound, and a cap
        that admits nothing protects nobody.

        Raises:
            ConfigError: No order of the grid leaves any room.
            PolicyError: δ ≥ 1/units.
        """
        costs = [order if order >= LEAST_WITHOUT_SCHEDULE else math.inf for order in ORDERS]
        return _roomiest(epsilon, delta, units, costs)

    def fits(self, account: Account, following: Mechanism) -> bool:
        """Whether the account may take this one as well.

        Raises:
            BudgetError: Something in it has no Rényi bound.
        """
        return self.used(account.plus(following)) <= 1

    def used(self, account: Account) -> float:
        """Share of the budget that an account takes; infinite without privacy.

        Raises:
            BudgetError: Something in it has no Rényi bound.
        """
        return self._rdp(account) / self.budget

    def reached(self, rdp: float) -> float:
        """ε at δ that a sum ρ at the cap's order implies, however its mechanisms were chosen."""
        return epsilon_at(self.order, rdp, self.delta)

    def check(self, before: float, after: float, *, unit: Unit = "patient") -> None:
        """Refuse a sum ρ that goes beyond the cap; for whoever keeps a running sum at the cap's order.

        Args:
            before: ρ of what was let through so far.
            after: ρ with one mechanism more.
            unit: Whose account it is.

        Raises:
            BudgetError: It would go beyond the cap; says how far.
        """
        if not after / self.budget <= 1:  # as `fits` has it, to the last bit
            raise BudgetError(
                "the privacy budget would be overdrawn",
                found=f"{after / self.budget:.1%} of the budget with this mechanism, "
                f"{before / self.budget:.1%} before it (ε = {self.reached(after):.4g}, not {self.epsilon:g})",
                expected=f"at most ε = {self.epsilon:g} at δ = {self.delta:g} per {unit}",
                remedy="fewer steps, more noise or a smaller sample rate; a cap is not raised underway",
            )

    def admit(self, account: Account, following: Mechanism) -> Account:
        """The account with one mechanism more, to be made durable before that mechanism runs.

        Raises:
            BudgetError: It would go beyond the cap, or has no Rényi bound.
        """
        after = account.plus(following)
        self.check(self._rdp(account), self._rdp(after), unit=account.unit)
        return after

    def _rdp(self, account: Account) -> float:
        return float(account.rdp()[ORDERS.index(self.order)])


def _roomiest(epsilon: float, delta: float, units: int, costs: list[float]) -> Cap:
    """The cap at the order of which the costs take the least share; only orders with room count."""
    check_delta(delta, units)
    shares = [
        (cost / budget_at(order, epsilon, delta), order)
        for order, cost in zip(ORDERS, costs, strict=True)
        if budget_at(order, epsilon, delta) > 0
    ]
    if not epsilon > 0 or not shares:
        raise ConfigError(
            "no Rényi order leaves room under this cap", found=f"epsilon {epsilon:g} at delta {delta:g}",
            expected="a positive, finite epsilon that some order can bound",
            remedy="a larger epsilon or delta",
        )  # fmt: skip
    return Cap(epsilon=epsilon, delta=delta, order=min(shares)[1])
