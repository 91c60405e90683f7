"""Attacks on secure aggregation, most of them by the relay: each refused, or harmless and named."""

from __future__ import annotations

import base64
import json
import random
import secrets
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from wardround.core.errors import InternalError, PeerError, PolicyError, WardroundError
from wardround.privacy.packing import pack, unpack, word_of
from wardround.privacy.secagg.hashing import digest
from wardround.privacy.secagg.identity import KeySigner, Roster
from wardround.privacy.secagg.messages import (
    Advertised,
    Advertisement,
    Complaint,
    Confirmation,
    Confirmed,
    Dealing,
    Delivery,
    MaskedInput,
    Opened,
    Opening,
    Survivors,
    Unmasking,
    decode,
    encode,
)
from wardround.privacy.secagg.offer import SignedOffer
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


@pytest.mark.parametrize("threshold", [2, 3, 4])
def test_a_lowered_threshold_is_refused(consortium: Any, threshold: int) -> None:
    """With n = 7 it is 5."""
    group = consortium(7)
    with pytest.raises(PolicyError, match="threshold"):
        group.advertise(A, group.offer(threshold=threshold))


@pytest.mark.parametrize(
    ("size", "colluders", "fits"), [(5, 1, True), (5, 2, True), (5, 3, False), (9, 4, True), (9, 5, False)]
)
def test_the_threshold_has_to_hold_against_the_assumed_colluders(
    consortium: Any, size: int, colluders: int, fits: bool
) -> None:
    """At most 2t − n − 1 of them: two sets take t confirmations each, and an honest site gives one."""
    policy = SecurePolicy(assumed_colluders=colluders, least_honest=2)
    group = consortium(size, policy)
    # t = ⌊2n/3⌋ + 1 tolerates 2t − n − 1; the relay may offer a higher one.
    for threshold in range(2 * size // 3 + 1, size + 1):
        holds = colluders <= 2 * threshold - size - 1 and size >= 2 + colluders
        fresh = consortium(size, policy)
        if holds:
            fresh.advertise(A, fresh.offer(threshold=threshold))
        else:
            with pytest.raises(PolicyError):
                fresh.advertise(A, fresh.offer(threshold=threshold))
    default = colluders <= 2 * group.offer().threshold - size - 1
    assert default is (fits and default)


def test_a_cohort_below_the_policy_is_refused(consortium: Any) -> None:
    """Four sites where five are asked for, or fewer than h + m."""
    group = consortium(8)
    for cohort in (group.names[:4], group.names[:3]):
        with pytest.raises(PolicyError, match="cohort is smaller"):
            group.advertise(A, group.offer(cohort=cohort, threshold=3))
    strict = consortium(6, SecurePolicy(assumed_colluders=1, least_honest=6))
    with pytest.raises(PolicyError, match="at least 7"):
        strict.advertise(A, strict.offer())


def test_seven_of_ten_and_then_the_other_three(consortium: Any) -> None:
    """Attempt 0 opens with seven; attempt 1 offers the other three a cohort of their own: refused."""
    group = consortium(10, SecurePolicy(least_cohort=3, least_honest=2))
    offer = group.offer()
    left_out = group.names[7:]
    total = group.run(offer, dict.fromkeys(left_out, "mask"))
    assert total.survivors == group.names[:7]
    for cohort, threshold in ((left_out, 3), (group.names[5:], 4)):
        with pytest.raises(PeerError, match="changes the cohort or the threshold"):
            group.advertise(
                left_out[0], group.offer(attempt=1, cohort=cohort, threshold=threshold), BROADCAST
            )
    # Even with the same cohort the seven that opened the sum do not help to open another of this round.
    with pytest.raises(PeerError, match="opened already"):
        group.advertise(A, group.offer(attempt=1))


def test_what_the_first_offer_fixed_stays(consortium: Any) -> None:
    """Later attempts change their number and nothing else; also after a restart of the site."""
    group = consortium(8)
    group.to_advertised(group.offer())
    group.restart()
    for change in (
        {"threshold": 7}, {"cohort": group.names[:7], "threshold": 6}, {"scale": 4.0}, {"bits": 32},
        {"coordinates": 19}, {"layout": digest("other")}, {"most_count": 5}, {"largest": 9.0},
    ):  # fmt: skip
        with pytest.raises(PeerError, match="changes"):
            group.advertise(A, group.offer(attempt=1, **change))
    group.advertise(A, group.offer(attempt=1))


def test_a_replayed_offer_is_refused(consortium: Any) -> None:
    """Round, stage and attempt only grow, over restarts; refused offers change nothing."""
    group = consortium()
    group.run(group.offer(round=3))
    group.run(group.offer(round=4))
    group.restart()
    for place in ({"round": 4}, {"round": 3, "attempt": 5}, {"round": 1}, {"round": 4, "attempt": 0}):
        with pytest.raises(PeerError, match="not newer"):
            group.advertise(A, group.offer(**place))
    with pytest.raises(PeerError, match="opened already"):
        group.advertise(A, group.offer(round=4, attempt=1))
    with pytest.raises(PeerError, match="in its middle"):
        group.advertise(A, group.offer(round=5, stage=1))
    with pytest.raises(PolicyError, match="more often"):
        group.advertise(A, group.offer(round=5, attempt=10))
    group.run(group.offer(round=5))


def test_a_second_stage_has_the_survivors_of_the_first(consortium: Any) -> None:
    """Others, or fewer, would show a difference; skipping a stage is refused."""
    group = consortium(7)
    group.run(group.offer(), {C: "mask"})
    with pytest.raises(PeerError, match="skips a stage"):
        group.advertise(A, group.offer(stage=2))
    with pytest.raises(PeerError, match="survivors of a later stage"):
        group.run(group.offer(stage=1), {C: "advertise", B: "mask"})
    with pytest.raises(PeerError, match="skips a stage"):  # the site that was lost, asked again
        group.run(group.offer(stage=1, attempt=1))
    total = group.run(group.offer(stage=1, attempt=2), {C: "advertise"})
    assert total.survivors == tuple(name for name in group.names if name != C)


def test_an_invented_member_does_not_count(consortium: Any) -> None:
    """A newer roster that this site's people have not confirmed; or a stranger in the cohort."""
    group = consortium()
    invented = Roster({**group.roster.keys, "site_99": KeySigner.fresh().public})
    with pytest.raises(PeerError, match="another roster"):
        group.advertise(A, group.offer(roster=invented.digest))
    with pytest.raises(PeerError, match="no confirmed member"):
        group.advertise(A, group.offer(cohort=(*group.names, "site_99")))
    with pytest.raises(PeerError, match="misses this one"):
        group.advertise(A, group.offer(cohort=group.names[1:], threshold=4))


def test_another_plan_run_or_broadcast_is_refused(consortium: Any) -> None:
    """The digest has to be that of what the site approved, and of what it was really sent."""
    group = consortium()
    for change in ({"plan": digest("x")}, {"run_id": "other"}, {"broadcast": digest("x")}):
        with pytest.raises(PeerError, match="names another"):
            group.advertise(A, group.offer(**change))
    with pytest.raises(PeerError, match="another broadcast"):
        group.advertise(A, group.offer(), digest("a known update"))


def test_different_broadcasts_to_different_sites_never_meet_in_a_sum(consortium: Any) -> None:
    """The real adapter to one, a known one to the others, each with an offer that fits: contexts differ."""
    group = consortium()
    true, false = group.offer(), group.offer(broadcast=digest("a known update"))
    own = group.advertise(A, true)
    others = [group.advertise(name, false, digest("a known update")) for name in group.names[1:]]
    with pytest.raises(PeerError, match="signature"):
        group.sites[A].deal(Advertised(advertisements=(own, *others)))
    with pytest.raises(PeerError, match="signature"):
        group.sites[B].deal(Advertised(advertisements=(own, *others)))


@pytest.mark.parametrize(
    "change",
    [
        {"scale": 1e6},
        {"largest": 1e5},
        {"most_weight": 2**20},
        {"most_count": 2**61},
        {"bits": 16, "scale": 700.0},
    ],
)
def test_a_ring_that_could_overflow_is_refused(consortium: Any, change: dict[str, Any]) -> None:
    """By whoever reads the offer, the relay included."""
    group = consortium()
    with pytest.raises(PeerError, match="overflow"):
        group.advertise(A, group.offer(**change))
    with pytest.raises(PeerError, match="overflow"):
        Relay(group.offer(**change), group.roster)


def test_shares_are_for_their_recipient_and_from_their_dealer(consortium: Any) -> None:
    """Swapped between recipients, between dealers, left out or added: refused, nobody is blamed."""
    group = consortium()
    offer = group.offer()
    relay, deliveries = group.to_deliveries(offer)
    mine, theirs = deliveries[A], deliveries[B]
    inputs = group.inputs(offer, A)
    swapped = altered(mine, boxes={**mine.boxes, C: theirs.boxes[C]})
    exchanged = altered(mine, boxes={**mine.boxes, B: mine.boxes[C], C: mine.boxes[B]})
    fewer = altered(mine, boxes={k: v for k, v in mine.boxes.items() if k != B})
    shrunk = altered(mine, dealers=group.names[:3], boxes={k: mine.boxes[k] for k in group.names[1:3]})
    stranger = altered(mine, dealers=(*mine.dealers, "site_99"))
    forged = altered(mine, boxes={**mine.boxes, B: altered(mine.boxes[B], sealed=bytes(82))})
    for attempt, (delivery, text) in enumerate(
        [(swapped, "for another site"), (exchanged, "signature"), (fewer, "one box from every neighbour"),
         (shrunk, "too few sites dealt"), (stranger, "not a subset"), (forged, "signature")], start=1,
    ):  # fmt: skip
        with pytest.raises(PeerError, match=text):
            group.sites[A].mask(delivery, *inputs)
        offer = group.offer(attempt=attempt)
        relay, deliveries = group.to_deliveries(offer)
        fresh = deliveries[A]
        swapped = altered(fresh, boxes={**fresh.boxes, C: deliveries[B].boxes[C]})
        # the manipulations above are of an old attempt; they fail on the signature at the latest
        assert set(fresh.boxes) == set(group.names[1:])
    assert relay.offer.attempt == 6


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


def unmasked(
    group: Any, offer: Any, lost: dict[str, str] | None = None
) -> tuple[Relay, dict[str, Unmasking]]:
    """A relay that waits for answers, and the honest ones."""
    relay, survivors = group.to_survivors(offer, lost)
    for name in survivors:
        relay.take_confirmation(group.sites[name].confirm(relay.survivors()))
    return relay, {name: group.sites[name].unmask(relay.confirmed()) for name in survivors}


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
    relay, answers = unmasked(group, offer, lost)
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

    def lying(keyed: Any, peer: Any, agreed: bytes, seed: Secret, key: Secret) -> Any:
        return honest(keyed, peer, agreed, split(Secret.fresh(), 1, [1])[0], key)

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
    changed = unpack(message.coordinates, offer.coordinates, offer.bits)
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


@pytest.mark.parametrize(("degree", "share_threshold"), [(2, 2), (8, 4), (50, 26), (100, 40)])
def test_a_weak_graph_is_refused(consortium: Any, degree: int, share_threshold: int) -> None:
    """Fewer neighbours, or a lower share of them, than the policy's."""
    group = consortium(120)
    name = group.names[0]
    with pytest.raises(PolicyError, match="graph of the cohort is weaker"):
        group.advertise(
            name, group.offer(degree=degree, share_threshold=share_threshold, scale=2.0), BROADCAST
        )


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


def every_message(group: Any, offer: Any) -> list[tuple[Any, type]]:
    """One of each kind, from a round that went well."""
    relay, advertised = group.to_advertised(offer)
    found: list[tuple[Any, type]] = [(advertised.advertisements[0], Advertisement), (advertised, Advertised)]
    for name in group.names:
        dealing = group.sites[name].deal(advertised)
        relay.take_dealing(dealing)
    found.append((dealing, Dealing))
    for name, delivery in relay.deliveries().items():
        masked = group.sites[name].mask(delivery, *group.inputs(offer, name))
        relay.take_masked(masked)
    found += [(delivery, Delivery), (masked, MaskedInput)]
    survivors = relay.survivors()
    found.append((survivors, Survivors))
    for name in survivors.sites:
        confirmation = group.sites[name].confirm(survivors)
        relay.take_confirmation(confirmation)
    confirmed = relay.confirmed()
    found += [(confirmation, Confirmation), (confirmed, Confirmed)]
    found.append((group.sites[A].unmask(confirmed), Unmasking))
    opening = Opening(site=A, advertised=bytes(32), value=bytes(32))
    found += [(opening, Opening), (Opened(openings=(opening,)), Opened)]
    box = delivery.boxes[A]
    found.append((Complaint(site=A, dealer=B, box=box, channel_secret=bytes(32)), Complaint))
    return found


def mutated(data: bytes, rng: random.Random) -> bytes:
    """One of the usual accidents."""
    place = rng.randrange(len(data))
    match rng.randrange(6):
        case 0:
            return data[:place] + bytes([data[place] ^ (1 << rng.randrange(8))]) + data[place + 1 :]
        case 1:
            return data[:place]
        case 2:
            return data + rng.randbytes(rng.randrange(1, 40))
        case 3:
            return data[:place] + rng.randbytes(rng.randrange(1, 9)) + data[place:]
        case 4:
            return data[:place] + data[place + rng.randrange(1, 9) :]
        case _:
            other = rng.randrange(len(data))
            low, high = sorted((place, other))
            return data[:low] + data[high:] + data[low:high]


def test_a_thousand_mutations_of_every_message_are_refused_or_change_nothing(consortium: Any) -> None:
    """Never another error than ours; what still reads is signed differently, or says the same."""
    group = consortium(5)
    offer = group.offer()
    rng = random.Random(7)
    for message, model in every_message(group, offer):
        data = encode(message)
        assert decode(data, model, offer) == message
        for _ in range(1000):
            try:
                read = decode(mutated(data, rng), model, offer)
            except WardroundError:
                continue
            if read == message or not hasattr(message, "signature"):
                continue  # containers hold no signature of their own: their parts do
            assert read.signature != message.signature or (
                read.statement(offer.context) != message.statement(offer.context)
            )


def test_no_message_of_another_kind_is_taken(consortium: Any) -> None:
    """A confirmation where an advertisement is due, and so on, for every pair."""
    group = consortium(5)
    offer = group.offer()
    found = every_message(group, offer)
    for message, _ in found:
        for _, model in found:
            if not isinstance(message, model):
                with pytest.raises(PeerError):
                    decode(encode(message), model, offer)


def test_a_head_is_strict(consortium: Any) -> None:
    """Unknown keys, wrong types, a wrong version and a huge head are refused, without their content."""
    group = consortium(5)
    _, advertised = group.to_advertised(group.offer())
    good = json.loads(advertised.advertisements[0].model_dump_json())
    for change in ({"extra": 1}, {"site": 7}, {"site": "../etc"}, {"channel_key": "AA=="}, {"kind": "deal"}):
        head = json.dumps(good | change).encode()
        with pytest.raises(PeerError) as refusal:
            decode(b"WSA1" + len(head).to_bytes(4, "little") + head, Advertisement)
        assert base64.urlsafe_b64encode(advertised.advertisements[0].channel_key).decode() not in str(
            refusal.value
        )
    head = json.dumps(good).encode()
    with pytest.raises(PeerError, match="another protocol"):
        decode(b"WSA2" + len(head).to_bytes(4, "little") + head, Advertisement)
    with pytest.raises(PeerError, match="wrong length"):
        decode(b"WSA1" + (1 << 30).to_bytes(4, "little") + head, Advertisement)


def test_secrets_do_not_show(consortium: Any) -> None:
    """Neither in the repr of a site's phases nor of a message that carries shares."""
    group = consortium(5)
    relay, answers = unmasked(group, group.offer())
    assert relay.openable is False
    share = answers[A].self_shares[B]
    assert repr(share) not in repr(answers[A])
    group.to_deliveries(group.offer(round=2))
    phase = group.sites[A]._phase
    assert phase.keyed.seed.reveal().hex() not in repr(phase)
    assert repr(phase.keyed.seed.reveal()) not in repr(phase)


def test_an_offer_that_the_server_did_not_sign_is_refused(consortium: Any) -> None:
    """Nor one that was altered after it was signed."""
    group = consortium()
    offer = group.offer()
    stranger = SignedOffer.by(KeySigner.fresh(), offer)
    with pytest.raises(PeerError, match="signature of 'the server'"):
        group.sites[A].advertise(stranger, BROADCAST)
    signed = SignedOffer.by(group.server, offer)
    with pytest.raises(PeerError, match="signature of 'the server'"):
        group.sites[A].advertise(altered(signed, offer=group.offer(round=2)), BROADCAST)
    assert group.records[A].state.place == (0, 0, 0)
    group.sites[A].advertise(signed, BROADCAST)
