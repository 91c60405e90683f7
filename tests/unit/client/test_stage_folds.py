"""Between the stages of a round a site makes the broadcast itself, of the first sum, and refuses another."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from fold_server import SITES, Server, asked, begun, moved

from wardround.client.fold_check import FoldCheck
from wardround.core.errors import PeerError
from wardround.core.packed import Packed
from wardround.privacy.sums.opened import opened, statistics_of

ROUNDS = 2


def second(server: Server) -> tuple[Packed, bytes]:
    """What the server sends in the second stage of its round: the broadcast, and the first sum."""
    total, layout = server.total(0), server.strategy.statistics_layout(0)
    statistics, _ = statistics_of(total, layout, server.plan.encoding, cohort=5)
    state = server.strategy.fold(server.state, statistics, 15.0, 0)
    sent = server.strategy.broadcast(state, server.round, 1)
    return sent, opened(total, round=server.round, stage=0, cohort=5, bits=16)


def between(site: FoldCheck, server: Server, **changes: Any) -> bool:
    """The site's check of it; `changes` replace parts of it."""
    broadcast, first = second(server)
    given: dict[str, Any] = {"broadcast": broadcast, "opened": (first,), "confirmed": {0: SITES}} | changes
    return site.check_stage(server.round, 1, given["broadcast"], given["opened"], given["confirmed"])


def in_round(server: Server) -> FoldCheck:
    """A site that took part in all rounds so far, and has passed the first broadcast of this one."""
    site = begun(server, ROUNDS)
    assert asked(site, server)
    return site


def test_the_second_broadcast_is_held_against_the_first_sum() -> None:
    """An honest one passes, as often as it comes, and the round goes on to the next."""
    server = Server("two_pass")
    site = in_round(server)
    for _ in range(2):
        assert between(site, server)
    server.fold()
    assert asked(site, server)
    assert not site.broken


CRAFTED: dict[str, tuple[Any, str]] = {
    "another one": (lambda server: {"broadcast": moved(second(server)[0], 1e-2)}, "not the fold"),
    "no sum": (lambda server: {"opened": ()}, "the sums of the stages before it"),
    "two sums": (lambda server: {"opened": (second(server)[1],) * 2}, "the sums of the stages before it"),
    "the sum of the round before": (lambda server: {"opened": server.opened[:1]}, "another round"),
    "garbage for a sum": (lambda server: {"opened": (b"x" * 99,)}, "message"),
    "other survivors": (lambda server: {"confirmed": {0: SITES[:-1]}}, "other survivors"),
}


@pytest.mark.parametrize("kind", sorted(CRAFTED))
def test_a_second_broadcast_that_does_not_follow_ends_the_sites_part(kind: str) -> None:
    """By name; the right one is refused after it as well, and so is the next round."""
    server = Server("two_pass")
    site = in_round(server)
    change, said = CRAFTED[kind]
    with pytest.raises(PeerError, match=said):
        between(site, server, **change(server))
    assert site.broken
    with pytest.raises(PeerError, match="an earlier broadcast"):
        between(site, server)
    server.fold()
    with pytest.raises(PeerError, match="an earlier broadcast"):
        asked(site, server)


def test_a_site_that_does_not_know_the_state_cannot_check() -> None:
    """It has missed rounds, or begins: it takes the broadcast as it comes, and remembers nothing of it."""
    server = Server("two_pass")
    begun(server, ROUNDS)
    site = server.site()
    assert between(site, server) is False
    assert asked(site, server) is False
    assert between(site, server), "from here on it knows: nothing but the adapter is kept between rounds"
    late = replace(in_round(Server("two_pass")))
    server.fold()
    assert between(late, server) is False
