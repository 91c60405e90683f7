"""Frozen vectors of the secure-aggregation protocol: a change of its bytes is a new protocol version.

vectors/secure_round.json is a recorded round of six sites, one of which is lost; the secrets in it were made
for it alone. `python tests/reference/test_secure_vectors.py` records another.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from wardround.core.errors import PeerError
from wardround.privacy.packing import unpack
from wardround.privacy.secagg import transcript
from wardround.privacy.secagg.admission import Member, SiteState
from wardround.privacy.secagg.boxes import open_box
from wardround.privacy.secagg.hashing import derive, digest, framed
from wardround.privacy.secagg.identity import KeySigner, Roster
from wardround.privacy.secagg.masks import Mask, apply_masks
from wardround.privacy.secagg.messages import (
    Advertisement,
    Confirmation,
    Dealing,
    MaskedInput,
    Unmasking,
    decode,
    encode,
)
from wardround.privacy.secagg.offer import Offer, SignedOffer
from wardround.privacy.secagg.policy import SecurePolicy
from wardround.privacy.secagg.relay import Relay
from wardround.privacy.secagg.secret import Secret
from wardround.privacy.secagg.shamir import combine, weights_at_zero
from wardround.privacy.secagg.site import SecureSite
from wardround.privacy.secagg.total import Sum

FILE = Path(__file__).parent / "vectors" / "secure_round.json"
LOST = "site_d"
PHASES = {
    "advertisements": (Advertisement, Relay.take_advertisement, Relay.advertised),
    "dealings": (Dealing, Relay.take_dealing, Relay.deliveries),
    "masked": (MaskedInput, Relay.take_masked, Relay.survivors),
    "confirmations": (Confirmation, Relay.take_confirmation, Relay.confirmed),
    "unmaskings": (Unmasking, Relay.take_unmasking, lambda relay: None),
}


@pytest.fixture(scope="module")
def recorded() -> dict[str, Any]:
    """The recorded round."""
    found: dict[str, Any] = json.loads(FILE.read_text("utf-8"))
    return found


def replay(recorded: dict[str, Any], bad: tuple[str, str, bytes] | None = None) -> Sum:
    """A relay that is given the recorded messages; `bad` is (phase, site, other bytes)."""
    offer = Offer.model_validate_json(json.dumps(recorded["offer"]))
    relay = Relay(offer, Roster({site: bytes.fromhex(key) for site, key in recorded["roster"].items()}))
    for phase, (model, take, close) in PHASES.items():
        for site, data in recorded[phase].items():
            message = bytes.fromhex(data)
            if bad is not None and (phase, site) == bad[:2]:
                message = bad[2]
            take(relay, decode(message, model, offer))
        close(relay)
    return relay.open()


def test_the_recorded_round_opens_to_its_sum(recorded: dict[str, Any]) -> None:
    """Every message still reads, every signature still verifies, the sum is the recorded one."""
    total = replay(recorded)
    assert total.coordinates.tolist() == recorded["sum"]["coordinates"]
    assert total.counters.tolist() == recorded["sum"]["counters"]
    assert list(total.survivors) == recorded["sum"]["survivors"]
    assert LOST not in total.survivors


def test_the_bytes_of_every_message_are_the_recorded_ones(recorded: dict[str, Any]) -> None:
    """What is read is written again to the same bytes."""
    offer = Offer.model_validate_json(json.dumps(recorded["offer"]))
    assert offer.context.hex() == recorded["context"]
    for phase, (model, _, _) in PHASES.items():
        for data in recorded[phase].values():
            assert encode(decode(bytes.fromhex(data), model, offer)).hex() == data


def test_a_masked_vector_is_the_input_under_the_recorded_masks(recorded: dict[str, Any]) -> None:
    """A slow twin in plain integers, from the secrets of one site."""
    offer = Offer.model_validate_json(json.dumps(recorded["offer"]))
    secrets, site = recorded["secrets"], "site_a"
    adverts = {
        name: decode(bytes.fromhex(data), Advertisement) for name, data in recorded["advertisements"].items()
    }
    agreed = transcript.agreed(transcript.advertised(offer.context, adverts), {})
    dealt = transcript.dealt(agreed, sorted(recorded["dealings"]))
    totals = list(secrets["inputs"][site])
    own = derive(Secret(bytes.fromhex(secrets["seed"])), dealt, "self", site, "coordinates")
    streams = [(own, 1)]
    key = X25519PrivateKey.from_private_bytes(bytes.fromhex(secrets["mask_key"]))
    for peer in sorted(set(adverts) - {site}):
        shared = transcript.shared_secret(key, adverts[peer].mask_key)
        streams.append((derive(shared, dealt, "pair", site, peer, "coordinates"), 1))  # site_a is the first
    for secret, sign in streams:
        stream = np.zeros(len(totals), dtype=np.uint16)
        apply_masks(stream, [Mask(secret, 1)])
        totals = [(total + sign * int(word)) % 2**16 for total, word in zip(totals, stream, strict=True)]
    sent = decode(bytes.fromhex(recorded["masked"][site]), MaskedInput, offer)
    assert unpack(sent.coordinates, offer.coordinates, 16).tolist() == totals


def test_a_recorded_box_opens_to_shares_of_the_recorded_secrets(recorded: dict[str, Any]) -> None:
    """site_a's boxes, opened by what the recipients know, give its seed and its mask key back."""
    offer = Offer.model_validate_json(json.dumps(recorded["offer"]))
    adverts = {
        name: decode(bytes.fromhex(data), Advertisement) for name, data in recorded["advertisements"].items()
    }
    agreed = transcript.agreed(transcript.advertised(offer.context, adverts), {})
    channel = X25519PrivateKey.from_private_bytes(bytes.fromhex(recorded["secrets"]["channel_key"]))
    dealing = decode(bytes.fromhex(recorded["dealings"]["site_a"]), Dealing)
    places, pairs = [], []
    for box in dealing.boxes[: offer.threshold]:
        shared = transcript.shared_secret(channel, adverts[box.recipient].channel_key)
        pair = open_box(transcript.box_key(shared, agreed, "site_a", box.recipient), box, agreed)
        assert pair is not None
        places.append(offer.index_of(box.recipient))
        pairs.append(pair)
    weights = weights_at_zero(places)
    for index, name in enumerate(("seed", "mask_key")):
        secret = combine(weights, [pair[index] for pair in pairs])
        assert secret is not None
        assert secret.reveal().hex() == recorded["secrets"][name]


def test_hashes_and_keys_are_the_frozen_ones() -> None:
    """Framing, digest and derivation."""
    assert framed("tag", b"a", "b", -1).hex() == (
        "7303000000000000007461676201000000000000006173010000000000000062690800000000000000ffffffffffffffff"
    )
    assert digest("tag", b"a", "b", -1).hex() == FROZEN_DIGEST
    assert derive(Secret(bytes(32)), b"salt", "tag", 7).reveal().hex() == FROZEN_KEY


@pytest.mark.parametrize("phase", sorted(PHASES))
def test_recorded_messages_with_one_bit_turned_are_refused(recorded: dict[str, Any], phase: str) -> None:
    """In the head, and for a masked vector in its integers."""
    data = bytearray(bytes.fromhex(recorded[phase]["site_b"]))
    for place in {len(data) - 1, len(data) - 20, len(data) // 2}:
        turned = bytearray(data)
        turned[place] ^= 1
        with pytest.raises(PeerError):
            replay(recorded, (phase, "site_b", bytes(turned)))


@pytest.mark.parametrize("phase", sorted(PHASES))
def test_a_recorded_message_under_another_name_is_refused(recorded: dict[str, Any], phase: str) -> None:
    """site_a's message where site_b's is due."""
    with pytest.raises(PeerError, match="twice"):
        replay(recorded, (phase, "site_b", bytes.fromhex(recorded[phase]["site_a"])))


FROZEN_DIGEST = "6ddff71eb055acc8c3d912505ecde15afe650155868c7b1f4b54474c27bb033c"
FROZEN_KEY = "2ecd2565e4677282b133e290544779af04e1aa8926423651cf2e29cde0252c48"


def record() -> None:
    """Run a round with fresh secrets and write it down."""

    class InMemory:
        state = SiteState()

        def load(self) -> SiteState:
            return self.state

        def save(self, state: SiteState) -> None:
            self.state = state

    names = [f"site_{letter}" for letter in "abcdef"]
    signers = {name: KeySigner.fresh() for name in names}
    server = KeySigner.fresh()
    roster = Roster({name: signer.public for name, signer in signers.items()})
    plan = digest("plan")
    offer = Offer(
        run_id="vectors", round=1, plan=plan, roster=roster.digest, broadcast=plan, layout=plan,
        counters_layout=plan, cohort=tuple(names), threshold=5, coordinates=7, counters=2, bits=16, scale=8.0,
        largest=10.0, most_weight=1, most_count=1000,
    )  # fmt: skip
    members = {
        name: Member(name, signers[name], roster, server.public, SecurePolicy(), "vectors", plan, InMemory())
        for name in names
    }
    sites = {name: SecureSite(member) for name, member in members.items()}
    relay, out = Relay(offer, roster), {phase: {} for phase in PHASES}

    def take(phase: str, message: Any) -> None:
        PHASES[phase][1](relay, message)
        out[phase][message.site] = encode(message).hex()

    for site in sites.values():
        take("advertisements", site.advertise(SignedOffer.by(server, offer), plan))
    keyed = sites["site_a"]._phase
    secrets: dict[str, Any] = {
        "seed": keyed.seed.reveal().hex(), "mask_key": keyed.mask.private_bytes_raw().hex(),
        "channel_key": keyed.channel.private_bytes_raw().hex(), "inputs": {},
    }  # fmt: skip
    advertised = relay.advertised()
    for site in sites.values():
        take("dealings", site.deal(advertised))
    rng = np.random.default_rng(0)
    for name, delivery in relay.deliveries().items():
        if name != LOST:
            coordinates = rng.integers(-80, 81, 7).astype(np.uint16)
            secrets["inputs"][name] = coordinates.tolist()
            take("masked", sites[name].mask(delivery, coordinates, rng.integers(0, 99, 2).astype(np.uint64)))
    survivors = relay.survivors()
    for name in survivors.sites:
        take("confirmations", sites[name].confirm(survivors))
    for name in survivors.sites:
        take("unmaskings", sites[name].unmask(relay.confirmed()))
    total = relay.open()
    content = {
        "offer": json.loads(offer.model_dump_json()), "context": offer.context.hex(),
        "roster": {name: key.hex() for name, key in roster.keys.items()}, "secrets": secrets,
        "sum": {
            "coordinates": total.coordinates.tolist(), "counters": total.counters.tolist(),
            "survivors": list(total.survivors),
        },
    }  # fmt: skip
    FILE.write_text(json.dumps(content | out, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    record()
