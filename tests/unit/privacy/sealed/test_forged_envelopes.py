"""Envelopes of another context, or forged: a relay or another site gets nothing accepted, or opened."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest

from wardround.core.errors import PeerError
from wardround.privacy.packing import pack, unpack
from wardround.privacy.sealed import (
    ADDED_BYTES,
    LARGEST_HEAD,
    Contribution,
    Header,
    Received,
    public_key,
    seal,
    unseal,
)
from wardround.privacy.secagg.hashing import digest
from wardround.privacy.secagg.identity import SIGNATURE_BYTES, KeySigner
from wardround.privacy.secagg.secret import Secret

OTHERS: dict[str, Any] = {
    "run_id": "another", "round": 4, "stage": 1, "attempt": 3,
    "plan": digest("other"), "roster": digest("other"), "broadcast": digest("other"),
    "layout": digest("other"), "counters_layout": digest("other"), "offer": digest("other"),
    "aggregator": public_key(Secret(bytes(range(32)))), "site": "site_b",
    "coordinates_bytes": 39, "counters_bytes": 25,
}  # fmt: skip
"""Another valid value for every field that an envelope is bound to."""


# What works.


def test_both_lanes_arrive_as_they_were_sealed(world: Any) -> None:
    """The aggregator reads what the site packed, and its state knows the site."""
    contribution, received = world.unseal(world.seal())
    assert contribution == Contribution(world.coordinates, world.counters)
    assert received == Received(run_id="run", place=(3, 0, 2), sites=frozenset({"site_a"}))
    assert world.received == Received(run_id="run")


@pytest.mark.parametrize("sizes", [(0, 0), (0, 8), (1, 0), (17, 8), (300_001, 80)])
@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_lanes_of_any_length_and_buffer(world: Any, sizes: tuple[int, int], kind: Any) -> None:
    """Empty lanes too; an envelope is as long as the format says."""
    rng = random.Random(0)
    lanes = [rng.randbytes(size) for size in sizes]
    header = world.header(coordinates_bytes=sizes[0], counters_bytes=sizes[1])
    envelope = seal(header, kind(lanes[0]), kind(lanes[1]), world.signers["site_a"])
    assert len(envelope) == 8 + len(header.head) + SIGNATURE_BYTES + sum(sizes) + 2 * ADDED_BYTES
    contribution, _ = unseal(kind(envelope), header, world.key, world.roster, world.received)
    assert [contribution.coordinates, contribution.counters] == lanes


def test_an_array_is_sealed_where_it_lies(world: Any) -> None:
    """A numpy vector's own buffer is as good as its bytes; its length is counted in bytes, not in items."""
    vector, counters = np.arange(1000, dtype=np.uint16), np.arange(3, dtype=np.uint64)
    header = world.header(coordinates_bytes=2000, counters_bytes=24)
    header = header if len(header.head) % 2 == 0 else header.model_copy(update={"stage": 1, "attempt": 22})
    envelope = seal(header, vector.data, counters.data, world.signers["site_a"])
    words = np.frombuffer(envelope, dtype=np.uint16)  # of even length
    contribution, _ = unseal(words.data, header, world.key, world.roster, world.received)
    assert contribution.coordinates == pack(vector, 16)
    assert unpack(contribution.counters, 3, 64).tolist() == [0, 1, 2]


def test_the_same_contribution_is_never_sealed_alike(world: Any) -> None:
    """Each lane of each envelope has its own ephemeral key."""
    lanes = [lane for _ in range(3) for lane in world.take_apart(world.seal())[2]]
    assert len({lane[:32] for lane in lanes}) == 6
    assert all(world.coordinates not in lane and world.counters not in lane for lane in lanes)


def test_the_longest_header_is_short_enough(world: Any) -> None:
    """Whatever `Header` takes, `LARGEST_HEAD` takes."""
    longest = dict.fromkeys(("round", "attempt", "coordinates_bytes", "counters_bytes"), 2**31 - 1)
    for run_id in ("\x01" * 256, "😀" * 256, '"' * 256):
        header = world.header(**longest, stage=7, run_id=run_id, site="s" * 100)
        assert len(header.head) + 5 * len(header.site) < LARGEST_HEAD, "were the name escaped as well"
        assert Header.model_validate_json(header.head) == header


# Other contexts.


def test_another_value_is_tried_for_every_field() -> None:
    """A field that is added to the header is added to these tests."""
    assert set(OTHERS) == set(Header.model_fields) - {"protocol"}


@pytest.mark.parametrize("name", OTHERS)
def test_an_envelope_of_another_context_is_refused(world: Any, name: str) -> None:
    """The site sealed for elsewhere, honestly: the error names the field, and both values."""
    with pytest.raises(PeerError) as caught:
        world.unseal(world.seal(**{name: OTHERS[name]}))
    if name.endswith("_bytes"):
        assert "wrong length" in caught.value.what
    else:
        assert "another context" in caught.value.what
        for said, header in (
            (caught.value.found, world.header(**{name: OTHERS[name]})),
            (caught.value.expected, world.header()),
        ):
            assert said == f"{name} {header.model_dump(mode='json')[name]!r}"


@pytest.mark.parametrize("name", OTHERS)
def test_a_relay_cannot_write_another_header(world: Any, name: str) -> None:
    """Under the header that the aggregator expects, the signature of another envelope is not right."""
    if name.endswith("_bytes"):
        lanes = {"coordinates_bytes": len(world.counters), "counters_bytes": len(world.coordinates)}
        other = world.header(**lanes)
        envelope = seal(other, world.counters, world.coordinates, world.signers["site_a"])
    else:
        envelope = world.seal(**{name: OTHERS[name]})
    _, signature, sealed = world.take_apart(envelope)
    with pytest.raises(PeerError, match="signature of 'site_a'"):
        world.unseal(world.assemble(world.header().head, signature, *sealed))


@pytest.mark.parametrize("name", [name for name in OTHERS if not name.endswith("_bytes")])
def test_a_ciphertext_opens_under_its_own_header_alone(world: Any, name: str) -> None:
    """Not even the site itself can sign another header over it: `info` holds every field."""
    other = world.header(**{name: OTHERS[name]})
    sealed = world.encrypted(other, to=world.header().aggregator)
    with pytest.raises(PeerError, match="does not open"):
        world.unseal(world.signed(world.header(), sealed))


def test_another_protocol_version_is_refused(world: Any) -> None:
    """By the header, and by the four bytes in front."""
    head, signature, sealed = world.take_apart(world.seal())
    other = head.replace(b"sealed/1", b"sealed/2")
    with pytest.raises(PeerError, match="no valid protocol"):
        world.unseal(world.assemble(other, signature, *sealed))
    with pytest.raises(PeerError, match="another format") as caught:
        world.unseal(b"WSE2" + world.seal()[4:])
    assert (caught.value.found, caught.value.expected) == (b"WSE2".hex(), b"WSE1".hex())


@pytest.mark.parametrize(
    "spelled",
    [lambda head: head.replace(b":3,", b": 3,"), lambda head: b" " + head, lambda head: head + b"\n"],
)
def test_a_header_has_one_spelling(world: Any, spelled: Any) -> None:
    """The same values in other JSON are another header, even where a site signed it."""
    head, signature, sealed = world.take_apart(world.seal())
    with pytest.raises(PeerError, match="spelled otherwise"):
        world.unseal(world.assemble(spelled(head), signature, *sealed))


@pytest.mark.parametrize(
    "head",
    [b"", b"{", b"[" * 4000, b"null", b"\xff" * 50, b'{"round": "3"}', b'{"surprise": 1}', b"{" * 4096],
)
def test_a_header_that_is_none_is_refused(world: Any, head: bytes) -> None:
    """Any bytes can stand there."""
    _, signature, sealed = world.take_apart(world.seal())
    with pytest.raises(PeerError, match="no valid"):
        world.unseal(world.assemble(head, signature, *sealed))


# Other people.


def test_a_wrong_aggregator_key_opens_nothing(world: Any) -> None:
    """An envelope for another key is refused by name, and would not open anyhow."""
    other = world.header(aggregator=public_key(Secret.fresh()))
    envelope = seal(other, world.coordinates, world.counters, world.signers["site_a"])
    with pytest.raises(PeerError, match="aggregator"):
        world.unseal(envelope)
    sealed = world.encrypted(world.header(), to=other.aggregator)
    with pytest.raises(PeerError, match="does not open"):
        world.unseal(world.signed(world.header(), sealed))


def test_an_envelope_signed_by_another_site_is_refused(world: Any) -> None:
    """Neither a member nor a stranger can seal in a site's name."""
    with pytest.raises(PeerError, match="signature of 'site_a'"):
        world.unseal(world.seal(signer="site_b"))
    world.signers["stranger"] = KeySigner.fresh()
    with pytest.raises(PeerError, match="signature of 'site_a'"):
        world.unseal(world.seal(signer="stranger"))
    with pytest.raises(PeerError, match="no confirmed member"):
        world.unseal(world.seal(signer="stranger", site="stranger"), site="stranger")


def test_a_relay_that_swaps_two_envelopes_is_found_out(world: Any) -> None:
    """Each is refused as the other's, and accepted as its own."""
    a, b = world.seal(), world.seal(signer="site_b", site="site_b")
    for envelope, site in ((b, "site_a"), (a, "site_b")):
        with pytest.raises(PeerError, match=f"expected: site '{site}'"):
            world.unseal(envelope, site=site)
    _, world.received = world.unseal(a, site="site_a")
    _, world.received = world.unseal(b, site="site_b")
    assert world.received.sites == {"site_a", "site_b"}


def test_a_site_cannot_hand_in_what_another_sealed(world: Any) -> None:
    """It can sign another's ciphertexts, but they open under their own site's header alone."""
    _, _, sealed = world.take_apart(world.seal())
    header = world.header(site="site_b")
    with pytest.raises(PeerError, match="'site_b' does not open"):
        world.unseal(world.signed(header, sealed, signer="site_b"), site="site_b")


@pytest.mark.parametrize("poisoned", [(0,), (1,), (0, 1)])
def test_a_relay_cannot_put_its_own_lane_in(world: Any, poisoned: tuple[int, ...]) -> None:
    """It can encrypt to the aggregator as anybody can; the site's signature is over each ciphertext."""
    head, signature, sealed = world.take_apart(world.seal())
    forged = world.encrypted(world.header(), (bytes(len(world.coordinates)), bytes(len(world.counters))))
    mixed = [forged[i] if i in poisoned else sealed[i] for i in range(2)]
    with pytest.raises(PeerError, match="signature of 'site_a'"):
        world.unseal(world.assemble(head, signature, *mixed))
    assert world.unseal(world.signed(world.header(), forged))[0].coordinates == bytes(len(world.coordinates))


def test_lanes_do_not_stand_for_each_other(world: Any) -> None:
    """Of equal length and signed in the other order by the site itself, they do not open."""
    header = world.header(coordinates_bytes=24)
    sealed = world.encrypted(header, (world.coordinates[:24], world.counters))
    with pytest.raises(PeerError, match="does not open"):
        unseal(world.signed(header, sealed[::-1]), header, world.key, world.roster, world.received)


@pytest.mark.parametrize("place", [0, 31, 32, 40, -1, -16], ids=lambda at: f"byte {at}")
@pytest.mark.parametrize("lane", [0, 1])
def test_a_broken_ciphertext_under_a_right_signature_is_refused(world: Any, lane: int, place: int) -> None:
    """Ephemeral key, ciphertext and tag: the site is at fault, and the error says so."""
    sealed = [bytearray(part) for part in world.encrypted(world.header())]
    sealed[lane][place] ^= 1
    with pytest.raises(PeerError, match="'site_a' does not open"):
        world.unseal(world.signed(world.header(), [bytes(part) for part in sealed]))


@pytest.mark.parametrize("point", [bytes(32), b"\x01" + bytes(31), b"\xec" + b"\xff" * 30 + b"\x7f"])
def test_an_ephemeral_key_of_low_order_is_refused(world: Any, point: bytes) -> None:
    """Its shared secret would be known to all (RFC 7748, section 6.1)."""
    sealed = [point + part[32:] for part in world.encrypted(world.header())]
    with pytest.raises(PeerError, match="does not open"):
        world.unseal(world.signed(world.header(), sealed))


def test_nothing_is_sealed_to_a_key_of_low_order(world: Any) -> None:
    """A pinned key that would open to anybody is refused at the site."""
    header = world.header(aggregator=bytes(32))
    with pytest.raises(PeerError, match="nothing can be sealed"):
        seal(header, world.coordinates, world.counters, world.signers["site_a"])
