"""Layers that multiply the rows of several sites, each by its own site's tensors (`together.py`).

Rows stand in order of the sites: as many of each, or so many of each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from wardround.training.adapters._magnitudes import LinearMagnitudes


@dataclass(frozen=True)
class Cut:
    """Where one site's part of a layer's input ends, and the next one's begins; they are in order.

    Attributes:
        tokens: Of each site's rows where they come without padding, (1, tokens, d_in).
        rows: Of each site, (rows, …, d_in), where they are not equally many.
    """

    tokens: list[int] | None
    rows: Sequence[int] | None

    def sizes(self, inputs: torch.Tensor) -> list[int] | None:
        """Vectors of each site; None: equally many."""
        if self.rows is not None:
            each = inputs.shape[1:-1].numel()
            return [each * count for count in self.rows]
        ragged = self.tokens is not None and inputs.shape[:-1] == (1, sum(self.tokens))
        return self.tokens if ragged else None


@dataclass(frozen=True)
class SharedLinear:
    """A linear layer of so many sites.

    Attributes:
        weight: (sites, d_out, d_in).
        bias: (sites, d_out).
        cut: Of its inputs.
    """

    weight: torch.Tensor
    bias: torch.Tensor | None
    cut: Cut

    def __call__(self, inputs: torch.Tensor) -> torch.Tensor:
        """X_k W_kᵀ + b_k of each site k: (…, d_in) → (…, d_out)."""
        sizes = self.cut.sizes(inputs)
        made: Any
        if sizes is not None:
            made = _Segments.apply(inputs.reshape(-1, inputs.shape[-1]), self.weight, sizes)  # type: ignore[no-untyped-call]  # torch leaves it untyped
            made = made if self.bias is None else made + _by_vector(self.bias, sizes)
            return made.view(*inputs.shape[:-1], -1)  # type: ignore[no-any-return]  # a tensor
        sites = len(self.weight)
        shares = inputs.reshape(sites, -1, inputs.shape[-1])
        turned = self.weight.transpose(1, 2)
        made = (
            torch.bmm(shares, turned)
            if self.bias is None
            else torch.baddbmm(self.bias[:, None], shares, turned)
        )
        return made.reshape(*inputs.shape[:-1], -1)  # type: ignore[no-any-return]  # a tensor


class _Segments(torch.autograd.Function):
    """Each site's tokens by that site's weight: (tokens, d_in), (sites, d_out, d_in) → (tokens, d_out)."""

    @staticmethod
    def forward(ctx: Any, inputs: torch.Tensor, weight: torch.Tensor, sizes: list[int]) -> torch.Tensor:
        ctx.save_for_backward(inputs, weight)
        ctx.sizes = sizes
        made = inputs.new_empty(len(inputs), weight.shape[1])
        for own, given, out in zip(weight, torch.split(inputs, sizes), torch.split(made, sizes), strict=True):
            torch.mm(given, own.T, out=out)
        return made

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None, None]:
        inputs, weight = ctx.saved_tensors
        parts = torch.split(gradients[0], ctx.sizes)
        by_input = by_weight = None
        if ctx.needs_input_grad[0]:
            by_input = torch.empty_like(inputs)
            for own, part, out in zip(weight, parts, torch.split(by_input, ctx.sizes), strict=True):
                torch.mm(part, own, out=out)
        if ctx.needs_input_grad[1]:
            by_weight = torch.empty_like(weight)
            for given, part, out in zip(torch.split(inputs, ctx.sizes), parts, by_weight, strict=True):
                torch.mm(part.T, given, out=out)
        return by_input, by_weight, None


def _by_vector(values: torch.Tensor, sizes: list[int]) -> torch.Tensor:
    """(sites, d) → (vectors, d): to each what its site has."""
    return values.repeat_interleave(torch.tensor(sizes, device=values.device), dim=0)


@dataclass(frozen=True)
class SharedMagnitudes:
    """What DoRA adds to a layer's output, of so many sites; the modules of their factors are `SharedLinear`.

    Attributes:
        layer: That stands there otherwise.
        weight: m (sites, d_out).
        b: B (sites, d_out, r).
        a: A (sites, r, d_in).
        cut: Of its inputs.
    """

    layer: LinearMagnitudes
    weight: torch.Tensor
    b: torch.Tensor
    a: torch.Tensor
    cut: Cut

    def __call__(self, inputs: torch.Tensor, **given: Any) -> torch.Tensor:
        """As `LinearMagnitudes.forward`."""
        own, learnt = self.layer.parts(inputs, **given)
        shape, factor = own.shape, self.weight / self.layer.norms(self.b, self.a)
        sizes = self.cut.sizes(own)
        if sizes is not None:
            factor = _by_vector(factor, sizes).view(shape)
        else:
            own, learnt = (part.reshape(len(factor), -1, part.shape[-1]) for part in (own, learnt))
            factor = factor[:, None]
        return ((factor - 1) * own + factor * learnt).reshape(shape)

    def directions(self, inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """As `LinearMagnitudes.directions`, with norms by vector."""
        b, a = self.layer.sides()
        own, learnt = self.layer.parts(inputs, lora_B=b, lora_A=a)
        norms = self.layer.norms(self.b, self.a)
        sizes = self.cut.sizes(own) or [own.shape[:-1].numel() // len(norms)] * len(norms)
        return own + learnt, _by_vector(norms, sizes).view(own.shape)
