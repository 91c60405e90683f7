"""What a model's arithmetic rounds: how far a row's gradient moves with the size of the batch it is in.

The bound on a unit is for gradients of the others that stay what they are. Batched kernels round another way
in a batch of another size: in float32 by some 10⁻⁶ of a gradient, in half precision by thousands of times
more. There clipping stays below C by as much as the audit allows for it, and the noise stays at σ C.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import nn

from wardround.training.frozen_products import RoundedProduct

FINE: Final = 1e-5
"""In float32: what the clipped sum may move beyond C, relatively; nothing is taken off for it."""
COARSE: Final = 1e-2
"""In half precision and with quantised bases: a unit is clipped to C / (1 + COARSE), so that the sum moves by
C at most."""


def rounds_coarsely(model: nn.Module) -> bool:
    """Whether anything in a model multiplies in less than float32: weights of a kind, rounded products."""
    fine = (torch.float32, torch.float64)
    return any(parameter.dtype not in fine for parameter in model.parameters()) or any(
        isinstance(module.__dict__.get("forward"), RoundedProduct) for module in model.modules()
    )


def slack_of(model: nn.Module) -> float:
    """By how much more than its clipped length a unit may move the sum, relatively; 0 of float32."""
    return COARSE if rounds_coarsely(model) else 0.0
