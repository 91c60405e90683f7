"""Heads of ledgers: shown, kept once a sum is opened, given back before anything of a vector leaves."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest

from wardround.core.errors import PeerError, StorageError
from wardround.privacy.secagg.boxes import open_box, seal
from wardround.privacy.secagg.hashing import digest
from wardround.privacy.secagg.messages import (
    SEALED_BYTES,
    Box,
    Complaint,
    Dealing,
    MaskedInput,
    decode,
    encode,
)
from wardround.privacy.secagg.policy import SecurePolicy
from wardround.privacy.secagg.secret import Secret
from wardround.privacy.secagg.shamir import SHARE_BYTES
from wardround.privacy.secagg.site import SecureSite

A, B, C = "site_00", "site_01", "site_02"


@dataclass
class Remembering:
    """Heads of one site, in memory, and everything that was asked of it."""

    site: str
    count: int = 0
    held: dict[str, bytes] = field(default_factory=dict)
    told: dict[str, bytes] = field(default_factory=dict)
    behind: bool = False
    full: bool = False

    def own(self) -> bytes:
        """Another one each time."""
        self.count += 1
        return shown(self.site, self.count)

    def kept(self, sites: Collection[str]) -> Mapping[str, bytes]:
        """What there is."""
        return {site: self.held[site] for site in sites if site in self.held}

    def keep(self, heads: Mapping[str, bytes]) -> None:
        """In place of the one before."""
        if self.full:
            raise StorageError("no room")
        self.held |= heads

    def returned(self, heads: Mapping[str, bytes]) -> None:
        """What peers gave back last."""
        self.told = dict(heads)
        if self.behind:
            raise StorageError("the ledger was put back to an older copy")


def shown(site: str, count: int) -> bytes:
    """What a site shows the n-th time."""
    return digest("head", site, count) * 2


def with_heads(group: Any, **changes: Any) -> dict[str, Remembering]:
    """Every site with heads; in the complete graph, or in one of degree 4."""
    heads = {name: Remembering(name) for name in group.names}
    group.sites = {name: SecureSite(group.member(name, heads=heads[name], **changes)) for name in group.names}
    return heads


@pytest.mark.parametrize("degree", [0, 4])
def test_what_was_shown_in_an_opened_sum_is_given_back_in_the_next_one(consortium: Any, degree: int) -> None:
    """By every neighbour that dealt, and never what the very attempt shows."""
    group = consortium(10, SecurePolicy(most_exposure=1.0))
    heads = with_heads(group)
    graph = {"degree": degree, "share_threshold": 4 if degree else 0}
    for round in (1, 2, 3):
        offer = group.offer(round=round, **graph)
        group.check(group.run(offer), offer)
        for name in group.names:
            told, before = heads[name].told, shown(name, round - 1) if round > 1 else b""
            assert len(told) == (degree or 9)
            assert set(told.values()) == {before}
            assert heads[name].held == {peer: shown(peer, round) for peer in group.names if peer != name}


def test_of_an_attempt_that_is_not_opened_nothing_is_kept(consortium: Any) -> None:
    """However far it came: who vanished before the end makes nobody forget what was kept of it."""
    group = consortium(6)
    heads = with_heads(group)
    group.run(group.offer())
    first = {name: dict(of.held) for name, of in heads.items()}
    group.to_survivors(group.offer(round=2))
    assert {name: of.held for name, of in heads.items()} == first
    relay, survivors = group.to_survivors(group.offer(round=2, attempt=1))
    for name in survivors:
        group.sites[name].confirm(relay.survivors())
    assert {name: of.held for name, of in heads.items()} == first
    group.run(group.offer(round=3))
    assert all(set(of.told.values()) == {shown(name, 1)} for name, of in heads.items()), (
        "of the last opened sum"
    )


def test_who_is_not_in_the_sum_keeps_its_place(consortium: Any) -> None:
    """Its head of an earlier sum stays, and is what it is told."""
    group = consortium(7)
    heads = with_heads(group)
    group.run(group.offer())
    group.run(group.offer(round=2), {C: "mask"})
    group.run(group.offer(round=3))
    assert set(heads[C].told.values()) == {shown(C, 1)}
    assert heads[B].told == {peer: shown(B, 1 if peer == C else 2) for peer in group.names if peer != B}


@pytest.mark.parametrize("other", [b"", digest("rubbish") * 2, b"short"])
def test_a_head_that_is_altered_or_taken_out_on_the_way_is_refused(consortium: Any, other: bytes) -> None:
    """The relay cannot answer for a peer: the box does not open, and is not what its dealer signed."""
    group = consortium()
    with_heads(group)
    group.run(group.offer())
    relay, deliveries = group.to_deliveries(group.offer(round=2))
    boxes = dict(deliveries[A].boxes)
    boxes[B] = boxes[B].model_copy(update={"head": other})
    with pytest.raises(PeerError, match="signature of 'site_01'"):
        group.sites[A].mask(deliveries[A].model_copy(update={"boxes": boxes}), *group.inputs(relay.offer, A))
    dealing = relay._dealings[B]
    forged = dealing.model_copy(
        update={"boxes": tuple(box.model_copy(update={"head": other}) for box in dealing.boxes)}
    )
    del relay._dealings[B]
    with pytest.raises(PeerError, match="signature"):
        relay.take_dealing(forged)


def test_a_dealer_that_seals_another_head_than_it_shows_is_caught(consortium: Any) -> None:
    """Rightly signed, it does not open: the complaint says whose it is."""
    group = consortium()
    with_heads(group)
    relay, deliveries = group.to_deliveries(group.offer())
    offer, agreed = relay.offer, group.sites[B]._phase.agreed
    box = deliveries[A].boxes[B].model_copy(update={"head": digest("x")})
    box = box.model_copy(update={"signature": group.signers[B].sign(box.statement(offer.context, B, agreed))})
    boxes = {**deliveries[A].boxes, B: box}
    answer = group.sites[A].mask(deliveries[A].model_copy(update={"boxes": boxes}), *group.inputs(offer, A))
    assert isinstance(answer, Complaint)
    answer = decode(encode(answer), Complaint)
    dealing = relay._dealings[B]
    mine = tuple(box if held.recipient == A else held for held in dealing.boxes)
    relay._dealings[B] = dealing.model_copy(update={"boxes": mine})
    assert relay.take_complaint(answer) == B


def test_a_box_opens_with_the_head_that_it_was_sealed_with(consortium: Any) -> None:
    """And with no other one, nor without."""
    key, share, agreed, head = Secret.fresh(), Secret(bytes(SHARE_BYTES)), digest("agreed"), digest("head")
    sealed = seal(key, share, share, agreed, head)
    assert len(sealed) == SEALED_BYTES
    assert open_box(key, Box(recipient=A, sealed=sealed, head=head), agreed) is not None
    for other in (b"", digest("another"), head + b"\0"):
        assert open_box(key, Box(recipient=A, sealed=sealed, head=other), agreed) is None


def test_a_site_that_is_told_of_lost_rows_lets_nothing_leave(consortium: Any) -> None:
    """No vector, and the others' sum opens without it; they still hold what they told it."""
    group = consortium(10)
    heads = with_heads(group)
    group.run(group.offer())
    heads[A].behind = True
    relay, deliveries = group.to_deliveries(group.offer(round=2))
    for name, delivery in deliveries.items():
        if name == A:
            with pytest.raises(StorageError, match="older copy"):
                group.sites[A].mask(delivery, *group.inputs(relay.offer, A))
            continue
        masked = group.sites[name].mask(delivery, *group.inputs(relay.offer, name))
        assert isinstance(masked, MaskedInput)
        relay.take_masked(masked)
    survivors = relay.survivors()
    assert A not in survivors.sites
    for name in survivors.sites:
        relay.take_confirmation(group.sites[name].confirm(survivors))
    for name in survivors.sites:
        relay.take_unmasking(group.sites[name].unmask(relay.confirmed()))
    group.check(relay.open(), relay.offer)
    assert heads[A].told == {peer: shown(A, 1) for peer in group.names if peer != A}
    assert all(of.held[A] == shown(A, 1) for name, of in heads.items() if name != A)
    heads[A].behind = False
    group.run(group.offer(round=3))
    assert set(heads[A].told.values()) == {shown(A, 1)}


def test_no_answer_leaves_before_what_it_opens_is_kept(consortium: Any) -> None:
    """A full disk: no shares are given, and after a restart none are repeated."""
    group = consortium()
    heads = with_heads(group)
    relay, survivors = group.to_survivors(group.offer())
    for name in survivors:
        relay.take_confirmation(group.sites[name].confirm(relay.survivors()))
    heads[A].full = True
    with pytest.raises(StorageError, match="no room"):
        group.sites[A].unmask(relay.confirmed())
    assert group.records[A].load().answer is None
    group.sites[B].unmask(relay.confirmed())
    assert heads[B].held[A] == shown(A, 1)


def test_without_ledgers_boxes_carry_nothing(consortium: Any) -> None:
    """As in simulations."""
    group = consortium()
    _, advertised = group.to_advertised(group.offer())
    dealing = group.sites[A].deal(advertised)
    assert isinstance(dealing, Dealing)
    assert {box.head for box in dealing.boxes} == {b""}
    assert {advertisement.ledger_head for advertisement in advertised.advertisements} == {b""}
