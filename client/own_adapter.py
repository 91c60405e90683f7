"""A site's own adapter, where a strategy leaves a part of it there: what federates, with what the site kept.

A real site and a simulated one make it by this same function, so that one plan gives both the same bits.
"""

from __future__ import annotations

from dataclasses import dataclass

from wardround.client.memory import SiteStore
from wardround.core.packed import Adapter
from wardround.strategies.contract import PersonalStrategy, ServerState


@dataclass(frozen=True)
class OwnAdapter:
    """A whole adapter of one site.

    Attributes:
        adapter: The shared part with the site's own.
        kept: The round after which the site kept its own part; None: it has none yet, and has the plan's
            initial one.
    """

    adapter: Adapter
    kept: int | None


def own_adapter(
    strategy: PersonalStrategy, state: ServerState, store: SiteStore, *, went_in: bool
) -> OwnAdapter:
    """The site's adapter after a round, which has to be one of the last two: a site keeps no more.

    Args:
        strategy: The plan's.
        state: After that round.
        store: What the site keeps.
        went_in: Whether what the site trained in that round, if it did, is in the round's sum. If not, what
            it kept of that round goes for nothing, as it does where the site is asked again.

    Raises:
        StorageError: What the site has kept is damaged.
        PeerError: It is of another adapter.
    """
    before = state.round + 1 if went_in else state.round
    broadcast = strategy.broadcast(state, state.round + 1, 0)
    adapter = strategy.own_adapter(broadcast, store.load(before_round=before).memory)
    return OwnAdapter(adapter, store.last(before_round=before))
