"""What a person chooses of base model, machine and local work, and what can be refused of it at once.

Nothing here imports torch, which takes seconds: a wrong setting is told before that.
"""

from __future__ import annotations

import re
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from wardround.core.checked import parse_options
from wardround.core.errors import ConfigError, ModelError
from wardround.core.plan import LocalWork, StrategySpec
from wardround.runtime.locations import locate
from wardround.strategies import STRATEGIES
from wardround.strategies.contract import SumStrategy

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


class BaseModelConfig(BaseModel):
    """Which base model, and in which precision.

    Attributes:
        path: A folder, `package://NAME/rest`, `data://rest`, or a hub name where no such folder exists.
        revision: Commit, tag or branch of a hub name.
        dtype: Of the frozen weights and of the arithmetic outside the adapter. float16 can underflow
            in the backward pass (no loss scaling); prefer bfloat16.
        quantisation: 8- or 4-bit base through bitsandbytes (the extra `quantised`); tested on the CPU.
        attention: Implementation inside transformers.
        dropout: `base` leaves the checkpoint's own while training, `off` switches it off; the adapter's own
            is another matter.
        digest: Digest that the loaded weights must have, or None. It depends on the dtype.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: str = Field(min_length=1)
    revision: str | None = None
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    quantisation: Literal["none", "8bit", "4bit"] = "none"
    attention: Literal["sdpa", "eager"] = "sdpa"
    dropout: Literal["base", "off"] = "base"
    digest: str | None = None


def resolve(config: BaseModelConfig) -> tuple[str, str]:
    """What transformers is to load (a folder or a hub name), and the name for people.

    Raises:
        ModelError: No such folder, and not a hub name either.
    """
    folder = locate(config.path)
    if folder.is_dir():
        return str(folder), config.path if "://" in config.path else folder.resolve().name
    if "://" in config.path or not _HUB_NAME.fullmatch(config.path):
        raise ModelError(
            f"the base model {config.path!r} is not there",
            found=f"no folder {folder}",
            expected="a folder with config.json, *.safetensors and a tokenizer, or a hub name (org/model)",
            remedy="correct model.path",
        )
    return config.path, config.path


Precision = Literal["fp32", "bf16", "auto"]


class Machine(BaseModel):
    """What a machine decides for itself; none of it is part of the plan.

    It changes what is trained by floating-point noise alone (`precision` by that of bfloat16), with one
    exception: under dropout (the base's own, which `model.dropout=off` switches off, or the adapter's)
    `microbatch_size` decides which masks are drawn.

    Attributes:
        device: `auto` takes CUDA, then MPS, then the CPU.
        threads: Of torch; None leaves its choice. Equal counts give equal bits.
        microbatch_size: Rows that go through the model at once; None: the whole logical batch.
        gradient_checkpointing: Recompute activations in the backward pass: less memory, more time.
        evaluation_batch_size: Rows at once where nothing trains.
        precision: Of the products with a frozen base in float32: bfloat16's rounding, or not; `auto` where
            the device has units for it. Everything else stays in float32.
        padding_free: Rows of several lengths train without the padding between them, where the model's
            layers allow it and no row needs a gradient of its own.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    threads: int | None = Field(default=None, gt=0)
    microbatch_size: int | None = Field(default=None, gt=0)
    gradient_checkpointing: bool = False
    evaluation_batch_size: int = Field(default=32, gt=0)
    precision: Precision = "fp32"
    padding_free: bool = True


LEAST_DP_EPSILON = 1e-6
_ADAM_ONLY = ("betas", "epsilon")
_SGD_ONLY = ("momentum",)


def check_settings(work: LocalWork) -> None:
    """Refuse a setting that the chosen optimiser does not read, unless it is left at its default.

    Raises:
        ConfigError: Names the setting and the optimisers that read it.
    """
    if work.optimiser == "dp_adam" and work.epsilon < LEAST_DP_EPSILON:
        raise ConfigError(
            "local.epsilon is too small for local.optimiser=dp_adam", found=work.epsilon,
            expected=f"at least {LEAST_DP_EPSILON:g}: noise often leaves nothing of a second moment",
            remedy="set it to about the size of a gradient's entries; 0.001 is a beginning",
        )  # fmt: skip
    unread = _ADAM_ONLY if work.optimiser == "sgd" else _SGD_ONLY
    readers = "adamw, adam or dp_adam" if work.optimiser == "sgd" else "sgd"
    for name in unread:
        default = LocalWork.model_fields[name].default
        if getattr(work, name) != default:
            raise ConfigError(
                f"local.{name} has no effect under local.optimiser={work.optimiser}",
                found=getattr(work, name), expected=f"its default, {default}",
                remedy=f"leave it out, or set local.optimiser to {readers}",
            )  # fmt: skip


def choose_strategy(spec: StrategySpec, *, allow_dotted: bool) -> tuple[type[SumStrategy], BaseModel]:
    """The strategy and its checked options.

    Raises:
        ConfigError: Unknown strategy or option.
    """
    strategy = STRATEGIES.get(spec.name, allow_dotted=allow_dotted)
    return strategy, parse_options(strategy.Options, spec.options, f"options of strategy {spec.name!r}")
