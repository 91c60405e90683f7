"""A site folds the last sum itself, and refuses a broadcast that is another."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from fold_server import EVERY, SITES, Server, asked, begun, moved

from wardround.client.fold_check import TOLERANCE
from wardround.core.errors import PeerError
from wardround.core.lora import difference, pairs
from wardround.privacy.sums.opened import opened


@EVERY
def test_an_honest_run_is_followed_from_round_to_round(name: str) -> None:
    """Whatever the server keeps beside the adapter: burnt rounds and rounds that are asked again included."""
    server = Server(name)
    site = server.site()
    for round in range(1, 8):
        assert asked(site, server)
        assert asked(site, server), "a resumed server sends the same broadcast again"
        if round in (3, 4):
            server.burn()
        else:
            server.fold()
    assert not site.broken


@EVERY
def test_a_broadcast_that_is_another_ends_the_sites_part_in_the_run(name: str) -> None:
    """By name, and whatever comes after it is refused as well: the right one, and a later round."""
    server = Server(name)
    site = begun(server, 2)
    with pytest.raises(PeerError, match="not the fold of the last sum"):
        asked(site, server, broadcast=moved(server.broadcast, 1e-3))
    assert site.broken
    for _ in range(2):
        with pytest.raises(PeerError, match="an earlier broadcast"):
            asked(site, server)
        server.fold()


def test_another_machines_rounding_is_no_fault() -> None:
    """To the stated share of the largest coordinate, and no further."""
    for by, wrong in ((0.5, False), (3.0, True)):
        server = Server()
        site = begun(server)
        largest = float(np.abs(server.broadcast.vector).max())
        sent = moved(server.broadcast, by * TOLERANCE * largest)
        assert sent.digest != server.broadcast.digest
        if wrong:
            with pytest.raises(PeerError, match="not the fold"):
                asked(site, server, broadcast=sent)
        else:
            assert asked(site, server, broadcast=sent)


def test_the_next_fold_is_checked_from_what_was_sent() -> None:
    """What rounding left does not add up over the rounds."""
    server = Server()
    site = begun(server)
    for _ in range(30):
        largest = float(np.abs(server.broadcast.vector).max())
        sent = moved(server.broadcast, 0.6 * TOLERANCE * largest)
        server.state = replace(server.state, adapter=sent)
        assert asked(site, server)
        server.fold()


def test_a_round_that_is_said_to_be_burnt_leaves_the_adapter_as_it_was() -> None:
    """Without a sum nothing may have changed."""
    server = Server()
    site = begun(server)
    with pytest.raises(PeerError, match="not the fold of the last sum"):
        asked(site, server, opened=(), confirmed={})


def test_a_round_is_asked_again_with_the_same_broadcast_alone() -> None:
    """Two contributions of one round from two states would show their difference."""
    server = Server()
    site = begun(server)
    assert asked(site, server)
    with pytest.raises(PeerError, match="asked for again, with another broadcast"):
        asked(site, server, broadcast=moved(server.broadcast, 1e-3))


SUMS: dict[str, tuple[Any, str]] = {
    "two of them": (lambda server: {"opened": server.opened * 2}, "one sum a stage"),
    "of another round": (
        lambda server: {"opened": (opened(server.total(), round=7, stage=0, cohort=5, bits=16),)},
        "of another round",
    ),
    "of another stage": (
        lambda server: {"opened": (opened(server.total(), round=1, stage=1, cohort=5, bits=16),)},
        "of another round",
    ),
    "garbled": (lambda server: {"opened": (b"WSA1" + server.opened[0][5:],)}, "message"),
    "shorter": (lambda server: {"opened": (server.opened[0][:-1],)}, "wrong length"),
    "empty": (lambda server: {"opened": (b"",)}, "too short"),
    "of other survivors": (lambda server: {"confirmed": {0: SITES[:-1]}}, "other survivors"),
    "impossible": (
        lambda server: {
            "opened": (
                opened(replace(server.total(), counters=np.array([4, 0, 0])), round=1, stage=0, cohort=5,
                       bits=16),
            )
        },
        "summed weight",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", sorted(SUMS))
def test_a_sum_that_cannot_be_the_last_one_is_refused(kind: str) -> None:
    """By its fault; the site takes no further part."""
    change, reason = SUMS[kind]
    server = Server()
    site = begun(server)
    with pytest.raises(PeerError, match=reason):
        asked(site, server, **change(server))
    assert site.broken


@EVERY
@pytest.mark.parametrize("missed", [1, 2])
def test_a_site_that_missed_rounds_checks_again_as_soon_as_it_can(name: str, missed: int) -> None:
    """At once where the adapter is all of the server's state; never again where the server keeps more."""
    server = Server(name)
    site = begun(server)
    for _ in range(missed):
        server.fold()
    assert asked(site, server) is False
    server.fold()
    follows = name not in {"fedavgm", "fedadam"}
    assert asked(site, server) is follows
    server.fold()
    if follows:
        with pytest.raises(PeerError, match="not the fold"):
            asked(site, server, broadcast=moved(server.broadcast, 1e-3))
    else:
        assert asked(site, server) is False


@EVERY
def test_a_site_that_kept_nothing_is_as_one_that_missed_the_rounds_before(name: str) -> None:
    """It knows nothing of them."""
    server = Server(name)
    begun(server, 3)
    site = server.site()
    assert asked(site, server) is False
    server.fold()
    assert asked(site, server) is (name not in {"fedavgm", "fedadam"})


@EVERY
def test_an_earlier_round_is_refused_and_nothing_is_forgotten_for_it(name: str) -> None:
    """A replay of round 1, or of any before the last one, does not make the site take a crafted broadcast."""
    server = Server(name)
    site = server.site()
    first = server.broadcast
    for _ in range(3):
        assert asked(site, server)
        server.fold()
    assert asked(site, server)
    for round in (1, 2, 3):
        with pytest.raises(PeerError, match="an earlier round"):
            asked(site, server, round=round, broadcast=first, opened=())
    assert not site.broken, "an old message that comes late ends nothing"
    server.fold()
    with pytest.raises(PeerError, match="not the fold of the last sum"):
        asked(site, server, broadcast=moved(server.broadcast, 1e-3))


@EVERY
def test_a_site_makes_the_next_broadcast_itself(name: str) -> None:
    """To the same digest, after burnt rounds and when it is asked again as well; it passes its own check."""
    server = Server(name)
    site = begun(server)
    for round in range(2, 8):
        for _ in range(2):
            made = site.following(server.round, server.opened, {0: SITES} if server.opened else {})
            assert made is not None
            assert made.digest == server.broadcast.digest
        assert asked(site, server, broadcast=made)
        if round in (3, 4):
            server.burn()
        else:
            server.fold()


def test_what_it_made_is_folded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """And nothing that was made of other sums, or for another round, passes for it."""
    server = Server()
    site = begun(server)
    folds: list[int] = []
    fold = server.strategy.fold
    monkeypatch.setattr(site.strategy, "fold", lambda *args: folds.append(1) or fold(*args), raising=False)
    assert site.following(server.round, server.opened, {0: SITES}) is not None
    assert asked(site, server)
    assert len(folds) == 1
    server.fold()
    made = site.following(server.round, server.opened, {0: SITES})
    assert made is not None
    with pytest.raises(PeerError, match="not the fold of the last sum"):
        asked(site, server, broadcast=made, opened=(opened(
            replace(server.total(), coordinates=server.total().coordinates + 500),
            round=server.round - 1, stage=0, cohort=5, bits=16,
        ),))  # fmt: skip


@EVERY
def test_a_site_that_cannot_make_it_says_so_and_loses_nothing(name: str) -> None:
    """It knows nothing, missed a round, or the sums are none; the broadcast itself is taken afterwards."""
    server = Server(name)
    assert server.site().following(1, (), {}) is None
    site = begun(server)
    assert site.following(server.round, server.opened * 2, {0: SITES}) is None
    assert site.following(server.round, (b"garbled",), {0: SITES}) is None
    assert not site.broken
    assert asked(site, server)
    server.fold()
    server.fold()
    assert site.following(server.round, server.opened, {}) is None
    asked(site, server, confirmed={})
    server.fold()
    made = site.following(server.round, server.opened, {0: SITES})
    if made is not None:  # of some strategies the server keeps more than a site can know again
        assert made.digest == server.broadcast.digest
    site.broken = True
    assert site.following(server.round, server.opened, {0: SITES}) is None


def test_factors_of_one_product_are_one_state_to_a_site_and_another_balance_is_not() -> None:
    """Another machine may turn the factors round; a server may not stretch them."""
    for stretch, wrong in ((1.0, False), (4.0, True)):
        server = Server("tangent")
        site = begun(server)
        pair = pairs(server.broadcast.layout)[0]
        turn = np.diag([-1.0, 1.0]) * stretch
        sent = server.broadcast.with_vector(server.broadcast.vector.copy())
        sent[pair.b.name][...] = sent[pair.b.name] @ turn
        sent[pair.a.name][...] = np.linalg.inv(turn) @ sent[pair.a.name]
        assert difference(server.broadcast, sent) < TOLERANCE
        if wrong:
            with pytest.raises(PeerError, match="not the fold"):
                asked(site, server, broadcast=sent)
        else:
            assert asked(site, server, broadcast=sent)
            server.state = replace(server.state, adapter=sent)
            server.fold()
            assert asked(site, server)
