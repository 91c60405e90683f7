"""A site's side of one attempt, phase by phase; it trusts its machine and its confirmed peers, not the relay.

advertise → (open_graph) → deal → mask → confirm → unmask

Each phase is bound to the transcript of all before it, happens once, and is refused out of order. What must
survive a crash is in the member's `Record`; secrets live in memory only, and go as soon as they are used.

Beside that the sites keep each other's ledgers' heads (`admission.py:Heads`): a site shows its own with its
keys, its peers give back with their shares what they have of earlier sums, and it judges that before anything
of its vector leaves. What it showed is kept by whoever helps to open a sum that has its vector in it. Not
sooner: a site whose ledger was turned back, and which vanished before it was told so, would have made
everybody forget.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from typing import TypeVar

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from wardround.core.errors import InternalError, PeerError
from wardround.core.packed import Array
from wardround.privacy.packing import packed, packed_size, word_of
from wardround.privacy.secagg import standing, transcript
from wardround.privacy.secagg.admission import Member, accept
from wardround.privacy.secagg.boxes import open_box, seal
from wardround.privacy.secagg.masks import Mask, under_masks
from wardround.privacy.secagg.messages import (
    Advertised,
    Advertisement,
    Box,
    Complaint,
    Confirmation,
    Confirmed,
    Dealing,
    Delivery,
    MaskedInput,
    Message,
    Opened,
    Opening,
    Survivors,
    Unmasking,
    laned,
)
from wardround.privacy.secagg.offer import Offer, SignedOffer
from wardround.privacy.secagg.policy import check_change
from wardround.privacy.secagg.secret import Secret
from wardround.privacy.secagg.shamir import split

P = TypeVar("P")
M = TypeVar("M", bound=Message)


class SecureSite:
    """One member's part in the attempts of one run, one after the other."""

    _split = staticmethod(split)

    def __init__(self, member: Member) -> None:
        self.member = member
        self._phase: object = None

    def advertise(self, signed: SignedOffer, broadcast: bytes) -> Advertisement:
        """Accept an offer: fresh keys for this attempt, and commitments.

        Args:
            signed: What the relay proposes.
            broadcast: Digest of the state that this site was really sent.

        Raises:
            PolicyError: The site's own rules refuse.
            PeerError: The offer is not the server's, or contradicts itself, plan, roster, an earlier one.
            StorageError: As `Heads.own`.
        """
        state = self.member.record.load()
        offer = accept(self.member, state, signed, broadcast)
        self._phase = None  # whatever was under way has ended: its keys die here
        ledger_head = self.member.heads.own()
        self.member.record.save(state.after(signed))
        channel, mask = X25519PrivateKey.generate(), X25519PrivateKey.generate()
        seed, graph_value = Secret.fresh(), Secret.fresh()
        own = self._signed(
            Advertisement(
                site=self.member.name,
                channel_key=channel.public_key().public_bytes_raw(),
                mask_key=mask.public_key().public_bytes_raw(),
                commitment=transcript.commitment(offer.context, self.member.name, seed),
                graph_commitment=transcript.commitment(offer.context, self.member.name, graph_value),
                ledger_head=ledger_head,
            ),
            offer,
        )
        self._phase = standing.Keyed(offer, channel, mask, seed, graph_value, own)
        return own

    def open_graph(self, message: Advertised) -> Opening:
        """In a regular graph: show what this site had committed to, once all have committed.

        Raises:
            PeerError: An advertisement is missing, unsigned or altered.
        """
        keyed = self._take(standing.Keyed)
        if not keyed.offer.degree:
            raise PeerError("the complete graph is not drawn")
        advertisements = self._advertisements(keyed, message)
        opening = Opening(
            site=self.member.name,
            advertised=transcript.advertised(keyed.offer.context, advertisements),
            value=keyed.graph_value.reveal(),
        )
        self._phase = standing.Drawn(keyed, advertisements)
        return self._signed(opening, keyed.offer)

    def deal(self, message: Advertised | Opened) -> Dealing:
        """Share this site's two secrets among its neighbours, a sealed and signed box each.

        Raises:
            PeerError: An advertisement or opening is missing, unsigned or altered; too few are there.
        """
        openings: Mapping[str, Opening] = {}
        if isinstance(message, Opened):
            drawn = self._take(standing.Drawn)
            keyed, advertisements = drawn.keyed, drawn.advertisements
            openings = transcript.check_openings(
                keyed.offer, self.member.roster, advertisements, message.openings
            )
        else:
            keyed = self._take(standing.Keyed)
            if keyed.offer.degree:
                raise PeerError("shares were asked for before the graph was drawn")
            advertisements = self._advertisements(keyed, message)
        offer, name = keyed.offer, self.member.name
        graph = transcript.graph_of(offer, advertisements, openings)
        agreed = transcript.agreed(transcript.advertised(offer.context, advertisements), openings)
        holders = graph.holders(name)
        places = [offer.index_of(holder) for holder in holders]
        seeds = self._split(keyed.seed, offer.shares_needed, places)
        keys = self._split(Secret(keyed.mask.private_bytes_raw()), offer.shares_needed, places)
        shares = dict(zip(holders, zip(seeds, keys, strict=True), strict=True))
        own_shares = shares.pop(name)
        heads = self.member.heads.kept(tuple(shares))
        boxes = tuple(
            self._box(keyed, advertisements[holder], heads.get(holder, b""), agreed, *pair)
            for holder, pair in shares.items()
        )
        self._phase = standing.Dealt(keyed, advertisements, graph, agreed, own_shares)
        return self._signed(Dealing(site=name, agreed=agreed, boxes=boxes), offer)

    def mask(self, message: Delivery, coordinates: Array, counters: Array) -> MaskedInput | Complaint:
        """Both lanes under this site's own mask and one for each neighbour that dealt.

        Args:
            message: Who dealt, and the boxes for this site.
            coordinates: (offer.coordinates,) ring integers in the ring's word; left as they are.
            counters: (offer.counters,) uint64; left as they are.

        Returns:
            The masked vector; or, where a box that its dealer signed does not open, a complaint.

        Raises:
            PeerError: The dealers are not a possible set, a box is missing or not signed by its dealer.
            StorageError: A dealer has seen rows that this site's ledger lacks (`Heads.returned`).
            InternalError: A lane has the wrong size or type, or a counter is above the offer's bound.
        """
        dealt = self._take(standing.Dealt)
        offer, name = dealt.keyed.offer, self.member.name
        for lane, vector, size, word in (
            ("coordinates", coordinates, offer.coordinates, word_of(offer.bits)),
            ("counters", counters, offer.counters, word_of(64)),
        ):
            if vector.shape != (size,) or vector.dtype != word:
                raise InternalError(
                    f"the {lane} are not what the offer says", found=f"{vector.dtype} {vector.shape}",
                    expected=f"{word} ({size},)",
                )  # fmt: skip
        if counters.max(initial=0) > offer.most_count:
            raise InternalError(
                "a counter is above the offer's bound", expected=f"at most {offer.most_count}"
            )
        dealers = self._dealers(dealt, message)
        opened = self._open_boxes(dealt, message)
        if isinstance(opened, Complaint):
            return self._signed(opened, offer)
        self.member.heads.returned({dealer: box.head for dealer, box in message.boxes.items()})
        after = transcript.dealt(dealt.agreed, dealers)
        masks = self._masks(dealt, opened, after)
        pieces = itertools.chain(
            (packed(p, offer.bits) for p in under_masks(coordinates, [of["coordinates"] for of in masks])),
            (packed(p, 64) for p in under_masks(counters, [of["counters"] for of in masks])),
        )
        sizes = packed_size(coordinates.size, offer.bits), packed_size(counters.size, 64)
        draft = MaskedInput(site=name, dealt=after)
        answer = laned(draft, pieces, sizes, lambda whole: self._signed(whole, offer))
        shown = {peer: dealt.advertisements[peer].ledger_head for peer in dealers if peer != name}
        self._phase = standing.Masked(
            offer, dealt.graph, dealers, after, {**opened, name: dealt.own_shares}, shown
        )
        return answer

    def confirm(self, message: Survivors) -> Confirmation:
        """Sign the one set of survivors that this site will help to open.

        Raises:
            PeerError: The set is not sorted, holds others than the dealers, or misses this site.
            PolicyError: It is smaller than the site's policy allows, or differs too little from the last one.
        """
        masked = self._take(standing.Masked)
        survivors = message.sites
        if list(survivors) != sorted(set(survivors)) or not set(survivors) <= set(masked.dealers):
            raise PeerError("the survivors are not a subset of the sites that dealt shares")
        if self.member.name not in survivors:
            raise PeerError("this site is not among the survivors that it is asked to confirm")
        offer = masked.offer
        self.member.policy.check_survivors(survivors, len(offer.cohort), offer.threshold)
        state = self.member.record.load()
        check_change(state.opened, survivors, self.member.least_change)
        earlier = state.survivors.get(str(offer.stage - 1))
        if offer.stage and survivors != earlier:
            raise PeerError(
                "the survivors of a later stage are not those of the one before",
                found=f"{len(survivors)} sites", expected=f"{len(earlier or ())} sites",
                remedy="the round is lost; the next one trains afresh",
            )  # fmt: skip
        survived = transcript.survived(masked.dealt, survivors)
        self._phase = standing.Confirmed(masked, survivors, survived)
        return self._signed(Confirmation(site=self.member.name, survived=survived), offer)

    def unmask(self, message: Confirmed) -> Unmasking:
        """Give, of every site whose shares this one holds, the one kind that opens the confirmed sum.

        Raises:
            PeerError: Fewer than the threshold confirmed this very set.
            StorageError: What has to outlive a crash cannot be written.
        """
        confirmed = self._take(standing.Confirmed)
        masked, offer = confirmed.masked, confirmed.masked.offer
        signers = {confirmation.site for confirmation in message.confirmations}
        if len(signers) != len(message.confirmations) or not signers <= set(confirmed.survivors):
            raise PeerError("a confirmation comes twice, or from a site that is no survivor")
        for confirmation in message.confirmations:
            if confirmation.survived != confirmed.survived:
                raise PeerError("a site confirmed another set of survivors", found=confirmation.site)
            self.member.roster.check(
                confirmation.site, confirmation.signature, confirmation.statement(offer.context)
            )
        if len(signers) < offer.threshold:
            raise PeerError(
                "too few confirmations", found=len(signers), expected=f"at least {offer.threshold}"
            )
        survivors = set(confirmed.survivors)
        # Before the answer: after a crash it is repeated as it is, and nothing would be kept any more.
        self.member.heads.keep({site: head for site, head in masked.heads.items() if site in survivors})
        answer = self._signed(
            Unmasking(
                site=self.member.name,
                survived=confirmed.survived,
                self_shares={
                    dealer: pair[0].reveal() for dealer, pair in masked.held.items() if dealer in survivors
                },
                key_shares={
                    dealer: pair[1].reveal()
                    for dealer, pair in masked.held.items()
                    if dealer not in survivors
                },
            ),
            offer,
        )
        state = self.member.record.load()
        self.member.record.save(
            state.model_copy(
                update={
                    "survivors": {**state.survivors, str(offer.stage): confirmed.survivors},
                    "opened": confirmed.survivors,
                    "answer": answer,
                }
            )
        )
        return answer

    def repeat(self, survived: bytes) -> Unmasking | None:
        """The unmask answer for this very transcript, where one was given, also after a restart."""
        answer = self.member.record.load().answer
        return answer if answer is not None and answer.survived == survived else None

    def _advertisements(self, keyed: standing.Keyed, message: Advertised) -> dict[str, Advertisement]:
        found = transcript.check_advertisements(keyed.offer, self.member.roster, message.advertisements)
        if found.get(self.member.name) != keyed.own:
            raise PeerError("this site's own advertisement was altered or left out")
        return found

    def _box(
        self,
        keyed: standing.Keyed,
        peer: Advertisement,
        head: bytes,
        agreed: bytes,
        seed_share: Secret,
        key_share: Secret,
    ) -> Box:
        name = self.member.name
        channel = transcript.shared_secret(keyed.channel, peer.channel_key)
        key = transcript.box_key(channel, agreed, name, peer.site)
        box = Box(recipient=peer.site, sealed=seal(key, seed_share, key_share, agreed, head), head=head)
        signature = self.member.signer.sign(box.statement(keyed.offer.context, name, agreed))
        return box.model_copy(update={"signature": signature})

    def _masks(self, dealt: standing.Dealt, peers: Iterable[str], after: bytes) -> list[Mapping[str, Mask]]:
        keyed, name = dealt.keyed, self.member.name
        masks: list[Mapping[str, Mask]] = [transcript.self_masks(keyed.seed, after, name)]
        for peer in peers:
            shared = transcript.shared_secret(keyed.mask, dealt.advertisements[peer].mask_key)
            masks.append(transcript.pair_masks(shared, after, name, peer))
        return masks

    def _dealers(self, dealt: standing.Dealt, message: Delivery) -> tuple[str, ...]:
        offer, name, dealers = dealt.keyed.offer, self.member.name, message.dealers
        if list(dealers) != sorted(set(dealers)) or not set(dealers) <= set(dealt.advertisements):
            raise PeerError("the dealers are not a subset of the sites that advertised")
        if name not in dealers or len(dealers) < offer.threshold:
            raise PeerError(
                "too few sites dealt shares, or this one was left out", found=len(dealers),
                expected=f"at least {offer.threshold}, this site among them",
            )  # fmt: skip
        neighbours = set(dealt.graph.neighbours[name]) & set(dealers)
        if set(message.boxes) != neighbours:
            raise PeerError(
                "there is not one box from every neighbour that dealt", found=len(message.boxes),
                expected=len(neighbours),
            )  # fmt: skip
        if len(neighbours) + 1 < offer.shares_needed:
            raise PeerError(
                "too few neighbours are left to open this site's mask", found=len(neighbours) + 1,
                expected=f"at least {offer.shares_needed}",
            )  # fmt: skip
        return dealers

    def _open_boxes(
        self, dealt: standing.Dealt, message: Delivery
    ) -> dict[str, tuple[Secret, Secret]] | Complaint:
        opened: dict[str, tuple[Secret, Secret]] = {}
        offer, name = dealt.keyed.offer, self.member.name
        for dealer, box in sorted(message.boxes.items()):
            if box.recipient != name:
                raise PeerError("a box is for another site", found=box.recipient)
            channel = transcript.shared_secret(dealt.keyed.channel, dealt.advertisements[dealer].channel_key)
            pair = open_box(transcript.box_key(channel, dealt.agreed, dealer, name), box, dealt.agreed)
            if pair is None:
                # What opens is the dealer's: nobody else has the key. Its signature says whose fault it is.
                self.member.roster.check(
                    dealer, box.signature, box.statement(offer.context, dealer, dealt.agreed)
                )
                return Complaint(
                    site=name, dealer=dealer, box=box,
                    channel_secret=dealt.keyed.channel.private_bytes_raw(),
                )  # fmt: skip
            opened[dealer] = pair
        return opened

    def _signed(self, message: M, offer: Offer) -> M:
        signature = self.member.signer.sign(message.statement(offer.context))
        return message.model_copy(update={"signature": signature})

    def _take(self, kind: type[P]) -> P:
        """The phase that has to be the present one; it is over with this, whatever comes of it."""
        phase, self._phase = self._phase, None
        if not isinstance(phase, kind):
            raise PeerError(
                "a phase is asked for out of its order", found=standing.name_of(type(phase)),
                expected=standing.name_of(kind), remedy="a new attempt",
            )  # fmt: skip
        return phase
