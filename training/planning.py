"""Makes the training plan: what a person configured, plus the digests of what was really loaded.

The initial adapter and head are made here, once, from the seed tree or from a saved adapter; no site
initialises anything that federates.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from wardround.core.errors import ConfigError, unknown_name
from wardround.core.metrics import METRICS
from wardround.core.packed import Adapter
from wardround.core.plan import (
    AdapterSpec,
    BaseModelSpec,
    DataContract,
    Encoding,
    LocalWork,
    ReleaseRule,
    RoundRules,
    StrategySpec,
    TaskSpec,
    TrainingPlan,
    parse_options,
)
from wardround.strategies import STRATEGIES
from wardround.strategies.contract import SumStrategy
from wardround.training.workbench import Workbench, with_tokenizer


def make_plan(
    bench: Workbench,
    *,
    name: str,
    seed: int,
    task: TaskSpec,
    data: DataContract,
    adapter_options: dict[str, Any],
    start_from: Path | None,
    local: LocalWork,
    strategy: StrategySpec,
    encoding: Encoding,
    rounds: RoundRules,
    release: ReleaseRule,
    adapter_method: str = "lora",
    allow_dotted: bool = False,
) -> tuple[TrainingPlan, Adapter]:
    """The plan and the initial adapter that it names by digest.

    Args:
        bench: Base model with a fresh adapter on it.
        start_from: Folder of a saved adapter to go on from, or None for a fresh one.
        allow_dotted: Whether strategies may be given as module:attribute (a simulation's own code).

    Raises:
        ConfigError: The release metric, the strategy or one of its options is unknown; a saved adapter
            does not fit the configured one.
    """
    check_release(release, task, data)
    layout = bench.layout
    initial = bench.initial_adapter() if start_from is None else bench.method.read_saved(start_from, layout)
    plan = TrainingPlan(
        name=name,
        seed=seed,
        base=BaseModelSpec(
            name=bench.base.name,
            revision=bench.base.config.revision,
            digest=bench.base.digest,
            dtype=bench.base.config.dtype,
            quantisation=bench.base.config.quantisation,
        ),
        task=task,
        data=with_tokenizer(data, bench.base),
        adapter=AdapterSpec(
            method=adapter_method, options=adapter_options, layout=layout, initial_digest=initial.digest
        ),
        local=local,
        strategy=strategy,
        encoding=encoding,
        rounds=rounds,
        release=release,
    )
    bind_strategy(plan, allow_dotted=allow_dotted)
    return plan, initial


def bind_strategy(plan: TrainingPlan, *, allow_dotted: bool = False) -> SumStrategy:
    """The plan's strategy, its options checked, bound to the adapter's layout.

    Raises:
        ConfigError: Unknown strategy or option.
    """
    strategy = STRATEGIES.get(plan.strategy.name, allow_dotted=allow_dotted)
    options = parse_options(
        strategy.Options, plan.strategy.options, f"options of strategy {plan.strategy.name!r}"
    )
    return strategy(options, plan.adapter.layout)


def check_release(release: ReleaseRule, task: TaskSpec, data: DataContract) -> None:
    """Refuse a release metric that the task does not give, or a direction that would choose the worst.

    Raises:
        ConfigError: Names the metrics that there are, or the right direction.
    """
    directions = METRICS.get(task.metrics).directions
    if release.metric not in directions:
        raise unknown_name("release metric", release.metric, directions)
    if directions[release.metric] != release.direction:
        raise ConfigError(
            f"release.direction would choose the worst round by {release.metric}",
            found=release.direction,
            expected=directions[release.metric],
        )
    if data.validation_fraction == 0 and release.patience is not None:
        raise ConfigError(
            "early stopping needs a validation part",
            found="data.validation_fraction=0",
            remedy="set data.validation_fraction above 0, or release.patience to null",
        )
