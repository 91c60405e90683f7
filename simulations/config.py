"""The configuration of a simulated run: what Hydra composed, checked as a whole before anything is read."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

from pydantic import Field, ValidationError

from wardround.core.checked import Frozen, invalid, known_keys
from wardround.simulations.virtual.settings import Realism
from wardround.training.plan_config import PlanConfig

Rank: TypeAlias = Annotated[int, Field(ge=1)]


class PartitionConfig(Frozen):
    """How rows are spread over sites."""

    kind: str = "natural"
    options: dict[str, Any] = Field(default_factory=dict)


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


class RayConfig(Frozen):
    """Worker processes on Ray, each with the base model once."""

    address: str | None = None
    """Of a cluster that runs already; None: one for this run, on this machine, which listens to it alone."""
    workers: int | None = Field(default=None, gt=0)
    """Processes that train; None: as many as the cluster has room for."""
    cpus: int = Field(default=1, gt=0)
    """Of each of them; torch computes with as many threads unless `machine.threads` says another number."""
    gpus: float = Field(default=0.0, ge=0)
    """Of each of them; a part of one, where several share it."""


class SimulationConfig(Frozen):
    """How the simulation is executed, and what is special at its sites."""

    backend: Literal["auto", "inline", "processes", "ray"] = "inline"
    """Who trains: this process, processes forked from it (`auto`: where it is faster), or workers on Ray."""
    processes: int | None = Field(default=None, gt=0)
    """So many are forked; None: one a core."""
    ray: RayConfig = RayConfig()

    lanes: int = Field(default=8, gt=0)
    """Flower nodes over which messages are delivered; changes nothing of the result."""
    ranks: tuple[Rank, ...] | dict[str, Rank] = ()
    """Sites' own LoRA ranks: one after another by name, again from the first, or by site; others have the
    plan's."""
    together: Annotated[int, Field(gt=0)] | Literal["auto"] = 1
    """So many sites train together, over one pass of the base; changes the result by rounding alone."""
    outage: float = Field(default=0.0, ge=0, lt=1)
    """Probability that a site of the federation is lost in a round."""
    realism: Realism = Realism()
    """Sites of the federation that are slow, far or away, and the virtual time that rounds take with them."""
    privacy_cap: float | None = Field(default=None, gt=0)
    """ε that every simulated site grants its patients in its ledger; None: what the plan asks for."""


class RunConfig(PlanConfig):
    """Everything that `wardround simulate` needs."""

    output: str = "runs/${name}"
    resume: str | None = None
    partition: PartitionConfig = PartitionConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    bounds: BoundsConfig = BoundsConfig()
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
