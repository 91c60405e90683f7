"""A site's rules on privacy: how much any of its patients may lose, and what a run without privacy means."""

from __future__ import annotations

from typing import Annotated, TypeAlias

from pydantic import Field

from wardround.core.checked import Frozen
from wardround.privacy.accounting.account import Account, check_delta
from wardround.privacy.accounting.cap import Cap

Epsilon: TypeAlias = Annotated[float, Field(gt=0)]
Delta: TypeAlias = Annotated[float, Field(gt=0, lt=1)]


class BudgetPolicy(Frozen):
    """What the ledger of a site lets through. One for all of the site's runs and consortia.

    ε is per patient **and site**: who is known at k sites composes over them, and has a sensitivity of k · C
    under noise that the sites share. No site can see that, and no policy bounds it.
    """

    epsilon: Epsilon | None
    """No unit's account goes beyond this ε; None has no cap: everything is recorded and nothing refused."""
    delta: Delta
    """δ of every ε of this ledger; below 1/units."""
    allow_release: bool = False
    """Under a cap, let units into a run without differential privacy: their ε is infinite from then on."""
    allow_after_release: bool = False
    """Under a cap, let units that were released into later private runs.

    Off by default: a cap promises a total, and these units have none any more. Switched on, the cap bounds
    what the private runs *add* to what the release gave away, and the total stays infinite in every report.
    """

    def cap(self, *, units: int, planned: Account | None = None) -> Cap | None:
        """The filter of this policy, at a Rényi order that is chosen now and kept with the ledger.

        Args:
            units: How many units the site has.
            planned: What the site expects to be asked for: the order is the one with most room for it. Only
                room depends on it, never whether the cap holds.

        Raises:
            BudgetError: The planned account holds a mixture.
            ConfigError: No order leaves any room under this cap, or δ is no probability.
            PolicyError: δ ≥ 1/units.
        """
        check_delta(self.delta, units)
        if self.epsilon is None:
            return None
        if planned is None:
            return Cap.for_any(self.epsilon, self.delta, units=units)
        return Cap.for_schedule(self.epsilon, self.delta, planned, units=units)
