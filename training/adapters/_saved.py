"""Reads what PEFT saved, whole and finite."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from wardround.core.errors import ModelError
from wardround.core.packed import Array
from wardround.training.adapters.contract import WEIGHTS_FILE


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
