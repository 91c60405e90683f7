"""What a site holds a broadcast against where no sum can be shown to it: its round, and itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fold_server import LAYOUT, Server, moved

from wardround.client.fold_check import FoldCheck
from wardround.client.fold_memory import Known
from wardround.core.errors import PeerError
from wardround.core.packed import Packed


class Medians(Server):
    """An honest server of five sites that sees each of them, and shows none of it."""

    def fold(self) -> None:
        """One round."""
        rng, strategy = np.random.default_rng(self.round), self.strategy
        alone = [(Packed(LAYOUT, rng.normal(size=LAYOUT.size)), 1.0) for _ in range(5)]
        self.state = strategy.fold(self.state, *strategy.combine_individuals(self.state, alone), 0)  # type: ignore[attr-defined]  # of individuals


def asked(site: FoldCheck, server: Server, **changes: Any) -> bool:
    """The site's check of what the server sends."""
    broadcast = changes.get("broadcast", server.broadcast)
    return site.check(changes.get("round", server.round), broadcast, (), {})


def test_a_broadcast_is_taken_as_it_comes_and_never_made_by_the_site() -> None:
    """Whatever it holds, from round to round, and after rounds that were missed."""
    server = Medians("coordinate_median")
    site = server.site()
    assert asked(site, server)  # the plan's own
    for missed in (0, 0, 1, 3):
        for _ in range(1 + missed):
            server.fold()
        assert site.following(server.round, (), {}) is None
        assert asked(site, server) is False
        assert site.known is not None
        assert site.known.adapter.digest == server.broadcast.digest
    server.fold()
    assert asked(site, server, broadcast=moved(server.broadcast, 5.0)) is False
    assert not site.broken


def test_a_burnt_round_is_known_by_the_broadcast_that_comes_again() -> None:
    """Then what the site kept of it goes (`client/round.py`)."""
    server = Medians("coordinate_median")
    site = server.site()
    asked(site, server)
    server.fold()
    assert asked(site, server) is False
    server.burn()
    assert asked(site, server) is True
    server.fold()
    assert asked(site, server) is False


def test_a_replay_and_another_broadcast_of_one_round_are_refused() -> None:
    """They need no sum to be seen; the site goes on with what is right."""
    server = Medians("coordinate_median")
    site = server.site()
    first = server.broadcast
    asked(site, server)
    server.fold()
    asked(site, server)
    assert asked(site, server) is False  # the same again, of a server that went on
    with pytest.raises(PeerError, match="asked for again, with another broadcast"):
        asked(site, server, broadcast=moved(server.broadcast, 1e-3))
    with pytest.raises(PeerError, match="an earlier round"):
        asked(site, server, round=1, broadcast=first)
    server.fold()
    assert asked(site, server) is False


def test_a_restarted_site_knows_the_round_that_it_was_in(tmp_path: Path) -> None:
    """So that a replay is one to it as well."""

    class Memory:
        known = Known()

        def load(self) -> Known:
            return self.known

        def save(self, known: Known) -> None:
            self.known = known

    server, memory = Medians("coordinate_median"), Memory()
    site = FoldCheck.remembered(server.plan, server.strategy, memory)
    first = server.broadcast
    for _ in range(3):
        asked(site, server)
        server.fold()
    again = FoldCheck.remembered(server.plan, server.strategy, memory)
    with pytest.raises(PeerError, match="an earlier round"):
        asked(again, server, round=2, broadcast=first)
    assert asked(again, server) is False
