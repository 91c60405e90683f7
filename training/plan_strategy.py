"""The strategy of a plan, bound to what the plan trains and clips. No torch: a server binds it as well."""

from __future__ import annotations

from wardround.core.errors import ConfigError
from wardround.core.packed import Layout
from wardround.core.plan import StrategySpec, TrainingPlan
from wardround.privacy.accounting.of_plan import joint_length
from wardround.strategies.adaptive_norm import AdaptiveNorm
from wardround.strategies.contract import GroupStrategy, SumStrategy
from wardround.training.settings import choose_strategy


def bind_strategy(plan: TrainingPlan, *, allow_dotted: bool = False) -> SumStrategy:
    """The plan's strategy, its options checked, bound to the adapter's layout, with what the plan clips.

    Raises:
        ConfigError: Unknown strategy or option, or as `check_noise_of_sums` where noise is added to sums.
    """
    strategy, options = choose_strategy(plan.strategy, allow_dotted=allow_dotted)
    bound, rules = strategy(options, plan.adapter.layout), plan.privacy
    if rules is not None and rules.noise != "local":
        check_noise_of_sums(bound)
    if rules is None or not rules.adapts_to_sites:
        return bound
    return AdaptiveNorm(bound, rules, joint_length(rules, plan.rounds.rounds))


def check_noise_of_sums(strategy: SumStrategy) -> None:
    """Refuse noise in sums where a strategy has another kind of them.

    Raises:
        ConfigError: It sums over groups, each of which would need noise of its own, or it has two stages,
            each of which would be a release.
    """
    if isinstance(strategy, GroupStrategy) or strategy.stages > 1:
        raise ConfigError(
            "the plan adds noise to one sum a round, and its strategy has several",
            found=f"strategy {type(strategy).__name__}", expected="one sum over all sites",
            remedy="set privacy.noise to local, or take a strategy such as fedavg",
        )  # fmt: skip


def group_rules(spec: StrategySpec, *, allow_dotted: bool = False) -> GroupStrategy | None:
    """The strategy's groups, before there is an adapter; None where it sums over the whole cohort.

    Raises:
        ConfigError: Unknown strategy or option.
    """
    strategy, options = choose_strategy(spec, allow_dotted=allow_dotted)
    bound = strategy(options, Layout(tensors=()))
    return bound if isinstance(bound, GroupStrategy) else None
