"""Each site's own adapter, where a strategy leaves a part of it there: a simulation holds all of them.

What federates is no model and is not written as one; a run ends with one PEFT adapter a site, made as a real
site makes its own (`client/own_adapter.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from wardround.client.memory import SiteStore
from wardround.client.own_adapter import own_adapter
from wardround.core.packed import Adapter
from wardround.runtime.event_log import missing_of
from wardround.simulations.arms import Arm, site_store
from wardround.strategies.contract import PersonalStrategy, ServerState
from wardround.training.plan_strategy import bind_strategy


@dataclass(frozen=True)
class OwnAdapters:
    """Makes the sites' adapters from a state and from what the sites have kept.

    Attributes:
        strategy: The arm's.
        stores: Site → what it keeps.
        arm: Name of the arm.
        events: File of the run's events, which tell who is in no sum.
    """

    strategy: PersonalStrategy
    stores: Mapping[str, SiteStore]
    arm: str
    events: Path

    @staticmethod
    def of(arm: Arm, folder: Path, events: Path) -> OwnAdapters | None:
        """Of an arm in its folder; None where everybody has one adapter."""
        strategy = bind_strategy(arm.plan, allow_dotted=True)
        if not isinstance(strategy, PersonalStrategy):
            return None
        stores = {name: site_store(folder, name) for name in sorted(arm.sites)}
        return OwnAdapters(strategy, stores, arm.name, events)

    def at(self, state: ServerState) -> dict[str, Adapter]:
        """Site → its adapter after a round, which has to be one of the last two: a site keeps no more.

        A site that has not trained yet begins with the plan's initial own part.

        Raises:
            StorageError: What a site has kept is damaged, or the events cannot be read.
        """
        left_out = dict(missing_of(self.events, self.arm)).get(state.round, ())
        return {
            name: own_adapter(self.strategy, state, store, went_in=name not in left_out).adapter
            for name, store in self.stores.items()
        }
