"""A complete, plain LoRA adapter on disk: PEFT's two files, written whole and read against a layout."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from peft import PeftModel
from peft.utils.other import get_pattern_key
from safetensors.numpy import save_file

from wardround.core.errors import ConfigError, ModelError, PeerError
from wardround.core.packed import Adapter, Array, Layout, pack
from wardround.core.plan import BaseModelSpec
from wardround.runtime.files import atomic_folder
from wardround.training.adapters._normalised_head import head_input
from wardround.training.adapters._saved import base_note, require_base, saved_config, saved_tensors
from wardround.training.adapters._trained import ADAPTER_NAME
from wardround.training.adapters.contract import CONFIG_FILE, WEIGHTS_FILE

PREFIX = "base_model.model."
"""Before a module's name in a saved adapter."""


def save_plain(
    model: PeftModel,
    folder: Path,
    tensors: Mapping[str, Array],
    base_name: str,
    base: BaseModelSpec | None,
) -> None:
    """Write PEFT's two files; plain `PeftModel.from_pretrained` reads them.

    Args:
        model: With the adapter on it, whose configuration is saved.
        folder: New, or with an adapter's two files and nothing else.
        tensors: Factors and heads by PEFT's names; a normalised head as it trains.
        base_name: For people.
        base: To be noted beside the weights, or None.

    Raises:
        StorageError: Could not be written; nothing is left half-written.
    """
    config = copy.copy(model.peft_config[ADAPTER_NAME])
    config.base_model_name_or_path = base_name
    config.inference_mode = True
    normalised = head_input(model)
    plain = dict(tensors) if normalised is None else normalised.plain(tensors)
    # safetensors writes an array's memory, whatever the order of its axes.
    plain = {name: np.ascontiguousarray(tensor) for name, tensor in plain.items()}
    there = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    # What holds more than an adapter is not ours to replace.
    with atomic_folder(folder, replace=there <= {CONFIG_FILE, WEIGHTS_FILE}) as staged:
        # As PeftModel.save_pretrained does, but exactly the layout's tensors and no model card.
        save_file(plain, staged / WEIGHTS_FILE, metadata={"format": "pt", **base_note(base)})
        config.save_pretrained(str(staged))


def read_plain(folder: Path, model: PeftModel, layout: Layout, base: BaseModelSpec | None) -> Adapter:
    """The tensors of a saved adapter folder, its head as it trains.

    Args:
        folder: With PEFT's two files.
        model: With the configured adapter on it.
        layout: Factors and heads of the configured adapter, by PEFT's names.
        base: The base model that it is to go on from, or None to let any pass.

    Raises:
        ModelError: As `saved_tensors`, its tensors are not those of the layout, or they were trained on
            another base.
        ConfigError: Its factors are scaled in another way.
    """
    tensors, normalised = saved_tensors(folder), head_input(model)
    try:
        adapter = pack(layout, tensors, np.float32)
        if normalised is not None:
            adapter = pack(layout, normalised.normalised(adapter.tensors()), np.float32)
    except PeerError as error:
        raise ModelError(
            f"the adapter in {folder} does not fit this one: {error.what}",
            found=error.found, expected=error.expected,
            remedy="train with the rank, targets, heads and dora of the saved adapter, or start from none",
        ) from error  # fmt: skip
    _require_scaling(folder, layout)
    if base is not None:
        require_base(folder, base)
    return adapter


def changed_by_products(folder: Path) -> list[str]:
    """Weights whose saved product B A is not zero.

    Raises:
        ModelError: As `saved_tensors`.
    """
    factors: dict[str, list[bool]] = {}
    for name, tensor in saved_tensors(folder).items():
        module, separator, _ = name.partition(".lora_")
        if separator:
            factors.setdefault(module, []).append(bool(np.any(tensor)))
    nonzero = [module.removeprefix(PREFIX) for module, both in factors.items() if all(both)]
    return sorted(f"{module}.weight" for module in nonzero)


def _require_scaling(folder: Path, layout: Layout) -> None:
    """Refuse a saved adapter whose product the configured options would scale in another way.

    Raises:
        ModelError: Its configuration cannot be read.
        ConfigError: Names both scalings of the first module that differs, and what they are made of.
    """
    config = saved_config(folder)
    try:
        for spec in layout.tensors:
            if spec.role != "lora_a":
                continue
            module = spec.module.removeprefix(PREFIX)
            patterns: dict[str, float] = config.get("alpha_pattern") or {}
            own = patterns.get(get_pattern_key(list(patterns), module))
            alpha = float(config["lora_alpha"] if own is None else own)
            rank, root = spec.shape[0], bool(config.get("use_rslora"))
            scaling = alpha / (math.sqrt(rank) if root else rank)
            if not math.isclose(scaling, spec.scaling, rel_tol=1e-6):
                raise ConfigError(
                    f"the adapter in {folder} is scaled in another way than the configured one",
                    found=f"{scaling:g} at {module} (r={rank}, alpha={alpha:g}, rslora={str(root).lower()})",
                    expected=f"{spec.scaling:g}, by adapter.options",
                    remedy=f"set adapter.options.alpha={alpha:g}, adapter.options.rslora={str(root).lower()}"
                    if not patterns
                    else "start from an adapter with one alpha for all modules",
                )
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(
            f"the configuration of the adapter in {folder} cannot be read",
            found=f"{type(error).__name__} in {CONFIG_FILE}",
            expected="lora_alpha, and use_rslora and alpha_pattern where they are used, as PEFT writes them",
            remedy="copy the adapter's folder again, or take another run's",
        ) from error
