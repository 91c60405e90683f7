"""The configuration of a simulated run: what Hydra composed, checked as a whole before anything is read."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

from pydantic import Field, ValidationError, model_validator

from wardround.core.checked import Frozen, invalid, known_keys
from wardround.core.plan import (
    MOST_WEIGHT,
    LocalWork,
    ReleaseRule,
    RoundRules,
    SecureRules,
    StrategySpec,
    TextTemplate,
)
from wardround.core.privacy_rules import PrivacyRules
from wardround.privacy.secagg.policy import SecurePolicy
from wardround.training.settings import BaseModelConfig, Machine
from wardround.training.source_spec import SourceSpec


class TaskConfig(Frozen):
    """Task file and its options."""

    name: str
    options: dict[str, Any] = Field(default_factory=dict)


class DataConfig(Frozen):
    """Where rows come from, and the part of the data contract that a person writes."""

    source: SourceSpec | None = None
    """One source for all sites; the partition says which row lies where."""
    sites: dict[str, SourceSpec] = Field(default_factory=dict)
    """Instead of `source`: one source a site, which is then the partition."""
    test: SourceSpec | None = None
    """Rows of everybody's test; scored at the end and every `evaluation.every` rounds."""
    site_tests: dict[str, SourceSpec] = Field(default_factory=dict)
    """One test source a site. Without it, `site_column` cuts `test` by site where it is mapped."""
    columns: dict[str, str] = Field(default_factory=dict)
    template: TextTemplate | None = None
    labels: tuple[str, ...] | Literal["auto"] = "auto"
    """Ordered label list; `auto` takes the sorted labels of all training rows, once, for the plan."""
    id_column: str | None = None
    unit_column: str | None = None
    site_column: str | None = None
    max_length: int = Field(default=128, ge=2)
    packing: bool = False
    validation_fraction: float = Field(default=0.1, ge=0, lt=1)
    limit: int | None = Field(default=None, gt=0)
    """Use only so many training rows, chosen by unit from the seed tree."""
    description: str | None = None
    """What the rows are, in a sentence or two, for the model card."""
    licence: str | None = None
    """Of the rows, with what it asks for (a citation), for the model card."""
    label_meanings: dict[str, str] = Field(default_factory=dict)
    """Label → what it means, for the model card."""

    @model_validator(mode="after")
    def _one_kind_of_source(self) -> DataConfig:
        if self.sites and self.source is not None:
            raise ValueError(
                "give data.source, or data.sites with one source a site, and set the other to null"
            )
        if self.sites and self.limit is not None:
            raise ValueError("data.limit cuts data.source; with data.sites give each source a filter (where)")
        unknown = [] if self.labels == "auto" else sorted(set(self.label_meanings) - set(self.labels))
        if unknown:
            raise ValueError(
                f"data.label_meanings explains labels that data.labels does not list: {', '.join(unknown)}"
            )
        return self


class AdapterConfig(Frozen):
    """Adapter method, its options, and optionally a saved adapter to start from."""

    method: str = "lora"
    options: dict[str, Any] = Field(default_factory=dict)
    start_from: str | None = None


class PartitionConfig(Frozen):
    """How rows are spread over sites."""

    kind: str = "natural"
    options: dict[str, Any] = Field(default_factory=dict)


class EncodingConfig(Frozen):
    """The ring of the sums; `auto` takes the bounds that follow from the local work and the largest site."""

    bits: Literal[16, 20, 24, 32, 64] = 16
    largest: Annotated[float, Field(gt=0)] | Literal["auto"] = "auto"
    norm: float | None = Field(default=None, gt=0)
    most_weight: Annotated[int, Field(ge=1, le=MOST_WEIGHT)] | Literal["auto"] = "auto"


class SecureConfig(SecureRules):
    """How contributions are summed, and what the simulated sites demand of it."""

    policy: SecurePolicy = SecurePolicy(modes=("real", "accounted", "off", "trusted"))

    @property
    def rules(self) -> SecureRules:
        """What stands in the plan."""
        return SecureRules(**self.model_dump(exclude={"policy"}))


class EvaluationConfig(Frozen):
    """When the test rows are scored; they never choose anything."""

    every: int | None = Field(default=None, gt=0)
    """Every so many rounds; None only at the end."""
    samples: int = Field(default=3, ge=0)
    """Sample answers to test rows, in `samples.md` and in the model card."""
    sample_texts: bool = False
    """Whether `samples.md` shows those rows' texts beside the answers; the model card never does."""


BoundOptimiser: TypeAlias = Literal["adamw", "adam", "sgd"]
"""What a bound may train with."""


class BoundsConfig(Frozen):
    """The two honest bounds, run in the same way beside the federation."""

    local_only: bool = False
    centralised: bool = False
    optimiser: BoundOptimiser | None = None
    """Of both bounds; None: that of the federation's sites, which is a handicap where the federation's
    optimiser is the server's and sites take plain gradient steps."""
    local_learning_rate: float | None = Field(default=None, gt=0)
    """Of each site alone; None: that of the federation's sites."""
    centralised_learning_rate: float | None = Field(default=None, gt=0)
    """Of all rows in one place; None: that of the federation's sites."""


class SimulationConfig(Frozen):
    """How the simulation is executed; changes nothing of its result but where a budget runs dry."""

    lanes: int = Field(default=8, gt=0)
    """Flower nodes over which messages are delivered."""
    privacy_cap: float | None = Field(default=None, gt=0)
    """ε that every simulated site grants its patients in its ledger; None: what the plan asks for."""


class RunConfig(Frozen):
    """Everything that `wardround simulate` needs."""

    name: str
    seed: int = Field(default=0, ge=0)
    output: str = "runs/${name}"
    resume: str | None = None
    model: BaseModelConfig
    task: TaskConfig
    data: DataConfig
    adapter: AdapterConfig = AdapterConfig()
    local: LocalWork
    strategy: StrategySpec = StrategySpec()
    encoding: EncodingConfig = EncodingConfig()
    secure: SecureConfig = SecureConfig()
    rounds: RoundRules
    release: ReleaseRule = ReleaseRule()
    privacy: PrivacyRules | None = None
    partition: PartitionConfig = PartitionConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    bounds: BoundsConfig = BoundsConfig()
    machine: Machine = Machine()
    simulation: SimulationConfig = SimulationConfig()

    @staticmethod
    def parse(values: dict[str, Any]) -> RunConfig:
        """Check a plain mapping.

        Raises:
            ConfigError: Every fault at once; an unknown key is named with the nearest known one.
        """
        try:
            return RunConfig.model_validate(values)
        except ValidationError as error:
            raise invalid("configuration", error, known_keys(RunConfig)) from error
