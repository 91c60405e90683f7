"""Products with frozen weights in bfloat16; all that trains, and all between the products, in float32.

Where a processor has units for bfloat16 most of a local round's time is in these products. Their weights are
constants, and rounding them and their inputs to 8 bits is noise; residual stream, norms, softmax, loss,
adapter and optimiser stay in float32. Autocast rounds those as well, and costs quality (docs/benchmarks.md).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final, cast

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from wardround.training.settings import Precision

PRODUCTS: Final = (nn.Linear, Conv1D)
SIZES: Final = 16
"""Numbers of vectors to an octave that a CPU multiplies (`room_for`)."""


def in_bfloat16(choice: Precision, device: torch.device) -> bool:
    """Whether products are to be in bfloat16: `auto` where the device has units for them."""
    return choice == "bf16" or (choice == "auto" and has_units(device))


def has_units(device: torch.device) -> bool:
    """Whether a device multiplies bfloat16 matrices faster than float32's."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type != "cpu":
        return False
    cpu = torch.cpu
    return bool(cpu._is_amx_tile_supported() or cpu._is_avx512_bf16_supported())  # noqa: SLF001 - torch names no public test


def layers_of(model: nn.Module) -> list[nn.Module]:
    """The layers of a bare base model that are a product with a float32 weight."""
    return [
        layer
        for layer in model.modules()
        if type(layer) in PRODUCTS and cast("Any", layer).weight.dtype == torch.float32
    ]


def round_products(layers: Iterable[nn.Module]) -> None:
    """Let each layer whose weight does not train multiply in bfloat16, by a copy of that weight.

    Its own weight stays as it is, for digests and for merging: memory grows by half of the base's. What reads
    `layer.weight` itself (an adapter method that adds to it, say) does not notice.
    """
    for layer in layers:
        if not cast("Any", layer).weight.requires_grad:
            layer.__dict__["forward"] = RoundedProduct(layer)


class RoundedProduct:
    """Stands in for one layer's `forward`.

    Attributes:
        layer: Whose bias is added in float32; it may train.
        weight: (d_out, d_in), bfloat16.
    """

    def __init__(self, layer: nn.Module) -> None:
        self.layer: Any = layer
        weight: torch.Tensor = cast("Any", layer).weight.detach()
        turned = weight.transpose(0, 1) if isinstance(layer, Conv1D) else weight
        self.weight = turned.to(torch.bfloat16).contiguous()

    def __call__(self, inputs: torch.Tensor) -> torch.Tensor:
        """X Wᵀ + b, (..., d_in) → (..., d_out), float32."""
        product = cast("torch.Tensor", _Product.apply(inputs, self.weight))  # type: ignore[no-untyped-call]  # torch leaves it untyped
        bias = self.layer.bias
        if bias is None:
            return product
        # In place: the product is nobody else's, and fresh memory of its size costs more than the sum.
        return product.add_(bias) if bias.dtype == product.dtype else product + bias


class _Product(torch.autograd.Function):
    """X Wᵀ and its derivative by X; W is a constant."""

    @staticmethod
    def forward(ctx: Any, inputs: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(weight)
        return _rounded(inputs, weight.T)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        (weight,) = ctx.saved_tensors
        return _rounded(gradients[0], weight), None


def _rounded(vectors: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
    """V M with V rounded to bfloat16, as M is: (…, k) and (k, n) → (…, n), of V's own type."""
    flat = vectors.reshape(-1, vectors.shape[-1])
    count = len(flat)
    room = room_for(count) if flat.device.type == "cpu" else count
    factor = flat.new_empty(room, flat.shape[1], dtype=torch.bfloat16)
    factor[:count] = flat
    factor[count:] = 0.0  # nobody sees their products, but what lies in memory may be slow to multiply
    return (factor @ matrix)[:count].view(*vectors.shape[:-1], matrix.shape[1]).to(vectors.dtype)


def room_for(count: int) -> int:
    """So many vectors are multiplied where there are `count`: one of `SIZES` numbers between 2ⁿ and 2ⁿ⁺¹.

    A CPU's library makes a program for each shape of a product and keeps the last thousand. Batches of real
    texts hardly ever have as many tokens twice: then making programs takes longer than the products, and the
    kept ones gigabytes. At most a sixteenth of the vectors is there for nothing.
    """
    step = max(1, (1 << count.bit_length()) // (2 * SIZES))
    return -(-count // step) * step
