"""Offers of plans over a Flower grid."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from flwr.app import Message
from flwr.serverapp import Grid

from wardround.core.errors import PeerError
from wardround.core.plan_offers import PlanAnswer, PlanOffer, Reason
from wardround.runtime.flower_records import OTHER_VERSION, OtherVersionError
from wardround.runtime.offer_codec import OFFER_TYPE, decode_answer, encode_offer

VERSION: Final = "version"
"""Code of a site whose Wardround speaks another protocol; asked again, since it may be brought up to date."""
MOST_WAITING: Final = 10
"""Offers of one site whose answers are still looked for; those of a site that is away pile up."""


@dataclass
class GridOffers:
    """Sends offers as Flower messages and maps answers back by the message that they answer.

    Attributes:
        grid: Flower's grid.
        node_of: Site → Flower node that serves it.
        life_s: Seconds for which Flower keeps an offer and its answer.
        waiting: Message id → its offer, oldest first.
    """

    grid: Grid
    node_of: Callable[[str], int]
    life_s: float
    waiting: dict[str, PlanOffer] = field(default_factory=dict)

    def send(self, offers: Sequence[PlanOffer]) -> None:
        """Push one message a site."""
        messages = [
            Message(encode_offer(offer)[0], self.node_of(offer.site), OFFER_TYPE, ttl=self.life_s)
            for offer in offers
        ]
        for message_id, offer in zip(self.grid.push_messages(messages), offers, strict=True):
            of_site = [known for known, other in self.waiting.items() if other.site == offer.site]
            for old in of_site[: len(of_site) + 1 - MOST_WAITING]:
                del self.waiting[old]
            self.waiting[message_id] = offer

    def receive(self, timeout_s: float) -> Sequence[PlanAnswer]:
        """Answers that have arrived; empty after `timeout_s` at the latest."""
        arrived = self.grid.pull_messages(list(self.waiting)) if self.waiting else []
        answers = [answer for answer in map(self._read, arrived) if answer is not None]
        if not answers:
            time.sleep(timeout_s)
        return answers

    def _read(self, message: Message) -> PlanAnswer | None:
        offer = self.waiting.pop(message.metadata.reply_to_message_id, None)
        if offer is None:
            return None
        if message.has_error():
            if message.error.code == OTHER_VERSION:
                return _undecided(offer, VERSION, str(message.error.reason or "it does not say which")[:300])
            return _undecided(offer, "away", str(message.error.reason or "the site's process failed")[:200])
        try:
            answer = decode_answer(message.content)
        except OtherVersionError as error:
            return _undecided(offer, VERSION, error.what)
        except PeerError as error:
            return _undecided(offer, "malformed_answer", error.what)
        if (answer.run_id, answer.site) != (offer.run_id, offer.site):
            return _undecided(offer, "malformed_answer", "the answer names another offer")
        return answer


def _undecided(offer: PlanOffer, code: str, text: str) -> PlanAnswer:
    return PlanAnswer(offer.run_id, offer.site, "waiting", (Reason(code, text),))
