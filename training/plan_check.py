"""What a finished plan is refused for, before it is signed, offered or trained.

Nothing here loads a model or reads a row, and `plan_faults` imports no torch: a server can ask it. What only
the files of task and adapter method know is asked in `option_faults`, which imports them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any, Final, TypeVar

from wardround.core.checked import parse_options
from wardround.core.counting import metric_layout
from wardround.core.enrolment import SignedPlan
from wardround.core.errors import ConfigError, PolicyError, WardroundError
from wardround.core.plan import TrainingPlan, cohort_size
from wardround.core.registry import Registry
from wardround.privacy.secagg.policy import SecurePolicy
from wardround.privacy.sums.noise import require_target
from wardround.privacy.sums.offers import check_sites
from wardround.privacy.sums.trusted import simulated_aggregator
from wardround.runtime.plan_folder import check_layout
from wardround.training.adapters import ADAPTERS
from wardround.training.column_mapping import LABEL
from wardround.training.examples import label_indices
from wardround.training.plan_making import require_groups
from wardround.training.plan_strategy import (
    bind_strategy,
    group_rules,
    individual_rules,
    require_individuals,
)
from wardround.training.planning import check_choices
from wardround.training.tasks import TASKS
from wardround.training.template import check_template, columns_of

MOST_ROUNDS: Final = 100_000
"""What some checks cost grows with the rounds; nobody trains so many."""
LONGEST_NAME: Final = 200
_DIGEST = re.compile(r"[0-9a-f]{64}")

T = TypeVar("T")


def loosest_policy(plan: TrainingPlan) -> SecurePolicy:
    """The least that any site may demand of the sums: what it refuses, every site refuses."""
    return SecurePolicy(
        modes=("real", "accounted", "off", "trusted"), aggregator=plan.secure.aggregator,
        assumed_colluders=0, least_honest=2, least_cohort=3, group_strategies=(plan.strategy.name,),
    )  # fmt: skip


def plan_faults(document: SignedPlan, sites: Iterable[int] = ()) -> tuple[WardroundError, ...]:
    """Everything for which the plan is refused, whoever takes part; none: it is sound as far as it says.

    Args:
        document: The plan and its enrolment rules.
        sites: Numbers of sites beside the least one for which it has to hold as well.
    """
    plan = document.plan
    named = _found(_check_names, plan)
    if named:
        return named  # the rest asks what the names stand for
    counts = sorted({document.enrolment.least_sites, *sites})
    found = [
        *_found(_check_choices, plan),
        *_found(_check_contract, plan),
        *_found(_check_key, plan),
    ]
    if not _found(check_layout, plan.adapter.layout):
        found += [fault for count in counts for fault in _found(lambda: _check_count(plan, count))]  # noqa: B023 - called at once
    else:
        found += _found(check_layout, plan.adapter.layout)
    few = [count for count in counts if count < document.enrolment.least_sites]
    if few:
        found.append(
            ConfigError(
                "the plan waits for more sites than are expected",
                found=f"{few[0]} sites",
                expected=f"at least enrolment.least_sites={document.enrolment.least_sites}",
                remedy="set plan.least_sites to fewer, or wait for more members",
            )
        )
    return tuple({str(fault): fault for fault in found}.values())


def option_faults(plan: TrainingPlan) -> tuple[WardroundError, ...]:
    """What the files of the plan's task and adapter method refuse; imports torch.

    Asked after `plan_faults`, which knows their names.
    """
    return (*_found(_check_task, plan), *_found(_check_adapter, plan))


def site_advice(plan: TrainingPlan, sites: int) -> tuple[str, ...]:
    """What a person should know of a plan that is not refused, in sentences."""
    advice = []
    if plan.secure.mode in ("real", "accounted") and sites < SecurePolicy().least_cohort:
        advice.append(
            f"with {sites} sites a sum hides each among {sites - 1} others, one of which may work with the "
            "server, and two lost at once end a round; at least 5 are advised, and a site that demands fewer "
            "says so in its own policy (least_cohort)"
        )
    if plan.secure.mode not in SecurePolicy().modes:
        advice.append(
            f"sites refuse secure.mode={plan.secure.mode} unless their own policy allows it (modes)"
        )
    if plan.privacy is None:
        advice.append("no differential privacy: what the model gives away of single patients is not bounded")
    return tuple(advice)


def _found(check: Callable[..., object], *arguments: Any) -> tuple[WardroundError, ...]:
    try:
        check(*arguments)
    except WardroundError as error:
        return (error,)
    return ()


def _check_names(plan: TrainingPlan) -> None:
    _known(TASKS, plan.task.name)
    _known(ADAPTERS, plan.adapter.method)
    if not (plan.name.isprintable() and 0 < len(plan.name) <= LONGEST_NAME):
        raise ConfigError(
            "the plan's name is none", expected=f"1 to {LONGEST_NAME} printable characters", remedy="set name"
        )
    if plan.rounds.rounds > MOST_ROUNDS:
        raise ConfigError(
            "the plan has more rounds than anybody trains", found=f"rounds.rounds={plan.rounds.rounds}",
            expected=f"at most {MOST_ROUNDS}",
        )  # fmt: skip
    metric_layout(plan)
    bind_strategy(plan)


def _known(registry: Registry[T], name: str) -> None:
    if ":" in name:  # refused as code; nothing is imported
        registry.get(name)
    registry.require(name)


def _check_choices(plan: TrainingPlan) -> None:
    check_choices(
        task=plan.task, validation_fraction=plan.data.validation_fraction, local=plan.local,
        strategy=plan.strategy, release=plan.release,
    )  # fmt: skip


def _check_contract(plan: TrainingPlan) -> None:
    if plan.data.template is not None:
        check_template(plan.data.template, columns_of(plan.data.template))
    digests = {
        "base.digest": plan.base.digest,
        "adapter.initial_digest": plan.adapter.initial_digest,
        "data.tokenizer_digest": plan.data.tokenizer_digest or "0" * 64,  # some tasks read no texts
        "data.chat_template_digest": plan.data.chat_template_digest or "0" * 64,
    }
    wrong = [name for name, value in digests.items() if not _DIGEST.fullmatch(value)]
    if wrong:
        raise ConfigError(
            "the plan names something by what is no digest", found=", ".join(wrong),
            expected="SHA-256, 64 digits in lower case", remedy="make the plan with `wardround plan new`",
        )  # fmt: skip


def _check_key(plan: TrainingPlan) -> None:
    refuse_simulated(plan.secure.aggregator, plan.seed)


def refuse_simulated(key: str | None, seed: int) -> None:
    """Refuse a trusted aggregator whose key everybody can make from the plan's seed.

    Raises:
        ConfigError: It is that of a simulation.
    """
    if key is not None and key == simulated_aggregator(seed).public.hex():
        raise ConfigError(
            "the plan names a simulation's aggregator: whoever reads the plan can make its key",
            found=f"secure.aggregator={key[:16]}…",
            expected="the X25519 key of an aggregator that the sites trust",
            remedy="set secure.aggregator to the key that the aggregator's own people gave you",
        )


def _check_count(plan: TrainingPlan, sites: int) -> None:
    """What follows from the number of sites: groups, ring, noise, policy."""
    groups = group_rules(plan.strategy)
    if groups is not None:
        require_groups(groups, plan.rounds.participation, sites)
    cohort, individuals = cohort_size(plan.rounds, sites), individual_rules(plan.strategy)
    if individuals is not None:
        require_individuals(individuals, cohort)
    try:
        check_sites(
            plan.secure, plan.encoding, loosest_policy(plan), sites=sites,
            cohort=1 if individuals else cohort,
            group_size=groups.group_size if groups else 0,
        )  # fmt: skip
    except PolicyError as error:
        raise PolicyError(
            f"no site may take part in this plan with {sites} sites: {error.what}", found=error.found,
            expected=error.expected, remedy="wait for more members (plan.least_sites), ask all of them in "
            "every round, or choose another secure.mode",
        ) from error  # fmt: skip
    if plan.privacy is not None:
        size = bind_strategy(plan).statistics_layout(0).size
        require_target(plan, units=1, cohort=cohort, coordinates=size)


def _check_task(plan: TrainingPlan) -> None:
    task = TASKS.get(plan.task.name)
    options = parse_options(task.Options, plan.task.options, f"options of task {plan.task.name!r}")
    _require_whole("task", plan.task.options, options.model_dump(mode="json"))
    if task.metric_family != plan.task.metrics:
        raise ConfigError(
            "the plan counts metrics that are not its task's", found=f"task.metrics={plan.task.metrics}",
            expected=task.metric_family,
        )  # fmt: skip
    roles = task.required_roles(plan.task)
    built = {"text"} if plan.data.template is not None else set()
    missing = sorted(
        role for role, needed in roles.items() if needed and role not in built | set(plan.data.columns)
    )
    unknown = sorted(set(plan.data.columns) - set(roles) - {LABEL})
    if missing or unknown:
        raise ConfigError(
            "the plan's column mapping does not fit its task",
            found=f"not mapped: {', '.join(missing) or 'none'}; not known: {', '.join(unknown) or 'none'}",
            expected="roles " + ", ".join(roles), remedy="set data.columns",
        )  # fmt: skip
    if LABEL in roles and LABEL in plan.data.columns:
        label_indices(plan.data, roles)


def _check_adapter(plan: TrainingPlan) -> None:
    method, spec = ADAPTERS.get(plan.adapter.method), plan.adapter
    options = parse_options(method.Options, spec.options, f"options of adapter {spec.method!r}")
    _require_whole("adapter", spec.options, options.model_dump(mode="json"))


def _require_whole(what: str, written: dict[str, Any], checked: dict[str, Any]) -> None:
    """A plan says every option, so that a later version's default changes no plan that is signed."""
    if written != checked:
        differ = sorted(name for name in checked.keys() | written if written.get(name) != checked.get(name))
        raise ConfigError(
            f"the plan's {what} options are not written out as `wardround plan new` writes them",
            found=", ".join(differ), expected="every option with its value",
            remedy="make the plan anew",
        )  # fmt: skip
