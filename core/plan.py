"""The training plan: the one frozen, versioned value that a run follows at every site.

Everything that decides what is trained stands in it; what a machine decides for itself (paths,
device, threads, microbatch) does not. Its digest identifies it; no code travels with it.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator
from functools import cached_property
from typing import Annotated, Any, Final, Literal, Self

from pydantic import (
    Field,
    StringConstraints,
    ValidationError,
    field_validator,
    model_validator,
)

from wardround.core.checked import Frozen, invalid
from wardround.core.compression import Compression
from wardround.core.errors import ConfigError
from wardround.core.packed import Layout
from wardround.core.privacy_rules import PrivacyRules

PLAN_VERSION: Final = 1
MOST_WEIGHT: Final = 2**32
"""Largest weight of a site that a plan may allow."""
HexKey = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
"""A public key of 32 bytes, as people write it."""


class BaseModelSpec(Frozen):
    """The frozen base model, by what was really loaded and not by its name alone."""

    name: str
    """Hub name or folder name, for people; a site finds its copy by the digest."""
    revision: str | None = None
    digest: str
    """SHA-256 over names, dtypes, shapes and bytes of the weights that were loaded."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    quantisation: Literal["none", "8bit", "4bit"] = "none"
    dropout: Literal["base", "off"] = "base"
    """Whether the frozen base's own dropout works while training; the adapter's is its method's option."""


class TaskSpec(Frozen):
    """Which task file trains and measures, and its options (checked by that file's own model)."""

    name: str
    options: dict[str, Any] = Field(default_factory=dict)
    metrics: str = ""
    """Metric family in `core/metrics` that turns summed counters into figures, without torch."""


class DataContract(Frozen):
    """How every site turns a row into what the model reads, so that none derives it from its own rows."""

    columns: dict[str, str]
    """Role that the task asks for → column of the source, such as text → note."""
    template: TextTemplate | None = None
    """Builds the role `text` from several columns."""
    labels: tuple[str, ...] = ()
    """Ordered; a row whose label is not in it is refused by name before the model loads."""
    id_column: str | None = None
    unit_column: str | None = None
    """Column that names the unit to protect, a patient as a rule; rows of a unit stay together."""
    max_length: int = Field(default=128, ge=2)
    """Tokens; longer rows are cut, and how many were is reported."""
    packing: bool = False
    validation_fraction: float = Field(default=0.1, ge=0.0, lt=1.0)
    """Share of its training rows that a site holds back, by unit, to choose the released round."""
    tokenizer_digest: str = ""
    chat_template_digest: str = ""
    pad_token_id: int = -1
    end_token_ids: tuple[int, ...] = ()

    @property
    def labels_digest(self) -> str:
        """SHA-256 of the ordered label list, by which a site's people allow it."""
        return _digest(list(self.labels))

    @property
    def template_digest(self) -> str | None:
        """SHA-256 of the template, by which a site's people allow it; None where there is none."""
        return None if self.template is None else _digest(self.template.model_dump(mode="json"))


class TextTemplate(Frozen):
    """A sentence from columns: a segment whose column is empty or missing is left out.

    Each segment is a format string over column names. `values` maps codes to words before
    formatting; a code with the empty word counts as missing, one without a word makes the row broken.
    """

    segments: tuple[str, ...] = Field(min_length=1)
    values: dict[str, dict[str, str]] = Field(default_factory=dict)


class AdapterSpec(Frozen):
    """What is trained, and the state that everybody starts from (made once, with the plan)."""

    method: str = "lora"
    options: dict[str, Any] = Field(default_factory=dict)
    layout: Layout
    initial_digest: str


class Schedule(Frozen):
    """Learning rate over the run (or over each round): warm-up, then the named shape."""

    shape: Literal["constant", "linear", "cosine"] = "constant"
    scope: Literal["run", "round"] = "run"
    warmup: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Share of the scope that rises linearly from zero."""
    floor: float = Field(default=0.0, ge=0.0, le=1.0)
    """Share of the peak rate that is left at the end."""


class LocalWork(Frozen):
    """What a site does in one round."""

    epochs: float | None = Field(default=None, gt=0)
    steps: int | None = Field(default=None, gt=0)
    batch_size: int = Field(default=16, gt=0)
    """Logical batch, in examples; how it is cut into microbatches changes nothing."""
    optimiser: Literal["adamw", "adam", "sgd", "dp_adam"] = "adamw"
    """`dp_adam` takes the noise out of its second moment; of privacy with local noise alone."""
    learning_rate: float = Field(default=1e-3, gt=0)
    weight_decay: float = Field(default=0.0, ge=0)
    betas: tuple[float, float] = (0.9, 0.999)
    epsilon: float = Field(default=1e-8, gt=0)
    """Added to the root of the second moment; under dp_adam that root is never smaller."""
    momentum: float = Field(default=0.0, ge=0, lt=1)
    max_grad_norm: float | None = Field(default=1.0, gt=0)
    schedule: Schedule = Schedule()
    optimiser_state: Literal["reset", "keep"] = "reset"

    @model_validator(mode="after")
    def _one_amount(self) -> LocalWork:
        if (self.epochs is None) == (self.steps is None):
            raise ValueError("give exactly one of epochs and steps")
        return self


class StrategySpec(Frozen):
    """Aggregation algorithm and its options (checked by that file's own model)."""

    name: str = "fedavg"
    options: dict[str, Any] = Field(default_factory=dict)
    weighting: Literal["examples", "targets", "uniform"] = "examples"
    """A site's weight in the mean: its training rows, its target tokens a round, or one."""


class Encoding(Frozen):
    """Ring of integers in which contributions are summed, and the bounds from which its scale follows.

    A machine that sends more than a bound lets through shortens or clips it, and says so; the sum of a
    whole cohort at the bounds still fits the ring.
    """

    bits: Literal[8, 12, 16, 20, 24, 32, 64] = 16
    """Width of the ring: so many bits a coordinate travel."""
    largest: float = Field(gt=0)
    """No coordinate of a contribution is larger in size, before its weight is multiplied in."""
    norm: float | None = Field(default=None, gt=0)
    """No contribution is longer (L2), before its weight is multiplied in; None leaves lengths alone."""
    most_weight: int = Field(ge=1, le=MOST_WEIGHT)
    """No site weighs more in the mean."""
    compression: Compression | None = None
    """How contributions travel in fewer bytes still, where somebody sees each of them; None: in the ring."""


class SecureRules(Frozen):
    """Who sees single contributions: nobody, a trusted aggregator, or whoever carries them."""

    mode: Literal["real", "accounted", "off", "trusted"] = "real"
    """`accounted` has the phases, the rules and the bytes of `real`, and no cryptography; under `trusted`
    contributions are sealed to `aggregator`."""
    aggregator: HexKey | None = None
    """X25519 key of the trusted aggregator: the plan of a run under `trusted` names it, no other does."""
    threshold: int | None = Field(default=None, ge=2)
    """So many of a cohort have to confirm a sum; None is two thirds of it and one more, rounded down."""
    attempts: int = Field(default=3, ge=1, le=10)
    """How often one sum is tried before the round counts as failed."""
    complete_to: int = Field(default=100, ge=3)
    """Largest cohort in which every site masks with every other; above it with `degree` of them."""
    degree: int = Field(default=100, ge=2)
    share_threshold: int = Field(default=60, ge=2)
    """Shares that give a secret back above `complete_to`."""

    @field_validator("mode", mode="before")
    @classmethod
    def _off(cls, value: object) -> object:
        return "off" if value is False else value  # what YAML makes of an unquoted off

    @model_validator(mode="after")
    def _no_idle_key(self) -> Self:
        if self.aggregator is not None and self.mode != "trusted":
            raise ValueError(
                f"an aggregator is named, and secure.mode={self.mode} has none: set secure.mode to trusted, "
                "or secure.aggregator to null"
            )
        return self


class RoundRules(Frozen):
    """How many rounds, who takes part, when a round counts."""

    rounds: int = Field(gt=0)
    participation: float = Field(default=1.0, gt=0, le=1)
    """Share of the sites asked each round."""
    quorum: float = Field(default=0.5, gt=0, le=1)
    """Share of the cohort that has to answer for the round to count."""
    deadline_s: float = Field(default=3600.0, gt=0)
    """Of one exchange; a site that has not answered by then is late. A simulation has a virtual one."""


class ReleaseRule(Frozen):
    """Which round's adapter is released."""

    metric: str = "loss"
    direction: Literal["min", "max"] = "min"
    every: int = Field(default=1, gt=0)
    """Evaluate the global adapter on the validation parts every so many rounds."""
    evaluators: Literal["all", "cohort"] = "all"
    """Who scores the global adapter: every site, or those that train in the round."""
    patience: int | None = Field(default=None, gt=0)
    """Stop after so many evaluations without an improvement; None never stops early."""
    least_improvement: float = Field(default=0.0, ge=0)


class TrainingPlan(Frozen):
    """The whole plan. Equal plans have equal digests on every machine."""

    version: Literal[1] = PLAN_VERSION
    name: str
    seed: int = Field(ge=0)
    base: BaseModelSpec
    task: TaskSpec
    data: DataContract
    adapter: AdapterSpec
    local: LocalWork
    strategy: StrategySpec = StrategySpec()
    encoding: Encoding
    secure: SecureRules = SecureRules()
    rounds: RoundRules
    release: ReleaseRule = ReleaseRule()
    privacy: PrivacyRules | None = None
    """None: no differential privacy."""

    @model_validator(mode="after")
    def _private(self) -> TrainingPlan:
        faults = [] if self.privacy is None else list(_faults(self, self.privacy))
        if self.local.optimiser == "dp_adam" and (self.privacy is None or self.privacy.noise != "local"):
            faults.append("local.optimiser=dp_adam corrects for noise that no step has: set it to adamw")
        if faults:
            raise ValueError("; ".join(faults))
        return self

    @model_validator(mode="after")
    def _an_aggregator(self) -> TrainingPlan:
        if self.secure.mode == "trusted" and self.secure.aggregator is None:
            raise ValueError(
                "secure.mode=trusted needs the aggregator's public key: set secure.aggregator to it, in hex"
            )
        return self

    def canonical(self) -> bytes:
        """Sorted, compact JSON: what is digested, and later signed.

        Raises:
            ConfigError: An option, whose type only its own file knows, has no value in JSON.
        """
        options = {f"{name}.options": getattr(self, name).options for name in ("task", "adapter", "strategy")}
        try:
            json.dumps(options, allow_nan=False)  # pydantic would write NaN and infinity there as null
            fields = self.model_dump(mode="json")
            # Plans without these have the digest that they had before there were any.
            if self.secure.aggregator is None:
                del fields["secure"]["aggregator"]
            if self.privacy is None:
                del fields["privacy"]
            elif self.privacy.mechanism == "poisson":
                del fields["privacy"]["mechanism"], fields["privacy"]["bands"]
            if self.encoding.compression is None:
                del fields["encoding"]["compression"]
            return json.dumps(fields, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
        except (ValueError, TypeError) as error:
            raise ConfigError(
                "an option of the training plan cannot be written as JSON",
                found=type(error).__name__,
                expected="finite numbers, text, lists and mappings",
                remedy="look at " + ", ".join(options),
            ) from error

    @cached_property
    def digest(self) -> str:
        """SHA-256 of `canonical()`."""
        return hashlib.sha256(self.canonical()).hexdigest()

    @property
    def most_of_a_patient(self) -> int | None:
        """K: at most so many rows of one patient are clipped apart; None where nothing bounds it.

        Where no column names the patient each row counts as a unit of its own, with one row: it says nothing
        of how many rows a patient has.
        """
        rules = self.privacy
        return None if rules is None or self.data.unit_column is None else rules.most_examples

    @property
    def bounds_patients(self) -> bool:
        """Whether its noise bounds what a patient loses whom it trains on."""
        rules = self.privacy
        if rules is None or not rules.trains_privately:
            return False
        return rules.unit == "patient" or self.most_of_a_patient is not None

    @staticmethod
    def parse(text: str | bytes) -> TrainingPlan:
        """Read a plan from its JSON.

        Raises:
            ConfigError: Not JSON, an unknown key, a wrong type; names the place.
        """
        try:
            return TrainingPlan.model_validate_json(text)
        except ValidationError as error:
            raise invalid("training plan", error) from error


DataContract.model_rebuild()


def _digest(value: object) -> str:
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()


def cohort_size(rules: RoundRules, sites: int) -> int:
    """How many of so many sites train in a round: the nearest to their share, halves up; at least one."""
    return max(1, math.floor(rules.participation * sites + 0.5))


def _faults(plan: TrainingPlan, privacy: PrivacyRules) -> Iterator[str]:
    """What of a plan its privacy does not allow.

    Nothing exact leaves beside the noised sum, so that weights are constants; and distributed noise protects
    one clipped sum a site and round, whose release is the only one.
    """
    local, mode, of_site = plan.local, plan.secure.mode, privacy.unit == "site"
    if plan.strategy.weighting != "uniform":
        yield (
            f"strategy.weighting={plan.strategy.weighting} tells how much data a site has: set it to uniform"
        )
    if plan.data.packing:
        yield "data.packing=true puts rows of several units into one: set it to false"
    if privacy.unit == "patient" and plan.data.unit_column is None:
        yield "privacy.unit=patient needs data.unit_column, the column that names the patient"
    if of_site and plan.data.validation_fraction > 0:
        yield "privacy.unit=site does not cover scores of a site's rows: set data.validation_fraction to 0"
    if of_site and plan.encoding.norm != privacy.clip_norm:
        yield "no update may be longer than privacy.clip_norm: set encoding.norm to it"
    if privacy.trains_privately and local.max_grad_norm is not None:
        yield "privacy clips every unit by itself: set local.max_grad_norm to null"
    if privacy.noise != "distributed":
        return
    if mode not in ("real", "accounted"):
        yield (
            f"under secure.mode={mode} somebody sees a site's sum with its share of the noise alone: "
            "set secure.mode to real"
        )
    if local.steps != 1:
        yield ("distributed noise protects one step a round: set local.steps to 1 and local.epochs to null")
    if local.optimiser != "sgd" or local.momentum > 0 or local.optimiser_state == "keep":
        yield (
            "under distributed noise a site sends its clipped sum and steps nowhere: set local.optimiser to "
            "sgd, without momentum and without a kept state"
        )
