"""What a plan may not ask of strategies over products, and what it may."""

from __future__ import annotations

from typing import Any

import pytest
from toy_plans import toy_plan

from wardround.core.errors import ConfigError
from wardround.core.packed import Layout, TensorSpec
from wardround.core.plan import LocalWork, SecureRules, StrategySpec, TrainingPlan
from wardround.core.privacy_rules import PrivacyRules
from wardround.strategies._mean_update import MeanUpdate
from wardround.strategies._server_optimisers import ComposedOptions
from wardround.strategies.contract import LocalRules
from wardround.training.plan_strategy import bind_strategy

LAYOUT = Layout(
    tensors=(
        TensorSpec(name="m.lora_A", shape=(4, 6), role="lora_a", module="m"),
        TensorSpec(name="m.lora_B", shape=(5, 4), role="lora_b", module="m"),
    )
)
LOCAL = PrivacyRules(unit="example", noise="local", sigma=1.0, delta=1e-5)
SHARES = LOCAL.model_copy(update={"noise": "distributed"})
"""As the rules of a plan with shares of noise: all that is asked of them here is where the noise is."""


class Louder(MeanUpdate[ComposedOptions]):
    """FedAvg with statistics three times as long: nobody's sensitivity is what is charged."""

    Options = ComposedOptions

    def local_rules(self, broadcast: Any, memory: Any, round: int) -> LocalRules:
        """None."""
        return LocalRules()

    def sent(self, update: Any, local: Any, round: int) -> Any:
        """Too much."""
        return update.with_vector(3 * update.vector)

    def step(self, mean: Any, slots: Any) -> Any:
        """A third of it."""
        return mean.with_vector(mean.vector / 3), {}


LOUDER = f"{__name__}:Louder"


def plan_of(name: str, privacy: PrivacyRules) -> TrainingPlan:
    """A plan of rank 4 with privacy."""
    plan = toy_plan(
        layout=LAYOUT, strategy=StrategySpec(name=name, weighting="uniform"), secure=SecureRules(mode="off")
    )
    return plan.model_copy(update={"privacy": privacy})


@pytest.mark.parametrize("name", ["tangent", "one_pass", LOUDER])
def test_distributed_noise_is_refused_where_more_than_the_update_is_sent(name: str) -> None:
    """A site sends one clipped sum of gradients there; the product of two steps is not what it noised.

    Nor are statistics of somebody's own that are longer than the update.
    """
    with pytest.raises(ConfigError, match=r"(?s)distributed noise protects.*ffa_lora or fedavg"):
        bind_strategy(plan_of(name, SHARES), allow_dotted=True)
    assert bind_strategy(plan_of(name, LOCAL), allow_dotted=True), "a site's own noise goes with it"


@pytest.mark.parametrize(
    ("name", "optimiser", "reason"),
    [
        ("tangent", "dp_adam", "noise that DP-Adam takes out"),
        ("fedex", "adamw", "chooses anew in every round"),
        ("flora", "adamw", "trains new directions in every round"),
    ],
)
def test_moments_that_cannot_be_turned_are_not_kept(name: str, optimiser: Any, reason: str) -> None:
    """Others are turned with the factors, and under other strategies they need no turn."""

    def plan_with(name: str, optimiser: Any) -> TrainingPlan:
        local = LocalWork(steps=1, optimiser="adamw", optimiser_state="keep")
        options = {"trained_rank": 2} if name == "fedex" else {}
        spec = StrategySpec(name=name, options=options, weighting="uniform")
        off = SecureRules(mode="off")
        plan = toy_plan(strategy=spec, local=local, layout=LAYOUT, secure=off)
        return plan.model_copy(update={"local": local.model_copy(update={"optimiser": optimiser})})

    with pytest.raises(ConfigError, match=rf"(?s){reason}.*optimiser_state=keep"):
        bind_strategy(plan_with(name, optimiser))
    assert bind_strategy(plan_with("tangent", "adamw"))
    assert bind_strategy(plan_with("fedavg", "dp_adam"))


@pytest.mark.parametrize("name", ["fedavg", "ffa_lora", "rolora", "fedsvd"])
def test_linear_strategies_take_distributed_noise(name: str) -> None:
    """What they send is the step, or a part of it."""
    assert bind_strategy(plan_of(name, SHARES))
