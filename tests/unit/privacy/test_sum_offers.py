"""What plan and cohort say of a sum: what a site refuses, and what is refused before anything is trained."""

from __future__ import annotations

from typing import Any

import pytest
from toy_plans import toy_plan

from wardround.core.counting import TRAINING_LAYOUT, metric_layout, most_count
from wardround.core.errors import ConfigError, PeerError, PolicyError
from wardround.core.packed import Layout, TensorSpec
from wardround.core.plan import (
    DataContract,
    Encoding,
    ReleaseRule,
    SecureRules,
    TrainingPlan,
)
from wardround.privacy.secagg.hashing import digest
from wardround.privacy.secagg.offer import Offer
from wardround.privacy.secagg.policy import SecurePolicy
from wardround.privacy.sums.contract import EVALUATION, SUMS, TRAINING
from wardround.privacy.sums.offers import check_offer, check_sites, offer_of, run_of

LAYOUT = Layout(tensors=(TensorSpec(name="a", shape=(2, 4)),))
COHORT = tuple("abcdefg")


def plan_of(**changes: Any) -> TrainingPlan:
    """A plan whose sums are secure; `changes` replace whole sections."""
    sections: dict[str, Any] = {
        "data": DataContract(columns={"text": "t", "label": "l"}, labels=("no", "yes")),
        "encoding": Encoding(largest=2.0, norm=3.0, most_weight=50),
    }
    return toy_plan(layout=LAYOUT, **(sections | changes))


def proposed(
    plan: TrainingPlan, name: str = TRAINING, cohort: tuple[str, ...] = COHORT, **place: int
) -> Offer:
    """What an honest server proposes."""
    return offer_of(
        plan, name=name, run_id="run", cohort=cohort, roster=digest("roster"), broadcast=digest("broadcast"),
        statistics=LAYOUT, **({"round": 2, "stage": 0, "attempt": 1} | place),
    )  # fmt: skip


def test_an_offer_follows_from_plan_and_cohort() -> None:
    """Lanes, bounds and threshold; the evaluation has counters alone."""
    plan = plan_of()
    training, evaluation = (proposed(plan, name) for name in SUMS)
    for offer in (training, evaluation):
        offer.check()
        assert (offer.threshold, offer.degree, offer.share_threshold) == (5, 0, 0)
        assert offer.most_count == most_count(7)
        assert offer.place == (2, 0, 1)
    assert (training.coordinates, training.counters) == (LAYOUT.size, TRAINING_LAYOUT.size)
    assert (training.bits, training.largest, training.most_weight) == (16, 2.0, 50)
    assert (evaluation.coordinates, evaluation.counters) == (0, metric_layout(plan).size)
    assert training.run_id == run_of("run", TRAINING) != evaluation.run_id


@pytest.mark.parametrize(
    ("sites", "rules", "found"),
    [
        (7, {}, (5, 0, 0)),
        (7, {"threshold": 6}, (6, 0, 0)),
        (12, {"complete_to": 10, "degree": 6, "share_threshold": 4}, (9, 6, 4)),
        (10, {"complete_to": 10, "degree": 6, "share_threshold": 4}, (7, 0, 0)),
    ],
)
def test_threshold_and_graph_are_the_plans(
    sites: int, rules: dict[str, int], found: tuple[int, int, int]
) -> None:
    """Two thirds and one more where it says nothing; a drawn graph above `complete_to` alone."""
    cohort = tuple(f"site_{index:02}" for index in range(sites))
    offer = proposed(plan_of(secure=SecureRules(**rules)), cohort=cohort)
    assert (offer.threshold, offer.degree, offer.share_threshold) == found


ALTERED: dict[str, Any] = {
    "run_id": "run/other",
    "plan": digest("another plan"),
    "layout": digest("another layout"),
    "counters_layout": digest("another layout of counters"),
    "threshold": 4,
    "degree": 4,
    "share_threshold": 3,
    "coordinates": LAYOUT.size + 1,
    "counters": TRAINING_LAYOUT.size + 1,
    "bits": 32,
    "scale": 7.0,
    "largest": 1.5,
    "most_weight": 49,
    "most_count": 2**40,
}
OF_THE_ATTEMPT = {"round", "stage", "attempt", "roster", "broadcast", "cohort"}
"""What no plan knows: a site holds them against its request, its roster and what it was really sent
(`tests/unit/client/test_parties.py`)."""


def test_every_field_of_an_offer_is_held_against_something() -> None:
    """A new one has to be added here, or to what a site holds against its request."""
    assert set(ALTERED) | OF_THE_ATTEMPT == set(Offer.model_fields) - {"protocol"}
    assert not set(ALTERED) & OF_THE_ATTEMPT


@pytest.mark.parametrize("name", SUMS)
def test_the_honest_offer_passes(name: str) -> None:
    """In every stage and attempt; the twin of the test below."""
    plan = plan_of()
    for place in ({}, {"round": 5, "attempt": 2}, {"stage": 1}):
        check_offer(proposed(plan, name, **place), plan, name=name, run_id="run", statistics=LAYOUT)


@pytest.mark.parametrize("name", SUMS)
@pytest.mark.parametrize("field", sorted(ALTERED))
def test_an_offer_that_is_not_what_the_plan_says_is_refused_by_the_fields_name(field: str, name: str) -> None:
    """Whatever is altered, and in either sum."""
    plan = plan_of()
    offer = proposed(plan, name)
    value = ALTERED[field]
    assert getattr(offer, field) != value
    with pytest.raises(
        PeerError, match=f"not what the plan says\n  found: another {field.replace('_', ' ')}\n"
    ):
        check_offer(offer.model_copy(update={field: value}), plan, name=name, run_id="run", statistics=LAYOUT)


def test_a_cohort_of_another_size_changes_what_the_plan_says() -> None:
    """The scale is that of the whole cohort: a site left out of it does not go unseen beside the old one."""
    plan = plan_of()
    smaller = proposed(plan).model_copy(update={"cohort": COHORT[:-1]})
    with pytest.raises(PeerError, match="found: another"):
        check_offer(smaller, plan, name=TRAINING, run_id="run", statistics=LAYOUT)


def test_the_offer_of_one_sum_is_not_that_of_the_other() -> None:
    """Sums of two names never meet."""
    plan = plan_of()
    for name, other in (SUMS, SUMS[::-1]):
        with pytest.raises(PeerError, match="found: another run id"):
            check_offer(proposed(plan, name), plan, name=other, run_id="run", statistics=LAYOUT)


def test_a_cohort_that_no_scale_fits_is_refused_by_server_and_site() -> None:
    """The server as a fault of the configuration, the site as one of the message."""
    plan = plan_of()
    many = tuple(f"s{index:05}" for index in range(20_000))
    with pytest.raises(ConfigError, match=r"(?s)no scale.*encoding\.bits"):
        proposed(plan, cohort=many)
    offer = proposed(plan).model_copy(update={"cohort": many})
    with pytest.raises(PeerError, match="no scale"):
        check_offer(offer, plan, name=TRAINING, run_id="run", statistics=LAYOUT)


EVERY_MODE = SecurePolicy(modes=("real", "accounted", "off"))


def checked(plan: TrainingPlan, policy: SecurePolicy, sites: int, cohort: int) -> None:
    """The check of a plan's own rules and ring."""
    check_sites(plan.secure, plan.encoding, policy, sites=sites, cohort=cohort)


@pytest.mark.parametrize("mode", ["real", "accounted"])
def test_a_cohort_that_is_too_small_is_refused_in_the_policys_words(mode: Any) -> None:
    """Four sites, or four of eight a round: before anything is trained. In the open nobody minds."""
    plan = plan_of(secure=SecureRules(mode=mode))
    for sites, cohort in ((4, 4), (8, 4)):
        with pytest.raises(PolicyError, match=r"(?s)smaller than this site's policy.*4 sites.*at least 5"):
            checked(plan, EVERY_MODE, sites, cohort)
    checked(plan, EVERY_MODE, 8, 5)
    checked(plan_of(secure=SecureRules(mode="off")), EVERY_MODE, 4, 4)
    checked(plan_of(secure=SecureRules(mode="off")), EVERY_MODE, 1, 1)
    checked(plan, EVERY_MODE.model_copy(update={"least_cohort": 4}), 4, 4)


def test_a_mode_that_the_policy_does_not_allow_is_refused() -> None:
    """A site protects its contribution by default."""
    for mode in ("off", "accounted"):
        with pytest.raises(PolicyError, match=f"secure.mode={mode}"):
            checked(plan_of(secure=SecureRules(mode=mode)), SecurePolicy(), 7, 7)
    checked(plan_of(), SecurePolicy(), 7, 7)


def test_a_threshold_is_held_against_all_cohorts_of_the_run() -> None:
    """Seven is fine for nine that train, and too low for the twelve that evaluate."""
    plan = plan_of(secure=SecureRules(threshold=7))
    checked(plan, SecurePolicy(), 9, 9)
    with pytest.raises(PolicyError, match=r"(?s)threshold.*7 of 12"):
        checked(plan, SecurePolicy(), 12, 9)


def test_who_scores_the_last_adapter_is_checked_as_well() -> None:
    """After the last fold every site does, whoever scored before: its threshold has to hold there too."""
    plan = plan_of(secure=SecureRules(threshold=7), release=ReleaseRule(evaluators="cohort"))
    with pytest.raises(PolicyError, match=r"(?s)threshold.*7 of 12"):
        checked(plan, SecurePolicy(), 12, 9)


def test_a_ring_that_is_too_narrow_for_the_cohort_is_refused_without_secure_sums_as_well() -> None:
    """The remedy names the setting."""
    plan = plan_of(secure=SecureRules(mode="off"))
    with pytest.raises(ConfigError, match=r"(?s)no scale.*encoding\.bits"):
        checked(plan, EVERY_MODE, 20_000, 20_000)
    wide = plan.model_copy(update={"encoding": plan.encoding.model_copy(update={"bits": 32})})
    checked(wide, EVERY_MODE, 20_000, 20_000)


def test_an_evaluation_of_many_sites_needs_no_wider_ring() -> None:
    """It has no coordinates."""
    many = tuple(f"s{index:05}" for index in range(20_000))
    offer = proposed(plan_of(), EVALUATION, cohort=many)
    offer.check()
    assert offer.most_count * len(many) < 2**63
