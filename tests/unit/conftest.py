"""A consortium in one process: real sites, a real relay, and hooks for whoever wants to cheat."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from wardround.core.packed import Array
from wardround.privacy.packing import word_of
from wardround.privacy.secagg.admission import Member, SiteState
from wardround.privacy.secagg.hashing import digest
from wardround.privacy.secagg.identity import KeySigner, Roster
from wardround.privacy.secagg.messages import Delivery, MaskedInput, Unmasking
from wardround.privacy.secagg.offer import Offer, SignedOffer
from wardround.privacy.secagg.policy import SecurePolicy, default_threshold
from wardround.privacy.secagg.relay import Relay
from wardround.privacy.secagg.site import SecureSite
from wardround.privacy.secagg.total import Sum

PLAN, BROADCAST, LAYOUT = digest("plan"), digest("broadcast"), digest("layout")
COUNTERS = 3


class InMemory:
    """A record that survives what the site object does not."""

    def __init__(self) -> None:
        self.state = SiteState()

    def load(self) -> SiteState:
        return self.state

    def save(self, state: SiteState) -> None:
        # Through its bytes, as a file would be: what does not survive JSON fails here.
        self.state = SiteState.model_validate_json(state.model_dump_json())


@dataclass
class Consortium:
    """Sites `site_00`, `site_01`, … with inputs that everybody can recompute."""

    size: int = 6
    policy: SecurePolicy = field(default_factory=SecurePolicy)
    server: KeySigner = field(default_factory=KeySigner.fresh)
    signers: dict[str, KeySigner] = field(init=False)
    records: dict[str, InMemory] = field(init=False)
    sites: dict[str, SecureSite] = field(init=False)

    def __post_init__(self) -> None:
        width = max(2, len(str(self.size - 1)))
        self.signers = {f"site_{i:0{width}}": KeySigner.fresh() for i in range(self.size)}
        self.records = {name: InMemory() for name in self.signers}
        self.restart()

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.signers)

    @property
    def roster(self) -> Roster:
        return Roster({name: signer.public for name, signer in self.signers.items()})

    def restart(self, *names: str) -> None:
        """New processes over the old records: all, or those named."""
        fresh = {name: SecureSite(self.member(name)) for name in names or self.names}
        self.sites = fresh if not names else {**self.sites, **fresh}

    def member(self, name: str, **changes: Any) -> Member:
        fields: dict[str, Any] = {
            "name": name, "signer": self.signers[name], "roster": self.roster,
            "server": self.server.public, "policy": self.policy,
            "run_id": "run", "plan": PLAN, "record": self.records[name],
        }  # fmt: skip
        return Member(**(fields | changes))

    def offer(self, **changes: Any) -> Offer:
        fields: dict[str, Any] = {
            "run_id": "run", "round": 1, "plan": PLAN, "roster": self.roster.digest, "broadcast": BROADCAST,
            "layout": LAYOUT, "counters_layout": LAYOUT, "cohort": self.names,
            "threshold": default_threshold(self.size), "coordinates": 20, "counters": COUNTERS, "bits": 16,
            "scale": 8.0 if changes.get("bits") != 8 else 1.0, "largest": 10.0,
            "most_weight": 1, "most_count": 2**40,
        }  # fmt: skip
        return Offer(**(fields | changes))

    def advertise(self, name: str, offer: Offer, broadcast: bytes = BROADCAST) -> Any:
        """The site's answer to an offer that the server signed."""
        return self.sites[name].advertise(SignedOffer.by(self.server, offer), broadcast)

    def inputs(self, offer: Offer, name: str) -> tuple[Array, Array]:
        """Ring integers up to the offer's bound in size, and counters from 0 on, of one site."""
        rng = np.random.default_rng(self.names.index(name))
        bound = int(offer.largest * offer.scale)
        coordinates = rng.integers(-bound, bound + 1, size=offer.coordinates).astype(word_of(offer.bits))
        return coordinates, rng.integers(0, 2**39, size=offer.counters).astype(np.uint64)

    def expected(self, offer: Offer, names: tuple[str, ...]) -> tuple[list[int], list[int]]:
        """The sum in plain integers."""
        half, modulus = 1 << (offer.bits - 1), 1 << offer.bits
        totals, counts = [0] * offer.coordinates, [0] * offer.counters
        for name in names:
            coordinates, counters = self.inputs(offer, name)
            totals = [(a + int(b) + half) % modulus - half for a, b in zip(totals, coordinates, strict=True)]
            counts = [a + int(b) for a, b in zip(counts, counters, strict=True)]
        return totals, counts

    def to_advertised(self, offer: Offer, lost: tuple[str, ...] = ()) -> tuple[Relay, Any]:
        """Phase 1 (and 1b)."""
        relay = Relay(offer, self.roster)
        for name in offer.cohort:
            if name not in lost:
                relay.take_advertisement(self.advertise(name, offer))
        message: Any = relay.advertised()
        if offer.degree:
            for name in (a.site for a in message.advertisements):
                relay.take_opening(self.sites[name].open_graph(message))
            message = relay.opened()
        return relay, message

    def to_deliveries(
        self, offer: Offer, lost: Mapping[str, str] | None = None
    ) -> tuple[Relay, dict[str, Delivery]]:
        """Up to what each dealer gets; `lost` says in which phase a site disappears."""
        gone = lost or {}
        relay, message = self.to_advertised(offer, tuple(n for n, at in gone.items() if at == "advertise"))
        for advertisement in relay.advertised().advertisements:
            if gone.get(advertisement.site) != "deal":
                relay.take_dealing(self.sites[advertisement.site].deal(message))
        return relay, relay.deliveries()

    def to_survivors(
        self, offer: Offer, lost: Mapping[str, str] | None = None
    ) -> tuple[Relay, tuple[str, ...]]:
        """Up to the masked vectors."""
        relay, deliveries = self.to_deliveries(offer, lost)
        for name, delivery in deliveries.items():
            if (lost or {}).get(name) != "mask":
                masked = self.sites[name].mask(delivery, *self.inputs(offer, name))
                assert isinstance(masked, MaskedInput), "a complaint in an honest round"
                relay.take_masked(masked)
        return relay, relay.survivors().sites

    def to_answers(
        self, offer: Offer, lost: Mapping[str, str] | None = None
    ) -> tuple[Relay, dict[str, Unmasking]]:
        """A relay that waits for the unmask answers, and the honest ones."""
        relay, survivors = self.to_survivors(offer, lost)
        for name in survivors:
            relay.take_confirmation(self.sites[name].confirm(relay.survivors()))
        return relay, {name: self.sites[name].unmask(relay.confirmed()) for name in survivors}

    def run(self, offer: Offer, lost: Mapping[str, str] | None = None) -> Sum:
        """A whole attempt; `lost` maps a site to the phase before whose message it disappears."""
        gone = lost or {}
        relay, survivors = self.to_survivors(offer, gone)
        for name in survivors:
            if gone.get(name) != "confirm":
                relay.take_confirmation(self.sites[name].confirm(relay.survivors()))
        for name in survivors:
            if gone.get(name) not in ("confirm", "unmask"):
                relay.take_unmasking(self.sites[name].unmask(relay.confirmed()))
        return relay.open()

    def check(self, total: Sum, offer: Offer) -> None:
        """The sum is that of the survivors' inputs, to the bit."""
        coordinates, counters = self.expected(offer, total.survivors)
        assert total.coordinates.tolist() == coordinates
        assert total.counters.tolist() == counters


@pytest.fixture
def consortium() -> Callable[..., Consortium]:
    """Makes consortia."""
    return Consortium
