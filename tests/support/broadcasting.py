"""What a server's side shows of itself, for tests that play one."""

from __future__ import annotations

from wardround.core.packed import Packed
from wardround.strategies.contract import ServerState, SumStrategy


class Broadcasting:
    """The next round and what it begins with, from a strategy and its state."""

    strategy: SumStrategy
    state: ServerState

    @property
    def round(self) -> int:
        """The round that the next broadcast begins."""
        return self.state.round + 1

    @property
    def broadcast(self) -> Packed:
        """What it sends."""
        return self.strategy.broadcast(self.state, self.round, 0)
