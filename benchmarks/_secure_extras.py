"""Sites that stand in for those that secure_aggregation.py does not measure."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from wardround.core.packed import Array
from wardround.privacy.packing import pack
from wardround.privacy.secagg import messages as wire
from wardround.privacy.secagg import transcript
from wardround.privacy.secagg.boxes import open_box, seal
from wardround.privacy.secagg.graph import Graph
from wardround.privacy.secagg.identity import KeySigner
from wardround.privacy.secagg.masks import apply_masks
from wardround.privacy.secagg.offer import Offer
from wardround.privacy.secagg.secret import Secret
from wardround.privacy.secagg.shamir import split


class Extra:
    """A site's messages without a site's checks."""

    def __init__(self, name: str, signer: KeySigner, offer: Offer, context: bytes) -> None:
        self.name, self.signer, self.offer, self.context = name, signer, offer, context
        self.channel, self.mask_key = X25519PrivateKey.generate(), X25519PrivateKey.generate()
        self.seed, self.graph_value = Secret.fresh(), Secret.fresh()
        self.own_shares = (self.seed, self.seed)

    def signed(self, message: Any) -> Any:
        """The message under this site's identity key."""
        return message.model_copy(update={"signature": self.signer.sign(message.statement(self.context))})

    def advertise(self) -> Any:
        """Phase 1."""
        return self.signed(
            wire.Advertisement(
                site=self.name, channel_key=self.channel.public_key().public_bytes_raw(),
                mask_key=self.mask_key.public_key().public_bytes_raw(),
                commitment=transcript.commitment(self.context, self.name, self.seed),
                graph_commitment=transcript.commitment(self.context, self.name, self.graph_value),
            )
        )  # fmt: skip

    def open_graph(self, advertised: bytes) -> Any:
        """Phase 1b."""
        return self.signed(
            wire.Opening(site=self.name, advertised=advertised, value=self.graph_value.reveal())
        )

    def box_key(self, peer: wire.Advertisement, agreed: bytes, dealer: str, recipient: str) -> Secret:
        """Of the one box between the two."""
        return transcript.box_key(
            transcript.shared_secret(self.channel, peer.channel_key), agreed, dealer, recipient
        )

    def deal(self, keys: Mapping[str, wire.Advertisement], graph: Graph, agreed: bytes) -> Any:
        """Phase 2."""
        holders = graph.holders(self.name)
        places = [self.offer.index_of(holder) for holder in holders]
        secrets = (self.seed, Secret(self.mask_key.private_bytes_raw()))
        pairs = zip(*(split(secret, self.offer.shares_needed, places) for secret in secrets), strict=True)
        shares = dict(zip(holders, pairs, strict=True))
        self.own_shares = shares.pop(self.name)
        boxes = []
        for peer, (seed_share, key_share) in shares.items():
            key = self.box_key(keys[peer], agreed, self.name, peer)
            sealed = seal(key, seed_share, key_share, agreed)
            box = wire.Box(recipient=peer, sealed=sealed)
            said = box.statement(self.context, self.name, agreed)
            boxes.append(box.model_copy(update={"signature": self.signer.sign(said)}))
        return self.signed(wire.Dealing(site=self.name, agreed=agreed, boxes=tuple(boxes)))

    def mask(self, lanes: dict[str, Array], peers: Mapping[str, wire.Advertisement], dealt: bytes) -> Any:
        """Phase 3, in place: its own mask and those that it shares with `peers`."""
        masks = [transcript.self_masks(self.seed, dealt, self.name)]
        for peer, keys in peers.items():
            shared = transcript.shared_secret(self.mask_key, keys.mask_key)
            masks.append(transcript.pair_masks(shared, dealt, self.name, peer))
        for lane, vector in lanes.items():
            apply_masks(vector, [of_lane[lane] for of_lane in masks])
        coordinates, counters = pack(lanes["coordinates"], self.offer.bits), pack(lanes["counters"], 64)
        return self.signed(
            wire.MaskedInput(site=self.name, dealt=dealt, coordinates=coordinates, counters=counters)
        )

    def unmask(
        self, delivery: wire.Delivery, keys: Mapping[str, wire.Advertisement], agreed: bytes,
        alive: Collection[str], survived: bytes,
    ) -> Any:  # fmt: skip
        """Phase 5."""
        answer: dict[str, Any] = {"self_shares": {}, "key_shares": {}}
        for dealer in (*delivery.boxes, self.name):
            shares = self.own_shares
            if dealer != self.name:
                sealed_by = self.box_key(keys[dealer], agreed, dealer, self.name)
                opened = open_box(sealed_by, delivery.boxes[dealer], agreed)
                assert opened is not None, "a box of an honest site does not open"
                shares = opened
            kind, share = ("self_shares", shares[0]) if dealer in alive else ("key_shares", shares[1])
            answer[kind][dealer] = share.reveal()
        return self.signed(wire.Unmasking(site=self.name, survived=survived, **answer))
