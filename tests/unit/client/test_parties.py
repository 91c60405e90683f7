"""A site's side of its sums: what it refuses, what it keeps, and what it adds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from toy_plans import toy_plan

from wardround.client.parties import Parties, contribution, counts, scores_only
from wardround.core.counting import TRAINING_LAYOUT, metric_counters, training_counters
from wardround.core.errors import PeerError, PolicyError, TrainingError
from wardround.core.messages import Request
from wardround.core.packed import Layout, TensorSpec
from wardround.core.plan import (
    DataContract,
    Encoding,
    SecureRules,
    TrainingPlan,
)
from wardround.core.seeds import Purpose, generator
from wardround.privacy.packing import unpack
from wardround.privacy.quantisation import dequantise
from wardround.privacy.secagg.hashing import digest
from wardround.privacy.secagg.messages import Advertisement, MaskedInput, decode, encode
from wardround.privacy.secagg.offer import Offer, SignedOffer
from wardround.privacy.secagg.policy import SecurePolicy
from wardround.privacy.secagg.total import centred
from wardround.privacy.sums.aggregation import Aggregation
from wardround.privacy.sums.contract import EVALUATION, TRAINING, Lanes
from wardround.privacy.sums.offers import offer_of, scale_of
from wardround.simulations.consortium import Consortium

LAYOUT = Layout(tensors=(TensorSpec(name="a", shape=(2, 4)),))
BROADCAST = digest("broadcast")
SITES = tuple("abcdefg")
MODES = pytest.mark.parametrize("mode", ["off", "accounted", "real"])
EVERY_MODE = SecurePolicy(modes=("real", "accounted", "off"))


def plan_of(mode: Any = "off", **changes: Any) -> TrainingPlan:
    """A plan; `changes` replace whole sections."""
    sections: dict[str, Any] = {
        "data": DataContract(columns={"text": "t", "label": "l"}, labels=("no", "yes")),
        "encoding": Encoding(largest=2.0, most_weight=50),
        "secure": SecureRules(mode=mode),
    }
    return toy_plan(layout=LAYOUT, **(sections | changes))


class Side:
    """Site `a` of seven, and a server that signs what it is told to."""

    def __init__(self, mode: Any = "off", policy: SecurePolicy = EVERY_MODE) -> None:
        self.plan = plan_of(mode)
        self.consortium = Consortium.of(SITES, policy)
        self.aggregation = Aggregation(mode, self.consortium.server, self.consortium.roster(self.plan))
        self.parties = self.restarted()

    def restarted(self) -> Parties:
        """The site in another process, that has forgotten everything."""
        return self.consortium.parties("a", self.plan, "run")

    def offer(self, name: str = TRAINING, **changes: Any) -> Offer:
        """What the server proposes; `changes` are in it as they are, whatever the plan says."""
        place = {"round": 1, "stage": 0, "attempt": 0}
        fields = place | {key: changes.pop(key) for key in list(changes) if key in place}
        honest = offer_of(
            self.plan, name=name, run_id="run", cohort=SITES, roster=self.aggregation.roster.digest,
            broadcast=BROADCAST, statistics=LAYOUT, **fields,
        )  # fmt: skip
        return honest.model_copy(update=changes)

    def request(self, *offers: Offer, **changes: Any) -> Request:
        """The request that brings these offers, each under its own sum's name."""
        first = offers[0]
        sums = {
            offer.run_id.rpartition("/")[2]: encode(SignedOffer.by(self.consortium.server, offer))
            for offer in offers
        }
        fields: dict[str, Any] = {
            "run_id": "run", "plan_digest": self.plan.digest, "round": first.round, "site": "a",
            "sums": sums, "stage": first.stage, "attempt": first.attempt,
        }  # fmt: skip
        return Request(**(fields | changes))

    def check(
        self, offer: Offer, name: str = TRAINING, broadcast: bytes = BROADCAST, **changes: Any
    ) -> Offer:
        """The site's check of one offer."""
        sums = {name: encode(SignedOffer.by(self.consortium.server, offer))}
        request = self.request(offer, **({"sums": sums} | changes))
        return self.parties.check(name, request, self.plan, "run", LAYOUT, broadcast)

    def lanes(self, offer: Offer, weight: int = 12) -> Lanes:
        """A contribution."""
        update = np.linspace(-1, 1, LAYOUT.size)
        counters = training_counters(weight=weight, loss_sum=3.0, targets=5)
        return contribution(update, counters, weight, offer, self.plan, "a")[0]


@MODES
@pytest.mark.parametrize("name", [TRAINING, EVALUATION])
def test_the_servers_own_offer_passes(mode: str, name: str) -> None:
    """The twin of the refusals below; a check remembers nothing."""
    side = Side(mode)
    offer = side.offer(name)
    assert side.check(offer, name) == side.check(offer, name) == offer


ALTERED: dict[str, Callable[[Side], dict[str, Any]]] = {
    "round": lambda side: {"round": 2},
    "stage": lambda side: {"stage": 1},
    "attempt": lambda side: {"attempt": 1},
    "run": lambda side: {"run_id": "run/evaluation"},
    "plan": lambda side: {"plan": digest("another")},
    "roster": lambda side: {"roster": digest("another")},
    "broadcast": lambda side: {"broadcast": digest("another")},
    "layout": lambda side: {"layout": digest("another")},
    "counters_layout": lambda side: {"counters_layout": digest("another")},
    "cohort": lambda side: {"cohort": SITES[:-1]},
    "stranger": lambda side: {"cohort": (*SITES[:-1], "z")},
    "without it": lambda side: {"cohort": SITES[1:]},
    "unsorted": lambda side: {"cohort": SITES[::-1]},
    "threshold": lambda side: {"threshold": 6},
    "degree": lambda side: {"degree": 4},
    "share_threshold": lambda side: {"share_threshold": 3},
    "coordinates": lambda side: {"coordinates": LAYOUT.size + 1},
    "counters": lambda side: {"counters": 4},
    "bits": lambda side: {"bits": 32},
    "scale": lambda side: {"scale": side.offer().scale / 2},
    "largest": lambda side: {"largest": 1.0},
    "most_weight": lambda side: {"most_weight": 49},
    "most_count": lambda side: {"most_count": 2**40},
}
REASON = {
    "round": "for another request", "stage": "for another request|in its middle",
    "attempt": "for another request", "run": "another run", "plan": "another plan",
    "roster": "another roster", "broadcast": "another broadcast",
    "cohort": "not what the plan says", "stranger": "no confirmed member",
    "without it": "no confirmed member", "unsorted": "not sorted",
    "degree": "without the other", "share_threshold": "without the other",
}  # fmt: skip
"""What says so; of all others that the offer is not what the plan says, and the field's name."""


@MODES
@pytest.mark.parametrize("kind", sorted(ALTERED))
def test_an_offer_with_any_altered_field_is_refused_by_name(mode: str, kind: str) -> None:
    """Though the server signed it, before any work is done for it, and the site is as before."""
    side = Side(mode)
    honest, altered = side.offer(), side.offer(**ALTERED[kind](side))
    place = {"round": 1, "stage": 0, "attempt": 0}
    reason = REASON.get(kind, f"not what the plan says\n  found: another {kind.replace('_', ' ')}\n")
    with pytest.raises(PeerError, match=reason):
        side.check(altered, **place)
    side.check(honest)


def test_an_offer_is_for_the_request_that_brings_it() -> None:
    """Round, stage and attempt of the offer and of the request are the same."""
    side = Side()
    for place in ({"round": 2}, {"attempt": 1}, {"stage": 1}):
        with pytest.raises(PeerError, match="for another request"):
            side.check(side.offer(), **place)


def test_an_offer_that_somebody_else_signed_is_refused() -> None:
    """A member is no server."""
    side = Side()
    sums = {TRAINING: encode(SignedOffer.by(side.consortium.signers["b"], side.offer()))}
    with pytest.raises(PeerError, match="signature of 'the server'"):
        side.check(side.offer(), sums=sums)


def test_a_mode_that_the_sites_policy_does_not_allow_gets_no_party() -> None:
    """So that nothing is ever sent in it."""
    for mode in ("off", "accounted"):
        with pytest.raises(PolicyError, match=f"secure.mode={mode}"):
            Side(mode, SecurePolicy())


@pytest.mark.parametrize("mode", ["accounted", "real"])
def test_a_cohort_that_the_sites_policy_refuses_is_refused_before_any_work(mode: str) -> None:
    """In the policy's words; without secure sums the size of a cohort protects nothing."""
    policy = EVERY_MODE.model_copy(update={"least_cohort": 8})
    side = Side(mode, policy)
    with pytest.raises(PolicyError, match=r"(?s)smaller than this site's policy.*7 sites.*at least 8"):
        side.check(side.offer())
    plain = Side("off", policy)
    plain.check(plain.offer())


def nothing(_: Lanes) -> None:
    """Where nobody wants to know that a contribution is kept."""


def plain_lanes(message: bytes, offer: Offer) -> tuple[list[int], list[int]]:
    """What a message under no mask adds."""
    vector = decode(message, MaskedInput, offer)
    coordinates = unpack(vector.coordinates, offer.coordinates, offer.bits)
    return coordinates.tolist(), unpack(vector.counters, offer.counters, 64).tolist()


def test_what_was_kept_is_sent_again_lane_for_lane() -> None:
    """In attempts 1 and 2, without training: the coordinates are not rounded anew, nothing else changes."""
    side = Side()
    first = side.offer()
    lanes = side.lanes(first)
    sent = plain_lanes(side.parties.begin(TRAINING, side.request(first), BROADCAST, lanes, nothing), first)
    assert sent == (lanes.coordinates.tolist(), lanes.counters.tolist())
    for attempt in (1, 2):
        offer = side.offer(attempt=attempt)
        request = side.request(offer)
        assert side.parties.broadcast_of(TRAINING, request) == BROADCAST
        side.parties.check(TRAINING, request, side.plan, "run", LAYOUT, BROADCAST)
        assert plain_lanes(side.parties.again(TRAINING, request, BROADCAST, nothing), offer) == sent
    assert side.parties.kept[TRAINING][1] is lanes


def test_under_masks_what_was_kept_goes_in_again_under_fresh_keys() -> None:
    """The attempt has keys and commitments of its own."""
    side = Side("real")
    first = side.offer()
    lanes = side.lanes(first)
    before = decode(
        side.parties.begin(TRAINING, side.request(first), BROADCAST, lanes, nothing), Advertisement
    )
    request = side.request(side.offer(attempt=1))
    after = decode(side.parties.again(TRAINING, request, BROADCAST, nothing), Advertisement)
    for name in ("channel_key", "mask_key", "commitment", "graph_commitment"):
        assert getattr(before, name) != getattr(after, name)
    assert side.parties.parties[TRAINING]._lanes is lanes  # type: ignore[attr-defined]  # a PhasedParty's


@MODES
def test_where_nothing_is_kept_another_attempt_is_a_named_failure(mode: str) -> None:
    """Nothing at all, of another round, of another stage, of the other sum: the site says so."""
    side = Side(mode)
    asked = side.request(side.offer(round=2, attempt=1))
    with pytest.raises(TrainingError) as caught:
        side.parties.broadcast_of(TRAINING, asked)
    assert caught.value.code == "nothing_kept"
    first = side.offer()
    side.parties.begin(TRAINING, side.request(first), BROADCAST, side.lanes(first), nothing)
    for name, place in ((TRAINING, {"round": 2}), (TRAINING, {"stage": 1}), (EVALUATION, {})):
        with pytest.raises(TrainingError) as caught:
            side.parties.broadcast_of(name, side.request(side.offer(attempt=1), **place))
        assert caught.value.code == "nothing_kept"
    assert side.parties.broadcast_of(TRAINING, side.request(side.offer(attempt=1))) == BROADCAST


@MODES
def test_an_offer_that_is_not_newer_is_refused(mode: str) -> None:
    """Asked twice in one attempt, a site would mask one vector under two keys; an older one is a replay."""
    side = Side(mode)
    offer = side.offer(round=2, attempt=1) if mode == "off" else side.offer(round=2)
    side.parties.begin(TRAINING, side.request(offer), BROADCAST, side.lanes(offer), nothing)
    for old in (offer, side.offer(round=1)):
        with pytest.raises(PeerError, match="not newer than the last one"):
            side.parties.check(TRAINING, side.request(old), side.plan, "run", LAYOUT, BROADCAST)
    newer = side.offer(round=3)
    side.parties.check(TRAINING, side.request(newer), side.plan, "run", LAYOUT, BROADCAST)


def test_a_weight_above_the_plan_is_refused_by_name() -> None:
    """The largest one passes."""
    side = Side()
    offer = side.offer()
    side.lanes(offer, 50)
    with pytest.raises(
        TrainingError, match=r"(?s)weighs more.*found: 51.*at most 50.*encoding\.most_weight"
    ) as caught:
        side.lanes(offer, 51)
    assert caught.value.code == "weight_above_plan"


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_contribution_that_is_not_finite_is_refused_by_name(value: float) -> None:
    """With the count of what is wrong, and no value."""
    side = Side()
    update = np.zeros(LAYOUT.size)
    update[3] = value
    with pytest.raises(TrainingError, match="1 of 8 values") as caught:
        contribution(update, training_counters(weight=3), 3, side.offer(), side.plan, "a")
    assert caught.value.code == "non_finite_contribution"


def test_a_contribution_is_the_weighted_statistics_at_the_cohorts_scale() -> None:
    """To the quantum; what the bounds did to it is told, and the counters ride along."""
    side = Side()
    offer, update = side.offer(), np.linspace(-1, 3, LAYOUT.size)
    counters = training_counters(weight=12, loss_sum=3.0, targets=5)
    lanes, quantised = contribution(update, counters, 12, offer, side.plan, "a")
    scale = scale_of(side.plan.encoding, len(SITES))
    back = dequantise(centred(lanes.coordinates, 16), scale) / 12
    np.testing.assert_allclose(back, np.minimum(update, 2.0), rtol=0, atol=scale.quantum / 12)
    assert (quantised.clipped, quantised.shortened_by) == (2, 1.0)
    assert lanes.counters.tolist() == counters.vector.tolist()
    assert lanes.counters.dtype == np.uint64


def test_the_rounding_is_of_round_site_and_stage_alone() -> None:
    """Asked again, also in another attempt, a site sends the same integers; any two of them differ else."""
    side = Side()

    def integers(site: str = "a", **place: int) -> list[int]:
        update, counters = np.full(LAYOUT.size, 0.3), training_counters(weight=7)
        return contribution(update, counters, 7, side.offer(**place), side.plan, site)[0].coordinates.tolist()

    assert integers() == integers() == integers(attempt=2)
    others = [integers(), integers("b"), integers(round=2), integers(stage=1), integers("b", stage=1)]
    assert len({tuple(one) for one in others}) == len(others)
    rng = generator(side.plan.seed, Purpose.ROUNDING, round=1, site="a")
    scaled = 0.3 * 7 * scale_of(side.plan.encoding, 7).integers_per_unit
    assert integers() == np.floor(scaled + rng.random(LAYOUT.size)).astype(int).tolist()


def test_an_evaluation_adds_counters_and_no_coordinates() -> None:
    """Those of the plan's metric family."""
    counters = metric_counters(plan_of(), {"examples": np.int64(9)})
    lanes = scores_only(counters)
    assert lanes.coordinates.size == 0
    assert lanes.counters.tolist() == counts(counters).tolist() == counters.vector.tolist()
    assert TRAINING_LAYOUT.size == 3


@MODES
def test_a_phase_that_nobody_began_is_refused(mode: str) -> None:
    """Also by a site whose process is a new one."""
    side = Side(mode)
    with pytest.raises(PeerError, match="a phase is asked for"):
        side.parties.step(TRAINING, side.request(side.offer(), exchange=1))
    first = side.offer()
    side.parties.begin(TRAINING, side.request(first), BROADCAST, side.lanes(first), nothing)
    with pytest.raises(PeerError, match="a phase is asked for"):
        side.restarted().step(TRAINING, side.request(first, exchange=1))


def test_the_seconds_of_each_sum_are_told_once() -> None:
    """By the sum's name, also where a phase was refused."""
    side = Side("real")
    first = side.offer()
    assert side.parties.spent() == {}
    side.parties.begin(TRAINING, side.request(first), BROADCAST, side.lanes(first), nothing)
    with pytest.raises(PeerError):
        side.parties.step(EVALUATION, side.request(side.offer(EVALUATION), exchange=1))
    spent = side.parties.spent()
    assert set(spent) == {"seconds.training", "seconds.evaluation"}
    assert min(spent.values()) >= 0
    assert side.parties.spent() == {}
