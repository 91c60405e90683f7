"""PEFT's LoRA put on a base: heads that the checkpoint lacks, what trains in float32, what the head reads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, cast

import peft
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils.constants import DUMMY_TARGET_MODULES
from torch import nn

from wardround.core.errors import ModelError
from wardround.core.plan import DataContract
from wardround.training.adapters._normalised_head import normalise_head
from wardround.training.adapters._options import FactorOptions
from wardround.training.adapters._remembered_features import remember_features
from wardround.training.adapters._targets import candidates, check_targets
from wardround.training.adapters._trained import ADAPTER_NAME, trained_parameters
from wardround.training.base_model import LoadedBase, without_peft_noise
from wardround.training.tasks.contract import Task

_HEAD_STD: Final = 0.02


def put_on(
    base: LoadedBase, options: FactorOptions, task: Task, seed: int, *, dora: bool = False
) -> PeftModel:
    """Fresh factors on the base: B = 0, A and lacking heads drawn from the seed on the CPU.

    `finish` has to follow, once a method has changed of the factors what it changes.

    Args:
        base: Loaded, with nothing on it.
        options: Where the factors sit, and what rides along.
        task: Says what kind of model PEFT has before it.
        seed: Of A and of lacking heads.
        dora: Whether each layer gets magnitudes beside its factors; drawn is the same.

    Raises:
        ModelError: Targets match nothing, or nothing would train.
    """
    bare, heads = base.model, base.missing_heads
    check_targets(bare, options.targets, options.modules_to_save)
    if options.targets == "none" and not (heads or options.modules_to_save):
        raise ModelError(
            "nothing would train: no targets, and the checkpoint brings its head with it",
            remedy="name the head in adapter.options.modules_to_save",
        )
    if getattr(bare, "is_quantized", False):
        bare = peft.prepare_model_for_kbit_training(  # type: ignore[no-untyped-call]  # PEFT leaves it unannotated
            bare, use_gradient_checkpointing=False
        )
    targets = DUMMY_TARGET_MODULES if options.targets == "none" else options.targets
    config = LoraConfig(
        task_type=task.peft_task_type, r=options.r,
        lora_alpha=cast("int", options.alpha),  # PEFT only divides it: its annotation is too narrow
        target_modules=targets if isinstance(targets, str) else list(targets),
        use_rslora=options.rslora, use_dora=dora, lora_dropout=options.dropout, bias=options.bias,
        modules_to_save=sorted({*options.modules_to_save, *heads}) or None,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]), without_peft_noise():
        torch.default_generator.manual_seed(seed)
        for head in heads:
            _initialise_head(bare.get_submodule(head))
        try:
            model = get_peft_model(bare, config, adapter_name=ADAPTER_NAME)
        except ValueError as error:
            raise ModelError(
                "LoRA cannot be put on this model", found=error,
                expected="targets among " + ", ".join(candidates(bare)),
                remedy="correct adapter.options.targets",
            ) from error  # fmt: skip
    config.modules_to_save = sorted(set(config.modules_to_save or ())) or None
    return cast("PeftModel", model)


def finish(model: PeftModel, base: LoadedBase, options: FactorOptions, data: DataContract) -> None:
    """What comes after the factors: precision, the head's input, remembered features.

    Raises:
        ModelError: A tensor of the base would train in half precision.
        ConfigError: As `normalise_head`.
    """
    heads, bare = base.missing_heads, base.model
    _train_in_float32(model, keep_output=frozenset(heads))
    trained = trained_parameters(model)
    _require_float32(trained)
    if options.public_texts:
        normalise_head(
            model, trained, base.tokenizer, options.public_texts, data.max_length, drawn=bool(heads)
        )
    full = [m for m in bare.modules() if isinstance(m, peft.utils.ModulesToSaveWrapper)]
    still = options.targets == options.bias == "none" and base.config.dropout == "off"
    if still and len(full) == 1:
        remember_features(bare, full[0], base.tokenizer)


def _require_float32(parameters: Mapping[str, nn.Parameter]) -> None:
    other = sorted(name for name, parameter in parameters.items() if parameter.dtype != torch.float32)
    if other:
        raise ModelError(
            "adapter tensors are float32, and this base would train tensors of its own in half precision",
            found=", ".join(other[:3]),
            expected="no bias of the base among the trained tensors",
            remedy="set adapter.options.bias=none, or model.dtype=float32",
        )


def _initialise_head(head: nn.Module) -> None:
    """Normal(0, 0.02) for matrices, ones for the scales of a norm, zeros for biases; drawn on the CPU."""
    with torch.no_grad():
        for name, parameter in sorted(head.named_parameters()):
            if parameter.ndim > 1:
                fresh = torch.empty(parameter.shape, dtype=torch.float32).normal_(0.0, _HEAD_STD)
            else:
                fresh = torch.full(parameter.shape, 1.0 if name.endswith("weight") else 0.0)
            parameter.copy_(fresh)


def _train_in_float32(model: PeftModel, keep_output: frozenset[str]) -> None:
    """Freeze the originals, and let modules that train in full work in float32 on a half-precision base.

    Their input is cast on the way in and, unless they are heads whose output is the model's, their
    output on the way out.
    """
    for name, wrapper in model.named_modules():
        if not isinstance(wrapper, peft.utils.ModulesToSaveWrapper):
            continue
        wrapper.original_module.requires_grad_(False)
        module = wrapper.modules_to_save[ADAPTER_NAME]
        halves = {p.dtype for p in module.parameters()} - {torch.float32}
        if halves:
            module.to(torch.float32)
            is_head = any(name == head or name.endswith(f".{head}") for head in keep_output)
            _cast_around(module, back=None if is_head else halves.pop())


def _cast_around(module: nn.Module, *, back: torch.dtype | None) -> None:
    def cast_in(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(a.float() if torch.is_tensor(a) and a.is_floating_point() else a for a in args)

    def cast_out(_: nn.Module, __: tuple[Any, ...], output: Any) -> Any:
        return output.to(back) if torch.is_tensor(output) else output

    module.register_forward_pre_hook(cast_in)
    if back is not None:
        module.register_forward_hook(cast_out)
