"""Makes the training plan: what a person configured, plus the digests of what was really loaded.

The initial adapter and head are made here, once, from the seed tree or from a saved adapter; no site
initialises anything that federates.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from wardround.core.checked import invalid
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
    SecureRules,
    StrategySpec,
    TaskSpec,
    TrainingPlan,
)
from wardround.core.privacy_rules import PrivacyRules
from wardround.privacy.sums.noise import NOISE_TAIL
from wardround.training.plan_strategy import bind_strategy
from wardround.training.settings import check_settings, choose_strategy

if TYPE_CHECKING:  # a plan is bound and checked without torch
    from wardround.training.base_model import LoadedBase
    from wardround.training.workbench import Workbench


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
    secure: SecureRules | None = None,
    privacy: PrivacyRules | None = None,
    adapter_method: str = "lora",
    allow_dotted: bool = False,
) -> tuple[TrainingPlan, Adapter]:
    """The plan and the initial adapter that it names by digest.

    Args:
        bench: Base model with a fresh adapter on it.
        start_from: Folder of a saved adapter to go on from, or None for a fresh one.
        allow_dotted: Whether strategies may be given as module:attribute (a simulation's own code).

    Raises:
        ConfigError: As `check_choices`; a saved adapter is scaled in another way than the configured one;
            parts of the plan that do not go together, and what would train privately without a rule for the
            gradient of single examples among them.
        ModelError: The saved adapter is not there, does not fit, or belongs to another base.
    """
    check_choices(
        task=task,
        validation_fraction=data.validation_fraction,
        local=local,
        strategy=strategy,
        release=release,
        allow_dotted=allow_dotted,
    )
    from wardround.training.private.dry_pass import require_apart
    from wardround.training.workbench import with_tokenizer

    if privacy is not None and privacy.trains_privately:
        require_apart(bench, bench.parameters(), task)
    layout = bench.layout
    base = base_spec(bench.base)
    initial = (
        bench.initial_adapter()
        if start_from is None
        else bench.method.read_saved(start_from, bench.model, base)
    )
    try:
        plan = TrainingPlan(
            name=name,
            seed=seed,
            base=base,
            task=task,
            data=with_tokenizer(data, bench.base, bench.task),
            adapter=AdapterSpec(
                method=adapter_method,
                options={**adapter_options, **bench.method.plan_options(bench.model)},
                layout=layout,
                initial_digest=initial.digest,
            ),
            local=local,
            strategy=strategy,
            encoding=encoding,
            secure=secure or SecureRules(),
            rounds=rounds,
            release=release,
            privacy=privacy,
        )
    except ValidationError as error:
        raise invalid("training plan", error) from error
    bind_strategy(plan, allow_dotted=allow_dotted)
    return plan, initial


MOST_OF_DP_ADAM = 10.0
"""DP-Adam may step beyond its rate where the noise leaves little of a second moment; hardly ever so far."""
SLACK = 1.05
"""Beyond rate times steps: for float32, for weight decay and for the odd step of Adam above its rate."""


@dataclass(frozen=True)
class PrivateBounds:
    """What of a plan's privacy decides how large a contribution can be.

    Attributes:
        rules: The plan's.
        sigma: The largest of the sites', of a step.
        cohort: Sites that are asked in a round.
        units: Of the largest site.
        shares: Of noise in the ring, so many are sure to be in a sum.
    """

    rules: PrivacyRules
    sigma: float
    cohort: int
    units: int
    shares: int = 1

    def largest(self, local: LocalWork, steps: int) -> float:
        """Bound on a coordinate of an update, the noise and its tail included."""
        rules, tail = self.rules, NOISE_TAIL * self.sigma * self.rules.clip_norm
        if rules.unit == "site":
            return rules.clip_norm + tail / self.cohort
        step = local.learning_rate / local.batch_size
        if rules.noise == "distributed":
            together = math.sqrt(self.cohort / self.shares) / self.cohort
            return step * (rules.clip_norm * self.units + tail * together)
        together = (
            local.batch_size if rules.bands is None else max(local.batch_size, self.units / rules.bands)
        )
        units = rules.clip_norm * min(self.units, 2 * together) * steps
        return step * (units + tail * math.sqrt(steps)) / (1 - local.momentum)


def bounds_of(
    local: LocalWork, weighting: str, rows: int, max_length: int, private: PrivateBounds | None = None
) -> dict[str, Any]:
    """Bounds of a contribution that follow from the local work: `largest` and `most_weight` of an `Encoding`.

    Adam moves no coordinate by more than about its rate in a step (Kingma and Ba 2015, section 2.1), SGD by
    no more than its rate times the gradient's largest norm. What is beyond is clipped at the site, and
    counted.

    Args:
        local: What a site does in a round.
        weighting: The strategy's.
        rows: Training rows of the largest site.
        max_length: Tokens of a row.
        private: Of a plan with differential privacy: noise needs room as well.

    Raises:
        ConfigError: SGD without a bound on the gradient's norm bounds nothing.
    """
    rows = max(1, rows)
    steps = local.steps or math.ceil((local.epochs or 1) * math.ceil(rows / local.batch_size))
    largest = SLACK * local.learning_rate * steps
    if private is not None and (local.optimiser == "sgd" or private.rules.noise != "local"):
        largest = SLACK * private.largest(local, steps)
    elif private is not None and local.optimiser == "dp_adam":
        largest *= MOST_OF_DP_ADAM
    elif local.optimiser == "sgd":
        if local.max_grad_norm is None:
            raise ConfigError(
                "nothing bounds a contribution",
                found="local.optimiser=sgd without local.max_grad_norm",
                remedy="set local.max_grad_norm, or encoding.largest",
            )
        largest *= local.max_grad_norm / (1 - local.momentum)
    passes = int((local.epochs or 1) * rows + 0.5)  # as `plan_batches` rounds
    processed = steps * local.batch_size if local.steps else max(1, passes)
    most = {"uniform": 1, "examples": rows, "targets": processed * max_length}[weighting]
    return {"largest": largest, "most_weight": most}


def base_spec(base: LoadedBase) -> BaseModelSpec:
    """What the plan says of the base model that was loaded."""
    config = base.config
    return BaseModelSpec(
        name=base.name,
        revision=config.revision,
        digest=base.digest,
        dtype=config.dtype,
        quantisation=config.quantisation,
        dropout=config.dropout,
    )


def check_choices(
    *,
    task: TaskSpec,
    validation_fraction: float,
    local: LocalWork,
    strategy: StrategySpec,
    release: ReleaseRule,
    allow_dotted: bool = False,
) -> None:
    """Everything in a plan that can be refused before a row is read or a model is loaded.

    Raises:
        ConfigError: The strategy or one of its options is unknown; the release metric is unknown, never
            computed, or its direction chooses the worst round; a setting has no effect under the optimiser.
    """
    choose_strategy(strategy, allow_dotted=allow_dotted)
    check_release(release, task, validation_fraction)
    check_settings(local)


def check_release(release: ReleaseRule, task: TaskSpec, validation_fraction: float) -> None:
    """Refuse a release metric that is never computed, or a direction that would choose the worst.

    Args:
        release: The rule.
        task: Its metric family, and its options, on which it depends what is computed.
        validation_fraction: Share of its rows that a site holds back.

    Raises:
        ConfigError: Names the nearest metric that there is, the option that would have it computed, or the
            right direction.
    """
    family = METRICS.get(task.metrics)
    absent = family.left_out(task.options)
    directions = {name: way for name, way in family.directions.items() if name not in absent}
    if release.metric in absent:
        raise ConfigError(
            f"release.metric={release.metric} is never computed under these task options",
            expected="one of " + ", ".join(sorted(directions)),
            remedy=f"{absent[release.metric]}, or choose another metric",
        )
    if release.metric not in directions:
        raise unknown_name("release metric", release.metric, directions)
    if directions[release.metric] != release.direction:
        raise ConfigError(
            f"release.direction would choose the worst round by {release.metric}",
            found=release.direction,
            expected=directions[release.metric],
        )
    if validation_fraction == 0 and release.patience is not None:
        raise ConfigError(
            "early stopping needs a validation part",
            found="data.validation_fraction=0",
            remedy="set data.validation_fraction above 0, or release.patience to null",
        )
