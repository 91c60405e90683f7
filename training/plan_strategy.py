"""The strategy of a plan, bound to what the plan trains and clips. No torch: a server binds it as well."""

from __future__ import annotations

from wardround.core.errors import ConfigError
from wardround.core.lora import pairs
from wardround.core.packed import Layout
from wardround.core.plan import StrategySpec, TrainingPlan
from wardround.privacy.accounting.of_plan import joint_length
from wardround.strategies.adaptive_norm import AdaptiveNorm, product_strategy
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


def check_rank(plan: TrainingPlan, strategy: SumStrategy, rank: int) -> None:
    """Refuse a rank of a site's own that the plan's strategy, adapter or privacy cannot take.

    Raises:
        ConfigError: Larger than the plan's under a strategy that averages factors; an adapter without
            factors; distributed noise, where what is clipped and sent is one gradient.
    """
    of_plan = max((pair.rank for pair in pairs(plan.adapter.layout)), default=0)
    if rank == of_plan:
        return
    if not of_plan:
        raise ConfigError("this site has a rank of its own, and the plan's adapter has none", found=rank)
    if plan.privacy is not None and plan.privacy.noise == "distributed":
        raise ConfigError(
            "distributed noise protects one gradient of the plan's own rank", found=rank, expected=of_plan,
            remedy="leave this site's rank out",
        )  # fmt: skip
    if rank > of_plan and product_strategy(strategy) is None:
        raise ConfigError(
            f"strategy {plan.strategy.name!r} averages factors, and can take no rank above the plan's",
            found=f"rank {rank} of this site", expected=f"at most {of_plan}",
            remedy="lower this site's rank, or take strategy=tangent, which adds products",
        )  # fmt: skip


def group_rules(spec: StrategySpec, *, allow_dotted: bool = False) -> GroupStrategy | None:
    """The strategy's groups, before there is an adapter; None where it sums over the whole cohort.

    Raises:
        ConfigError: Unknown strategy or option.
    """
    strategy, options = choose_strategy(spec, allow_dotted=allow_dotted)
    bound = strategy(options, Layout(tensors=()))
    return bound if isinstance(bound, GroupStrategy) else None
