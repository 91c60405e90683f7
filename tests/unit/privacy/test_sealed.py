"""Envelopes to a trusted aggregator: what a relay, another site or a replay could try is refused."""

from __future__ import annotations

import itertools
import random
import struct
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PublicKey
from pydantic import ValidationError

from wardround.core.errors import InternalError, PeerError
from wardround.privacy.packing import pack, unpack
from wardround.privacy.sealed import (
    ADDED_BYTES,
    LARGEST_HEAD,
    LARGEST_LANE,
    MAGIC,
    SUITE,
    Contribution,
    Header,
    Received,
    _info,
    _signed,
    public_key,
    seal,
    unseal,
)
from wardround.privacy.secagg.hashing import digest
from wardround.privacy.secagg.identity import SIGNATURE_BYTES, KeySigner, Roster
from wardround.privacy.secagg.secret import Secret

COORDINATES, COUNTERS = bytes(range(40)), bytes(range(100, 124))
OTHERS: dict[str, Any] = {
    "run_id": "another", "round": 4, "stage": 1, "attempt": 3,
    "plan": digest("other"), "roster": digest("other"), "broadcast": digest("other"),
    "layout": digest("other"), "counters_layout": digest("other"),
    "aggregator": public_key(Secret(bytes(range(32)))), "site": "site_b",
    "coordinates_bytes": 39, "counters_bytes": 25,
}  # fmt: skip
"""Another valid value for every field that an envelope is bound to."""


class World:
    """An aggregator and two sites; the aggregator waits for round 3, attempt 2 of `site_a`."""

    def __init__(self) -> None:
        self.key = Secret.fresh()
        self.signers = {"site_a": KeySigner.fresh(), "site_b": KeySigner.fresh()}
        self.roster = Roster({site: signer.public for site, signer in self.signers.items()})
        self.received = Received(run_id="run")

    def header(self, **changes: Any) -> Header:
        fields: dict[str, Any] = {
            "run_id": "run", "round": 3, "attempt": 2, "plan": digest("plan"), "roster": self.roster.digest,
            "broadcast": digest("broadcast"), "layout": digest("layout"), "counters_layout": digest("counts"),
            "aggregator": public_key(self.key), "site": "site_a",
            "coordinates_bytes": len(COORDINATES), "counters_bytes": len(COUNTERS),
        }  # fmt: skip
        return Header(**(fields | changes))

    def seal(self, signer: str = "site_a", **changes: Any) -> bytes:
        header = self.header(**changes)
        lanes = COORDINATES.ljust(header.coordinates_bytes, b"x"), COUNTERS.ljust(header.counters_bytes, b"x")
        return seal(
            header, lanes[0][: header.coordinates_bytes], lanes[1][: header.counters_bytes],
            self.signers[signer],
        )  # fmt: skip

    def unseal(self, envelope: bytes, **changes: Any) -> tuple[Contribution, Received]:
        return unseal(envelope, self.header(**changes), self.key, self.roster, self.received)

    def signed(self, header: Header, sealed: list[bytes], signer: str = "site_a") -> bytes:
        """An envelope of any content under a right signature: what a dishonest site can send."""
        return assemble(header.head, self.signers[signer].sign(_signed(header, sealed)), *sealed)


@pytest.fixture
def world() -> World:
    """Fresh keys."""
    return World()


def assemble(head: bytes, signature: bytes, *sealed: bytes) -> bytes:
    """The parts as they lie on the wire."""
    return struct.pack("<4sI", MAGIC, len(head)) + head + signature + b"".join(sealed)


def take_apart(envelope: bytes) -> tuple[bytes, bytes, list[bytes]]:
    """Header, signature and sealed lanes."""
    size = int.from_bytes(envelope[4:8], "little")
    head, rest = envelope[8 : 8 + size], envelope[8 + size :]
    sealed, middle = rest[SIGNATURE_BYTES:], len(COORDINATES) + ADDED_BYTES
    return head, rest[:SIGNATURE_BYTES], [sealed[:middle], sealed[middle:]]


def encrypted(
    header: Header, lanes: tuple[bytes, bytes] = (COORDINATES, COUNTERS), to: bytes | None = None
) -> list[bytes]:
    """Lanes that anybody can seal: HPKE's base mode asks for the public key alone."""
    key = X25519PublicKey.from_public_bytes(to or header.aggregator)
    return [SUITE.encrypt(lane, key, _info(header, i)) for i, lane in enumerate(lanes)]


# What works.


def test_both_lanes_arrive_as_they_were_sealed(world: World) -> None:
    """The aggregator reads what the site packed, and its state knows the site."""
    contribution, received = world.unseal(world.seal())
    assert contribution == Contribution(COORDINATES, COUNTERS)
    assert received == Received(run_id="run", place=(3, 0, 2), sites=frozenset({"site_a"}))
    assert world.received == Received(run_id="run")


@pytest.mark.parametrize("sizes", [(0, 0), (0, 8), (1, 0), (17, 8), (300_001, 80)])
@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_lanes_of_any_length_and_buffer(world: World, sizes: tuple[int, int], kind: Any) -> None:
    """Empty lanes too; an envelope is as long as the format says."""
    rng = random.Random(0)
    lanes = [rng.randbytes(size) for size in sizes]
    header = world.header(coordinates_bytes=sizes[0], counters_bytes=sizes[1])
    envelope = seal(header, kind(lanes[0]), kind(lanes[1]), world.signers["site_a"])
    assert len(envelope) == 8 + len(header.head) + SIGNATURE_BYTES + sum(sizes) + 2 * ADDED_BYTES
    contribution, _ = unseal(kind(envelope), header, world.key, world.roster, world.received)
    assert [contribution.coordinates, contribution.counters] == lanes


def test_an_array_is_sealed_where_it_lies(world: World) -> None:
    """A numpy vector's own buffer is as good as its bytes; its length is counted in bytes, not in items."""
    vector, counters = np.arange(1000, dtype=np.uint16), np.arange(3, dtype=np.uint64)
    header = world.header(coordinates_bytes=2000, counters_bytes=24)
    header = header if len(header.head) % 2 == 0 else header.model_copy(update={"stage": 1, "attempt": 22})
    envelope = seal(header, vector.data, counters.data, world.signers["site_a"])
    words = np.frombuffer(envelope, dtype=np.uint16)  # of even length
    contribution, _ = unseal(words.data, header, world.key, world.roster, world.received)
    assert contribution.coordinates == pack(vector, 16)
    assert unpack(contribution.counters, 3, 64).tolist() == [0, 1, 2]


def test_the_same_contribution_is_never_sealed_alike(world: World) -> None:
    """Each lane of each envelope has its own ephemeral key."""
    lanes = [lane for _ in range(3) for lane in take_apart(world.seal())[2]]
    assert len({lane[:32] for lane in lanes}) == 6
    assert all(COORDINATES not in lane and COUNTERS not in lane for lane in lanes)


def test_the_longest_header_is_short_enough(world: World) -> None:
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
def test_an_envelope_of_another_context_is_refused(world: World, name: str) -> None:
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
def test_a_relay_cannot_write_another_header(world: World, name: str) -> None:
    """Under the header that the aggregator expects, the signature of another envelope is not right."""
    if name.endswith("_bytes"):
        lanes = {"coordinates_bytes": len(COUNTERS), "counters_bytes": len(COORDINATES)}
        other = world.header(**lanes)
        envelope = seal(other, COUNTERS, COORDINATES, world.signers["site_a"])
    else:
        envelope = world.seal(**{name: OTHERS[name]})
    _, signature, sealed = take_apart(envelope)
    with pytest.raises(PeerError, match="signature of 'site_a'"):
        world.unseal(assemble(world.header().head, signature, *sealed))


@pytest.mark.parametrize("name", [name for name in OTHERS if not name.endswith("_bytes")])
def test_a_ciphertext_opens_under_its_own_header_alone(world: World, name: str) -> None:
    """Not even the site itself can sign another header over it: `info` holds every field."""
    other = world.header(**{name: OTHERS[name]})
    sealed = encrypted(other, to=world.header().aggregator)
    with pytest.raises(PeerError, match="does not open"):
        world.unseal(world.signed(world.header(), sealed))


def test_another_protocol_version_is_refused(world: World) -> None:
    """By the header, and by the four bytes in front."""
    head, signature, sealed = take_apart(world.seal())
    other = head.replace(b"sealed/1", b"sealed/2")
    with pytest.raises(PeerError, match="no valid protocol"):
        world.unseal(assemble(other, signature, *sealed))
    with pytest.raises(PeerError, match="another format") as caught:
        world.unseal(b"WSE2" + world.seal()[4:])
    assert (caught.value.found, caught.value.expected) == (b"WSE2".hex(), b"WSE1".hex())


@pytest.mark.parametrize(
    "spelled",
    [lambda head: head.replace(b":3,", b": 3,"), lambda head: b" " + head, lambda head: head + b"\n"],
)
def test_a_header_has_one_spelling(world: World, spelled: Any) -> None:
    """The same values in other JSON are another header, even where a site signed it."""
    head, signature, sealed = take_apart(world.seal())
    with pytest.raises(PeerError, match="spelled otherwise"):
        world.unseal(assemble(spelled(head), signature, *sealed))


@pytest.mark.parametrize(
    "head",
    [b"", b"{", b"[" * 4000, b"null", b"\xff" * 50, b'{"round": "3"}', b'{"surprise": 1}', b"{" * 4096],
)
def test_a_header_that_is_none_is_refused(world: World, head: bytes) -> None:
    """Any bytes can stand there."""
    _, signature, sealed = take_apart(world.seal())
    with pytest.raises(PeerError, match="no valid"):
        world.unseal(assemble(head, signature, *sealed))


# Other people.


def test_a_wrong_aggregator_key_opens_nothing(world: World) -> None:
    """An envelope for another key is refused by name, and would not open anyhow."""
    other = world.header(aggregator=public_key(Secret.fresh()))
    envelope = seal(other, COORDINATES, COUNTERS, world.signers["site_a"])
    with pytest.raises(PeerError, match="aggregator"):
        world.unseal(envelope)
    sealed = encrypted(world.header(), to=other.aggregator)
    with pytest.raises(PeerError, match="does not open"):
        world.unseal(world.signed(world.header(), sealed))


def test_an_envelope_signed_by_another_site_is_refused(world: World) -> None:
    """Neither a member nor a stranger can seal in a site's name."""
    with pytest.raises(PeerError, match="signature of 'site_a'"):
        world.unseal(world.seal(signer="site_b"))
    world.signers["stranger"] = KeySigner.fresh()
    with pytest.raises(PeerError, match="signature of 'site_a'"):
        world.unseal(world.seal(signer="stranger"))
    with pytest.raises(PeerError, match="no confirmed member"):
        world.unseal(world.seal(signer="stranger", site="stranger"), site="stranger")


def test_a_relay_that_swaps_two_envelopes_is_found_out(world: World) -> None:
    """Each is refused as the other's, and accepted as its own."""
    a, b = world.seal(), world.seal(signer="site_b", site="site_b")
    for envelope, site in ((b, "site_a"), (a, "site_b")):
        with pytest.raises(PeerError, match=f"expected: site '{site}'"):
            world.unseal(envelope, site=site)
    _, world.received = world.unseal(a, site="site_a")
    _, world.received = world.unseal(b, site="site_b")
    assert world.received.sites == {"site_a", "site_b"}


def test_a_site_cannot_hand_in_what_another_sealed(world: World) -> None:
    """It can sign another's ciphertexts, but they open under their own site's header alone."""
    _, _, sealed = take_apart(world.seal())
    header = world.header(site="site_b")
    with pytest.raises(PeerError, match="'site_b' does not open"):
        world.unseal(world.signed(header, sealed, signer="site_b"), site="site_b")


@pytest.mark.parametrize("poisoned", [(0,), (1,), (0, 1)])
def test_a_relay_cannot_put_its_own_lane_in(world: World, poisoned: tuple[int, ...]) -> None:
    """It can encrypt to the aggregator as anybody can; the site's signature is over each ciphertext."""
    head, signature, sealed = take_apart(world.seal())
    forged = encrypted(world.header(), (bytes(len(COORDINATES)), bytes(len(COUNTERS))))
    mixed = [forged[i] if i in poisoned else sealed[i] for i in range(2)]
    with pytest.raises(PeerError, match="signature of 'site_a'"):
        world.unseal(assemble(head, signature, *mixed))
    assert world.unseal(world.signed(world.header(), forged))[0].coordinates == bytes(len(COORDINATES))


def test_lanes_do_not_stand_for_each_other(world: World) -> None:
    """Of equal length and signed in the other order by the site itself, they do not open."""
    header = world.header(coordinates_bytes=24)
    sealed = encrypted(header, (COORDINATES[:24], COUNTERS))
    with pytest.raises(PeerError, match="does not open"):
        unseal(world.signed(header, sealed[::-1]), header, world.key, world.roster, world.received)


@pytest.mark.parametrize("place", [0, 31, 32, 40, -1, -16], ids=lambda at: f"byte {at}")
@pytest.mark.parametrize("lane", [0, 1])
def test_a_broken_ciphertext_under_a_right_signature_is_refused(world: World, lane: int, place: int) -> None:
    """Ephemeral key, ciphertext and tag: the site is at fault, and the error says so."""
    sealed = [bytearray(part) for part in encrypted(world.header())]
    sealed[lane][place] ^= 1
    with pytest.raises(PeerError, match="'site_a' does not open"):
        world.unseal(world.signed(world.header(), [bytes(part) for part in sealed]))


@pytest.mark.parametrize("point", [bytes(32), b"\x01" + bytes(31), b"\xec" + b"\xff" * 30 + b"\x7f"])
def test_an_ephemeral_key_of_low_order_is_refused(world: World, point: bytes) -> None:
    """Its shared secret would be known to all (RFC 7748, section 6.1)."""
    sealed = [point + part[32:] for part in encrypted(world.header())]
    with pytest.raises(PeerError, match="does not open"):
        world.unseal(world.signed(world.header(), sealed))


def test_nothing_is_sealed_to_a_key_of_low_order(world: World) -> None:
    """A pinned key that would open to anybody is refused at the site."""
    header = world.header(aggregator=bytes(32))
    with pytest.raises(PeerError, match="nothing can be sealed"):
        seal(header, COORDINATES, COUNTERS, world.signers["site_a"])


# Replays.


def test_an_envelope_counts_once(world: World) -> None:
    """The same bytes, and a second envelope of the same site, are refused; another site's is not."""
    envelope = world.seal()
    _, world.received = world.unseal(envelope)
    before = world.received
    for second in (envelope, world.seal()):
        with pytest.raises(PeerError, match="'site_a' was accepted already"):
            world.unseal(second)
    assert world.received == before
    _, world.received = world.unseal(world.seal(signer="site_b", site="site_b"), site="site_b")
    with pytest.raises(PeerError, match="'site_a' was accepted already"):
        world.unseal(envelope)


LATER = [
    ({"attempt": 2}, {"attempt": 3}),
    ({"attempt": 2}, {"stage": 1, "attempt": 0}),
    ({"stage": 1, "attempt": 2}, {"round": 4, "stage": 0, "attempt": 0}),
]


@pytest.mark.parametrize(("earlier", "later"), LATER)
@pytest.mark.parametrize("site", ["site_a", "site_b"])
def test_what_is_earlier_stays_over(world: World, earlier: Any, later: Any, site: str) -> None:
    """After a later attempt, stage or round, an earlier envelope is refused: whoever's, seen or not."""
    old, new = world.seal(**earlier), world.seal(**later)
    _, world.received = world.unseal(old, **earlier)
    _, world.received = world.unseal(new, **later)
    assert world.received.sites == {"site_a"}
    kept = world.seal(signer=site, site=site, **earlier)
    with pytest.raises(PeerError, match="that is over"):
        world.unseal(kept, site=site, **earlier)


@pytest.mark.parametrize(("earlier", "later"), LATER)
def test_an_old_envelope_is_none_of_a_later_attempt(world: World, earlier: Any, later: Any) -> None:
    """A relay that stores envelopes cannot show them later."""
    with pytest.raises(PeerError, match="another context"):
        world.unseal(world.seal(**earlier), **later)


def test_a_refused_envelope_takes_no_place(world: World) -> None:
    """Rubbish in a site's name does not keep the site's own envelope out."""
    bad = bytearray(world.seal())
    bad[-1] ^= 1
    with pytest.raises(PeerError):
        world.unseal(bytes(bad))
    world.unseal(world.seal())


def test_the_state_outlives_the_process(world: World) -> None:
    """Through its JSON it refuses the same; a state of another run is a mistake of the caller's."""
    envelope = world.seal()
    _, received = world.unseal(envelope)
    world.received = Received.model_validate_json(received.model_dump_json())
    assert world.received == received
    with pytest.raises(PeerError, match="accepted already"):
        world.unseal(envelope)
    world.received = Received(run_id="another")
    with pytest.raises(InternalError, match="another run"):
        world.unseal(envelope)


def test_any_order_of_places_accepts_each_once() -> None:
    """Against a plain set: nothing twice, nothing before the newest, and all else."""
    rng = random.Random(7)
    header = World().header()
    state, seen, newest, verdicts = Received(run_id="run"), set(), (0, 0, 0), []
    for _ in range(500):
        round, stage, attempt, site = (
            rng.randint(1, 3),
            rng.randint(0, 1),
            rng.randint(0, 2),
            rng.choice("ab"),
        )
        place = (round, stage, attempt)
        update = {"round": round, "stage": stage, "attempt": attempt, "site": site}
        allowed = place >= newest and (place, site) not in seen
        try:
            state = state.after(header.model_copy(update=update))
        except PeerError:
            assert not allowed
        else:
            assert allowed
            newest = place
            seen.add((place, site))
        verdicts.append(allowed)
        if rng.random() < 0.05:
            state, seen, newest = Received(run_id="run"), set(), (0, 0, 0)
    assert 50 < sum(verdicts) < 450


# Sizes.


def test_a_lane_that_no_call_takes_is_refused(world: World) -> None:
    """The limit is stated in the header, below those of the ciphers."""
    assert LARGEST_LANE < 2**36 - 31
    world.header(coordinates_bytes=LARGEST_LANE, counters_bytes=LARGEST_LANE)
    for name in ("coordinates_bytes", "counters_bytes"):
        with pytest.raises(ValidationError, match=name):
            world.header(**{name: LARGEST_LANE + 1})


@pytest.mark.parametrize("lanes", [(COORDINATES[1:], COUNTERS), (COORDINATES, COUNTERS + b"x"), (b"", b"")])
def test_a_site_seals_no_lane_of_another_length(world: World, lanes: tuple[bytes, bytes]) -> None:
    """The header states lengths; what is sealed has them."""
    with pytest.raises(InternalError, match="as long as"):
        seal(world.header(), *lanes, world.signers["site_a"])


def test_lengths_are_not_traded_between_lanes(world: World) -> None:
    """The sum alone is not enough."""
    lanes = (COORDINATES + COUNTERS[:4], COUNTERS[4:])
    with pytest.raises(InternalError, match="as long as"):
        seal(world.header(), *lanes, world.signers["site_a"])
    with pytest.raises(PeerError, match="signature"):
        world.unseal(world.signed(world.header(), encrypted(world.header(), lanes)))


def test_every_cut_and_every_addition_is_refused(world: World) -> None:
    """An envelope has one length; what is too short for its own prefix too."""
    envelope = world.seal()
    for size in range(len(envelope)):
        with pytest.raises(PeerError, match="wrong length"):
            world.unseal(envelope[:size])
    for more in (b"x", bytes(48), envelope):
        with pytest.raises(PeerError, match="wrong length"):
            world.unseal(envelope + more)


def test_sizes_are_checked_before_anything_is_read(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A large header in an envelope of the right length is not copied, parsed, hashed or decrypted."""
    _, signature, sealed = take_apart(world.seal())
    large = assemble(b"{" * (LARGEST_HEAD + 1), signature, *sealed)
    with pytest.raises(PeerError, match="wrong length") as caught:
        world.unseal(large)
    assert f"header of {LARGEST_HEAD + 1}" in str(caught.value)
    world.unseal(world.seal())
    monkeypatch.setattr(Roster, "check", lambda *_: pytest.fail("a signature was looked at"))
    for envelope in (world.seal()[:-1], world.seal(round=4), struct.pack("<4sI", MAGIC, 2**32 - 1)):
        with pytest.raises(PeerError):
            world.unseal(envelope)


def test_nothing_is_decrypted_before_the_signature_is_right(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stranger's bytes do not reach the aggregator's key."""

    class Refusing:
        encrypt = SUITE.encrypt

        def decrypt(self, *_: Any) -> bytes:
            return pytest.fail("an unsigned envelope was decrypted")

    envelope = bytearray(world.seal())
    envelope[-1] ^= 1
    monkeypatch.setattr("wardround.privacy.sealed.SUITE", Refusing())
    with pytest.raises(PeerError, match="signature"):
        world.unseal(bytes(envelope))


def test_a_caller_that_contradicts_itself_is_told(world: World) -> None:
    """Expecting another roster, or another key, than one holds is a mistake of ours and not a peer's."""
    for name in ("roster", "aggregator"):
        header = world.header(**{name: OTHERS[name]})
        envelope = seal(header, COORDINATES, COUNTERS, world.signers["site_a"])
        with pytest.raises(InternalError, match="another roster, or another key"):
            unseal(envelope, header, world.key, world.roster, world.received)


# Anything else.


def test_a_thousand_random_changes_are_refused(world: World) -> None:
    """Flipped bits, written, reversed, cut and doubled stretches: each a `PeerError`, and none accepted."""
    rng = random.Random(2024)
    envelope = world.seal()
    for number in range(1000):
        changed = bytearray(envelope)
        start, stop = sorted(rng.sample(range(len(envelope) + 1), 2))
        match number % 5:
            case 0:
                changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
            case 1:
                changed[start:stop] = rng.randbytes(stop - start)
            case 2:
                del changed[start:stop]
            case 3:
                changed[start:start] = changed[start:stop]
            case _:
                changed[start:stop] = changed[start:stop][::-1]
        if changed != envelope:
            with pytest.raises(PeerError):
                world.unseal(bytes(changed))
    world.unseal(envelope)


def test_every_byte_is_bound(world: World) -> None:
    """No byte of an envelope can be another."""
    envelope = world.seal()
    for place, flip in itertools.product(range(len(envelope)), (0x01, 0x80)):
        changed = bytearray(envelope)
        changed[place] ^= flip
        with pytest.raises(PeerError):
            world.unseal(bytes(changed))


def test_a_signature_is_in_one_form(world: World) -> None:
    """S + L is no second signature over the same statement (RFC 8032, section 5.1.7)."""
    order = 2**252 + 27742317777372353535851937790883648493
    head, signature, sealed = take_apart(world.seal())
    other = int.from_bytes(signature[32:], "little") + order
    with pytest.raises(PeerError, match="signature"):
        world.unseal(assemble(head, signature[:32] + other.to_bytes(32, "little"), *sealed))


def test_no_text_holds_a_contribution_or_a_key(world: World) -> None:
    """Neither an error nor a repr."""
    contribution, received = world.unseal(world.seal())
    texts = [repr(contribution), repr(received), repr(world.key), repr(replace(contribution, counters=b"x"))]
    bad = bytearray(world.seal())
    for place in (5, 20, 60, -300, -1):
        bad[place] ^= 1
        with pytest.raises(PeerError) as caught:
            world.unseal(bytes(bad))
        texts += [str(caught.value), repr(caught.value)]
        assert caught.value.found is not None or "signature" in caught.value.what
        assert caught.value.remedy is not None
        bad[place] ^= 1
    with pytest.raises(PeerError) as caught:
        world.unseal(world.signed(world.header(), encrypted(world.header())[::-1]))
    texts.append(str(caught.value))
    for text in texts:
        for secret in (COORDINATES, COUNTERS, world.key.reveal()):
            assert repr(secret)[2:10] not in text
            assert secret.hex()[:12] not in text
