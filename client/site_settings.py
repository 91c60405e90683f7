"""A site's `site.yaml`: where its base models and rows lie, and what it demands of the sums."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Final, Literal, Self

import yaml
from pydantic import Field, ValidationError

from wardround.client.hours import WindowText
from wardround.client.policy import PlanPolicy
from wardround.core.checked import Frozen, invalid, known_keys
from wardround.core.errors import ConfigError, StorageError
from wardround.core.plan import BaseModelSpec, HexKey
from wardround.privacy.secagg.policy import SecurePolicy
from wardround.runtime.files import write_atomic
from wardround.training.settings import BaseModelConfig, Machine
from wardround.training.source_spec import SourceSpec

FILE: Final = "site.yaml"
LARGEST: Final = 2**20
"""Bytes of the file."""
DEEPEST: Final = 50
"""Brackets of the file in one another."""

STARTER: Final = """\
# What this site brings to a plan. Only this machine reads it; nothing in it is sent anywhere.
# Paths may be relative to the folder of this file.

# Base models: folders with config.json, *.safetensors, a tokenizer. A plan's model is found by its digest.
models:
  - path: models/base
    digest: null           # of its weights, where it is known: then only a plan of this digest loads it
    revision: null         # of a hub name
    attention: sdpa        # sdpa | eager

# Rows to train on: JSONL, JSON, CSV or Parquet (.gz as well), or a Hugging Face datasets folder.
source:
  path: rows.jsonl
  kind: null               # null: by the ending of the path
  options: {}
  where: {}                # only rows that equal it, such as {ward: cardiology}

# The privacy ledger: one for all memberships of a hospital, so that a patient has one account. A second
# place, on another disk, gets every row as well. null: none.
ledger: ledger
ledger_mirror: null

# Folders of this hospital's other sites over the same patients: runs that they accepted count for
# plans.runs_a_month here.
beside: []

# Where a column has another name here: as the plan calls it: as these rows call it.
columns: {}

# What this machine decides for itself.
machine:
  device: auto             # auto | cpu | cuda | mps
  threads: null            # of torch; null: its own choice
  microbatch_size: null    # rows that go through the model at once; null: the whole batch
  gradient_checkpointing: false
  evaluation_batch_size: 32
  precision: fp32          # fp32 | bf16 | auto, which is bf16 where there are units for it
  padding_free: true       # rows of several lengths train without padding, where model and CPU allow it

# Seconds between two checkpoints of a local round, from which a worker that was killed goes on. null: none.
checkpoint_s: 60

# On a machine that others use: how far the worker stands back for them (0 to 19, as nice), and how many GiB
# of memory it may take (of a CUDA device where it trains on one, else of its own). null: what there is.
niceness: 10
memory_gib: null

# Of the adapter: train at a rank of this site's own (null: the plan's), and in so many MiB for its weights,
# gradients and moments at most, at a smaller rank if need be (null: whatever it takes).
rank: null
adapter_mib: null

# Seconds without a message after which the worker lets the base model go until the next one. null: never.
idle_release_s: 600

# When the worker may run, by this machine's clock: [mon-fri 19:00-06:00, sat-sun 00:00-24:00]. []: always.
# A round that it trains is left at a checkpoint when they end, and goes on there when they begin.
hours: []

# Whether a person here approves each plan before this site takes part, and what the site says beforehand.
approval: manual         # manual: wardround site approve RUN | automatic: whatever the policy allows
tell_rows: true          # whether its rows are enough for the plan's batches, or not; never how many
tell_seconds: true       # how long a round will take here, rounded up to a power of two

# What a plan may ask of this site; beyond it the plan is refused, with all reasons, before a row is read.
# null leaves it to the person who approves the plan.
plans:
  base_models: null        # [digest, …]; null: any that lies under models
  tasks: null              # [sequence_classification, causal_lm]
  strategies: null         # [fedavg, fedprox]
  adapters: [lora]         # [lora, lora_sb]
  most_rank: 64            # of the adapter
  most_coordinates: 100000000   # that are trained and sent
  modules: null            # patterns of modules that may have an adapter: ["*.q_proj", "*.query"]
  heads: [classifier, score, classification_head, cls, pre_classifier, pooler]   # what may train in full
  vocabulary: false        # embeddings, and the layer that gives out words: they learn rare words by heart
  biases: false            # of the base model
  columns: null            # that a plan may read, as plans call them
  labels: null             # digests of label lists, as `wardround plan check` prints them
  templates: null          # digests of templates, likewise
  most_tokens: 4096        # of a row
  least_units: 20          # patients (rows where the plan names none) to train on, after filters
  least_a_label: 2         # of them with any label that occurs here
  least_batch: 4           # rows of a logical batch
  most_rounds: 200
  most_steps: 100000       # of the whole run
  most_passes: 100         # over this site's rows in the whole run
  most_learning: 50.0      # learning rate times steps, of the whole run, unless it is private to ε 10
  runs_a_month: 30         # accepted in any thirty days
  privacy: none            # none | example | patient: the least that a plan has to protect
  most_epsilon: null       # of a private plan; the ledger's cap holds in any case
  most_delta: 1.0e-3
  most_bytes: 536870912    # of the largest message that leaves in a round
  smallest_cell: 5         # patients: counts leave as multiples of so many; 1: exactly
  figures: []              # of this site alone: training, validation, clipping; [] tells none of them

# What this site demands before its contribution goes into a sum; its own people decide on that.
policy:
  modes: [real]            # real: the server learns sums alone
  aggregator: null         # key of an aggregator that this site trusts, for the mode trusted
  assumed_colluders: 1     # so many members may work with the server
  least_honest: 3
  least_cohort: 5
  least_survivor_share: 0.5
  most_attempts: 10
  colluding_share: 0.3333333333333333
  most_exposure: 1.0e-5
  group_strategies: []     # strategies that may have sums over groups, such as group_median
"""


class ModelPlace(Frozen):
    """Where one base model lies."""

    path: str = Field(min_length=1)
    """Folder, `package://` or `data://` location, or hub name where no such folder exists."""
    digest: HexKey | None = None
    """Of the weights as a plan loads them; None: it is loaded to find out."""
    revision: str | None = None
    attention: Literal["sdpa", "eager"] = "sdpa"

    def loading(self, base: BaseModelSpec) -> BaseModelConfig:
        """How a plan has its base model loaded that lies here; another one's weights are refused."""
        return BaseModelConfig(
            path=self.path, revision=self.revision, dtype=base.dtype, quantisation=base.quantisation,
            attention=self.attention, dropout=base.dropout, digest=base.digest,
        )  # fmt: skip


class SiteSettings(Frozen):
    """All of `site.yaml`."""

    models: tuple[ModelPlace, ...] = Field(min_length=1)
    source: SourceSpec
    columns: dict[str, str] = Field(default_factory=dict)
    """Column as plans call it → the name that these rows have for it."""
    ledger: str = Field(default="ledger", min_length=1)
    """Folder of the privacy ledger; another site's, where a hospital has several."""
    ledger_mirror: str | None = Field(default=None, min_length=1)
    """A second place for every row of it, on another disk."""
    beside: tuple[str, ...] = ()
    """Folders of the hospital's other sites, whose runs count as this one's."""
    machine: Machine = Machine()
    checkpoint_s: float | None = Field(default=60.0, gt=0)
    """Seconds between two checkpoints of a local round; None: there are none."""
    niceness: int = Field(default=10, ge=0, le=19)
    """How far the worker stands back for other processes of the machine."""
    memory_gib: float | None = Field(default=None, gt=0)
    """2³⁰ bytes that the worker may take; None: as much as there is."""
    rank: int | None = Field(default=None, ge=1)
    adapter_mib: float | None = Field(default=None, gt=0)
    idle_release_s: float | None = Field(default=600.0, gt=0)
    """Seconds without a message after which the worker lets the base model go; None: it keeps it."""
    hours: tuple[WindowText, ...] = ()
    """Windows of the week in which the worker may run; none: always."""
    plans: PlanPolicy = PlanPolicy()
    """What a plan may ask for."""
    policy: SecurePolicy = SecurePolicy()
    """What sums have to protect."""
    approval: Literal["manual", "automatic"] = "manual"
    """Whether a person approves each plan, or all that the policy allows are taken."""
    tell_rows: bool = True
    tell_seconds: bool = True

    def within(self, folder: Path) -> Self:
        """The same with what lies in this folder named in full."""
        models = tuple(place.model_copy(update={"path": _full(folder, place.path)}) for place in self.models)
        source = self.source.model_copy(update={"path": _full(folder, self.source.path)})
        own = {
            "ledger": _inside(folder, self.ledger),
            "ledger_mirror": None if self.ledger_mirror is None else _inside(folder, self.ledger_mirror),
            "beside": tuple(_inside(folder, path) for path in self.beside),
        }
        return self.model_copy(update={"models": models, "source": source, **own})


def read_site_settings(path: Path) -> SiteSettings:
    """Read a site's settings strictly.

    Raises:
        StorageError: The file is not there or too large.
        ConfigError: Not YAML, a key twice, unknown or missing, a wrong value; every fault at once.
    """
    try:
        with path.open("rb") as file:
            data = file.read(LARGEST + 1)
    except OSError as error:
        raise StorageError(
            f"cannot read {path}", found=error.strerror, expected="the site's settings",
            remedy="`wardround site join` writes a commented beginning; fill it in",
        ) from error  # fmt: skip
    return parse_site_settings(data, path)


def parse_site_settings(data: bytes, path: Path) -> SiteSettings:
    """A site's settings from the bytes of the file at `path`; raises as `read_site_settings`."""
    if len(data) > LARGEST:
        raise StorageError(f"{path} is too large", expected=f"at most {LARGEST} bytes")
    if _depth(data) > DEEPEST:  # PyYAML takes the longer for each token the deeper it stands
        raise ConfigError(f"{path} is not a site's settings", found=f"over {DEEPEST} brackets in one another")
    try:
        values = yaml.load(data, _Strict)  # noqa: S506 - a SafeLoader
        return SiteSettings.model_validate(values).within(path.parent)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark is not None else ""
        raise ConfigError(
            f"{path} is not YAML", found=f"{getattr(error, 'problem', None) or type(error).__name__}{line}"
        ) from error
    except ValidationError as error:
        raise invalid(f"settings of the site ({path.name})", error, known_keys(SiteSettings)) from error


def write_site_starter(path: Path) -> None:
    """Write commented settings to be filled in, for their owner alone to read.

    Raises:
        ConfigError: There is such a file already.
        StorageError: It cannot be written.
    """
    if path.exists():
        raise ConfigError(f"{path} is there already", remedy="edit it")
    write_atomic(path, STARTER.encode(), private=True)


class _Strict(yaml.SafeLoader):
    """YAML in which a key that stands twice is a fault: which of the two counts is nobody's guess."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        twice = next((key for key in keys if keys.count(key) > 1), None)
        if twice is not None:
            raise yaml.constructor.ConstructorError(None, None, f"the key {twice!r} twice", node.start_mark)
        return super().construct_mapping(node, deep=deep)


def _depth(data: bytes) -> int:
    """How deep brackets stand in one another, those in texts and comments among them."""
    depth = deepest = 0
    for byte in data:
        depth += (byte in b"[{") - (byte in b"]}")
        deepest = max(deepest, depth)
    return deepest


def _full(folder: Path, path: str) -> str:
    """A path in full where it names something in the folder; a location or a hub name as it is."""
    if "://" in path:
        return path
    inside = _inside(folder, path)
    return inside if Path(inside).exists() else path


def _inside(folder: Path, path: str) -> str:
    """A path, which may be relative to the folder, in full."""
    return os.path.normpath(folder.resolve() / Path(path).expanduser())
