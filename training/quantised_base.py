"""A base model in 8 or 4 bits, through bitsandbytes where that is installed (QLoRA: arXiv:2305.14314)."""

from __future__ import annotations

import importlib.util
import logging
from typing import Any, Literal

import torch

from wardround.core.errors import ModelError


def quantised_keywords(
    quantisation: Literal["8bit", "4bit"], dtype: torch.dtype, device: torch.device
) -> dict[str, Any]:
    """Keywords of `from_pretrained` that load the body's linear layers quantised.

    Args:
        quantisation: LLM.int8() (arXiv:2208.07339) without its outlier columns, or NF4.
        dtype: Of the arithmetic on 4-bit weights.
        device: Where the model goes.

    Raises:
        ModelError: bitsandbytes is not installed.
    """
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ModelError(
            f"model.quantisation={quantisation} needs bitsandbytes, which is not installed",
            remedy="pip install 'wardround[quantised]', or set model.quantisation=none",
        )
    from transformers import BitsAndBytesConfig

    # It says at every layer that 8-bit products are made in float16, which is what LLM.int8() is.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    # LLM.int8() multiplies columns with an outlier (beyond 6, as transformers sets it) apart, in float16, and
    # looks for them over the whole batch: a row that has one changes how its neighbours are rounded, so that
    # under differential privacy it would move their gradients too. At 0 each token is scaled by itself. One
    # threshold for all runs: a base is the same whoever trains on it.
    options: dict[str, Any] = {"load_in_8bit": True, "llm_int8_threshold": 0.0}
    if quantisation == "4bit":
        options = {
            "load_in_4bit": True,
            "bnb_4bit_quant_type": "nf4",
            "bnb_4bit_compute_dtype": dtype,
        }
    settings = BitsAndBytesConfig(**options)  # type: ignore[no-untyped-call]  # transformers leaves it unannotated
    return {"quantization_config": settings, "device_map": {"": device}}


def keep_weights_as_loaded(model: torch.nn.Module) -> None:
    """Keep bitsandbytes from repacking 4-bit weights in place when a model is first asked on a CPU.

    Its kernel takes widths that are multiples of 32 alone and fails at others (0.50.2), and a shared base
    has to be the same before and after an evaluation.
    """
    from bitsandbytes.nn.modules import Linear4bit

    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False
