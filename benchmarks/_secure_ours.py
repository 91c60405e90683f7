"""One attempt of Wardround's secure aggregation under the clock, for secure_aggregation.py.

A few sites are real (`SecureSite`) and measured; so is the relay. The rest are extras: they make the messages
that a site makes, over real keys, and check nothing. An extra leaves out the masks between two extras that
both stay: these cancel in the sum, so that the relay has the same bytes to add and the same masks to remove.
What the relay opens is compared with the plain sum of all ring integers, to the bit.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property, partial
from typing import Any, TypeVar

import numpy as np
from _secure_case import MOST_WEIGHT, NORM, Case, Clock, middle, peak_bytes, repeated
from _secure_extras import Extra
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from wardround.core.packed import Array
from wardround.privacy.packing import packed_size, word_of
from wardround.privacy.quantisation import Scale, dequantise, quantise, scale_for
from wardround.privacy.secagg import masks as masking
from wardround.privacy.secagg import messages as wire
from wardround.privacy.secagg import transcript
from wardround.privacy.secagg.admission import Member, SiteState
from wardround.privacy.secagg.hashing import digest
from wardround.privacy.secagg.identity import KeySigner, Roster
from wardround.privacy.secagg.offer import Offer, SignedOffer, Wire
from wardround.privacy.secagg.policy import SecurePolicy
from wardround.privacy.secagg.relay import Relay
from wardround.privacy.secagg.secret import Secret
from wardround.privacy.secagg.site import SecureSite
from wardround.privacy.secagg.total import Sum, centred

COUNTERS = 16
BYTES_FOR_THE_CEILING = 1 << 28
PLAN, BROADCAST, LAYOUT = digest("plan"), digest("broadcast"), digest("layout")
W = TypeVar("W", bound=Wire)


def scale_of(case: Case) -> Scale:
    """The finest scale that fits."""
    return scale_for(
        bits=case.bits, largest=case.largest, norm=NORM, most_weight=MOST_WEIGHT, sites=case.sites
    )


class Forgetful:
    """A record in memory: a disk's time is none of the protocol's."""

    def __init__(self) -> None:
        self.state = SiteState()

    def load(self) -> SiteState:
        """The last state."""
        return self.state

    def save(self, state: SiteState) -> None:
        """Keep it."""
        self.state = state


@dataclass
class Client:
    """A real site, and what it hears and says as bytes."""

    name: str
    site: SecureSite
    offer: Offer
    clock: Clock = field(default_factory=Clock)
    up: int = 0
    down: int = 0

    def hears(self, phase: str, data: bytes, model: type[W], answer: Callable[[W], Wire]) -> bytes:
        """One exchange, with the decoding and encoding of its messages."""
        with self.clock.lap(phase):
            said = wire.encode(answer(wire.decode(data, model, self.offer)))
        self.down += len(data)
        self.up += len(said)
        return said


class Cohort:
    """All sites and the relay, taken through one attempt."""

    def __init__(self, case: Case, measured: int) -> None:
        self.case, self.scale = case, scale_of(case)
        signers = {f"site_{i:04}": KeySigner.fresh() for i in range(case.sites)}
        self.names = tuple(signers)
        roster, server = Roster({name: signer.public for name, signer in signers.items()}), KeySigner.fresh()
        self.offer = Offer(
            run_id="benchmark", round=1, plan=PLAN, roster=roster.digest, broadcast=BROADCAST, layout=LAYOUT,
            counters_layout=LAYOUT, cohort=self.names, threshold=case.threshold, degree=case.degree,
            share_threshold=case.share_threshold, coordinates=case.parameters, counters=COUNTERS,
            bits=case.bits, scale=self.scale.integers_per_unit, largest=case.largest,
            most_weight=MOST_WEIGHT, most_count=2**40,
        )  # fmt: skip
        self.context = self.offer.context
        self.signed_offer = wire.encode(SignedOffer.by(server, self.offer))
        self.survivors = self.names[: case.sites - case.lost_sites]
        self.clients, self.extras = dict[str, Client](), dict[str, Extra]()
        for name, signer in signers.items():
            if len(self.clients) < measured:
                member = Member(
                    name, signer, roster, server.public, SecurePolicy(), "benchmark", PLAN, Forgetful()
                )
                self.clients[name] = Client(name, SecureSite(member), self.offer)
            else:
                self.extras[name] = Extra(name, signer, self.offer, self.context)
        self.server = Clock()
        self.relay = Relay(self.offer, roster)
        self.keys: dict[str, wire.Advertisement] = {}
        self.plain = np.zeros(case.parameters, dtype=word_of(case.bits))

    @cached_property
    def survived(self) -> bytes:
        """Transcript up to the survivors."""
        return transcript.survived(self.dealt, self.survivors)

    def relayed(self, model: type[W], take: Callable[[W], object], data: bytes, lap: str = "protocol") -> W:
        """The relay takes a message; returned is what it read."""
        with self.server.lap(lap):
            message = wire.decode(data, model, self.offer)
            take(message)
        return message

    def closed(self, close: Callable[[], Wire]) -> bytes:
        """The relay closes a phase: what goes to all."""
        with self.server.lap("protocol"):
            return wire.encode(close())

    def to_deliveries(self) -> dict[str, bytes]:
        """Phases 1 and 2: what each site gets to hear before it masks."""
        for client in self.clients.values():
            advertise = partial(client.site.advertise, broadcast=BROADCAST)
            self._keep(client.hears("advertise", self.signed_offer, SignedOffer, advertise))
        for extra in self.extras.values():
            self._keep(wire.encode(extra.advertise()))
        to_all = self.closed(self.relay.advertised)
        model: type[wire.Advertised | wire.Opened] = wire.Advertised
        openings: dict[str, wire.Opening] = {}
        after = transcript.advertised(self.context, self.keys)
        if self.case.degree:
            said_by = {
                name: client.hears("open graph", to_all, wire.Advertised, client.site.open_graph)
                for name, client in self.clients.items()
            } | {name: wire.encode(extra.open_graph(after)) for name, extra in self.extras.items()}
            for name, said in said_by.items():
                openings[name] = self.relayed(wire.Opening, self.relay.take_opening, said)
            to_all, model = self.closed(self.relay.opened), wire.Opened
        self.graph = transcript.graph_of(self.offer, self.keys, openings)
        self.agreed = transcript.agreed(after, openings)
        for client in self.clients.values():
            said = client.hears("deal", to_all, model, client.site.deal)
            self.relayed(wire.Dealing, self.relay.take_dealing, said)
        for extra in self.extras.values():
            said = wire.encode(extra.deal(self.keys, self.graph, self.agreed))
            self.relayed(wire.Dealing, self.relay.take_dealing, said)
        self.dealt = transcript.dealt(self.agreed, self.names)
        with self.server.lap("protocol"):
            return {name: wire.encode(delivery) for name, delivery in self.relay.deliveries().items()}

    def masked(self, client: Client, delivery: bytes, vector: Array, weight: int) -> tuple[bytes, Array]:
        """A real site's masked vector as bytes, and its ring integers."""
        with client.clock.lap("quantise"):
            integers = quantise(vector, weight, self.scale, np.random.default_rng(0)).integers
        counters = np.full(COUNTERS, weight, dtype=word_of(64))
        said = client.hears(
            "mask", delivery, wire.Delivery,
            lambda message: client.site.mask(message, integers, counters),
        )  # fmt: skip
        return said, integers

    def extra_masked(self, extra: Extra, rng: np.random.Generator) -> bytes:
        """The same of an extra; its ring integers are drawn, and added to the plain sum."""
        word, room = word_of(self.case.bits), int(MOST_WEIGHT * self.case.largest * self.offer.scale)
        integers = rng.integers(0, 2 * room + 1, size=self.case.parameters, dtype=word)
        integers -= word.type(room)
        self.plain += integers
        lanes = {"coordinates": integers, "counters": np.ones(COUNTERS, dtype=word_of(64))}
        alive = set(self.survivors)
        peers = {
            peer: self.keys[peer]
            for peer in self.graph.neighbours[extra.name]
            if peer in self.clients or peer not in alive
        }
        return wire.encode(extra.mask(lanes, peers, self.dealt))

    def to_answers(self, deliveries: Mapping[str, bytes]) -> None:
        """Phases 3 to 5, up to what the relay can open."""
        rng = np.random.default_rng(0)
        for index, name in enumerate(self.survivors):
            if name in self.clients:
                said, integers = self.masked(
                    self.clients[name], deliveries[name], self.case.vector(index), self.case.weight(index)
                )
                self.plain += integers
                del integers
            else:
                said = self.extra_masked(self.extras[name], rng)
            self.relayed(wire.MaskedInput, self.relay.take_masked, said, "add")
            del said
        to_all = self.closed(self.relay.survivors)
        for name in self.survivors:
            if name in self.clients:
                client = self.clients[name]
                said = client.hears("confirm", to_all, wire.Survivors, client.site.confirm)
            else:
                confirmation = wire.Confirmation(site=name, survived=self.survived)
                said = wire.encode(self.extras[name].signed(confirmation))
            self.relayed(wire.Confirmation, self.relay.take_confirmation, said)
        to_all = self.closed(self.relay.confirmed)
        for name in self.survivors:
            if name in self.clients:
                client = self.clients[name]
                said = client.hears("unmask", to_all, wire.Confirmed, client.site.unmask)
            else:
                delivery = wire.decode(deliveries[name], wire.Delivery)
                alive = set(self.survivors)
                answer = self.extras[name].unmask(delivery, self.keys, self.agreed, alive, self.survived)
                said = wire.encode(answer)
            self.relayed(wire.Unmasking, self.relay.take_unmasking, said)

    def opened(self, clock: Clock) -> Sum:
        """The relay's opening."""
        with clock.lap("open"):
            return self.relay.open()

    def _keep(self, said: bytes) -> None:
        message = self.relayed(wire.Advertisement, self.relay.take_advertisement, said)
        self.keys[message.site] = message


def expansions(cohort: Cohort) -> tuple[int, int]:
    """Masks that a client adds (the median), and that the relay takes away."""
    alive = set(cohort.survivors)
    neighbours = cohort.graph.neighbours
    of_lost = sum(len(alive & set(neighbours[name])) for name in cohort.names if name not in alive)
    return 1 + len(neighbours[cohort.names[0]]), len(alive) + of_lost


def ceiling(case: Case) -> float:
    """Seconds for one mask at best: keystream and add, over and over on one piece that stays in the cache."""
    word = word_of(case.bits)
    zeros, stream = bytes(masking.CHUNK), bytearray(masking.CHUNK)
    total, words = np.zeros(masking.CHUNK // word.itemsize, dtype=word), np.frombuffer(stream, dtype=word)
    cipher = Cipher(algorithms.AES(os.urandom(32)), modes.CTR(bytes(16))).encryptor()

    def once(clock: Clock) -> None:
        with clock.lap("all"):
            for _ in range(BYTES_FOR_THE_CEILING // masking.CHUNK):
                cipher.update_into(zeros, stream)
                np.add(total, words, out=total)

    _, clocks = repeated(3, once)
    return middle(clocks).cpu_s * case.parameters * word.itemsize / BYTES_FOR_THE_CEILING


def applied(case: Case, masks: int) -> float:
    """Seconds for so many masks on one vector, by the function that both sides use."""
    vector = np.zeros(case.parameters, dtype=word_of(case.bits))
    keys = [masking.Mask(Secret.fresh(), 1) for _ in range(masks)]

    def once(clock: Clock) -> None:
        with clock.lap("all"):
            masking.apply_masks(vector, keys)

    return middle(repeated(case.repeats, once)[1]).cpu_s


def measure(case: Case) -> dict[str, Any]:
    """One attempt: the sum is right, and what it took."""
    cohort = Cohort(case, min(case.repeats, case.sites - case.lost_sites))
    cohort.to_answers(cohort.to_deliveries())
    total, openings = repeated(case.repeats, cohort.opened)
    assert total.survivors == cohort.survivors
    assert not total.liars
    assert np.array_equal(total.coordinates, centred(cohort.plain, case.bits)), "the sum is not the plain sum"
    clients = list(cohort.clients.values())
    client, opening = middle([client.clock for client in clients]), middle(openings)
    of_client, of_server = expansions(cohort)
    one = ceiling(case)
    del total, cohort.plain, cohort.relay
    return {
        "client": asdict(client),
        "server": asdict(cohort.server.joined(opening)),
        "vector_bytes": packed_size(case.parameters, case.bits),
        "up_bytes": clients[0].up,
        "down_bytes": clients[0].down,
        "masks": {"client": of_client, "server": of_server, "ceiling_s": one * of_client},
        "masking_s": applied(case, of_client),
    }


def memory(case: Case) -> dict[str, Any]:
    """Peak of a client's phases with a vector, in bytes beyond what was there before it; the vector counts.

    The client gives its vector away once it has the ring integers, and keeps these for a repetition.
    """
    cohort = Cohort(case, 1)
    deliveries = cohort.to_deliveries()
    (client,) = cohort.clients.values()
    # What loads late, loads.
    quantise(np.ones(1, dtype=np.float32), 1, cohort.scale, np.random.default_rng(0))
    before, peaks = peak_bytes(), {}
    vector = case.vector(0)
    peaks["vector"] = peak_bytes() - before
    integers = quantise(vector, case.weight(0), cohort.scale, np.random.default_rng(0)).integers
    del vector
    peaks["quantise"] = peak_bytes() - before
    counters = np.ones(COUNTERS, dtype=word_of(64))
    masked = client.site.mask(wire.decode(deliveries[client.name], wire.Delivery), integers, counters)
    peaks["mask"] = peak_bytes() - before
    said = wire.encode(masked)
    peaks["encode"] = peak_bytes() - before
    assert len(said) > packed_size(case.parameters, case.bits)
    return {"peak_bytes": peaks}


def mean(case: Case) -> tuple[Array, float]:
    """The mean, all sites real, and the error that the ring may add to it."""
    cohort = Cohort(case, case.sites)
    cohort.to_answers(cohort.to_deliveries())
    total = cohort.opened(Clock())
    weight = int(total.counters[0])
    return dequantise(total.coordinates, cohort.scale) / weight, cohort.scale.error_of_mean(weight)
