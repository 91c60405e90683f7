"""The settings from which a training plan follows, and what a person writes of them.

A simulation reads more than these, and a consortium's plan less: neither reads here where rows lie, but the
schema of `data` is one, so that one file of settings serves both.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from wardround.core.checked import Frozen
from wardround.core.compression import Compression
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
from wardround.training.chosen_strategy import with_strategy
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


class EncodingConfig(Frozen):
    """The ring of the sums; `auto` takes the bounds that follow from the local work and the largest site."""

    bits: Literal[8, 12, 16, 20, 24, 32, 64] = 16
    largest: Annotated[float, Field(gt=0)] | Literal["auto"] = "auto"
    norm: float | None = Field(default=None, gt=0)
    most_weight: Annotated[int, Field(ge=1, le=MOST_WEIGHT)] | Literal["auto"] = "auto"
    compression: Compression | None = None


class SecureConfig(SecureRules):
    """How contributions are summed, and what the simulated sites demand of it."""

    policy: SecurePolicy = SecurePolicy(modes=("real", "accounted", "off", "trusted"))

    @property
    def rules(self) -> SecureRules:
        """What stands in the plan."""
        return SecureRules(**self.model_dump(exclude={"policy"}))


class PlanConfig(Frozen):
    """What every command that makes a plan is configured with; each adds its own."""

    name: str
    seed: int = Field(default=0, ge=0)
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
    machine: Machine = Machine()

    @model_validator(mode="before")
    @classmethod
    def _no_auto(cls, values: Any) -> Any:
        return with_strategy(values)
