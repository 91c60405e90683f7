"""A plan that protects whole sites by adaptive clipping, for tests of its parts."""

from __future__ import annotations

from typing import Any

from toy_plans import LAYOUT, toy_plan

from wardround.core.packed import Layout
from wardround.core.plan import DataContract, Encoding, RoundRules, StrategySpec, TrainingPlan
from wardround.core.privacy_rules import AdaptiveClipping, PrivacyRules


def site_plan(
    *,
    layout: Layout = LAYOUT,
    sigma: float = 1.0,
    clip_norm: float = 1.0,
    bits: Any = 32,
    cohort: int = 10,
    adaptive: dict[str, float] | None = None,
    strategy: str = "fedavg",
    **sections: Any,
) -> TrainingPlan:
    """A plan.

    Args:
        layout: Of the adapter.
        sigma: z.
        clip_norm: C of the first round.
        bits: Of the ring.
        cohort: There is room for the noise beside a sum of so many sites, or more.
        adaptive: Settings of adaptive clipping; σ_b is 2 where it gives none.
        strategy: Its name.
        sections: Replace or add whole ones.
    """
    rules = PrivacyRules(
        unit="site", noise="central", sigma=sigma, delta=1e-3, clip_norm=clip_norm, clipping="adaptive",
        adaptive=AdaptiveClipping(**({"count_noise": 2.0} | (adaptive or {}))),
    )  # fmt: skip
    largest = clip_norm * (1.1 + 10 * sigma / cohort)
    plain: dict[str, Any] = {
        "data": DataContract(columns={"text": "t"}, validation_fraction=0.0),
        "strategy": StrategySpec(name=strategy, weighting="uniform"),
        "encoding": Encoding(bits=bits, largest=largest, most_weight=1, norm=clip_norm),
        "rounds": RoundRules(rounds=5),
        "privacy": rules,
    }
    return toy_plan(layout=layout, **(plain | sections))
