"""From settings to a plan and its initial adapter: what a simulation and a consortium's plan share.

A simulation counts its sites' rows; a consortium may not, and says what it expects instead. From there on
both go the same way, so that equal settings and equal expectations give one plan, to the last bit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from wardround.core.checked import parse_options
from wardround.core.errors import ConfigError, PolicyError
from wardround.core.packed import Adapter
from wardround.core.plan import DataContract, Encoding, TaskSpec, TrainingPlan, cohort_size
from wardround.privacy.accounting.account import check_delta
from wardround.privacy.accounting.of_plan import cost_of, sigma_of_sums
from wardround.privacy.noise.shares import honest_shares
from wardround.privacy.secagg.policy import default_threshold
from wardround.privacy.sums.noise import require_target
from wardround.privacy.sums.offers import check_sites
from wardround.runtime.locations import locate
from wardround.strategies.contract import GroupStrategy
from wardround.training.adapters import ADAPTERS
from wardround.training.plan_config import DataConfig, PlanConfig
from wardround.training.plan_strategy import (
    bind_strategy,
    check_compressed,
    check_seen,
    check_strategy,
    group_rules,
    individual_rules,
    require_individuals,
)
from wardround.training.planning import PrivateBounds, bounds_of, check_choices, make_plan
from wardround.training.tasks import TASKS
from wardround.training.tasks.contract import Task

if TYPE_CHECKING:  # so that all but the model is checked without torch
    from wardround.training.adapters.contract import AdapterMethod
    from wardround.training.workbench import Workbench


@dataclass(frozen=True)
class Choices:
    """What the settings choose by name, each with its checked options.

    Attributes:
        task: Kind of fine-tuning.
        spec: The same for the plan.
        method: Adapter method.
        options: The method's own.
    """

    task: Task
    spec: TaskSpec
    method: AdapterMethod
    options: BaseModel


@dataclass(frozen=True)
class ExpectedSites:
    """What a plan's bounds need to know of the sites.

    Attributes:
        sites: So many take part.
        rows: Usable rows of the largest site, those that it holds back for validation among them.
        units: Site, or whatever a message is to call it → units that it trains on. Read where sites train
            privately, and nowhere else.
    """

    sites: int
    rows: int
    units: Mapping[str, int] = field(default_factory=dict)


def task_of(config: PlanConfig, *, allow_dotted: bool = True) -> tuple[Task, TaskSpec]:
    """The configured task and its checked options.

    Raises:
        ConfigError: Unknown task or option.
    """
    task = TASKS.get(config.task.name, allow_dotted=allow_dotted)
    options = parse_options(task.Options, config.task.options, f"options of task {config.task.name!r}")
    return task, TaskSpec(
        name=config.task.name, options=options.model_dump(mode="json"), metrics=task.metric_family
    )


def choices_of(config: PlanConfig, *, allow_dotted: bool) -> Choices:
    """Task and adapter method, with everything that can be refused of names and options alone.

    Args:
        config: Checked settings.
        allow_dotted: Whether code may be named as module:attribute: a simulation's own, never a consortium's.

    Raises:
        ConfigError: Unknown task, method, strategy, metric or option, or settings that do not go together.
    """
    task, spec = task_of(config, allow_dotted=allow_dotted)
    check_choices(
        task=spec,
        validation_fraction=config.data.validation_fraction,
        local=config.local,
        strategy=config.strategy,
        release=config.release,
        allow_dotted=allow_dotted,
    )
    method = ADAPTERS.get(config.adapter.method, allow_dotted=allow_dotted)
    what = f"options of adapter {config.adapter.method!r}"
    return Choices(task, spec, method, parse_options(method.Options, config.adapter.options, what))


def written_contract(data: DataConfig) -> DataContract:
    """The data contract as a person wrote it: without a label list where `labels` is auto."""
    return DataContract(
        columns=data.columns,
        template=data.template,
        labels=() if data.labels == "auto" else tuple(data.labels),
        id_column=data.id_column,
        unit_column=data.unit_column,
        max_length=data.max_length,
        packing=data.packing,
        validation_fraction=data.validation_fraction,
    )


def plan_of(
    config: PlanConfig,
    choices: Choices,
    contract: DataContract,
    expected: ExpectedSites,
    *,
    allow_dotted: bool,
) -> tuple[Workbench, TrainingPlan, Adapter]:
    """Check what is left to check, load the base model, make plan and initial adapter.

    Args:
        config: Checked settings; under `secure.mode=trusted` with the aggregator's key.
        choices: What they chose, of `choices_of`.
        contract: With its label list.
        expected: Of the sites.
        allow_dotted: As `choices_of`.

    Returns:
        The base model with the adapter on it, the plan, and the initial adapter that the plan names.

    Raises:
        WardroundError: What is wrong with settings or model, in this order.
    """
    check_strategy(config.strategy, config.release, config.privacy, allow_dotted=allow_dotted)
    check_compressed(config.encoding.compression, config.secure.rules, config.privacy)
    cohort = cohort_size(config.rounds, expected.sites)
    individuals = individual_rules(config.strategy, allow_dotted=allow_dotted)
    if individuals is not None:
        check_seen(config.strategy.name, individuals, config.secure.rules, config.privacy)
        require_individuals(individuals, cohort)
    encoding = encoding_of(config, expected)
    groups = group_rules(config.strategy, allow_dotted=allow_dotted)
    if groups is not None:
        check_groups(config, groups, expected.sites)
    check_sites(
        config.secure.rules,
        encoding,
        config.secure.policy,
        sites=expected.sites,
        cohort=1 if individuals else cohort,
        group_size=groups.group_size if groups else 0,
    )
    # Only now, since torch comes with it.
    from wardround.training.workbench import open_workbench

    bench = open_workbench(
        config.model, choices.task, contract, choices.method, choices.options, config.machine,
        seed=config.seed,
    )  # fmt: skip
    plan, initial = make_plan(
        bench,
        name=config.name,
        seed=config.seed,
        task=choices.spec,
        data=contract,
        adapter_method=config.adapter.method,
        adapter_options=choices.options.model_dump(mode="json"),
        start_from=locate(config.adapter.start_from) if config.adapter.start_from else None,
        local=config.local,
        strategy=config.strategy,
        encoding=encoding,
        secure=config.secure.rules,
        rounds=config.rounds,
        release=config.release,
        privacy=config.privacy,
        allow_dotted=allow_dotted,
    )
    size = bind_strategy(plan, allow_dotted=allow_dotted).statistics_layout(0).size
    require_target(plan, units=1, cohort=cohort, coordinates=size)
    return bench, plan, initial


def check_groups(config: PlanConfig, groups: GroupStrategy, sites: int) -> None:
    """Refuse a strategy that sums over groups where there are too few sites, or its rules do not let it.

    Raises:
        ConfigError: Too few sites, or not all of them train in every round.
        PolicyError: The sites' policy does not allow the strategy.
    """
    require_groups(groups, config.rounds.participation, sites)
    config.secure.policy.check_groups(config.strategy.name)


def require_groups(groups: GroupStrategy, participation: float, sites: int) -> None:
    """Refuse groups for which there are too few sites, or in which not all of them train.

    Raises:
        ConfigError: One of the two.
    """
    least = groups.group_size * groups.least_groups
    if sites < least:
        raise ConfigError(
            "too few sites for the groups of this strategy", found=f"{sites} sites",
            expected=f"at least {least}: {groups.least_groups} groups of {groups.group_size}",
            remedy="smaller groups or fewer attackers in strategy.options, or more sites",
        )  # fmt: skip
    if participation < 1:
        raise ConfigError(
            "groups are fixed for the whole run", found=f"rounds.participation={participation}",
            expected="1", remedy="ask all sites in every round, or take a strategy without groups",
        )  # fmt: skip


def encoding_of(config: PlanConfig, expected: ExpectedSites) -> Encoding:
    """The configured encoding, with the bounds that nobody gave.

    Raises:
        ConfigError: As `private_bounds` and `bounds_of`.
        PolicyError: As `private_bounds`.
    """
    given = config.encoding
    bounds: dict[str, Any] = {}
    if "auto" in (given.largest, given.most_weight):
        private = private_bounds(config, expected)
        # Of a private run units: how many rows they have is nobody's affair.
        most = expected.rows if private is None else private.units
        local = config.local
        if given.largest != "auto":  # then nothing has to bound the update
            local = local.model_copy(update={"max_grad_norm": local.max_grad_norm or 1.0})
        bounds = bounds_of(local, config.strategy.weighting, most, config.data.max_length, private)
    chosen = {name: value for name, value in given.model_dump().items() if value != "auto"}
    if config.privacy is not None and config.privacy.unit == "site":  # every site's whole update is clipped
        chosen["norm"] = config.privacy.clip_norm
    return Encoding(**(bounds | chosen))


def private_bounds(config: PlanConfig, expected: ExpectedSites) -> PrivateBounds | None:
    """What privacy means for the bounds; what no site could do is refused here, before a model is loaded.

    Raises:
        ConfigError: A site has fewer units than a batch, or no noise meets the target.
        PolicyError: δ is too large for a site of so few units.
    """
    rules = config.privacy
    if rules is None:
        return None
    cohort = cohort_size(config.rounds, expected.sites)
    if not rules.trains_privately:
        check_delta(rules.delta, expected.sites)
        return PrivateBounds(rules, sigma_of_sums(rules, config.rounds.rounds), cohort, units=1)
    if rules.noise == "distributed" and rules.colluders < config.secure.policy.assumed_colluders:
        raise PolicyError(
            "sites assume that more of them collude than the shares of the noise are made for",
            found=f"privacy.colluders={rules.colluders}",
            expected=f"at least secure.policy.assumed_colluders={config.secure.policy.assumed_colluders}",
        )  # fmt: skip
    costs = []
    for name, units in expected.units.items():
        try:
            costs.append(cost_of(rules, config.local, config.rounds, units))
        except (ConfigError, PolicyError) as error:
            raise type(error)(
                f"site {name}: {error.what}", found=error.found, expected=error.expected, remedy=error.remedy
            ) from error
    shares = 1
    if rules.noise == "distributed":
        least = config.secure.threshold or default_threshold(cohort)
        shares = honest_shares(least_survivors=least, colluders=rules.colluders, site_is_adversary=True)
    sigma, most = (max((getattr(cost, name) for cost in costs), default=1) for name in ("widest", "units"))
    return PrivateBounds(rules, sigma, cohort, most, shares)
