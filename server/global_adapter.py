"""The global adapter: whether a run may start from it, and how far a round has moved it."""

from __future__ import annotations

import numpy as np

from wardround.core import lora
from wardround.core.errors import ConfigError
from wardround.core.packed import Adapter
from wardround.core.plan import TrainingPlan
from wardround.strategies.adaptive_norm import product_strategy
from wardround.strategies.contract import SumStrategy


def require_initial(plan: TrainingPlan, initial: Adapter) -> None:
    """Refuse to start from another adapter than the one that every site has accepted with the plan.

    Raises:
        ConfigError: Names both digests.
    """
    if initial.digest != plan.adapter.initial_digest:
        raise ConfigError(
            "the initial adapter is not the plan's",
            found=initial.digest[:12],
            expected=plan.adapter.initial_digest[:12],
            remedy="start with the adapter that was made with the plan, or make a new plan for this one",
        )


def norm_of_change(strategy: SumStrategy, before: Adapter, after: Adapter) -> float:
    """‖after − before‖₂ in float64; under a method over products of the products in place of the factors."""
    if product_strategy(strategy) is not None:
        return lora.distance(before, after)
    return float(np.linalg.norm(after.vector.astype(np.float64) - before.vector.astype(np.float64)))
