"""Messages of secure aggregation as bytes: a thousand mutations of each, other kinds, strict heads."""

from __future__ import annotations

import base64
import json
import random
from typing import Any

import pytest

from wardround.core.errors import PeerError, WardroundError
from wardround.privacy.secagg.hashing import digest
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

BROADCAST = digest("broadcast")
A, B, C = "site_00", "site_01", "site_02"


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
    relay, answers = group.to_answers(group.offer())
    assert relay.openable is False
    share = answers[A].self_shares[B]
    assert repr(share) not in repr(answers[A])
    group.to_deliveries(group.offer(round=2))
    phase = group.sites[A]._phase
    assert phase.keyed.seed.reveal().hex() not in repr(phase)
    assert repr(phase.keyed.seed.reveal()) not in repr(phase)
