"""A site's own rank: what its people say, and what its memory for adapters lets through."""

from __future__ import annotations

from typing import Any

import pytest
from toy_plans import toy_plan

from wardround.client.own_rank import own_rank, training_bytes
from wardround.client.site_settings import SiteSettings
from wardround.core.errors import ConfigError
from wardround.core.packed import Layout, TensorSpec
from wardround.core.plan import LocalWork, SecureRules, StrategySpec, TrainingPlan
from wardround.core.privacy_rules import PrivacyRules
from wardround.core.ranks import layout_at

LAYOUT = Layout(
    tensors=(
        TensorSpec(name="head", shape=(100,)),
        TensorSpec(name="m.lora_A", shape=(8, 4000), role="lora_a", module="m"),
        TensorSpec(name="m.lora_B", shape=(6000, 8), role="lora_b", module="m"),
    )
)
MIB = 2**20


def plan_of(strategy: str = "tangent", layout: Layout = LAYOUT, **sections: Any) -> TrainingPlan:
    """A plan of rank 8."""
    return toy_plan(layout=layout, strategy=StrategySpec(name=strategy), **sections)


def settings_of(**values: Any) -> SiteSettings:
    """A site's."""
    given = {"source": {"path": "rows.csv"}, "models": [{"path": "base"}], **values}
    return SiteSettings.model_validate(given)


def test_the_plans_rank_is_no_rank_of_its_own() -> None:
    """Said or not."""
    assert own_rank(settings_of(), plan_of()) is None
    assert own_rank(settings_of(rank=8), plan_of()) is None
    assert own_rank(settings_of(adapter_mib=1000), plan_of()) is None


@pytest.mark.parametrize(("optimiser", "numbers"), [("adamw", 4), ("adam", 4), ("sgd", 3)])
def test_the_largest_rank_that_fits_is_trained(optimiser: Any, numbers: int) -> None:
    """Weights, gradients and moments of all that trains are within the budget; one more direction is not."""
    plan = plan_of(local=LocalWork(steps=1, optimiser=optimiser))
    for mib in (0.2, 0.3, 0.5):
        rank = own_rank(settings_of(adapter_mib=mib), plan)
        assert rank is not None
        assert training_bytes(layout_at(LAYOUT, rank), optimiser) <= mib * MIB
        assert 4 * numbers * layout_at(LAYOUT, rank + 1).size > mib * MIB


def test_memory_bounds_what_people_ask_for() -> None:
    """The smaller of the two; above the plan's rank where products are added."""
    assert own_rank(settings_of(rank=16), plan_of()) == 16
    assert own_rank(settings_of(rank=16, adapter_mib=0.5), plan_of()) == 3
    assert own_rank(settings_of(rank=2, adapter_mib=0.5), plan_of()) == 2


def test_what_cannot_be_is_refused_with_what_to_do() -> None:
    """No room for one direction, a rank above the plan's of factors, an adapter without ranks."""
    with pytest.raises(ConfigError, match=r"(?s)not even.*adapter_mib: 0\.01.*at least 0\.2"):
        own_rank(settings_of(adapter_mib=0.01), plan_of())
    with pytest.raises(ConfigError, match=r"(?s)is sent factors.*strategy=tangent"):
        own_rank(settings_of(rank=9), plan_of("fedavg"))
    assert own_rank(settings_of(rank=7), plan_of("fedavg")) == 7
    with pytest.raises(ConfigError, match="keeps directions"):
        own_rank(settings_of(rank=7), plan_of("fedsa"))
    head = Layout(tensors=LAYOUT.tensors[:1])
    assert own_rank(settings_of(adapter_mib=1), plan_of("fedavg", head)) is None
    with pytest.raises(ConfigError, match="adapter has none"):
        own_rank(settings_of(rank=4), plan_of("fedavg", head))


def test_a_strategy_may_say_how_much_trains() -> None:
    """A site without a rank trains that; memory and people may ask for less, nobody for more."""
    plan = toy_plan(
        layout=LAYOUT, secure=SecureRules(mode="off"),
        strategy=StrategySpec(name="flora", options={"site_rank": 3}),
    )  # fmt: skip
    assert own_rank(settings_of(), plan) is None
    assert own_rank(settings_of(rank=3), plan) is None
    assert own_rank(settings_of(adapter_mib=1000), plan) is None
    assert own_rank(settings_of(rank=2), plan) == 2
    assert own_rank(settings_of(adapter_mib=0.2), plan) == 1
    for rank in (4, 8):
        with pytest.raises(ConfigError, match=r"(?s)fewer directions.*at most 3"):
            own_rank(settings_of(rank=rank), plan)


def test_noise_by_shares_keeps_one_rank() -> None:
    """What is clipped and sent there is one gradient; a site's own noise goes with any rank."""
    rules = PrivacyRules(unit="example", noise="local", sigma=1.0, delta=1e-5)
    shares = rules.model_copy(update={"noise": "distributed"})
    plan = plan_of("fedavg")
    assert own_rank(settings_of(rank=4), plan.model_copy(update={"privacy": rules})) == 4
    with pytest.raises(ConfigError, match="one gradient"):
        own_rank(settings_of(rank=4), plan.model_copy(update={"privacy": shares}))
