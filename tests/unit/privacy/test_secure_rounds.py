"""Honest rounds of secure aggregation: exact sums over the survivors, whoever is lost and whenever."""

from __future__ import annotations

import itertools
import tracemalloc
from typing import Any

import numpy as np
import pytest

from wardround.core.errors import PolicyError, QuorumError
from wardround.privacy.secagg.messages import (
    Advertised,
    Advertisement,
    Confirmation,
    Confirmed,
    Dealing,
    Delivery,
    MaskedInput,
    Survivors,
    Unmasking,
    decode,
    encode,
)
from wardround.privacy.secagg.site import SecureSite

PHASES = ("advertise", "deal", "mask", "confirm", "unmask")


@pytest.mark.parametrize("bits", [8, 12, 16, 20, 24, 32, 64])
@pytest.mark.parametrize("size", [5, 6, 9])
def test_the_sum_is_exact_in_every_ring(consortium: Any, size: int, bits: int) -> None:
    """Both lanes, with nobody lost."""
    group = consortium(size)
    offer = group.offer(bits=bits)
    total = group.run(offer)
    assert total.survivors == group.names
    assert total.liars == ()
    group.check(total, offer)


@pytest.mark.parametrize("phases", list(itertools.product(PHASES, PHASES)))
def test_two_of_seven_are_lost_in_any_phases(consortium: Any, phases: tuple[str, str]) -> None:
    """With n = 7 and t = 5 two may go, each before any of its messages."""
    group = consortium(7)
    offer = group.offer()
    lost = {"site_01": phases[0], "site_04": phases[1]}
    total = group.run(offer, lost)
    late = {name for name, phase in lost.items() if phase in ("confirm", "unmask")}
    assert set(total.survivors) == set(group.names) - set(lost) | late
    group.check(total, offer)


@pytest.mark.parametrize("phase", PHASES)
def test_one_more_is_too_many_and_named(consortium: Any, phase: str) -> None:
    """With n = 7 and t = 5 three lost in one phase end the attempt by name, and nothing opens."""
    group = consortium(7)
    with pytest.raises(QuorumError, match="too few sites") as refusal:
        group.run(group.offer(), {"site_00": phase, "site_01": phase, "site_06": phase})
    if phase != "unmask":
        assert "site_00, site_01, site_06" in str(refusal.value)


def test_an_attempt_that_failed_is_tried_again_with_the_same_vectors(consortium: Any) -> None:
    """Fresh keys, same stored contribution; who was lost is back."""
    group = consortium(6)
    with pytest.raises(QuorumError):
        group.run(group.offer(), dict.fromkeys(group.names[:3], "mask"))
    second = group.offer(attempt=1)
    group.check(group.run(second), second)


def test_a_straggler_after_the_masked_phase_is_ignored(consortium: Any) -> None:
    """Its vector stays masked: the sum is that of the others."""
    group = consortium(6)
    offer = group.offer()
    relay, deliveries = group.to_deliveries(offer)
    masked = {n: group.sites[n].mask(d, *group.inputs(offer, n)) for n, d in deliveries.items()}
    late = masked.pop("site_03")
    for message in masked.values():
        relay.take_masked(message)
    survivors = relay.survivors()
    with pytest.raises(Exception, match="after the survivors were fixed"):
        relay.take_masked(late)
    for name in survivors.sites:
        relay.take_confirmation(group.sites[name].confirm(survivors))
    for name in survivors.sites:
        relay.take_unmasking(group.sites[name].unmask(relay.confirmed()))
    total = relay.open()
    assert "site_03" not in total.survivors
    group.check(total, offer)


def test_a_site_repeats_its_unmask_answer_word_for_word_after_a_restart(consortium: Any) -> None:
    """A server that lost it asks again; the site's process is another one by then."""
    group = consortium(5)
    offer = group.offer()
    relay, survivors = group.to_survivors(offer)
    for name in survivors:
        relay.take_confirmation(group.sites[name].confirm(relay.survivors()))
    answers = {name: group.sites[name].unmask(relay.confirmed()) for name in survivors}
    group.restart()
    for name, answer in answers.items():
        assert group.sites[name].repeat(answer.survived) == answer
        assert group.sites[name].repeat(bytes(32)) is None
        relay.take_unmasking(group.sites[name].repeat(answer.survived))
    group.check(relay.open(), offer)


def test_the_input_of_a_site_is_left_as_it_is(consortium: Any) -> None:
    """It is stored, and masked anew in a later attempt."""
    group = consortium(5)
    offer = group.offer()
    _, deliveries = group.to_deliveries(offer)
    coordinates, counters = group.inputs(offer, "site_00")
    kept = coordinates.copy(), counters.copy()
    masked = group.sites["site_00"].mask(deliveries["site_00"], coordinates, counters)
    assert np.array_equal(coordinates, kept[0])
    assert np.array_equal(counters, kept[1])
    assert masked.coordinates != coordinates.tobytes()


@pytest.mark.parametrize("bits", [8, 12, 16, 20, 24, 32, 64])
def test_a_masked_vector_is_in_memory_once(consortium: Any, bits: int) -> None:
    """The site's ring integers beside it; its bytes are the very ones that are sent."""
    group = consortium(5)
    offer = group.offer(bits=bits, coordinates=3_000_000)
    _, deliveries = group.to_deliveries(offer)
    lanes = group.inputs(offer, "site_00")
    for lane in lanes:
        lane.flags.writeable = False
    tracemalloc.start()
    masked = group.sites["site_00"].mask(deliveries["site_00"], *lanes)
    data = encode(masked)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 3_000_000 * bits / 8 + 3_000_000  # the message, and pieces of it
    assert decode(data, MaskedInput, offer) == masked


def test_a_copy_of_a_masked_vector_has_its_own_bytes(consortium: Any) -> None:
    """Not those of the original."""
    group = consortium(5)
    offer = group.offer()
    _, deliveries = group.to_deliveries(offer)
    masked = group.sites["site_00"].mask(deliveries["site_00"], *group.inputs(offer, "site_00"))
    encode(masked)
    for change in ({"site": "site_01"}, {"coordinates": bytes(len(masked.coordinates))}):
        copy = masked.model_copy(update=change)
        assert decode(encode(copy), MaskedInput, offer) == copy != masked


@pytest.mark.parametrize("lost", [0, 3])
def test_a_regular_graph_gives_the_same_sum(consortium: Any, lost: int) -> None:
    """Twenty-four sites, each with eight others, drawn from everybody's openings."""
    group = consortium(24)
    group.policy = group.policy.model_copy(update={"most_exposure": 1.0})
    group.restart()
    offer = group.offer(degree=8, share_threshold=6)
    total = group.run(offer, dict.fromkeys(group.names[::5][:lost], "mask"))
    assert len(total.survivors) == 24 - len(group.names[::5][:lost])
    group.check(total, offer)


def test_every_message_travels_as_bytes(consortium: Any) -> None:
    """A round in which each message is encoded and read again on its way."""
    group = consortium(6)
    offer = type(group.offer()).model_validate_json(group.offer().model_dump_json())
    assert offer == group.offer()
    assert offer.context == group.offer().context

    def sent(message: Any, model: Any) -> Any:
        back = decode(encode(message), model, offer)
        assert back == message
        return back

    relay, _ = group.to_advertised(offer)
    advertised = sent(relay.advertised(), Advertised)
    for message in advertised.advertisements:
        sent(message, Advertisement)
        relay.take_dealing(sent(group.sites[message.site].deal(advertised), Dealing))
    for name, delivery in relay.deliveries().items():
        masked = group.sites[name].mask(sent(delivery, Delivery), *group.inputs(offer, name))
        relay.take_masked(sent(masked, MaskedInput))
    survivors = sent(relay.survivors(), Survivors)
    for name in survivors.sites:
        relay.take_confirmation(sent(group.sites[name].confirm(survivors), Confirmation))
    confirmed = sent(relay.confirmed(), Confirmed)
    for name in survivors.sites:
        relay.take_unmasking(sent(group.sites[name].unmask(confirmed), Unmasking))
    group.check(relay.open(), offer)


def test_a_sum_that_differs_by_a_few_sites_is_not_opened(consortium: Any) -> None:
    """Where a site demands it: the same survivors, or so many others; whatever is restarted."""
    group = consortium(9)
    for name in group.names:
        member = group.member(name, least_change=3)
        group.sites[name] = SecureSite(member)
    group.check(group.run(first := group.offer()), first)
    group.sites |= {name: SecureSite(group.member(name, least_change=3)) for name in group.names}
    for round, lost in ((2, 1), (3, 2)):
        with pytest.raises(PolicyError, match="too few sites") as refused:
            group.run(group.offer(round=round), dict.fromkeys(group.names[:lost], "mask"))
        assert refused.value.found == f"{lost} sites"
    group.check(group.run(same := group.offer(round=4)), same)
    changed = group.run(group.offer(round=5), dict.fromkeys(group.names[:2], "unmask"))
    assert changed.survivors == group.names  # they had sent theirs
    group.run(group.offer(round=6))


def test_a_sum_that_differs_by_enough_sites_is_opened(consortium: Any) -> None:
    """Ten of thirteen, then all of them."""
    group = consortium(13)
    group.sites = {name: SecureSite(group.member(name, least_change=3)) for name in group.names}
    few = group.run(offer := group.offer(), dict.fromkeys(group.names[:3], "mask"))
    group.check(few, offer)
    group.check(group.run(every := group.offer(round=2)), every)
    assert len(few.survivors) == 10
