"""One small valid plan, for tests of a part of it (`pythonpath` in pyproject.toml finds this folder)."""

from __future__ import annotations

from typing import Any

from wardround.core.packed import Layout, TensorSpec
from wardround.core.plan import (
    AdapterSpec,
    BaseModelSpec,
    DataContract,
    Encoding,
    LocalWork,
    RoundRules,
    TaskSpec,
    TrainingPlan,
)

LAYOUT = Layout(tensors=(TensorSpec(name="a"),))


def toy_plan(*, layout: Layout = LAYOUT, initial: str = "1" * 64, **sections: Any) -> TrainingPlan:
    """A plan; `sections` replace or add whole ones.

    Args:
        layout: Of the adapter.
        initial: Digest of the initial adapter.
    """
    plain: dict[str, Any] = {
        "name": "toy",
        "seed": 7,
        "base": BaseModelSpec(name="none", digest="0" * 64),
        "task": TaskSpec(name="sequence_classification", metrics="classification"),
        "data": DataContract(columns={"text": "t"}),
        "adapter": AdapterSpec(layout=layout, initial_digest=initial),
        "local": LocalWork(steps=1),
        "encoding": Encoding(largest=0.5, most_weight=100),
        "rounds": RoundRules(rounds=5),
    }
    return TrainingPlan(**(plain | sections))
