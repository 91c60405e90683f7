"""An account: everything that was done to one unit, and the epsilon that follows.

Two accountants answer. Rényi DP is quick, adds up, and is what a reservation is checked against (`cap.py`
does that where choices are adaptive). A privacy loss distribution is tighter, and is what a report may say
of a schedule that was fixed beforehand. Mixtures have no Rényi bound here: an account that holds one is
composed by losses as a whole, since the two do not add.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Literal, Self, TypeAlias

from pydantic import ValidationError, model_validator

from wardround.core.checked import Frozen, invalid
from wardround.core.errors import ConfigError, PolicyError
from wardround.core.packed import Array
from wardround.privacy.accounting.mechanisms import (
    BoundedMixture,
    Mechanism,
    NoPrivacy,
)
from wardround.privacy.accounting.privacy_loss import composed_epsilon
from wardround.privacy.accounting.renyi import best_epsilon
from wardround.privacy.accounting.steps import counted, rdp_of, without_renyi

Unit: TypeAlias = Literal["patient", "example", "site"]


@dataclass(frozen=True)
class Epsilon:
    """ε, which means nothing without the rest.

    Attributes:
        value: ε; infinity where there is no privacy.
        delta: δ.
        unit: What a neighbour lacks, or has in addition.
        accountant: `renyi`, or `losses` (a privacy loss distribution).
    """

    value: float
    delta: float
    unit: Unit
    accountant: Literal["renyi", "losses"]

    def __str__(self) -> str:
        return f"ε = {self.value:.4g} at δ = {self.delta:g} per {self.unit}"


class Account(Frozen):
    """Mechanisms that were applied to one unit, in any order.

    Guarantee: of `unit`, under adding or removing one, and for this site alone: whoever is known at several
        sites composes, which no site can see.
    """

    unit: Unit = "patient"
    mechanisms: tuple[Mechanism, ...] = ()

    @model_validator(mode="after")
    def _examples_have_no_examples(self) -> Self:
        if self.unit == "example" and any(isinstance(m, BoundedMixture) for m in self.mechanisms):
            raise ValueError("a bounded mixture protects the owner of several examples, not an example")
        return self

    def canonical(self) -> bytes:
        """Sorted, compact JSON: what is digested and signed."""
        fields = self.model_dump(mode="json")
        return json.dumps(fields, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()

    @staticmethod
    def parse(text: str | bytes) -> Account:
        """Read an account from its JSON.

        Raises:
            ConfigError: Not JSON, an unknown kind or key, a rate, noise or count that is none; names the
                place.
        """
        try:
            return Account.model_validate_json(text)
        except ValidationError as error:
            raise invalid("privacy account", error) from error

    def plus(self, *mechanisms: Mechanism) -> Account:
        """The account after these as well."""
        return Account(unit=self.unit, mechanisms=(*self.mechanisms, *mechanisms))

    @property
    def needs_losses(self) -> bool:
        """Whether something in it has no Rényi bound, so that the whole is composed by losses."""
        return any(isinstance(mechanism, BoundedMixture) for mechanism in self.mechanisms)

    def rdp(self) -> Array:
        """Σ ρ(α) at `renyi.ORDERS`, float64; infinite where something has no privacy.

        Equal mechanisms are counted first and looked up once.

        Raises:
            BudgetError: A mixture is in it: the Rényi account is unknown.
        """
        if self.needs_losses:
            raise without_renyi("account")
        total = rdp_of(counted(self.mechanisms))
        return total + math.inf if self._released else total

    @property
    def _released(self) -> bool:
        return any(isinstance(mechanism, NoPrivacy) for mechanism in self.mechanisms)

    def epsilon(self, delta: float, *, units: int) -> Epsilon:
        """ε by Rényi DP at its best order, or by losses where a mixture is in the account.

        What a planned schedule will be charged. It is a bound for mechanisms that were fixed beforehand;
        where a later one was chosen after looking at what came out, only the cap (`cap.py`) that let it
        through is.

        Args:
            delta: δ.
            units: How many units stand behind the account.

        Raises:
            ConfigError: δ is no probability, or there are no units.
            PolicyError: δ ≥ 1/units: whole units could be published under such a δ.
        """
        check_delta(delta, units)
        if self.needs_losses:
            return self.fixed_schedule_epsilon(delta, units=units)
        return Epsilon(best_epsilon(self.rdp(), delta)[0], delta, self.unit, "renyi")

    def fixed_schedule_epsilon(self, delta: float, *, units: int) -> Epsilon:
        """ε by privacy loss distributions: tighter, and false unless the whole schedule was fixed beforehand.

        (Looser for shares of a few ring units, whose losses are those of a Gaussian with less noise.)

        Raises:
            ConfigError: δ is no probability, or there are no units.
            PolicyError: δ ≥ 1/units.
        """
        check_delta(delta, units)
        if self._released:
            return Epsilon(math.inf, delta, self.unit, "losses")
        steps = {step.mechanism(1): count for step, count in counted(self.mechanisms).items()}
        value = composed_epsilon(steps, delta) if steps else 0.0
        return Epsilon(value, delta, self.unit, "losses")

    def reported_epsilon(self, delta: float, *, units: int) -> Epsilon:
        """ε of a schedule that was fixed beforehand, as a report says it: the smaller of both bounds.

        By losses almost always. By Rényi DP where losses give nothing smaller: sums of discrete Gaussians of
        a few ring units, and no step at all.

        Raises:
            ConfigError: δ is no probability, or there are no units.
            PolicyError: δ ≥ 1/units.
        """
        reserved = self.epsilon(delta, units=units)
        losses = self.fixed_schedule_epsilon(delta, units=units)
        return losses if losses.value < reserved.value else reserved


def check_delta(delta: float, units: int) -> None:
    """Refuse a δ that protects nobody.

    Raises:
        ConfigError: δ is no probability, or there are no units.
        PolicyError: δ ≥ 1/units.
    """
    if not (0 < delta < 1) or units < 1:
        raise ConfigError(
            "this is no δ", found=f"delta {delta}, {units} units",
            expected="a delta between 0 and 1, and at least one unit",
        )  # fmt: skip
    if delta * units >= 1:
        raise PolicyError(
            "δ is too large for so few units", found=f"delta {delta:g}, {units} units",
            expected=f"below 1/units = {1 / units:.3g}",
            remedy="a smaller delta, well below 1/units",
        )  # fmt: skip
