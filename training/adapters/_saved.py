"""Reads what PEFT saved, whole and finite; notes beside it which base it was trained on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

import numpy as np
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file

from wardround.core.errors import ModelError
from wardround.core.packed import Array
from wardround.core.plan import BaseModelSpec
from wardround.training.adapters.contract import CONFIG_FILE, WEIGHTS_FILE

BASE_NOTE: Final = "wardround.base"
"""Key in the metadata of the weights' file, which PEFT does not read."""


def saved_tensors(folder: Path) -> dict[str, Array]:
    """Every tensor of a saved adapter, by PEFT's names.

    Raises:
        ModelError: No whole adapter is there, or it holds NaN or infinity.
    """
    try:
        tensors: dict[str, Array] = load_file(folder / WEIGHTS_FILE)
    except (OSError, SafetensorError) as error:
        raise ModelError(
            f"no adapter can be read from {folder}",
            found=f"{type(error).__name__}: {error}",
            expected=f"a whole {WEIGHTS_FILE} as PEFT writes it",
            remedy="copy the adapter's folder again, or take another run's",
        ) from error
    broken = [name for name, tensor in tensors.items() if not np.isfinite(tensor).all()]
    if broken:
        raise ModelError(
            f"the adapter in {folder} is not finite", found=", ".join(sorted(broken)[:3]),
            remedy="take another round's adapter, and lower the learning rate",
        )  # fmt: skip
    return tensors


def saved_config(folder: Path) -> dict[str, Any]:
    """PEFT's configuration of a saved adapter.

    Raises:
        ModelError: It is not there, or no JSON object.
    """
    try:
        config = json.loads((folder / CONFIG_FILE).read_bytes())
    except (OSError, ValueError) as error:
        raise _no_config(folder, type(error).__name__) from error
    if not isinstance(config, dict):
        raise _no_config(folder, "no JSON object")
    return config


def _no_config(folder: Path, found: str) -> ModelError:
    return ModelError(
        f"no adapter can be read from {folder}", found=f"{found} in {CONFIG_FILE}",
        expected=f"{CONFIG_FILE} as PEFT writes it, beside {WEIGHTS_FILE}",
        remedy="copy the adapter's folder again, or take another run's",
    )  # fmt: skip


def base_note(base: BaseModelSpec | None) -> dict[str, str]:
    """Metadata for the weights' file that says which base they were trained on."""
    return {} if base is None else {BASE_NOTE: base.model_dump_json()}


def require_base(folder: Path, base: BaseModelSpec) -> None:
    """Refuse an adapter that notes another base than this one.

    An adapter without a note passes, and so does one of another precision or quantisation: the digest is of
    the weights as they were loaded, and that of the same checkpoint in bfloat16 is another one.

    Raises:
        ModelError: Names both digests.
    """
    with safe_open(folder / WEIGHTS_FILE, framework="np") as file:
        note = (file.metadata() or {}).get(BASE_NOTE)
    if note is None:
        return
    try:
        trained = BaseModelSpec.model_validate_json(note)
    except ValidationError:
        return  # noted by another version of ours: no better than no note
    alike = (trained.dtype, trained.quantisation) == (base.dtype, base.quantisation)
    if alike and trained.digest != base.digest:
        raise ModelError(
            f"the adapter in {folder} was trained on another base model",
            found=f"{trained.name}, {trained.digest[:12]}", expected=f"{base.name}, {base.digest[:12]}",
            remedy="set model.path to the base that it was trained on, or start from none",
        )  # fmt: skip
