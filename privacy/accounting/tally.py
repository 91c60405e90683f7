"""A tally: a running account, which takes one mechanism more in constant time and can be lowered again.

An `Account` lists what was done; a site's ledger has a hundred thousand such entries, and few kinds of them.
Here each kind is counted. Counts are integers, so that what was lowered is gone to the last bit, and the
order of the entries changes nothing.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from wardround.core.errors import InternalError
from wardround.core.packed import Array
from wardround.privacy.accounting.account import Account, Unit
from wardround.privacy.accounting.mechanisms import Mechanism, NoPrivacy
from wardround.privacy.accounting.steps import Step, rdp_of, steps_of, without_renyi


@dataclass
class Tally:
    """Steps that were made, by kind.

    Attributes:
        steps: Kind → how many.
        released: Something in it had no privacy.
    """

    steps: Counter[Step] = field(default_factory=Counter)
    released: bool = False

    def add(self, mechanism: Mechanism) -> None:
        """One mechanism more."""
        self.count(*(steps_of(mechanism) or (None, 1)))

    def count(self, step: Step | None, count: int) -> None:
        """So many steps more; None is a release without privacy."""
        if step is None:
            self.released = True
        else:
            self.steps[step] += count

    def lower(self, step: Step, count: int) -> None:
        """So many steps less, of those that were counted.

        Raises:
            InternalError: There are not so many.
        """
        if not 0 <= count <= self.steps[step]:
            raise InternalError(
                "more steps are taken back than were counted", found=count, expected=self.steps[step]
            )
        self.steps[step] -= count
        if not self.steps[step]:
            del self.steps[step]

    @property
    def needs_losses(self) -> bool:
        """Whether something in it has no Rényi bound."""
        return any(step.most_examples > 1 for step in self.steps)

    def rdp_at(self, order: float) -> float:
        """Σ ρ(α) at one of `renyi.ORDERS`, of what had privacy; the same bits in any order.

        Raises:
            BudgetError: A mixture is in it.
        """
        if self.needs_losses:
            raise without_renyi("tally")
        return math.fsum(count * step.rdp_at(order) for step, count in self.steps.items())

    def rdp(self) -> Array:
        """Σ ρ(α) at `renyi.ORDERS`, float64, of what had privacy.

        Raises:
            BudgetError: A mixture is in it.
        """
        if self.needs_losses:
            raise without_renyi("tally")
        return rdp_of(self.steps)

    def account(self, unit: Unit = "patient") -> Account:
        """Everything in it, as mechanisms."""
        made: list[Mechanism] = [NoPrivacy()] if self.released else []
        made += [step.mechanism(count) for step, count in sorted(self.steps.items())]
        return Account(unit=unit, mechanisms=tuple(made))

    @staticmethod
    def total(parts: Iterable[Tally]) -> Tally:
        """All of them together."""
        whole = Tally()
        for part in parts:
            whole.steps.update(part.steps)
            whole.released |= part.released
        return whole
