"""What every arm of a simulated run stands on: rows, base model, plan, initial adapter, encoded sites.

rows → base model → plan and initial adapter → encode
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from wardround.core.checked import parse_options
from wardround.core.errors import ConfigError, PolicyError
from wardround.core.packed import Adapter
from wardround.core.plan import Encoding, TaskSpec, TrainingPlan
from wardround.privacy.accounting.account import check_delta
from wardround.privacy.accounting.of_plan import cost_of, sigma_of_sums
from wardround.privacy.noise.shares import honest_shares
from wardround.privacy.secagg.policy import default_threshold
from wardround.privacy.sums.noise import require_target
from wardround.privacy.sums.offers import check_sites
from wardround.runtime.events import EventStream, Notice
from wardround.runtime.locations import locate
from wardround.server.cohorts import cohort_size
from wardround.simulations.arms import FEDERATED, Arm, SiteRows
from wardround.simulations.config import RunConfig, SecureConfig
from wardround.simulations.consortium import require_simulated, simulated_aggregator
from wardround.simulations.partitions import PARTITIONS
from wardround.simulations.rows import Rows, gather
from wardround.simulations.scoring import TestRows
from wardround.strategies.contract import GroupStrategy
from wardround.training.adapters import ADAPTERS
from wardround.training.column_mapping import LABEL
from wardround.training.examples import Example, split_validation
from wardround.training.planning import (
    PrivateBounds,
    bind_strategy,
    bounds_of,
    check_choices,
    group_rules,
    make_plan,
)
from wardround.training.tasks import TASKS
from wardround.training.tasks.contract import Encoded, Task
from wardround.training.workbench import Workbench, open_workbench


@dataclass(frozen=True)
class Preparation:
    """A configured run before anything is trained.

    Attributes:
        config: Checked configuration, a simulated aggregator's key filled in.
        rows: Rows of every site, and the test rows.
        bench: Base model with the adapter on it; all sites share it.
        plan: What is trained.
        initial: The adapter that every arm starts from.
    """

    config: RunConfig
    rows: Rows
    bench: Workbench
    plan: TrainingPlan
    initial: Adapter


def task_of(config: RunConfig) -> tuple[Task, TaskSpec]:
    """The configured task and its checked options.

    Raises:
        ConfigError: Unknown task or option.
    """
    task = TASKS.get(config.task.name, allow_dotted=True)
    options = parse_options(task.Options, config.task.options, f"options of task {config.task.name!r}")
    return task, TaskSpec(
        name=config.task.name, options=options.model_dump(mode="json"), metrics=task.metric_family
    )


def prepare(config: RunConfig, rows: Rows | None = None) -> Preparation:
    """Check the whole configuration, read the rows, load the base model, make plan and initial adapter.

    Args:
        config: Checked configuration.
        rows: Instead of those that the configuration names.

    Raises:
        WardroundError: What is wrong with configuration, data or model, in this order.
    """
    config = config.model_copy(update={"secure": with_key(config.secure, config.seed)})
    task, spec = task_of(config)
    check_choices(
        task=spec,
        validation_fraction=config.data.validation_fraction,
        local=config.local,
        strategy=config.strategy,
        release=config.release,
        allow_dotted=True,
    )
    method = ADAPTERS.get(config.adapter.method, allow_dotted=True)
    options = parse_options(
        method.Options, config.adapter.options, f"options of adapter {config.adapter.method!r}"
    )
    if rows is None and not config.data.sites:
        partition = PARTITIONS.get(config.partition.kind, allow_dotted=True)
        kind = config.partition.kind
        parse_options(partition.Options, config.partition.options, f"options of partition {kind!r}")
    if config.privacy is not None and config.data.labels == "auto" and LABEL in task.required_roles(spec):
        raise ConfigError(
            "the label list would be learnt from private rows", found="data.labels=auto",
            expected="a list that is written down", remedy="set data.labels to the ordered list of labels",
        )  # fmt: skip
    rows = rows or gather(config, task, spec)
    encoding, sites = encoding_of(config, rows), len(rows.sites)
    groups = group_rules(config.strategy, allow_dotted=True)
    if groups is not None:
        check_groups(config, groups, sites)
    check_sites(
        config.secure.rules,
        encoding,
        config.secure.policy,
        sites=sites,
        cohort=cohort_size(config.rounds, sites),
        group_size=groups.group_size if groups else 0,
    )
    bench = open_workbench(
        config.model, task, rows.contract, method, options, config.machine, seed=config.seed
    )
    plan, initial = make_plan(
        bench,
        name=config.name,
        seed=config.seed,
        task=spec,
        data=rows.contract,
        adapter_method=config.adapter.method,
        adapter_options=options.model_dump(mode="json"),
        start_from=locate(config.adapter.start_from) if config.adapter.start_from else None,
        local=config.local,
        strategy=config.strategy,
        encoding=encoding,
        secure=config.secure.rules,
        rounds=config.rounds,
        release=config.release,
        privacy=config.privacy,
        allow_dotted=True,
    )
    size = bind_strategy(plan, allow_dotted=True).statistics_layout(0).size
    require_target(plan, units=1, cohort=cohort_size(plan.rounds, sites), coordinates=size)
    return Preparation(config, rows, bench, plan, initial)


def check_groups(config: RunConfig, groups: GroupStrategy, sites: int) -> None:
    """Refuse a strategy that sums over groups where there are too few sites, or its rules do not let it.

    Raises:
        ConfigError: Too few sites, or not all of them train in every round.
        PolicyError: The sites' policy does not allow the strategy.
    """
    least = groups.group_size * groups.least_groups
    if sites < least:
        raise ConfigError(
            "too few sites for the groups of this strategy", found=f"{sites} sites",
            expected=f"at least {least}: {groups.least_groups} groups of {groups.group_size}",
            remedy="smaller groups or fewer attackers in strategy.options, or more sites",
        )  # fmt: skip
    if config.rounds.participation < 1:
        raise ConfigError(
            "groups are fixed for the whole run", found=f"rounds.participation={config.rounds.participation}",
            expected="1", remedy="ask all sites in every round, or take a strategy without groups",
        )  # fmt: skip
    config.secure.policy.check_groups(config.strategy.name)


def with_key(secure: SecureConfig, seed: int) -> SecureConfig:
    """The rules of the sums, under `trusted` with the simulated aggregator's key in plan and policy.

    Where nobody wrote one: a policy that allows `trusted` pins that key, as the sites' own people would.

    Raises:
        ConfigError: The configuration names a key that the simulation cannot open for.
    """
    if secure.mode != "trusted":
        return secure
    aggregator = simulated_aggregator(seed)
    key = aggregator.public.hex()
    require_simulated(secure.aggregator or key, aggregator)
    pinned = secure.policy.model_copy(update={"aggregator": secure.policy.aggregator or key})
    return secure.model_copy(update={"aggregator": key, "policy": pinned})


def encoding_of(config: RunConfig, rows: Rows) -> Encoding:
    """The configured encoding, with the bounds that nobody gave."""
    given = config.encoding
    bounds: dict[str, Any] = {}
    if "auto" in (given.largest, given.most_weight):
        private = private_bounds(config, rows)
        # Of a private run units: how many rows they have is nobody's affair.
        most = max((len(examples) for examples in rows.sites.values()), default=1)
        most = most if private is None else private.units
        local = config.local
        if given.largest != "auto":  # then nothing has to bound the update
            local = local.model_copy(update={"max_grad_norm": local.max_grad_norm or 1.0})
        bounds = bounds_of(local, config.strategy.weighting, most, config.data.max_length, private)
    chosen = {name: value for name, value in given.model_dump().items() if value != "auto"}
    if config.privacy is not None and config.privacy.unit == "site":  # every site's whole update is clipped
        chosen["norm"] = config.privacy.clip_norm
    return Encoding(**(bounds | chosen))


def private_bounds(config: RunConfig, rows: Rows) -> PrivateBounds | None:
    """What privacy means for the bounds; what no site could do is refused here, before a model is loaded.

    Raises:
        ConfigError: A site has fewer units than a batch, or no noise meets the target.
        PolicyError: δ is too large for a site of so few units.
    """
    rules = config.privacy
    if rules is None:
        return None
    cohort = cohort_size(config.rounds, len(rows.sites))
    if not rules.trains_privately:
        check_delta(rules.delta, len(rows.sites))
        return PrivateBounds(rules, sigma_of_sums(rules, config.rounds.rounds), cohort, units=1)
    if rules.noise == "distributed" and rules.colluders < config.secure.policy.assumed_colluders:
        raise PolicyError(
            "sites assume that more of them collude than the shares of the noise are made for",
            found=f"privacy.colluders={rules.colluders}",
            expected=f"at least secure.policy.assumed_colluders={config.secure.policy.assumed_colluders}",
        )  # fmt: skip
    costs = []
    for name, examples in rows.sites.items():
        training, _ = split_validation(examples, config.data.validation_fraction, config.seed, name)
        units = len(training if rules.unit == "example" else {examples[index].unit for index in training})
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
    sigma, units = (max((getattr(cost, name) for cost in costs), default=1) for name in ("sigma", "units"))
    return PrivateBounds(rules, sigma, cohort, units, shares)


def encode_all(prepared: Preparation, events: EventStream) -> tuple[Arm, TestRows]:
    """The federation and the test rows, as the model reads them."""
    plan, bench, rows = prepared.plan, prepared.bench, prepared.rows
    sites = {name: encode_site(plan, bench, name, examples, events) for name, examples in rows.sites.items()}
    test = TestRows(
        encode_rows(plan, bench, rows.test, "test", events),
        {
            name: encode_rows(plan, bench, found, f"test/{name}", events)
            for name, found in rows.site_tests.items()
        },
    )
    return Arm(FEDERATED, plan, sites), test


def encode_site(
    plan: TrainingPlan, bench: Workbench, name: str, examples: Sequence[Example], events: EventStream
) -> SiteRows:
    """Carve the validation part by unit, then encode both parts."""
    parts = split_validation(examples, plan.data.validation_fraction, plan.seed, name)
    training, validation = ([examples[index] for index in part] for part in parts)
    encoded = encode_rows(plan, bench, training, name, events)
    return SiteRows(
        encoded,
        encode_rows(plan, bench, validation, name, events),
        [] if plan.data.packing else [example.unit for example in training],
    )


def encode_rows(
    plan: TrainingPlan, bench: Workbench, examples: Sequence[Example], where: str, events: EventStream
) -> list[Encoded]:
    """Encode rows; what truncation cut is told, never silent."""
    encoded = bench.task.encode(examples, bench.tokenizer, plan.data, plan.task)
    tokens = sum(row.cut for row in encoded)
    if tokens:
        # Packed rows share a sequence, which then does not say how many of them were cut.
        cut = "some" if plan.data.packing else sum(1 for row in encoded if row.cut)
        events.emit(
            Notice(
                FEDERATED,
                "info",
                f"{where}: {cut} of {len(examples)} rows were longer than {plan.data.max_length} tokens; "
                f"{tokens} tokens were cut",
            )
        )
    return encoded
