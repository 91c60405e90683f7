"""The strategy of a plan, bound to what the plan trains and clips. No torch: a server binds it as well."""

from __future__ import annotations

from wardround.core.errors import ConfigError
from wardround.core.packed import Layout
from wardround.core.plan import ReleaseRule, StrategySpec, TrainingPlan
from wardround.core.privacy_rules import PrivacyRules
from wardround.privacy.accounting.of_plan import joint_length
from wardround.strategies.adaptive_norm import AdaptiveNorm
from wardround.strategies.contract import (
    GroupStrategy,
    OptionsOfPlan,
    PersonalStrategy,
    RememberingStrategy,
    SumStrategy,
)
from wardround.training.settings import choose_strategy


def bind_strategy(plan: TrainingPlan, *, allow_dotted: bool = False) -> SumStrategy:
    """The plan's strategy, its options checked, bound to the adapter's layout, with what the plan clips.

    Raises:
        ConfigError: Unknown strategy or option, or one that does not go with the rest of the plan, or as
            `check_memory`, `check_release` and, where noise is added to sums, `check_noise_of_sums`.
    """
    strategy, options = choose_strategy(plan.strategy, allow_dotted=allow_dotted)
    if isinstance(options, OptionsOfPlan):
        options = options.of_plan(plan)
    bound, rules = strategy(options, plan.adapter.layout), plan.privacy
    check_memory(bound, plan.strategy, rules)
    check_release(bound, plan.strategy, plan.release)
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


def check_memory(strategy: SumStrategy, spec: StrategySpec, privacy: PrivacyRules | None) -> None:
    """Refuse a strategy with an exact memory at the sites where there is differential privacy.

    Raises:
        ConfigError: What a site keeps of its rows would steer what it sends, beside all noise.
    """
    if privacy is not None and isinstance(strategy, RememberingStrategy):
        raise ConfigError(
            f"strategy {spec.name} keeps at a site what follows exactly from its rows, and lets that steer "
            "what it sends: no noise covers it",
            found=f"strategy.name={spec.name} with privacy", expected="a strategy without such a memory",
            remedy=f"set strategy.name to {strategy.private_alternative}, or privacy to null",
        )  # fmt: skip


def check_release(strategy: SumStrategy, spec: StrategySpec, release: ReleaseRule) -> None:
    """Refuse to go back to an earlier round where nobody keeps the sites' own parts of it.

    Raises:
        ConfigError: The plan stops early, and the strategy releases the last round.
    """
    if isinstance(strategy, PersonalStrategy) and release.patience is not None:
        raise ConfigError(
            f"strategy {spec.name} releases the last round: of an earlier one no site keeps its own part",
            found=f"release.patience={release.patience}", expected="null",
            remedy="set release.patience to null, and rounds.rounds to as many as it should train",
        )  # fmt: skip


def check_strategy(
    spec: StrategySpec, release: ReleaseRule, privacy: PrivacyRules | None, *, allow_dotted: bool = False
) -> None:
    """What can be refused of a strategy before there is a model: as `check_memory` and `check_release`."""
    bound = _without_layout(spec, allow_dotted=allow_dotted)
    check_memory(bound, spec, privacy)
    check_release(bound, spec, release)


def is_personal(spec: StrategySpec, *, allow_dotted: bool = False) -> bool:
    """Whether each site ends with an adapter of its own.

    Raises:
        ConfigError: Unknown strategy or option.
    """
    return isinstance(_without_layout(spec, allow_dotted=allow_dotted), PersonalStrategy)


def group_rules(spec: StrategySpec, *, allow_dotted: bool = False) -> GroupStrategy | None:
    """The strategy's groups, before there is an adapter; None where it sums over the whole cohort.

    Raises:
        ConfigError: Unknown strategy or option.
    """
    bound = _without_layout(spec, allow_dotted=allow_dotted)
    return bound if isinstance(bound, GroupStrategy) else None


def _without_layout(spec: StrategySpec, *, allow_dotted: bool) -> SumStrategy:
    strategy, options = choose_strategy(spec, allow_dotted=allow_dotted)
    return strategy(options, Layout(tensors=()))
