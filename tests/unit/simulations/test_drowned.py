"""A run whose noise is longer than anything under it is told so, and no other."""

from __future__ import annotations

from typing import Any

import pytest
from toy_plans import toy_plan

from wardround.core.packed import Layout, TensorSpec
from wardround.core.plan import DataContract, Encoding, LocalWork, StrategySpec, TrainingPlan
from wardround.core.privacy_rules import PrivacyRules
from wardround.simulations.privacy import drowned, uncounted

DISTRIBUTED = {"unit": "patient", "noise": "distributed", "sigma": 2.0, "sample_rate": 0.5}
CENTRAL = {"unit": "site", "noise": "central", "sigma": 2.0, "clip_norm": 1.0}


def plan_of(privacy: dict[str, Any] | None) -> TrainingPlan:
    """A hundred coordinates under σ = 2: twenty clipped updates are as long as their noise."""
    return toy_plan(
        layout=Layout(tensors=(TensorSpec(name="a", shape=(100,)),)),
        data=DataContract(columns={}, unit_column="p", validation_fraction=0.0),
        local=LocalWork(steps=1, optimiser="sgd", max_grad_norm=None),
        strategy=StrategySpec(weighting="uniform"),
        encoding=Encoding(bits=32, largest=1.0, most_weight=1, norm=1.0),
        privacy=None if privacy is None else PrivacyRules(**privacy),
    )


@pytest.mark.parametrize(
    ("privacy", "units", "told"),
    [
        (CENTRAL, {"a": 500, "b": 500}, "2 sites"),
        (CENTRAL, dict.fromkeys(map(str, range(20)), 1), None),
        (DISTRIBUTED, {"a": 19, "b": 19}, "19 patients"),
        (DISTRIBUTED, {"a": 20, "b": 20}, None),
        ({"unit": "patient", "sigma": 2.0}, {"a": 1}, None),
        (None, {"a": 1}, None),
    ],
)
def test_a_run_that_its_noise_drowns_is_told_so(
    privacy: dict[str, Any] | None, units: dict[str, int], told: str | None
) -> None:
    """With σ, the coordinates, and how many there would have to be."""
    notice = drowned(plan_of(privacy), units)
    if told is None:
        assert notice is None
    else:
        assert notice is not None
        assert all(part in notice for part in ("σ = 2", "100 coordinates", "20 clipped updates", told))


def adaptive(count_noise: float, participation: float = 1.0) -> TrainingPlan:
    """Whole sites under adaptive clipping, z = 2."""
    counted = {"clipping": "adaptive", "adaptive": {"count_noise": count_noise, "rate": 0.4}}
    plan = plan_of(CENTRAL | counted)
    return plan.model_copy(update={"rounds": plan.rounds.model_copy(update={"participation": participation})})


def test_under_adaptive_clipping_it_is_the_noise_on_the_updates() -> None:
    """z_Δ, which is more than σ: the count takes its part."""
    sites = dict.fromkeys(map(str, range(24)), 1)
    assert drowned(adaptive(20.0), sites) is None
    notice = drowned(adaptive(1.5), sites)
    assert notice is not None
    assert "σ = 2.68" in notice


@pytest.mark.parametrize(
    ("sites", "noise", "participation", "told"),
    [
        (20, 10.0, 1.0, None),
        (19, 10.0, 1.0, "19 sites"),
        (40, 10.0, 0.25, "10 sites"),
        (3, 30.0, 1.0, "a factor of about 54.6"),
    ],
)
def test_a_count_that_its_noise_drowns_is_told(
    sites: int, noise: float, participation: float, told: str | None
) -> None:
    """With the sites that are asked, and how far C moves by it alone."""
    notice = uncounted(adaptive(noise, participation), sites)
    if told is None:
        assert notice is None
    else:
        assert notice is not None
        assert told in notice


def test_where_nothing_is_counted_nothing_is_told() -> None:
    """Fixed clipping, and noise of patients."""
    assert uncounted(plan_of(CENTRAL), 2) is None
    assert uncounted(plan_of(DISTRIBUTED), 2) is None
    assert uncounted(plan_of(None), 2) is None
