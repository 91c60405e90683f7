"""Each site's own adapter, where a strategy leaves a part of it there: a simulation holds all of them.

What federates is no model and is not written as one; a run ends with one PEFT adapter a site.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from wardround.client.memory import SiteStore
from wardround.core.packed import Adapter
from wardround.simulations.arms import Arm, site_store
from wardround.strategies.contract import PersonalStrategy, ServerState
from wardround.training.plan_strategy import bind_strategy


@dataclass(frozen=True)
class OwnAdapters:
    """Makes the sites' adapters from a state and from what the sites have kept.

    Attributes:
        strategy: The arm's.
        stores: Site → what it keeps.
    """

    strategy: PersonalStrategy
    stores: Mapping[str, SiteStore]

    @staticmethod
    def of(arm: Arm, folder: Path) -> OwnAdapters | None:
        """Of an arm in its folder; None where everybody has one adapter."""
        strategy = bind_strategy(arm.plan, allow_dotted=True)
        if not isinstance(strategy, PersonalStrategy):
            return None
        return OwnAdapters(strategy, {name: site_store(folder, name) for name in sorted(arm.sites)})

    def at(self, state: ServerState) -> dict[str, Adapter]:
        """Site → its adapter after a round, which has to be one of the last two: a site keeps no more.

        A site that has not trained yet begins with the plan's initial own part.

        Raises:
            StorageError: What a site has kept is damaged.
        """
        round = state.round + 1
        broadcast = self.strategy.broadcast(state, round, 0)
        return {
            name: self.strategy.own_adapter(broadcast, store.load(before_round=round).memory)
            for name, store in self.stores.items()
        }
