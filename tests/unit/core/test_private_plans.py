"""What a plan with differential privacy may look like: everything else is refused when it is made."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError
from toy_plans import toy_plan

from wardround.core.plan import (
    DataContract,
    Encoding,
    LocalWork,
    SecureRules,
    StrategySpec,
    TrainingPlan,
)
from wardround.core.privacy_rules import AdaptiveClipping, PrivacyRules

LOCAL = {"unit": "patient", "epsilon": 8.0}
DISTRIBUTED = LOCAL | {"noise": "distributed", "sample_rate": 1.0}
CENTRAL = {"unit": "site", "noise": "central", "epsilon": 8.0, "clip_norm": 0.5}
ADAPTIVE = CENTRAL | {"clipping": "adaptive", "adaptive": {"count_noise": 5.0}}
ONE_STEP = LocalWork(steps=1, optimiser="sgd", max_grad_norm=None)


def plan_of(privacy: dict[str, Any] | None, **changes: Any) -> TrainingPlan:
    """A plan that goes with this privacy, but for the changes."""
    of_site = privacy is not None and privacy["unit"] == "site"
    sections: dict[str, Any] = {
        "data": DataContract(columns={"text": "t"}, unit_column="patient", validation_fraction=0.0),
        "local": ONE_STEP,
        "strategy": StrategySpec(weighting="uniform"),
        "encoding": Encoding(largest=0.5, most_weight=1, norm=0.5 if of_site else None),
        "privacy": None if privacy is None else PrivacyRules(**privacy),
    }
    return toy_plan(**(sections | changes))


@pytest.mark.parametrize(
    "privacy", [None, LOCAL, DISTRIBUTED, CENTRAL, LOCAL | {"unit": "example"}, ADAPTIVE]
)
def test_a_plan_that_goes_with_its_privacy_is_one(privacy: dict[str, Any] | None) -> None:
    """And survives its own JSON with its digest."""
    plan = plan_of(privacy)
    again = TrainingPlan.parse(plan.canonical())
    assert (again, again.digest) == (plan, plan.digest)


def test_a_plan_without_privacy_has_the_digest_that_it_had_before_there_was_any() -> None:
    """The key is no part of what is digested where it says nothing."""
    assert b"privacy" not in plan_of(None).canonical()
    assert len({plan_of(privacy).digest for privacy in (None, LOCAL, LOCAL | {"epsilon": 4.0})}) == 3


@pytest.mark.parametrize(
    ("privacy", "changes", "named"),
    [
        (LOCAL, {"strategy": StrategySpec(weighting="examples")}, "strategy.weighting=examples"),
        (LOCAL, {"strategy": StrategySpec(weighting="targets")}, "strategy.weighting=targets"),
        (LOCAL, {"data": DataContract(columns={}, unit_column="p", packing=True)}, "data.packing"),
        (LOCAL, {"data": DataContract(columns={})}, "data.unit_column"),
        (LOCAL, {"local": LocalWork(steps=1)}, "local.max_grad_norm"),
        (DISTRIBUTED, {"secure": SecureRules(mode="off")}, "secure.mode=off"),
        (DISTRIBUTED, {"secure": SecureRules(mode="trusted", aggregator="0" * 64)}, "secure.mode=trusted"),
        (DISTRIBUTED, {"local": ONE_STEP.model_copy(update={"steps": 2})}, "local.steps"),
        (DISTRIBUTED, {"local": LocalWork(epochs=1, optimiser="sgd", max_grad_norm=None)}, "local.steps"),
        (DISTRIBUTED, {"local": LocalWork(steps=1, max_grad_norm=None)}, "local.optimiser"),
        (DISTRIBUTED, {"local": ONE_STEP.model_copy(update={"momentum": 0.9})}, "momentum"),
        (DISTRIBUTED, {"local": ONE_STEP.model_copy(update={"optimiser_state": "keep"})}, "kept state"),
        (CENTRAL, {"data": DataContract(columns={}, validation_fraction=0.1)}, "data.validation_fraction"),
        (CENTRAL, {"encoding": Encoding(largest=0.5, most_weight=1)}, "encoding.norm"),
        (CENTRAL, {"encoding": Encoding(largest=0.5, most_weight=1, norm=0.6)}, "encoding.norm"),
        (ADAPTIVE, {"encoding": Encoding(largest=0.5, most_weight=1, norm=0.6)}, "encoding.norm"),
        (ADAPTIVE, {"strategy": StrategySpec(weighting="examples")}, "strategy.weighting=examples"),
        (ADAPTIVE, {"strategy": StrategySpec(weighting="targets")}, "strategy.weighting=targets"),
        (None, {"local": LocalWork(steps=1, optimiser="dp_adam")}, "dp_adam"),
        (CENTRAL, {"local": LocalWork(steps=1, optimiser="dp_adam")}, "dp_adam"),
    ],
)
def test_what_privacy_does_not_allow_is_refused_by_name(
    privacy: dict[str, Any] | None, changes: dict[str, Any], named: str
) -> None:
    """With the setting that has to change; the same plan without the change passes (above)."""
    with pytest.raises(ValidationError, match=named):
        plan_of(privacy, **changes)


def test_every_fault_is_named_at_once() -> None:
    """A person corrects them in one go."""
    changes = {"strategy": StrategySpec(), "data": DataContract(columns={}), "local": LocalWork(steps=1)}
    with pytest.raises(ValidationError) as refused:
        plan_of(LOCAL, **changes)
    assert all(name in str(refused.value) for name in ("weighting", "unit_column", "max_grad_norm"))


@pytest.mark.parametrize(
    ("rules", "named"),
    [
        ({"unit": "patient"}, "exactly one of epsilon"),
        (LOCAL | {"sigma": 1.0}, "exactly one of epsilon"),
        (LOCAL | {"noise": "central"}, "noise=central"),
        (CENTRAL | {"noise": "local"}, "noise=local"),
        (CENTRAL | {"noise": "distributed"}, "noise=distributed"),
        (DISTRIBUTED | {"clipping": "adaptive"}, "clipping=adaptive"),
        (CENTRAL | {"clipping": "per_layer"}, "clipping=per_layer"),
        (LOCAL | {"adaptive": AdaptiveClipping(quantile=0.3)}, "adaptive has no effect"),
        (ADAPTIVE | {"noise": "distributed"}, "noise=distributed"),
        (ADAPTIVE | {"adaptive": {"largest": 0.4}}, "beyond the limits of adaptive clipping"),
        (ADAPTIVE | {"adaptive": {"smallest": 0.6}}, "beyond the limits of adaptive clipping"),
        (ADAPTIVE | {"epsilon": None, "sigma": 10.0}, "costs more than all of sigma=10: set it above 5"),
        (LOCAL | {"epsilon": None, "sigma": 20.0, "clipping": "adaptive"}, "set it above 10"),
        (CENTRAL | {"sample_rate": 0.5}, "nothing is sampled"),
        (LOCAL | {"noise": "distributed"}, "sample_rate"),
    ],
)
def test_rules_that_do_not_go_together_are_refused(rules: dict[str, Any], named: str) -> None:
    """Before there is a plan."""
    with pytest.raises(ValidationError, match=named):
        PrivacyRules(**rules)
