"""What a site brings to a plan: its base model, and its own rows as the plan has them read. No network here.

What stands in the way is an `UnreadyError`: its words are for the site's own people, its code
(`core/enrolment.py`) is all that may be told to the server. How many rows a site has is never said, only
whether they are enough.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from pydantic import BaseModel

from wardround.client.own_rank import own_rank
from wardround.client.policy import (
    LocalCounts,
    RefusedPlanError,
    require_allowed,
    require_no_vocabulary,
    rows_refusals,
)
from wardround.client.site_settings import SiteSettings
from wardround.core.checked import parse_options
from wardround.core.errors import (
    CodedError,
    UnreadyError,
    WardroundError,
)
from wardround.core.plan import TrainingPlan
from wardround.privacy.accounting.of_plan import cost_of
from wardround.strategies.contract import GroupStrategy
from wardround.training.adapters import ADAPTERS
from wardround.training.adapters.contract import AdapterMethod
from wardround.training.device_memory import out_of_memory
from wardround.training.examples import Example, ExampleSet, parts_of, read_examples
from wardround.training.plan_strategy import bind_strategy
from wardround.training.site_rows import SiteRows, bounded_site, contents_of, encode_site
from wardround.training.tasks import TASKS
from wardround.training.tasks.contract import Task
from wardround.training.vocabulary import of_vocabulary
from wardround.training.workbench import Workbench, open_workbench

Estimate: TypeAlias = Literal["enough", "not enough"]


@dataclass(frozen=True)
class LocalRows:
    """Usable rows of a site, before a model has been loaded.

    Attributes:
        examples: In the order of the source; those for validation are among them.
        estimate: Whether those that it may train on fill a batch of the plan.
        notices: What the site's own people should know; may hold counts, and stays here.
    """

    examples: tuple[Example, ...] = field(repr=False)
    estimate: Estimate
    notices: tuple[str, ...] = field(default=(), repr=False)


@dataclass(frozen=True)
class LocalData:
    """A site that is ready to train a plan.

    Attributes:
        bench: The plan's base model with the adapter on it.
        rows: Encoded rows, for training and held back.
        estimate: As of the rows.
        notices: As of the rows, and what was cut.
        rank: At which the site trains; None: the plan's.
    """

    bench: Workbench = field(repr=False)
    rows: SiteRows = field(repr=False)
    estimate: Estimate
    notices: tuple[str, ...] = field(default=(), repr=False)
    rank: int | None = field(default=None, repr=False)


def ready(settings: SiteSettings, plan: TrainingPlan, site: str) -> LocalData:
    """Hold a plan against what the site has, cheapest first, and open what it trains with.

    Args:
        settings: Of the site.
        plan: A plan that is sound (`training/plan_check.py`) and signed.
        site: Its name in the roster: which rows it holds back follows from it.

    Raises:
        RefusedPlanError: The site's policy does not allow the plan.
        UnreadyError: What else stands in the way, with its code.
    """
    check_policy(settings, plan)
    with _unready("machine"):
        rank = own_rank(settings, plan)
    rows = read_rows(settings, plan, site)
    bench = open_bench(settings, plan)
    with _unready("policy"):
        require_no_vocabulary(settings.plans, of_vocabulary(bench.model, bench.parameters()))
    notices = list(rows.notices)
    with _unready("rows"):
        encoded = bounded_site(plan, site, encode_site(plan, bench, site, rows.examples, notices.append))
    check_weight(plan, bench, encoded)
    return LocalData(bench, encoded, rows.estimate, tuple(notices), rank)


def check_weight(plan: TrainingPlan, bench: Workbench, rows: SiteRows) -> None:
    """Refuse a plan in which this site could not contribute: it would weigh nothing, or more than is allowed.

    Raises:
        UnreadyError: not_enough_rows or too_many_rows.
    """
    trained = [row for row in rows.training if bench.task.targets(row) > 0]
    if not trained:
        raise UnreadyError(
            "not_enough_rows", "no row of this site has anything to learn from once it is encoded",
            expected="at least one", remedy="wait for a plan with a larger data.max_length",
        )  # fmt: skip
    weight = 1  # of steps the targets are bounded by the plan itself
    if plan.strategy.weighting == "examples":
        weight = sum(row.rows for row in trained)
    elif plan.strategy.weighting == "targets" and plan.local.epochs is not None:
        weight = math.ceil(plan.local.epochs * sum(map(bench.task.targets, trained)))
    if weight > plan.encoding.most_weight:
        raise UnreadyError(
            "too_many_rows", "this site weighs more than the plan allows", found=weight,
            expected=f"at most {plan.encoding.most_weight}",
            remedy="name fewer rows in site.yaml (where), or ask for a plan with a larger plan.most_rows",
        )  # fmt: skip


def check_policy(settings: SiteSettings, plan: TrainingPlan) -> None:
    """Refuse a plan that asks for more than the site allows; its cohort is judged when it is known.

    Raises:
        RefusedPlanError: Every reason at once.
        UnreadyError: method, for a strategy that is not installed.
    """
    with _unready("method"):
        strategy = bind_strategy(plan)
    groups = isinstance(strategy, GroupStrategy)
    require_allowed(settings.plans, settings.policy, plan, groups=groups)


def read_rows(settings: SiteSettings, plan: TrainingPlan, site: str) -> LocalRows:
    """Read and check the site's rows under the plan's data contract; no model is loaded.

    Raises:
        UnreadyError: method, rows, columns, labels, broken_rows, not_enough_rows, policy or privacy.
    """
    found = _usable(settings, plan)
    estimate = _estimate(plan, site, found.examples)
    _require_counts(settings, plan, site, found.examples)
    counts = found.quarantine_counts()
    told = ", ".join(f"{count} × {reason}" for reason, count in sorted(counts.items()))
    notices = (f"{sum(counts.values())} of {found.rows_read} rows quarantined ({told})",) if counts else ()
    return LocalRows(found.examples, estimate, notices)


def _usable(settings: SiteSettings, plan: TrainingPlan) -> ExampleSet:
    task = _task(plan)[0]
    with _unready("columns"):
        return read_examples(
            settings.source, plan.data, task.required_roles(plan.task),
            fault=lambda example: task.fault(example, plan.task), renamed=settings.columns,
            name_labels=False,
        )  # fmt: skip


@dataclass(frozen=True)
class UnitsOfRows:
    """Whose rows a plan gets.

    Attributes:
        everybody: Their units, sorted.
        held_back: Of them, those that are only scored.
        contents: As `contents_of`.
    """

    everybody: tuple[str, ...]
    held_back: tuple[str, ...]
    contents: dict[str, str]


def units_of(settings: SiteSettings, plan: TrainingPlan, site: str) -> UnitsOfRows:
    """Whose rows a plan gets of the source as it is now, whatever the site's policy says.

    Raises:
        UnreadyError: The source cannot be read as the plan has it.
    """
    found = _usable(settings, plan)
    _, held = parts_of(plan, site, found.examples)
    return UnitsOfRows(
        tuple(sorted({example.unit for example in found.examples})),
        tuple(sorted({found.examples[index].unit for index in held})),
        contents_of(found.examples),
    )


def _estimate(plan: TrainingPlan, site: str, examples: Sequence[Example]) -> Estimate:
    """Whether the rows that a site may train on fill a batch.

    Raises:
        UnreadyError: There is none, or too few for the plan's privacy.
    """
    training, _ = parts_of(plan, site, examples)
    if not training:
        raise UnreadyError(
            "not_enough_rows", "there is no usable row to train on",
            expected="at least one",
            remedy="correct the source in site.yaml; `wardround data check` reads it",
        )  # fmt: skip
    rules = plan.privacy
    if rules is None or not rules.trains_privately:
        return "enough" if len(training) >= plan.local.batch_size else "not enough"
    units = len(training if rules.unit == "example" else {examples[index].unit for index in training})
    if rules.sample_rate is None and units < plan.local.batch_size:
        raise UnreadyError(
            "not_enough_rows", "the site has fewer units than the plan's private batch",
            expected=f"at least {plan.local.batch_size} to train on",
            remedy="wait for a plan with a smaller local.batch_size",
        )  # fmt: skip
    with _unready("privacy"):
        cost_of(rules, plan.local, plan.rounds, units)
    return "enough"


def _require_counts(
    settings: SiteSettings, plan: TrainingPlan, site: str, examples: Sequence[Example]
) -> None:
    """Hold the policy against how many rows and patients there are.

    Raises:
        UnreadyError: policy. Which rule it was would tell of the rows, and stays here.
    """
    training, _ = parts_of(plan, site, examples)
    of_label: dict[int, set[str]] = {}
    for index in training:
        label = examples[index].label
        if label is not None:
            of_label.setdefault(label, set()).add(examples[index].unit)
    units = len({examples[index].unit for index in training})
    counts = LocalCounts(len(training), units, tuple(map(len, of_label.values())))
    refusals = tuple(rows_refusals(settings.plans, plan, counts))
    if refusals:
        error = RefusedPlanError(refusals)
        raise UnreadyError("policy", error.what, found=error.found, remedy=error.remedy) from error


def open_bench(settings: SiteSettings, plan: TrainingPlan) -> Workbench:
    """The plan's base model, found by its digest, with the plan's adapter on it.

    Raises:
        UnreadyError: method, model_absent, model_differs, tokenizer, adapter or machine.
    """
    task, method, options = _task(plan)
    wanted = plan.base.digest
    # A place whose digest is known to be the plan's first; one that is known to be another's never.
    places = sorted(
        (place for place in settings.models if place.digest in (None, wanted)),
        key=lambda place: place.digest is None,
    )
    others = []
    for place in places:
        try:
            with _unready("machine"), _enough_memory():
                bench = open_workbench(
                    place.loading(plan.base),
                    task,
                    plan.data,
                    method,
                    options,
                    settings.machine,
                    seed=plan.seed,
                )
        except UnreadyError as error:
            if error.code not in ("model_absent", "model_differs"):
                raise
            others.append(error)
            continue
        if bench.layout.digest != plan.adapter.layout.digest:
            raise UnreadyError(
                "adapter", "the adapter on this base model is not the plan's",
                found=f"layout {bench.layout.digest[:12]}, {bench.layout.size} coordinates",
                expected=f"layout {plan.adapter.layout.digest[:12]}, {plan.adapter.layout.size} coordinates",
                remedy="install the versions of Wardround, transformers and peft that made the plan",
            )  # fmt: skip
        return bench
    differs = any(error.code == "model_differs" for error in others)
    raise UnreadyError(
        "model_differs" if differs else "model_absent",
        f"none of this site's base models is {plan.base.name!r} as the plan demands it",
        found="; ".join(f"{error.what}: {error.found}" for error in others) or "models with other digests",
        expected=f"weights of digest {wanted} in {plan.base.dtype}",
        remedy="get that base model, and name its folder under models in site.yaml",
    )


def _task(plan: TrainingPlan) -> tuple[Task, AdapterMethod, BaseModel]:
    """Task and adapter method, installed ones alone: a plan never names code by its path."""
    with _unready("method"):
        task = TASKS.get(plan.task.name)
        parse_options(task.Options, plan.task.options, f"options of task {plan.task.name!r}")
        method = ADAPTERS.get(plan.adapter.method)
        what = f"options of adapter {plan.adapter.method!r}"
        return task, method, parse_options(method.Options, plan.adapter.options, what)


@contextlib.contextmanager
def _enough_memory() -> Iterator[None]:
    """Name a model for which there is no room."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        raise UnreadyError(
            "machine", "the memory does not hold the plan's base model",
            remedy="raise memory_gib in site.yaml, or train on a larger machine",
        ) from error  # fmt: skip


@contextlib.contextmanager
def _unready(code: str) -> Iterator[None]:
    """Turn what is wrong into an UnreadyError: with the error's own code where it has one, else with this."""
    try:
        yield
    except UnreadyError:
        raise
    except WardroundError as error:
        own = error.code if isinstance(error, CodedError) else code
        raise UnreadyError(
            own, error.what, found=error.found, expected=error.expected, remedy=error.remedy
        ) from error
