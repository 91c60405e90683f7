"""Attacks within an attempt, most of them by the relay: each refused, or harmless and named."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from wardround.core.errors import InternalError, PeerError, PolicyError
from wardround.privacy.packing import pack, unpack, word_of
from wardround.privacy.secagg.hashing import digest
from wardround.privacy.secagg.messages import (
    Advertised,
    Complaint,
    Confirmation,
    Confirmed,
    Opened,
    Survivors,
    decode,
    encode,
)
from wardround.privacy.secagg.policy import SecurePolicy
from wardround.privacy.secagg.relay import Relay
from wardround.privacy.secagg.secret import Secret
from wardround.privacy.secagg.shamir import PRIME, split

BROADCAST = digest("broadcast")
A, B, C = "site_00", "site_01", "site_02"


def altered(message: Any, **changes: Any) -> Any:
    """A message with other fields, its signature as it was."""
    return message.model_copy(update=changes)


def public_key() -> bytes:
    """A key that somebody else holds."""
    return X25519PrivateKey.generate().public_key().public_bytes_raw()


def with_other(messages: Advertised, site: str, **changes: Any) -> Advertised:
    """All advertisements, that of one site altered."""
    return Advertised(
        advertisements=tuple(
            altered(message, **changes) if message.site == site else message
            for message in messages.advertisements
        )
    )


@pytest.mark.parametrize(
    "field", ["channel_key", "mask_key", "commitment", "graph_commitment", "ledger_head"]
)
def test_a_key_swapped_in_transit_is_refused(consortium: Any, field: str) -> None:
    """By every site that it is shown to, its owner included, and by the relay."""
    group = consortium()
    offer = group.offer()
    _, advertised = group.to_advertised(offer)
    forged = with_other(advertised, B, **{field: public_key()})
    with pytest.raises(PeerError, match="signature of 'site_01'"):
        group.sites[A].deal(forged)
    with pytest.raises(PeerError, match=r"signature|own advertisement"):
        group.sites[B].deal(forged)
    relay = Relay(offer, group.roster)
    with pytest.raises(PeerError, match="signature"):
        relay.take_advertisement(next(m for m in forged.advertisements if m.site == B))


def test_one_site_twice_is_refused(consortium: Any) -> None:
    """In the cohort, among the advertisements, at the relay, among dealers, survivors, confirmations."""
    group = consortium()
    with pytest.raises(PeerError, match="names a site twice"):
        group.advertise(A, group.offer(cohort=(A, *group.names)))
    offer = group.offer()
    relay, advertised = group.to_advertised(offer)
    with pytest.raises(PeerError, match="sent its message twice"):
        relay.take_advertisement(advertised.advertisements[0])
    with pytest.raises(PeerError, match="twice"):
        group.sites[A].deal(
            Advertised(advertisements=(*advertised.advertisements, advertised.advertisements[1]))
        )


def test_one_person_under_two_names_is_refused(consortium: Any) -> None:
    """The same key advertised for two sites, each rightly signed."""
    group = consortium()
    offer = group.offer()
    relay, _ = group.to_advertised(offer, (B,))
    twin = relay.advertised().advertisements[0]
    copy = altered(twin, site=B)
    copy = altered(copy, signature=group.signers[B].sign(copy.statement(offer.context)))
    with pytest.raises(PeerError, match="advertised twice"):
        relay.take_advertisement(copy)
    with pytest.raises(PeerError, match="advertised twice"):
        group.sites[A].deal(Advertised(advertisements=(*relay.advertised().advertisements, copy)))


def test_keys_are_fresh_in_every_attempt_and_an_old_advertisement_is_refused(consortium: Any) -> None:
    """A key of an earlier attempt does not verify in this one, whoever sends it again."""
    group = consortium()
    first, second = group.offer(), group.offer(attempt=1)
    _, old = group.to_advertised(first)
    _, new = group.to_advertised(second)
    keys = [key for m in (*old.advertisements, *new.advertisements) for key in (m.channel_key, m.mask_key)]
    assert len(set(keys)) == len(keys)
    mixed = Advertised(advertisements=(old.advertisements[0], *new.advertisements[1:]))
    with pytest.raises(PeerError, match="signature of 'site_00'"):
        group.sites[B].deal(mixed)


def confirmations(group: Any, names: tuple[str, ...], view: Survivors) -> list[Confirmation]:
    """What these sites sign when they are shown this set."""
    return [group.sites[name].confirm(view) for name in names]


def test_a_split_view_of_the_survivors_opens_neither(consortium: Any) -> None:
    """Half the sites see a set with site_00, half one without: neither half can unmask."""
    group = consortium(7)
    relay, survivors = group.to_survivors(group.offer())
    without = tuple(name for name in survivors if name != A)
    one = confirmations(group, survivors[:4], Survivors(sites=survivors))
    other = confirmations(group, survivors[4:], Survivors(sites=without))
    with pytest.raises(PeerError, match="another set of survivors"):
        group.sites[A].unmask(Confirmed(confirmations=(*one, *other)))
    with pytest.raises(PeerError, match="too few confirmations"):
        group.sites[B].unmask(Confirmed(confirmations=tuple(one)))
    with pytest.raises(PeerError, match="another set of survivors"):
        relay.take_confirmation(other[0])


def test_a_site_signs_one_set_of_survivors_ever(consortium: Any) -> None:
    """Asked for a second one, also after it was shown the same again, it has nothing left to give."""
    group = consortium(7)
    _, survivors = group.to_survivors(group.offer())
    group.sites[B].confirm(Survivors(sites=survivors))
    for view in (survivors, tuple(n for n in survivors if n != A)):
        with pytest.raises(PeerError, match="out of its order"):
            group.sites[B].confirm(Survivors(sites=view))


def test_never_both_kinds_of_share_for_one_site(consortium: Any) -> None:
    """Neither in one answer nor in two: with both, a relay would see that site's vector."""
    group = consortium(7)
    relay, survivors = group.to_survivors(group.offer(), {C: "mask"})
    for name in survivors:
        relay.take_confirmation(group.sites[name].confirm(relay.survivors()))
    for name in survivors:
        answer = group.sites[name].unmask(relay.confirmed())
        assert set(answer.self_shares) == set(survivors)
        assert set(answer.key_shares) == {C}
        with pytest.raises(PeerError, match="out of its order"):
            group.sites[name].unmask(relay.confirmed())


def test_a_site_that_is_both_alive_and_dropped_is_refused(consortium: Any) -> None:
    """A site that is left out of the survivors does not confirm them; an unsorted or strange set neither."""
    group = consortium(7)
    _, survivors = group.to_survivors(group.offer(), {C: "deal"})
    for view, text in (
        (tuple(n for n in survivors if n != A), "this site is not among"),
        ((*survivors, C), "not a subset"),
        (tuple(reversed(survivors)), "not a subset"),
        ((survivors[0], *survivors), "not a subset"),
    ):
        group.to_survivors(group.offer(attempt=group.records[A].state.place[2] + 1), {C: "deal"})
        with pytest.raises(PeerError, match=text):
            group.sites[A].confirm(Survivors(sites=view))


def test_shares_are_for_their_recipient_and_from_their_dealer(consortium: Any) -> None:
    """Swapped between recipients, between dealers, left out or added: refused, nobody is blamed."""
    names = consortium().names
    cases: list[tuple[Callable[[Any, Any], Any], str]] = [
        (lambda mine, theirs: {"boxes": {**mine.boxes, C: theirs.boxes[C]}}, "for another site"),
        (
            lambda mine, _: {"boxes": {**mine.boxes, B: mine.boxes[C], C: mine.boxes[B]}},
            "signature of 'site_01'",
        ),
        (lambda mine, _: {"boxes": {k: v for k, v in mine.boxes.items() if k != B}}, "one box from every"),
        (
            lambda mine, _: {"dealers": names[:3], "boxes": {k: mine.boxes[k] for k in names[1:3]}},
            "too few sites",
        ),
        (lambda mine, _: {"dealers": (*mine.dealers, "site_99")}, "not a subset"),
        (
            lambda mine, _: {"boxes": {**mine.boxes, B: altered(mine.boxes[B], sealed=bytes(82))}},
            "of 'site_01'",
        ),
    ]
    for change, text in cases:
        group = consortium()
        offer = group.offer()
        _, deliveries = group.to_deliveries(offer)
        delivery = altered(deliveries[A], **change(deliveries[A], deliveries[B]))
        with pytest.raises(PeerError, match=text):
            group.sites[A].mask(delivery, *group.inputs(offer, A))


def test_a_bad_box_that_its_dealer_signed_is_complained_about_and_the_dealer_is_named(
    consortium: Any,
) -> None:
    """The channel key in the complaint opens nothing that outlives the attempt."""
    group = consortium()
    offer = group.offer()
    relay, advertised = group.to_advertised(offer)
    for name in group.names:
        dealing = group.sites[name].deal(advertised)
        if name == B:
            box = altered(dealing.boxes[0], sealed=secrets.token_bytes(82))
            box = altered(
                box, signature=group.signers[B].sign(box.statement(offer.context, B, dealing.agreed))
            )
            dealing = altered(dealing, boxes=(box, *dealing.boxes[1:]))
            dealing = altered(dealing, signature=group.signers[B].sign(dealing.statement(offer.context)))
        relay.take_dealing(dealing)
    delivery = relay.deliveries()[A]
    complaint = group.sites[A].mask(delivery, *group.inputs(offer, A))
    assert isinstance(complaint, Complaint)
    assert relay.take_complaint(decode(encode(complaint), Complaint)) == B
    with pytest.raises(PeerError, match="out of its order"):
        group.sites[A].confirm(Survivors(sites=group.names))


def test_a_false_complaint_names_the_one_who_complains(consortium: Any) -> None:
    """About a box that opens, or with another key than the advertised one; about no box at all: refused."""
    group = consortium()
    offer = group.offer()
    relay, deliveries = group.to_deliveries(offer)
    channel = group.sites[A]._phase.keyed.channel.private_bytes_raw()

    def complaint(**changes: Any) -> Complaint:
        fields = {"site": A, "dealer": B, "box": deliveries[A].boxes[B], "channel_secret": channel}
        message = Complaint(**(fields | changes))
        return altered(message, signature=group.signers[A].sign(message.statement(offer.context)))

    assert relay.take_complaint(complaint()) == A
    assert relay.take_complaint(complaint(channel_secret=secrets.token_bytes(32))) == A
    with pytest.raises(PeerError, match="not delivered"):
        relay.take_complaint(complaint(box=deliveries[C].boxes[B]))
    with pytest.raises(PeerError, match="signature"):
        relay.take_complaint(altered(complaint(), dealer=C))


def resigned(group: Any, offer: Any, message: Any) -> Any:
    """Signed by its own site, whatever it says."""
    return altered(message, signature=group.signers[message.site].sign(message.statement(offer.context)))


@pytest.mark.parametrize("lost", [{}, {"site_08": "mask"}])
def test_wrong_shares_are_corrected_and_whoever_gave_them_is_named(
    consortium: Any, lost: dict[str, str]
) -> None:
    """With n = 9, t = 7: one wrong of nine (or of eight, none) is corrected; the sum is right."""
    group = consortium(9)
    offer = group.offer()
    relay, answers = group.to_answers(offer, lost)
    for name, answer in answers.items():
        message = answer
        if name == A:
            wrong = {site: secrets.randbelow(PRIME).to_bytes(33, "big") for site in answer.self_shares}
            message = resigned(group, offer, altered(answer, self_shares=wrong))
        relay.take_unmasking(message)
    if lost:
        with pytest.raises(PeerError, match="do not give its secret"):
            relay.open()
        return
    total = relay.open()
    assert total.liars == (A,)
    group.check(total, offer)


def test_a_dealer_whose_shares_fit_nothing_is_named(consortium: Any) -> None:
    """Shares of two different secrets, each rightly sealed and signed: found when the sum is opened."""
    group = consortium(6)
    offer = group.offer()
    relay, advertised = group.to_advertised(offer)
    site = group.sites[B]
    honest = site._box

    def lying(keyed: Any, peer: Any, head: bytes, agreed: bytes, seed: Secret, key: Secret) -> Any:
        return honest(keyed, peer, head, agreed, split(Secret.fresh(), 1, [1])[0], key)

    site._box = lying
    for name in group.names:
        relay.take_dealing(group.sites[name].deal(advertised))
    for name, delivery in relay.deliveries().items():
        relay.take_masked(group.sites[name].mask(delivery, *group.inputs(offer, name)))
    survivors = relay.survivors()
    for name in survivors.sites:
        relay.take_confirmation(group.sites[name].confirm(survivors))
    for name in survivors.sites:
        relay.take_unmasking(group.sites[name].unmask(relay.confirmed()))
    with pytest.raises(PeerError, match=r"(?s)do not give its secret.*site_01"):
        relay.open()


def test_a_masked_vector_that_was_altered_is_refused(consortium: Any) -> None:
    """By the relay; a relay that alters the sum itself is the threat model's business."""
    group = consortium()
    offer = group.offer()
    relay, deliveries = group.to_deliveries(offer)
    message = group.sites[A].mask(deliveries[A], *group.inputs(offer, A))
    changed = unpack(message.coordinates, offer.coordinates, offer.bits).copy()
    changed[0] += 1
    for forged in (
        altered(message, coordinates=pack(changed, offer.bits)),
        altered(message, counters=bytes(len(message.counters))),
        altered(message, dealt=digest("x")),
        altered(message, site=B),
    ):
        with pytest.raises(PeerError, match="signature"):
            relay.take_masked(forged)
    relay.take_masked(message)
    with pytest.raises(PeerError, match="twice"):
        relay.take_masked(message)


def test_what_a_masked_vector_shows_does_not_depend_on_the_input(consortium: Any) -> None:
    """With the same keys, the difference of two masked vectors is that of the inputs: the rest is mask."""
    group = consortium(5)
    offer = group.offer()
    _, deliveries = group.to_deliveries(offer)
    site = group.sites[A]
    phase = site._phase
    zero = np.zeros(offer.coordinates, dtype=word_of(offer.bits)), np.zeros(3, dtype=np.uint64)
    first = site.mask(deliveries[A], *zero)
    site._phase = phase
    second = site.mask(deliveries[A], *group.inputs(offer, A))
    one, two = (unpack(m.coordinates, offer.coordinates, offer.bits) for m in (first, second))
    assert np.array_equal((two - one).astype(np.uint16), group.inputs(offer, A)[0])
    assert len(set(one.tolist())) > 15


def test_too_few_survivors_are_not_opened(consortium: Any) -> None:
    """Below t, below h + m, or below the policy's share of the cohort: no confirmation."""
    group = consortium(9, SecurePolicy(least_survivor_share=0.9))
    _, survivors = group.to_survivors(group.offer(), {C: "mask"})
    with pytest.raises(PolicyError, match=r"found: 8 of 9\n.*at least 9"):
        group.sites[A].confirm(Survivors(sites=survivors))
    group = consortium(9)
    _, survivors = group.to_survivors(group.offer())
    with pytest.raises(PolicyError, match=r"found: 6 of 9\n.*at least 7"):
        group.sites[A].confirm(Survivors(sites=survivors[:6]))


def test_the_graph_cannot_be_chosen_by_leaving_openings_out(consortium: Any) -> None:
    """Missing or altered: refused. Otherwise a relay could try subsets until it likes one."""
    group = consortium(12, SecurePolicy(most_exposure=1.0))
    offer = group.offer(degree=4, share_threshold=4)
    relay = Relay(offer, group.roster)
    for name in group.names:
        relay.take_advertisement(group.advertise(name, offer))
    advertised = relay.advertised()
    openings = [group.sites[name].open_graph(advertised) for name in group.names]
    with pytest.raises(PeerError, match="opening of every site"):
        group.sites[A].deal(Opened(openings=tuple(openings[:-1])))
    other = altered(openings[5], value=secrets.token_bytes(32))
    with pytest.raises(PeerError, match="signature"):
        group.sites[B].deal(Opened(openings=(*openings[:5], other, *openings[6:])))
    ground = resigned(group, offer, other)
    with pytest.raises(PeerError, match="not what the site committed to"):
        group.sites[C].deal(Opened(openings=(*openings[:5], ground, *openings[6:])))
    with pytest.raises(PeerError, match="not what the site committed to"):
        relay.take_opening(ground)
    early = group.sites["site_03"]
    early._phase = early._phase.keyed
    with pytest.raises(PeerError, match="before the graph was drawn"):
        early.deal(advertised)


def test_counters_above_their_bound_are_refused_at_the_site(consortium: Any) -> None:
    """And lanes of other sizes or types: a fault of our own code, named before anything is masked."""
    group = consortium(5)
    offer = group.offer(most_count=100)
    _, deliveries = group.to_deliveries(offer)
    good = group.inputs(offer, A)[0]
    with pytest.raises(InternalError, match="above the offer's bound"):
        group.sites[A].mask(deliveries[A], good, np.array([1, 101, 1], dtype=np.uint64))
    _, deliveries = group.to_deliveries(group.offer(most_count=100, attempt=1))
    with pytest.raises(InternalError, match="are not what the offer says"):
        group.sites[A].mask(deliveries[A], good.astype(np.uint32), np.ones(3, dtype=np.uint64))
