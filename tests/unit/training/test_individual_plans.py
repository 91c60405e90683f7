"""Plans that ask for a strategy that sees individuals: where they hide them, they are refused."""

from __future__ import annotations

from typing import Any

import pytest
from toy_plans import toy_plan

from wardround.client.preview.preview import preview_of
from wardround.core.enrolment import EnrolmentRules, SignedPlan
from wardround.core.errors import ConfigError
from wardround.core.packed import Layout, TensorSpec
from wardround.core.plan import DataContract, Encoding, RoundRules, SecureRules, StrategySpec, TrainingPlan
from wardround.core.privacy_rules import PrivacyRules
from wardround.strategies import STRATEGIES
from wardround.training.plan_check import plan_faults
from wardround.training.plan_strategy import bind_strategy, individual_rules
from wardround.training.plan_summary import summary_of, summary_text

LAYOUT = Layout(tensors=(TensorSpec(name="a", shape=(300, 100)),))
FACTORS = Layout(
    tensors=(
        TensorSpec(name="m.a", shape=(8, 100), role="lora_a", module="m"),
        TensorSpec(name="m.b", shape=(100, 8), role="lora_b", module="m"),
    )
)
NEAREST = {
    "coordinate_median": "strategy=group_median",
    "trimmed_mean": "strategy=group_trimmed_mean",
    "multi_krum": "strategy=group_median",
    "geometric_median": "strategy=group_median",
    "norm_bounded_mean": "strategy=fedavg with encoding.norm",
    "flexlora": "strategy=tangent",
    "flora": "strategy=tangent",
    "fedex": "strategy=tangent",
}
EVERY = pytest.mark.parametrize("name", sorted(NEAREST))
TRUSTED = SecureRules(mode="trusted", aggregator="0f" * 32)


def plan_of(name: str, secure: SecureRules, **sections: Any) -> TrainingPlan:
    """A plan."""
    data = DataContract(columns={"text": "t", "label": "l"}, labels=("x", "y"), tokenizer_digest="2" * 64)
    layout = FACTORS if name in ("flora", "fedex") else LAYOUT
    plain: dict[str, Any] = {"layout": layout, "data": data, "strategy": StrategySpec(name=name)}
    return toy_plan(secure=secure, **(plain | sections))


def document(plan: TrainingPlan, least: int = 5) -> SignedPlan:
    """With enrolment rules."""
    return SignedPlan(plan=plan, enrolment=EnrolmentRules(least_sites=least))


def faults(plan: TrainingPlan, *sites: int) -> str:
    """All of them as one text."""
    return "\n".join(map(str, plan_faults(document(plan), sites)))


@EVERY
@pytest.mark.parametrize("mode", ["real", "accounted"])
def test_a_plan_that_hides_contributions_is_refused_with_what_works(name: str, mode: Any) -> None:
    """Where it is bound: in the making, at the server and at each site; and by whoever reads the plan."""
    plan = plan_of(name, SecureRules(mode=mode))
    with pytest.raises(ConfigError, match=rf"(?s)has to see each.*secure\.mode={mode}") as caught:
        bind_strategy(plan)
    remedy = str(caught.value.remedy)
    assert NEAREST[name] in remedy
    assert "secure.mode=trusted" in remedy
    assert "has to see each site's contribution" in faults(plan)
    with pytest.raises(ConfigError, match="has to see each"):
        preview_of(document(plan), "a", ["a", "b", "c", "d", "e"])


@EVERY
def test_a_plan_that_shows_them_is_bound(name: str) -> None:
    """Through an aggregator, or in the clear."""
    for secure in (TRUSTED, SecureRules(mode="off")):
        plan = plan_of(name, secure)
        assert bind_strategy(plan)
        assert faults(plan, 30) == ""


def test_what_is_named_as_nearest_exists_where_it_is_ours() -> None:
    """And works on sums."""
    for name, nearest in NEAREST.items():
        strategy = individual_rules(StrategySpec(name=name))
        assert strategy is not None
        assert strategy.over_sums.startswith(nearest)
        other = nearest.removeprefix("strategy=").split()[0]
        assert individual_rules(StrategySpec(name=other)) is None
        assert other in STRATEGIES.names()


@pytest.mark.parametrize("noise", ["central", "distributed"])
def test_noise_in_sums_is_refused_and_a_sites_own_is_not(noise: Any) -> None:
    """There is no sum to add it to."""
    off, strategy = SecureRules(mode="off"), StrategySpec(name="coordinate_median", weighting="uniform")
    rules = {
        "central": PrivacyRules(unit="site", noise="central", sigma=5.0, delta=1e-3),
        "local": PrivacyRules(unit="example", noise="local", sigma=1.0, delta=1e-5),
    }
    # A plan with shares of the noise and without secure aggregation cannot be made: of its rules alone.
    rules["distributed"] = rules["local"].model_copy(update={"noise": "distributed"})
    plan = plan_of("coordinate_median", off, strategy=strategy)
    assert bind_strategy(plan.model_copy(update={"privacy": rules["local"]}))
    with pytest.raises(ConfigError, match=rf"(?s)adds its noise to a sum.*privacy\.noise={noise}"):
        bind_strategy(plan.model_copy(update={"privacy": rules[noise]}))


def test_a_threshold_has_no_meaning_there() -> None:
    """It would be above each sum's cohort of one."""
    with pytest.raises(ConfigError, match=r"secure\.threshold=3"):
        bind_strategy(plan_of("multi_krum", SecureRules(mode="off", threshold=3)))


def test_too_few_sites_in_a_round_are_refused() -> None:
    """Of all of them, or of the share that trains."""
    off, share = SecureRules(mode="off"), RoundRules(rounds=2, participation=0.5)
    krum = StrategySpec(name="multi_krum", options={"attackers": 2})
    plan = plan_of("multi_krum", off, strategy=krum)
    assert "too few sites train in a round" in faults(plan)
    assert faults(plan_of("multi_krum", off)) == ""  # one attacker: five sites
    assert "too few sites train in a round" in faults(plan_of("multi_krum", off, rounds=share))


def test_the_ring_holds_one_site_however_many_there_are() -> None:
    """Twenty thousand sites overflow the sum of 16 bits, and no contribution alone."""
    encoding, off = Encoding(bits=16, largest=0.5, most_weight=1), SecureRules(mode="off")
    assert "ring" in faults(plan_of("fedavg", off, encoding=encoding), 20_000)
    assert faults(plan_of("coordinate_median", off, encoding=encoding), 20_000) == ""


def test_the_summary_counts_one_site_a_sum() -> None:
    """And says who sees it."""
    record = summary_of(document(plan_of("coordinate_median", TRUSTED)), 5)
    assert (record["summed_sites"], record["cohort"]) == (1, 5)
    assert "sealed to the key" in summary_text(record)


@pytest.mark.parametrize("secure", [TRUSTED, SecureRules(mode="off")], ids=["trusted", "off"])
def test_a_preview_has_a_sum_of_this_site_alone_and_whole_broadcasts(secure: SecureRules) -> None:
    """No opened sum comes down, and no broadcast is made at the site."""
    members = [f"site-{i}" for i in range(12)]
    made = {
        name: preview_of(document(plan_of(name, secure)), members[0], members)
        for name in ("coordinate_median", "fedavg")
    }
    median, mean = made["coordinate_median"], made["fedavg"]
    assert median.rounds == 5
    assert median.bytes_up == pytest.approx(mean.bytes_up, rel=0.01)
    assert median.bytes_down == 4 * LAYOUT.size * (5 + 1)  # the last one to be scored
    assert mean.bytes_down == 4 * LAYOUT.size + 2 * LAYOUT.size * 5
