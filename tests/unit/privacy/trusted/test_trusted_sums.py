"""Sums through a trusted aggregator: what it adds, what the relay sees, later attempts."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest

from wardround.core.errors import ConfigError, PeerError, QuorumError
from wardround.privacy.packing import pack
from wardround.privacy.sealed import seal
from wardround.privacy.secagg.secret import Secret
from wardround.privacy.secagg.total import centred
from wardround.privacy.sums.aggregation import Aggregation
from wardround.privacy.sums.contract import Lanes
from wardround.privacy.sums.trusted import Aggregator, header_of


def total(world: Any, sites: Any) -> np.ndarray:
    """The sum that these sites' contributions have."""
    return np.sum([centred(world.lanes(site).coordinates, 16) for site in sites], axis=0)


def test_the_aggregator_adds_what_sites_sealed(world: Any) -> None:
    """To the last bit, in one exchange; a site that does not answer is not in it."""
    offer = world.offer()
    collector = world.collector(offer)
    sent = collector.begin()
    assert set(sent) == collector.waiting == set(world.sites)
    for site in ("c", "a"):
        collector.take(site, world.parties[site].begin(sent[site], world.broadcast, world.lanes(site)))
    collector.leave("b")
    assert (collector.waiting, collector.close()) == (frozenset(), {})
    found = collector.open()
    np.testing.assert_array_equal(found.coordinates, total(world, "ac"))
    assert (found.survivors, found.liars, collector.burning) == (("a", "c"), (), False)
    assert found.counters[0] == 24


def test_a_site_alone_may_trust_the_aggregator_with_its_contribution(alone: Any) -> None:
    """What it demands of cohorts protects sums; here the pinned key does."""
    offer = alone.offer()
    collector = alone.collector(offer)
    collector.take("a", alone.seal("a", offer))
    np.testing.assert_array_equal(collector.open().coordinates, total(alone, "a"))


def test_nothing_of_a_contribution_is_in_the_clear_in_transit(world: Any) -> None:
    """No eight bytes in a row of either packed lane, wherever they stand; sealed again, nothing is alike."""
    first, again = world.offer(), world.offer(attempt=1)
    lanes = world.lanes("a")
    messages = [world.seal("a", offer, lanes) for offer in (first, again)]
    for packed in (pack(lanes.coordinates, 16), pack(lanes.counters, 64)):
        pieces = {packed[i : i + 8] for i in range(len(packed) - 7)} - {bytes(8)}
        assert pieces
        assert all(piece not in message for piece in pieces for message in messages)
    tails = [message[-len(pack(lanes.coordinates, 16)) :] for message in messages]
    assert not {tails[0][i : i + 8] for i in range(len(tails[0]) - 7)} & {
        tails[1][i : i + 8] for i in range(len(tails[1]) - 7)
    }


def test_a_later_attempt_adds_what_was_kept_and_each_site_once(world: Any) -> None:
    """Sealed anew; what the relay kept of the first attempt is in no later sum."""
    lanes = {site: world.lanes(site) for site in world.sites}
    first, again = world.offer(), world.offer(attempt=1)
    early = world.collector(first, quorum=3)
    kept = {site: world.seal(site, first, lanes[site]) for site in "ab"}
    for site, message in kept.items():
        early.take(site, message)
    early.leave("c")
    with pytest.raises(QuorumError, match=r"(?s)fewer sites.*2; not: c.*at least 3"):
        early.close()
    later = world.collector(again, quorum=3)
    with pytest.raises(PeerError, match="another context"):
        later.take("a", kept["a"])
    later = world.collector(again, quorum=3)
    for site in world.sites:
        message = world.seal(site, again, lanes[site])
        assert message not in kept.values()
        later.take(site, message)
    assert later.close() == {}
    np.testing.assert_array_equal(later.open().coordinates, total(world, "abc"))
    assert later.open().survivors == ("a", "b", "c")


def test_what_an_attempt_accepted_is_known_to_every_collector_of_the_run(world: Any) -> None:
    """A second collector of one attempt takes no site again, and one of an earlier attempt nothing at all."""
    first, again = world.offer(), world.offer(attempt=1)
    message = world.seal("a", first)
    world.collector(first).take("a", message)
    with pytest.raises(PeerError, match="'a' was accepted already"):
        world.collector(first).take("a", message)
    late = world.seal("b", first)
    world.collector(again).take("a", world.seal("a", again))
    with pytest.raises(PeerError, match="that is over"):
        world.collector(first).take("b", late)


def test_sums_of_other_names_are_counted_apart(world: Any) -> None:
    """Each has a run id of its own: what one accepted is not missing from the other."""
    offer, lanes = world.offer(), world.lanes("a")
    other = offer.model_copy(update={"run_id": "run/evaluation"})
    packed = pack(lanes.coordinates, 16), pack(lanes.counters, 64)
    for of_sum in (offer, other):
        header = header_of(of_sum, "a", world.aggregator.public)
        world.collector(of_sum).take("a", seal(header, *packed, world.signers["a"]))
    assert {run: state.sites for run, state in world.aggregator.received.items()} == {
        "run/training": {"a"}, "run/evaluation": {"a"},
    }  # fmt: skip


@pytest.mark.parametrize("kind", ["coordinate", "count", "weight 0", "weight 51"])
def test_a_contribution_beyond_the_bounds_is_refused_and_not_added(world: Any, kind: str) -> None:
    """The aggregator sees each by itself, and checks each by itself."""
    offer = world.offer()
    collector = world.collector(offer)
    lanes = world.lanes("a", weight=int(kind.partition(" ")[2] or 12))
    coordinates, counters = lanes.coordinates.copy(), lanes.counters.copy()
    if kind == "coordinate":
        coordinates[3] = 2**15 - 1
    if kind == "count":
        counters[1] = offer.most_count + 1
    with pytest.raises(PeerError, match=r"bounds|not counts"):
        collector.take("a", world.seal("a", offer, Lanes(coordinates, counters)))
    collector.take("b", world.seal("b", offer))
    assert collector.open().survivors == ("b",)
    np.testing.assert_array_equal(collector.open().coordinates, total(world, "b"))


@pytest.mark.parametrize("mode", ["real", "accounted", "off"])
def test_only_a_trusted_aggregator_holds_a_key(world: Any, mode: Any) -> None:
    """A server without it could open nothing; one of another mode has no use for it."""
    with pytest.raises(ConfigError, match=r"secure\.mode=trusted"):
        Aggregation("trusted", world.server, world.roster)
    with pytest.raises(ConfigError, match=f"secure.mode={mode}"):
        Aggregation(mode, world.server, world.roster, Aggregator(Secret.fresh()))


def test_the_aggregators_key_shows_nowhere(world: Any) -> None:
    """Neither in its repr nor in that of what holds it."""
    key = world.aggregator.key.reveal()
    for text in (repr(world.aggregator), repr(world.aggregation)):
        assert key.hex() not in text
        assert repr(key) not in text


def test_random_bytes_are_refused(world: Any) -> None:
    """Of any length, with and without a right beginning; the sum is as if they had not come."""
    rng, offer = random.Random(5), world.offer()
    honest = world.seal("a", offer)
    for size in (0, 1, 4, 7, 8, 100, len(honest), len(honest) + 1):
        for start in (b"", honest[:8], honest[:200]):
            collector = world.collector(offer)
            with pytest.raises(PeerError):
                collector.take("a", (start + rng.randbytes(size))[: max(size, len(start))])
    collector = world.collector(offer)
    collector.take("a", honest)
    np.testing.assert_array_equal(collector.open().coordinates, total(world, "a"))
