"""The strategy of a plan, bound to what the plan trains and clips. No torch: a server binds it as well."""

from __future__ import annotations

from wardround.core.compression import Blocks, TopK, keeps_a_rest
from wardround.core.errors import ConfigError
from wardround.core.lora import pairs
from wardround.core.packed import Layout, zeros
from wardround.core.plan import LocalWork, ReleaseRule, SecureRules, StrategySpec, TrainingPlan
from wardround.core.privacy_rules import PrivacyRules
from wardround.privacy.accounting.of_plan import joint_length
from wardround.privacy.sums.form import require_seen
from wardround.strategies.adaptive_norm import AdaptiveNorm, product_strategy
from wardround.strategies.contract import (
    GroupStrategy,
    IndividualStrategy,
    OptionsOfPlan,
    PersonalStrategy,
    RememberingStrategy,
    SiteMemory,
    StartingStrategy,
    SumStrategy,
    is_bounded_by_update,
)
from wardround.training.settings import choose_strategy


def bind_strategy(plan: TrainingPlan, *, allow_dotted: bool = False) -> SumStrategy:
    """The plan's strategy, its options checked, bound to the adapter's layout, with what the plan clips.

    Raises:
        ConfigError: Unknown strategy or option, or one that does not go with the rest of the plan, or as
            `check_memory`, `check_release`, `check_moments`, `check_seen` where the strategy sees
            individuals, `check_compression` where contributions travel compressed, `check_noise_of_sums`
            and `check_one_gradient` where noise is added to sums, and `check_same_parameters` where noise is
            correlated over the rounds.
    """
    strategy, options = choose_strategy(plan.strategy, allow_dotted=allow_dotted)
    if isinstance(options, OptionsOfPlan):
        options = options.of_plan(plan)
    bound, rules = strategy(options, plan.adapter.layout), plan.privacy
    check_memory(bound, plan.strategy, rules)
    check_release(bound, plan.strategy, plan.release)
    if isinstance(bound, IndividualStrategy):
        check_seen(plan.strategy.name, bound, plan.secure, rules)
    check_moments(bound, plan.strategy, plan.local)
    check_compression(bound, plan)
    if rules is not None and rules.noise != "local":
        check_noise_of_sums(bound)
    if rules is not None and rules.mechanism == "banded":
        check_same_parameters(bound, plan)
    if rules is not None and rules.noise == "distributed":
        check_one_gradient(bound, plan.strategy)
    if rules is None or not rules.adapts_to_sites:
        return bound
    return AdaptiveNorm(bound, rules, joint_length(rules, plan.rounds.rounds))


def check_compression(strategy: SumStrategy, plan: TrainingPlan) -> None:
    """Refuse compressed contributions where nobody may see single ones, or the strategy is not for them.

    Raises:
        ConfigError: As `check_compressed`; or `top_k`, and what the strategy is sent is not the update of the
            same parameters in every round: what waited would be added to something else.
    """
    compression = plan.encoding.compression
    check_compressed(compression, plan.secure, plan.privacy)
    if not keeps_a_rest(compression):
        return
    adapter = {tensor.name: tensor.shape for tensor in plan.adapter.layout.tensors}
    sent = strategy.statistics_layout(0).tensors
    others = (GroupStrategy, IndividualStrategy, PersonalStrategy, RememberingStrategy, StartingStrategy)
    if (
        strategy.stages > 1
        or isinstance(strategy, others)
        or product_strategy(strategy) is not None
        or any(adapter.get(tensor.name) != tensor.shape for tensor in sent)
    ):
        raise ConfigError(
            f"strategy {plan.strategy.name!r} is sent more, or something else, than updates of the same "
            "parameters in every round, and what a site has not sent yet would be added to that",
            found=f"encoding.compression.method=top_k with strategy.name={plan.strategy.name}",
            expected="a mean of updates, such as fedavg or ffa_lora",
            remedy="set encoding.compression.method to blocks, which any strategy may have, or strategy.name "
            "to fedavg",
        )  # fmt: skip


def check_compressed(
    compression: Blocks | TopK | None, secure: SecureRules, privacy: PrivacyRules | None
) -> None:
    """What can be refused of compressed contributions before there is a strategy.

    Raises:
        ConfigError: Contributions are hidden, or there is differential privacy.
    """
    if compression is None:
        return
    require_seen(compression, secure.mode)
    if privacy is not None:
        raise ConfigError(
            "privacy bounds and noises a contribution as it is added, and a compressed one is rounded once "
            "more, or leaves at the site what no noise covers",
            found=f"encoding.compression.method={compression.method} with privacy", expected="null",
            remedy="set encoding.compression to null: encoding.bits decides the bytes; or privacy to null",
        )  # fmt: skip


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


def usual_rank(plan: TrainingPlan, strategy: SumStrategy) -> int:
    """Directions of a module that train at a site without a rank of its own; 0 of an adapter without any."""
    if isinstance(strategy, StartingStrategy):
        return strategy.most_rank
    return max((pair.rank for pair in pairs(plan.adapter.layout)), default=0)


def check_moments(strategy: SumStrategy, spec: StrategySpec, local: LocalWork) -> None:
    """Refuse to keep moments that cannot be turned with the factors that a fold over products turns.

    Raises:
        ConfigError: DP-Adam's, which have the noise's variance along the old factors; or of a strategy
            that chooses in every round which directions train.
    """
    if local.optimiser_state != "keep" or product_strategy(strategy) is None:
        return
    if isinstance(strategy, StartingStrategy):
        raise ConfigError(
            f"strategy {spec.name!r} chooses anew in every round which directions train, and kept moments "
            "would be of others",
            found="local.optimiser_state=keep", expected="reset", remedy="set local.optimiser_state to reset",
        )  # fmt: skip
    if local.optimiser == "dp_adam":
        raise ConfigError(
            f"strategy {spec.name!r} turns the factors in every round, and the noise that DP-Adam takes out "
            "of its moments would be that along other directions",
            found="local.optimiser_state=keep with local.optimiser=dp_adam", expected="reset",
            remedy="set local.optimiser_state to reset, or strategy.name to fedavg",
        )  # fmt: skip


def check_one_gradient(strategy: SumStrategy, spec: StrategySpec) -> None:
    """Refuse shares of noise unless the strategy says that what a site sends is bounded by its step.

    There a site sends one clipped sum of gradients and steps nowhere, and the noise is sized for that sum. Of
    a product of factors it is the derivative, and the product of two steps is something else; statistics that
    are scaled, or have more in them, would be longer than what is charged.

    Raises:
        ConfigError: It does not say so.
    """
    if not is_bounded_by_update(strategy):
        raise ConfigError(
            f"strategy {spec.name!r} does not say that sites send their update or a part of it, and "
            "distributed noise protects the sum of clipped gradients alone",
            found=f"strategy.name={spec.name} with privacy.noise=distributed",
            expected="a strategy that is bounded_by_update (strategies/contract.py)",
            remedy="set strategy.name to ffa_lora or fedavg, or privacy.noise to local",
        )  # fmt: skip


def check_same_parameters(strategy: SumStrategy, plan: TrainingPlan) -> None:
    """Refuse correlated noise where a step's noise cannot take back that of the steps before.

    Raises:
        ConfigError: Rounds train other tensors in turn, or directions that the strategy turns or draws anew.
    """
    moved = isinstance(strategy, StartingStrategy) or product_strategy(strategy) is not None
    if not moved:
        broadcast = strategy.broadcast(strategy.begin(zeros(plan.adapter.layout)), 1, 0)
        frozen = {strategy.local_rules(broadcast, SiteMemory(), round).frozen for round in (1, 2)}
        moved = len(frozen) > 1
    if moved:
        raise ConfigError(
            f"strategy {plan.strategy.name!r} does not train the same parameters in every round, and "
            "correlated noise cancels on those alone",
            found=f"strategy.name={plan.strategy.name} with privacy.mechanism=banded",
            expected="a mean of updates, such as fedavg or ffa_lora",
            remedy="set strategy.name to fedavg or ffa_lora, or privacy.mechanism to poisson",
        )  # fmt: skip


def check_rank(plan: TrainingPlan, strategy: SumStrategy, rank: int) -> None:
    """Refuse a rank of a site's own that the plan's strategy, adapter or privacy cannot take.

    Raises:
        ConfigError: Larger than the plan's under a strategy that averages factors, or than the strategy lets
            train; an adapter without factors; a strategy with a memory at sites; distributed noise, where
            what is clipped and sent is one gradient.
    """
    usual = usual_rank(plan, strategy)
    if rank == usual:
        return
    if not usual:
        raise ConfigError("this site has a rank of its own, and the plan's adapter has none", found=rank)
    if plan.privacy is not None and plan.privacy.noise == "distributed":
        raise ConfigError(
            "distributed noise protects one gradient of the plan's own rank", found=rank, expected=usual,
            remedy="leave this site's rank out",
        )  # fmt: skip
    if isinstance(strategy, RememberingStrategy):
        raise ConfigError(
            f"strategy {plan.strategy.name!r} keeps directions of the plan's rank at each site",
            found=f"rank {rank} of this site", expected=f"{usual}", remedy="leave this site's rank out",
        )  # fmt: skip
    if rank > usual and isinstance(strategy, StartingStrategy):
        raise ConfigError(
            f"under the plan's options of strategy {plan.strategy.name!r} a site trains fewer directions",
            found=f"rank {rank} of this site", expected=f"at most {usual}",
            remedy="lower this site's rank, or leave it out",
        )  # fmt: skip
    over_products = product_strategy(strategy)
    if rank > usual and not (over_products is not None and over_products.any_rank):
        raise ConfigError(
            f"strategy {plan.strategy.name!r} is sent factors, and can take no rank above the plan's",
            found=f"rank {rank} of this site", expected=f"at most {usual}",
            remedy="lower this site's rank, or take strategy=tangent, which adds products",
        )  # fmt: skip


def check_seen(
    name: str, strategy: IndividualStrategy, secure: SecureRules, privacy: PrivacyRules | None
) -> None:
    """Refuse a strategy that sees individuals where a plan hides them.

    Raises:
        ConfigError: The aggregation hides single contributions, the noise is in their sum, or a threshold is
            set.
    """
    if secure.mode not in ("off", "trusted"):
        raise ConfigError(
            f"the strategy {name!r} has to see each site's contribution, and the plan hides it in a sum",
            found=f"secure.mode={secure.mode}", expected="trusted, or off",
            remedy=f"set {strategy.over_sums}, which works on sums, or secure.mode=trusted, with an "
            "aggregator that the sites trust",
        )  # fmt: skip
    if privacy is not None and privacy.noise != "local":
        raise ConfigError(
            f"the plan adds its noise to a sum, and the strategy {name!r} has none",
            found=f"privacy.noise={privacy.noise}", expected="local",
            remedy=f"set privacy.noise to local, or {strategy.over_sums}",
        )  # fmt: skip
    if secure.threshold is not None:
        raise ConfigError(
            f"a threshold is of sums over several sites, and the strategy {name!r} has none",
            found=f"secure.threshold={secure.threshold}", expected="null", remedy="leave it out",
        )  # fmt: skip


def individual_rules(spec: StrategySpec, *, allow_dotted: bool = False) -> IndividualStrategy | None:
    """The strategy, before there is an adapter, if it sees individuals; None where it works on sums.

    Raises:
        ConfigError: Unknown strategy or option.
    """
    bound = _without_layout(spec, allow_dotted=allow_dotted)
    return bound if isinstance(bound, IndividualStrategy) else None


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


def require_individuals(strategy: IndividualStrategy, cohort: int) -> None:
    """Refuse a strategy that needs more contributions than a round can have.

    Raises:
        ConfigError: It does.
    """
    if cohort < strategy.least_sites:
        raise ConfigError(
            "too few sites train in a round for this strategy", found=f"{cohort} sites",
            expected=f"at least {strategy.least_sites}",
            remedy="fewer attackers or a smaller least_sites in strategy.options, a larger "
            "rounds.participation, or more sites",
        )  # fmt: skip


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
