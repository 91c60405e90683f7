"""A relay walked phase by phase: which message is due, who was heard, what goes out at each closing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from wardround.core.errors import PeerError
from wardround.privacy.secagg import messages
from wardround.privacy.secagg.messages import Message, encode
from wardround.privacy.secagg.relay import Relay

PHASES: Final = ("advertise", "open", "deal", "mask", "confirm", "unmask")
ADVERTISE, OPEN, DEAL, MASK, CONFIRM, UNMASK = PHASES


class Phases:
    """The phases of one attempt; the graph is opened in regular graphs alone.

    Attributes:
        relay: What the messages go to.
        phase: Under way, one of `PHASES`; after the last one the relay opens the sum.
        heard: Sites whose message of that phase was accepted.
    """

    def __init__(self, relay: Relay) -> None:
        self.relay, self.phase, self.heard = relay, ADVERTISE, set[str]()
        self._order = [phase for phase in PHASES if phase != OPEN or relay.offer.degree]
        self._due: dict[str, tuple[type[Message], Callable[[Any], None]]] = {
            ADVERTISE: (messages.Advertisement, relay.take_advertisement),
            OPEN: (messages.Opening, relay.take_opening),
            DEAL: (messages.Dealing, relay.take_dealing),
            MASK: (messages.MaskedInput, relay.take_masked),
            CONFIRM: (messages.Confirmation, relay.take_confirmation),
            UNMASK: (messages.Unmasking, relay.take_unmasking),
        }
        self._closings: dict[str, Callable[[], Any]] = {
            ADVERTISE: relay.advertised, OPEN: relay.opened, DEAL: relay.deliveries, MASK: relay.survivors,
            CONFIRM: relay.confirmed,
        }  # fmt: skip

    @property
    def due(self) -> type[Message]:
        """What sites send in this phase."""
        return self._due[self.phase][0]

    def accept(self, message: Message) -> None:
        """Hand a site's message to the relay.

        Raises:
            PeerError: As the relay's, or it is of another phase.
        """
        if not isinstance(message, self.due):
            raise PeerError("a message is of another phase", found=message.KIND, expected=self.phase)
        self._due[self.phase][1](message)
        self.heard.add(message.site)

    def closing(self) -> Mapping[str, bytes]:
        """Site → what it is sent once this phase is over; the last one has none.

        Raises:
            QuorumError: As the relay's: too few sites.
        """
        sent = self._closings[self.phase]()
        if isinstance(sent, dict):
            return {site: encode(of_site) for site, of_site in sent.items()}
        return dict.fromkeys(sorted(self.heard), encode(sent))

    def close(self) -> Mapping[str, bytes]:
        """End the phase, and begin the next one: site → what it is sent.

        Raises:
            QuorumError: As `closing`.
        """
        sent = self.closing()
        self.advance()
        return sent

    def advance(self) -> None:
        """Begin the next phase."""
        self.phase, self.heard = self._order[self._order.index(self.phase) + 1], set()
