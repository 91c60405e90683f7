"""The relay's side of one attempt: collect, pass on, open. Sites do not trust it; it does not trust them.

Each phase: `take_…` every site's message as it comes, then close the phase with what goes to the sites:

    take_advertisement → advertised   (take_opening → opened)   take_dealing → deliveries
    take_masked → survivors   take_confirmation → confirmed   take_unmasking → open

A message that is refused leaves the relay as it was. Masked vectors are added as they come: memory does not
grow with the sites.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from wardround.core.errors import PeerError, QuorumError
from wardround.core.packed import Array
from wardround.privacy.packing import unpack, word_of
from wardround.privacy.secagg import transcript
from wardround.privacy.secagg.boxes import open_box
from wardround.privacy.secagg.graph import Graph
from wardround.privacy.secagg.identity import Roster
from wardround.privacy.secagg.masks import Mask, apply_masks
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
)
from wardround.privacy.secagg.offer import Offer
from wardround.privacy.secagg.secret import Secret
from wardround.privacy.secagg.shamir import combine, number, repair, weights_at_zero
from wardround.privacy.secagg.total import Sum, total_of

M = TypeVar("M", bound=Message)


class BadDealerError(PeerError):
    """A site dealt shares that give no secret of its own; `found` is its name."""


@dataclass
class Relay:
    """One attempt.

    Attributes:
        offer: What was proposed.
        roster: The members' keys, for telling a site's fault from a stranger's.
    """

    offer: Offer
    roster: Roster
    _advertisements: dict[str, Advertisement] = field(default_factory=dict)
    _openings: dict[str, Opening] = field(default_factory=dict)
    _dealings: dict[str, Dealing] = field(default_factory=dict)
    _survivors: list[str] = field(default_factory=list)
    _confirmations: dict[str, Confirmation] = field(default_factory=dict)
    _answers: dict[str, Unmasking] = field(default_factory=dict)
    _graph: Graph = field(default_factory=lambda: Graph({}))
    _advertised: bytes = b""
    _agreed: bytes = b""
    _dealers: tuple[str, ...] = ()
    _dealt: bytes = b""
    _survived: bytes = b""
    _coordinates: Array = field(init=False)
    _counters: Array = field(init=False)

    def __post_init__(self) -> None:
        self.offer.check()
        self._coordinates = np.zeros(self.offer.coordinates, dtype=word_of(self.offer.bits))
        self._counters = np.zeros(self.offer.counters, dtype=word_of(64))

    def take_advertisement(self, message: Advertisement) -> None:
        """Phase 1.

        Raises:
            PeerError: From outside the cohort, unsigned, twice, or with a key that was advertised already.
        """
        self._check(message, self.offer.cohort, self._advertisements)
        known = {k for other in self._advertisements.values() for k in (other.channel_key, other.mask_key)}
        if message.channel_key == message.mask_key or known & {message.channel_key, message.mask_key}:
            raise PeerError("a key is advertised twice", found=message.site)
        self._advertisements[message.site] = message

    def advertised(self) -> Advertised:
        """Close phase 1.

        Raises:
            QuorumError: Fewer sites than the threshold.
        """
        self._enough(self._advertisements, "advertised keys")
        self._advertised = transcript.advertised(self.offer.context, self._advertisements)
        if not self.offer.degree:
            self._agree()
        return Advertised(advertisements=tuple(_sorted(self._advertisements)))

    def take_opening(self, message: Opening) -> None:
        """Phase 1b, of a regular graph.

        Raises:
            PeerError: Unsigned, twice, of another transcript, or not what was committed to.
        """
        self._check(message, self._advertisements, self._openings)
        value = transcript.commitment(self.offer.context, message.site, Secret(message.value))
        if (
            message.advertised != self._advertised
            or value != self._advertisements[message.site].graph_commitment
        ):
            raise PeerError("an opening is not what the site committed to", found=message.site)
        self._openings[message.site] = message

    def opened(self) -> Opened:
        """Close phase 1b.

        Raises:
            QuorumError: A site that advertised did not open.
        """
        missing = sorted(set(self._advertisements) - set(self._openings))
        if missing:
            raise QuorumError(
                "the graph cannot be drawn: sites did not open what they committed to",
                found=", ".join(missing[:5]), remedy="a new attempt, without them if it happens again",
            )  # fmt: skip
        self._agree()
        return Opened(openings=tuple(_sorted(self._openings)))

    def take_dealing(self, message: Dealing) -> None:
        """Phase 2.

        Raises:
            PeerError: Unsigned, twice, of another transcript, or not one signed box for every neighbour.
        """
        self._check(message, self._advertisements, self._dealings)
        if message.agreed != self._agreed:
            raise PeerError("a site dealt under another transcript", found=message.site)
        recipients = [box.recipient for box in message.boxes]
        if sorted(recipients) != list(self._graph.neighbours[message.site]):
            raise PeerError("a site did not deal one box to every neighbour", found=message.site)
        for box in message.boxes:
            self.roster.check(
                message.site, box.signature, box.statement(self.offer.context, message.site, self._agreed)
            )
        self._dealings[message.site] = message

    def deliveries(self) -> dict[str, Delivery]:
        """Close phase 2: what each dealer gets.

        Raises:
            QuorumError: Fewer dealers than the threshold.
        """
        self._enough(self._dealings, "dealt shares")
        self._dealers = tuple(sorted(self._dealings))
        self._dealt = transcript.dealt(self._agreed, self._dealers)
        boxes: dict[str, dict[str, Box]] = {site: {} for site in self._dealers}
        for dealer, dealing in self._dealings.items():
            for box in dealing.boxes:
                if box.recipient in boxes:
                    boxes[box.recipient][dealer] = box
        return {site: Delivery(dealers=self._dealers, boxes=boxes[site]) for site in self._dealers}

    def take_complaint(self, message: Complaint) -> str:
        """Judge a complaint: the liar's name. The attempt ends, whoever it is.

        Raises:
            PeerError: Unsigned, or not about a box that this relay delivered.
        """
        self._check(message, self._dealers, {})
        dealing = self._dealings.get(message.dealer)
        own = self._advertisements[message.site]
        if dealing is None or message.box not in dealing.boxes or message.box.recipient != message.site:
            raise PeerError("a complaint is about a box that was not delivered", found=message.site)
        secret = X25519PrivateKey.from_private_bytes(message.channel_secret)
        if secret.public_key().public_bytes_raw() != own.channel_key:
            return message.site
        channel = transcript.shared_secret(secret, self._advertisements[message.dealer].channel_key)
        key = transcript.box_key(channel, self._agreed, message.dealer, message.site)
        return message.dealer if open_box(key, message.box, self._agreed) is None else message.site

    def take_masked(self, message: MaskedInput) -> None:
        """Phase 3: add both lanes.

        Raises:
            PeerError: Unsigned, twice, late, of another transcript, or of another length.
        """
        if self._survived:
            raise PeerError("a masked vector came after the survivors were fixed", found=message.site)
        self._check(message, self._dealers, self._survivors)
        if message.dealt != self._dealt:
            raise PeerError("a site masked under another transcript", found=message.site)
        coordinates = unpack(message.coordinates, self.offer.coordinates, self.offer.bits)
        counters = unpack(message.counters, self.offer.counters, 64)
        np.add(self._coordinates, coordinates, out=self._coordinates)
        np.add(self._counters, counters, out=self._counters)
        self._survivors.append(message.site)

    @property
    def sums(self) -> tuple[Array, Array]:
        """Both lanes as added so far, coordinates and counters, under their masks; the relay's own arrays."""
        return self._coordinates, self._counters

    def take_sums(self, sites: Sequence[str], coordinates: Array, counters: Array) -> None:
        """Phase 3 from a journal: what `sums` were when these sites were the survivors, in place of messages.

        Raises:
            PeerError: Vectors were added already, or a site did not deal shares.
        """
        if self._survivors or not set(sites) <= set(self._dealers):
            raise PeerError("the journalled sums are not those of this attempt", found=f"{len(sites)} sites")
        np.copyto(self._coordinates, coordinates)
        np.copyto(self._counters, counters)
        self._survivors.extend(sites)

    def survivors(self) -> Survivors:
        """Close phase 3.

        Raises:
            QuorumError: Fewer survivors than the threshold.
        """
        self._enough(self._survivors, "sent masked vectors")
        sites = tuple(sorted(self._survivors))
        self._survived = transcript.survived(self._dealt, sites)
        return Survivors(sites=sites)

    def take_confirmation(self, message: Confirmation) -> None:
        """Phase 4.

        Raises:
            PeerError: Unsigned, twice, not a survivor's, or of another set.
        """
        self._check(message, self._survivors, self._confirmations)
        if message.survived != self._survived:
            raise PeerError("a site confirmed another set of survivors", found=message.site)
        self._confirmations[message.site] = message

    def confirmed(self) -> Confirmed:
        """Close phase 4.

        Raises:
            QuorumError: Fewer confirmations than the threshold.
        """
        self._enough(self._confirmations, "confirmed the survivors")
        return Confirmed(confirmations=tuple(_sorted(self._confirmations)))

    def take_unmasking(self, message: Unmasking) -> None:
        """Phase 5.

        Raises:
            PeerError: Unsigned, twice, of another transcript, or not one well-formed share of each site.
        """
        self._check(message, self._survivors, self._answers)
        if message.survived != self._survived:
            raise PeerError("a site answered for another set of survivors", found=message.site)
        holds = set(self._graph.holders(message.site)) & set(self._dealers)
        alive = set(self._survivors)
        if set(message.self_shares) != holds & alive or set(message.key_shares) != holds - alive:
            raise PeerError(
                "a site did not give one share for each site that it holds shares of", found=message.site
            )
        for share in (*message.self_shares.values(), *message.key_shares.values()):
            number(Secret(share))  # refuses what is no number of the field
        self._answers[message.site] = message

    @property
    def openable(self) -> bool:
        """Whether every secret that is needed has shares enough."""
        return not self._short()

    def open(self) -> Sum:
        """Put the needed secrets together, remove what they masked, read the sum.

        Raises:
            QuorumError: Too few shares of a secret.
            PeerError: A secret does not come out right in spite of corrections: its dealer is named.
        """
        self._require_openable()
        alive, liars = set(self._survivors), set[str]()
        masks: list[Mapping[str, Mask]] = []
        for dealer in self._dealers:
            secret, wrong = self._secret_of(dealer, alive=dealer in alive)
            liars |= wrong
            if dealer in alive:
                masks.append(transcript.self_masks(secret, self._dealt, dealer, remove=True))
                continue
            key = X25519PrivateKey.from_private_bytes(secret.reveal())
            for survivor in self._graph.neighbours[dealer]:
                if survivor in alive:
                    shared = transcript.shared_secret(key, self._advertisements[survivor].mask_key)
                    masks.append(transcript.pair_masks(shared, self._dealt, survivor, dealer, remove=True))
        coordinates, counters = self._coordinates.copy(), self._counters.copy()
        for lane, vector in (("coordinates", coordinates), ("counters", counters)):
            apply_masks(vector, [mask[lane] for mask in masks])
        return total_of(self.offer, coordinates, counters, alive, liars)

    def _secret_of(self, dealer: str, *, alive: bool) -> tuple[Secret, set[str]]:
        """The dealer's secret, checked against what it advertised; who gave a wrong share of it."""
        shares = {
            self.offer.index_of(site): Secret((answer.self_shares if alive else answer.key_shares)[dealer])
            for site, answer in self._answers.items()
            if dealer in (answer.self_shares if alive else answer.key_shares)
        }
        places = tuple(sorted(shares)[: self.offer.shares_needed])
        secret = combine(self._weights(places), [shares[place] for place in places])
        if secret is not None and self._is_of(dealer, secret, alive=alive):
            return secret, set()
        try:
            secret, wrong = repair(shares, self.offer.shares_needed)
        except PeerError:
            secret, wrong = None, []
        if secret is None or not self._is_of(dealer, secret, alive=alive):
            raise BadDealerError(
                "the shares that a site dealt do not give its secret", found=dealer,
                remedy="leave this site out; the round is lost, the next trains afresh",
            )  # fmt: skip
        return secret, {self.offer.cohort[place - 1] for place in wrong}

    def _is_of(self, dealer: str, secret: Secret, *, alive: bool) -> bool:
        own = self._advertisements[dealer]
        if alive:
            return transcript.commitment(self.offer.context, dealer, secret) == own.commitment
        key = X25519PrivateKey.from_private_bytes(secret.reveal())
        return key.public_key().public_bytes_raw() == own.mask_key

    def _weights(self, places: tuple[int, ...]) -> list[int]:
        if places != self._weights_of[0]:
            self._weights_of = places, weights_at_zero(places)
        return self._weights_of[1]

    _weights_of: tuple[tuple[int, ...], list[int]] = ((), [])

    def _require_openable(self) -> None:
        short = self._short()
        if short:
            raise QuorumError(
                "too few sites answered to open the sum",
                found=f"fewer than {self.offer.shares_needed} shares of {short[0]!r}",
                remedy="ask the sites again: they repeat their answer; otherwise the round is lost",
            )  # fmt: skip

    def _short(self) -> list[str]:
        """Sites whose needed secret has too few shares yet."""
        answered = set(self._answers)
        return [
            dealer
            for dealer in self._dealers
            if len(answered & set(self._graph.holders(dealer))) < self.offer.shares_needed
        ]

    def _agree(self) -> None:
        self._graph = transcript.graph_of(self.offer, self._advertisements, self._openings)
        self._agreed = transcript.agreed(self._advertised, self._openings)

    def _check(self, message: Message, expected: Collection[str], taken: Collection[str]) -> None:
        if message.site not in expected:
            raise PeerError("a message comes from a site that this phase does not ask", found=message.site)
        if message.site in taken:
            raise PeerError("a site sent its message twice", found=message.site)
        self.roster.check(message.site, message.signature, message.statement(self.offer.context))

    def _enough(self, sites: Sequence[str] | Mapping[str, Message], what: str) -> None:
        if len(sites) < self.offer.threshold:
            missing = sorted(set(self.offer.cohort) - set(sites))
            raise QuorumError(
                f"too few sites {what}", found=f"{len(sites)}; not: {', '.join(missing[:5])}",
                expected=f"at least {self.offer.threshold} of {len(self.offer.cohort)}",
                remedy="a new attempt; sites keep what they trained",
            )  # fmt: skip


def _sorted(messages: Mapping[str, M]) -> list[M]:
    return [messages[site] for site in sorted(messages)]
