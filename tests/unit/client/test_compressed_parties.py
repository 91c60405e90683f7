"""Compressed contributions through both sides of a sum: what adds up, and what is refused by name."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from toy_plans import toy_plan

from wardround.client.parties import Parties, compressed_contribution
from wardround.core.compression import Blocks, TopK
from wardround.core.counting import WEIGHT, training_counters
from wardround.core.errors import ConfigError, InternalError, PeerError, TrainingError
from wardround.core.messages import Request
from wardround.core.packed import Layout, TensorSpec
from wardround.core.plan import Encoding, SecureRules, TrainingPlan
from wardround.privacy.compression import compressed_size, decompress
from wardround.privacy.quantisation import dequantise
from wardround.privacy.secagg.hashing import digest
from wardround.privacy.secagg.messages import encode
from wardround.privacy.secagg.offer import Offer, SignedOffer
from wardround.privacy.secagg.policy import SecurePolicy
from wardround.privacy.sums.aggregation import Aggregation, party
from wardround.privacy.sums.contract import TRAINING, Lanes
from wardround.privacy.sums.form import Form
from wardround.privacy.sums.offers import offer_of, scale_of
from wardround.privacy.sums.opened import statistics_of
from wardround.privacy.sums.trusted import simulated_aggregator
from wardround.simulations.consortium import Consortium

LAYOUT = Layout(tensors=(TensorSpec(name="a", shape=(30, 20)),))
BROADCAST = digest("broadcast")
SITES = tuple("abcde")
KEY = simulated_aggregator(7).public.hex()
FORMS = {"int8": Blocks(), "int4": Blocks(bits=4), "top_k": TopK(share=0.1)}
SEEN = pytest.mark.parametrize("mode", ["off", "trusted"])
EVERY = pytest.mark.parametrize("form", FORMS)


def plan_of(mode: str, form: Any, **bounds: Any) -> TrainingPlan:
    """A plan of this form."""
    key = KEY if mode == "trusted" else None
    return toy_plan(
        layout=LAYOUT,
        encoding=Encoding(**({"largest": 2.0, "most_weight": 50, "compression": form} | bounds)),
        secure=SecureRules(mode=mode, aggregator=key),  # type: ignore[arg-type]  # one of the modes
    )


class Sides:
    """Five sites, and whoever sees their contributions."""

    def __init__(self, mode: str, form: Any, **bounds: Any) -> None:
        self.plan = plan_of(mode, form, **bounds)
        self.consortium = Consortium.of(SITES, SecurePolicy(modes=("off", "trusted"), aggregator=KEY))
        self.aggregation = self.consortium.aggregation(self.plan)
        self.parties = {site: self.consortium.parties(site, self.plan, "run") for site in SITES}
        self.offer: Offer = offer_of(
            self.plan, name=TRAINING, run_id="run", round=1, stage=0, attempt=0, cohort=SITES,
            roster=self.aggregation.roster.digest, broadcast=BROADCAST, statistics=LAYOUT,
        )  # fmt: skip
        self.collector = self.aggregation.collector(TRAINING, self.offer, quorum=1)

    def update(self, site: str) -> np.ndarray:
        """A site's own."""
        return 0.1 * np.random.default_rng([*site.encode()]).standard_normal(LAYOUT.size)

    def lanes(self, site: str, weight: int = 12) -> Lanes:
        """Its contribution."""
        counters = training_counters(weight=weight, loss_sum=3.0, targets=5)
        found = compressed_contribution(
            self.update(site), counters, weight, self.offer, self.plan, site, None
        )
        return found[0]

    def sent(self, site: str, lanes: Lanes) -> bytes:
        """What the site answers."""
        sums = {TRAINING: encode(SignedOffer.by(self.consortium.server, self.offer))}
        request = Request("run", self.plan.digest, 1, site, sums)
        parties: Parties = self.parties[site]
        parties.check(TRAINING, request, self.plan, "run", LAYOUT, BROADCAST)
        return parties.begin(TRAINING, request, BROADCAST, lanes, lambda _: None)


@SEEN
@EVERY
def test_the_sum_is_that_of_what_was_sent_to_a_quantum(mode: str, form: str) -> None:
    """Weighted by the counter beside it; the message is as long as the form says, with its head."""
    sides, spec, weights = Sides(mode, FORMS[form]), FORMS[form], dict(zip(SITES, range(10, 15), strict=True))
    expected = np.zeros(LAYOUT.size)
    for site in SITES[::-1]:
        lanes = sides.lanes(site, weights[site])
        expected += weights[site] * decompress(lanes.coordinates.data, LAYOUT.size, spec, 2.0)
        message = sides.sent(site, lanes)
        assert compressed_size(LAYOUT.size, spec) < len(message) < compressed_size(LAYOUT.size, spec) + 1500
        sides.collector.take(site, message)
    sides.collector.close()
    total = sides.collector.open()
    statistics, counters = statistics_of(total, LAYOUT, sides.plan.encoding, cohort=5)
    scale = scale_of(sides.plan.encoding, 5)
    assert np.abs(statistics.vector - expected).max() < 5 * scale.quantum
    assert np.array_equal(statistics.vector, dequantise(total.coordinates, scale))
    assert counters[WEIGHT] == sum(weights.values())


def test_in_any_order_and_either_mode_the_sum_has_the_same_bits() -> None:
    """What the aggregator draws follows from the seed, the round and the site alone."""
    found = []
    for mode, order in (("off", SITES), ("off", SITES[::-1]), ("trusted", "cabed")):
        sides = Sides(mode, FORMS["int4"])
        for site in order:
            sides.collector.take(site, sides.sent(site, sides.lanes(site)))
        found.append(sides.collector.open().coordinates)
    assert all(np.array_equal(found[0], other) for other in found[1:])


def altered(lanes: Lanes, **changes: Any) -> Lanes:
    """The same lanes with other bytes."""
    octets, counters = lanes.coordinates.copy(), lanes.counters.copy()
    for place, value in changes.pop("octets", {}).items():
        octets[place] = value
    if "weight" in changes:
        counters[0] = changes["weight"]
    return Lanes(octets[: changes.get("cut", octets.size)], counters)


@SEEN
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"octets": {0: 0}}, "another form or version"),
        ({"octets": {24: 255}}, "not finite|negative"),
        ({"octets": {24: 70}}, "above the plan's bound"),
        ({"weight": 0}, "weight is out of bounds"),
        ({"weight": 51}, "weight is out of bounds"),
    ],
)
def test_a_hostile_contribution_is_refused_and_the_others_count(
    mode: str, changes: Any, message: str
) -> None:
    """By name; nothing of it is in the sum."""
    sides = Sides(mode, FORMS["int8"])
    lanes = altered(sides.lanes("a"), **changes)
    with pytest.raises(PeerError, match=message):
        sides.collector.take("a", sides.sent("a", lanes))
    sides.collector.take("b", sides.sent("b", sides.lanes("b")))
    assert sides.collector.open().survivors == ("b",)


def test_another_length_is_refused_on_either_side() -> None:
    """A sealed one does not leave; one in the clear does not arrive, in the ring's form neither."""
    sides, sealed = Sides("off", FORMS["int8"]), Sides("trusted", FORMS["int8"])
    with pytest.raises(InternalError, match="not as long as their header"):
        sealed.sent("a", altered(sealed.lanes("a"), cut=100))
    with pytest.raises(PeerError, match="wrong length"):
        sides.collector.take("a", sides.sent("a", altered(sides.lanes("a"), cut=100)))
    in_ring = Lanes(np.zeros(LAYOUT.size, "<u2"), sides.lanes("b").counters)
    with pytest.raises(PeerError, match="wrong length"):
        sides.collector.take("b", sides.sent("b", in_ring))


def test_what_is_longer_than_the_norm_is_refused_and_no_honest_site_sends_it() -> None:
    """Though no coordinate is too large; `statistics_of` could only see it in the sum."""
    sides = Sides("off", Blocks(bits=4), norm=0.2)
    sides.collector.take("a", sides.sent("a", sides.lanes("a")))
    loose = Sides("off", Blocks(bits=4)).lanes("b")
    with pytest.raises(PeerError, match="beyond the plan's bounds"):
        sides.collector.take("b", sides.sent("b", loose))


def test_masked_sums_get_no_compressed_contributions() -> None:
    """Neither side is made; and whoever compresses without the plan has a fault."""
    plan, consortium = plan_of("real", FORMS["int8"]), Consortium.of(SITES, SecurePolicy())
    with pytest.raises(ConfigError, match="masks add up in the ring alone"):
        Aggregation("real", consortium.server, consortium.roster(plan), form=Form.of(plan))
    member: Any = type("Member", (), {"policy": SecurePolicy(modes=("real",))})()
    with pytest.raises(ConfigError, match="masks add up in the ring alone"):
        party(plan.secure, member, Form.of(plan))
    sides = Sides("off", FORMS["int8"])
    with pytest.raises(TrainingError, match="weighs more"):
        sides.lanes("a", 51)
    plain = plan_of("off", None)
    counters = training_counters(weight=1)
    with pytest.raises(InternalError, match="says of none how"):
        compressed_contribution(sides.update("a"), counters, 1, sides.offer, plain, "a", None)
