"""Envelopes that come again, of other sizes, or with any byte changed."""

from __future__ import annotations

import itertools
import random
import struct
from dataclasses import replace
from typing import Any

import pytest
from pydantic import ValidationError

from wardround.core.errors import InternalError, PeerError
from wardround.privacy.sealed import (
    LARGEST_HEAD,
    LARGEST_LANE,
    MAGIC,
    SUITE,
    Received,
    public_key,
    seal,
    unseal,
)
from wardround.privacy.secagg.hashing import digest
from wardround.privacy.secagg.identity import Roster
from wardround.privacy.secagg.secret import Secret

# Replays.


def test_an_envelope_counts_once(world: Any) -> None:
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
def test_what_is_earlier_stays_over(world: Any, earlier: Any, later: Any, site: str) -> None:
    """After a later attempt, stage or round, an earlier envelope is refused: whoever's, seen or not."""
    old, new = world.seal(**earlier), world.seal(**later)
    _, world.received = world.unseal(old, **earlier)
    _, world.received = world.unseal(new, **later)
    assert world.received.sites == {"site_a"}
    kept = world.seal(signer=site, site=site, **earlier)
    with pytest.raises(PeerError, match="that is over"):
        world.unseal(kept, site=site, **earlier)


@pytest.mark.parametrize(("earlier", "later"), LATER)
def test_an_old_envelope_is_none_of_a_later_attempt(world: Any, earlier: Any, later: Any) -> None:
    """A relay that stores envelopes cannot show them later."""
    with pytest.raises(PeerError, match="another context"):
        world.unseal(world.seal(**earlier), **later)


def test_a_refused_envelope_takes_no_place(world: Any) -> None:
    """Rubbish in a site's name does not keep the site's own envelope out."""
    bad = bytearray(world.seal())
    bad[-1] ^= 1
    with pytest.raises(PeerError):
        world.unseal(bytes(bad))
    world.unseal(world.seal())


def test_the_state_outlives_the_process(world: Any) -> None:
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


def test_any_order_of_places_accepts_each_once(world: Any) -> None:
    """Against a plain set: nothing twice, nothing before the newest, and all else."""
    rng = random.Random(7)
    header = world.header()
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


def test_a_lane_that_no_call_takes_is_refused(world: Any) -> None:
    """The limit is stated in the header, below those of the ciphers."""
    assert LARGEST_LANE < 2**36 - 31
    world.header(coordinates_bytes=LARGEST_LANE, counters_bytes=LARGEST_LANE)
    for name in ("coordinates_bytes", "counters_bytes"):
        with pytest.raises(ValidationError, match=name):
            world.header(**{name: LARGEST_LANE + 1})


@pytest.mark.parametrize("kept", [(39, 24, b""), (40, 24, b"x"), (0, 0, b"")])
def test_a_site_seals_no_lane_of_another_length(world: Any, kept: tuple[int, int, bytes]) -> None:
    """The header states lengths; what is sealed has them."""
    assert (len(world.coordinates), len(world.counters)) == (40, 24)
    lanes = world.coordinates[: kept[0]], world.counters[: kept[1]] + kept[2]
    with pytest.raises(InternalError, match="as long as"):
        seal(world.header(), *lanes, world.signers["site_a"])


def test_lengths_are_not_traded_between_lanes(world: Any) -> None:
    """The sum alone is not enough."""
    lanes = (world.coordinates + world.counters[:4], world.counters[4:])
    with pytest.raises(InternalError, match="as long as"):
        seal(world.header(), *lanes, world.signers["site_a"])
    with pytest.raises(PeerError, match="signature"):
        world.unseal(world.signed(world.header(), world.encrypted(world.header(), lanes)))


def test_every_cut_and_every_addition_is_refused(world: Any) -> None:
    """An envelope has one length; what is too short for its own prefix too."""
    envelope = world.seal()
    for size in range(len(envelope)):
        with pytest.raises(PeerError, match="wrong length"):
            world.unseal(envelope[:size])
    for more in (b"x", bytes(48), envelope):
        with pytest.raises(PeerError, match="wrong length"):
            world.unseal(envelope + more)


def test_sizes_are_checked_before_anything_is_read(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A large header in an envelope of the right length is not copied, parsed, hashed or decrypted."""
    _, signature, sealed = world.take_apart(world.seal())
    large = world.assemble(b"{" * (LARGEST_HEAD + 1), signature, *sealed)
    with pytest.raises(PeerError, match="wrong length") as caught:
        world.unseal(large)
    assert f"header of {LARGEST_HEAD + 1}" in str(caught.value)
    world.unseal(world.seal())
    monkeypatch.setattr(Roster, "check", lambda *_: pytest.fail("a signature was looked at"))
    for envelope in (world.seal()[:-1], world.seal(round=4), struct.pack("<4sI", MAGIC, 2**32 - 1)):
        with pytest.raises(PeerError):
            world.unseal(envelope)


def test_nothing_is_decrypted_before_the_signature_is_right(
    world: Any, monkeypatch: pytest.MonkeyPatch
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


def test_a_caller_that_contradicts_itself_is_told(world: Any) -> None:
    """Expecting another roster, or another key, than one holds is a mistake of ours and not a peer's."""
    others = {"roster": digest("other"), "aggregator": public_key(Secret(bytes(range(32))))}
    for name, value in others.items():
        header = world.header(**{name: value})
        envelope = seal(header, world.coordinates, world.counters, world.signers["site_a"])
        with pytest.raises(InternalError, match="another roster, or another key"):
            unseal(envelope, header, world.key, world.roster, world.received)


# Anything else.


def test_a_thousand_random_changes_are_refused(world: Any) -> None:
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


def test_every_byte_is_bound(world: Any) -> None:
    """No byte of an envelope can be another."""
    envelope = world.seal()
    for place, flip in itertools.product(range(len(envelope)), (0x01, 0x80)):
        changed = bytearray(envelope)
        changed[place] ^= flip
        with pytest.raises(PeerError):
            world.unseal(bytes(changed))


def test_a_signature_is_in_one_form(world: Any) -> None:
    """S + L is no second signature over the same statement (RFC 8032, section 5.1.7)."""
    order = 2**252 + 27742317777372353535851937790883648493
    head, signature, sealed = world.take_apart(world.seal())
    other = int.from_bytes(signature[32:], "little") + order
    with pytest.raises(PeerError, match="signature"):
        world.unseal(world.assemble(head, signature[:32] + other.to_bytes(32, "little"), *sealed))


def test_no_text_holds_a_contribution_or_a_key(world: Any) -> None:
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
        world.unseal(world.signed(world.header(), world.encrypted(world.header())[::-1]))
    texts.append(str(caught.value))
    for text in texts:
        for secret in (world.coordinates, world.counters, world.key.reveal()):
            assert repr(secret)[2:10] not in text
            assert secret.hex()[:12] not in text
