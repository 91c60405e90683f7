"""DoRA: a layer's weight as magnitudes and directions, W' = m · (W + s · B A) / ‖W + s · B A‖.

Liu, Wang, Yin, Molchanov, Wang, Cheng and Chen, "DoRA: Weight-Decomposed Low-Rank Adaptation", ICML 2024,
arXiv:2402.09353v6, § 4.1: one magnitude an output, the norm is of each row of a weight (d_out, d_in). In
gradients the norm counts as a constant (§ 4.3). m begins as the norm of W, so that a fresh adapter changes
nothing.

The modules here stand in the places of PEFT's own, under the same names, and compute the same function. They
know directions that stand frozen beside those that train (a site of a smaller rank): the norm is then of
W + s · B A + s · B' A'. And the norm is made of B A and not of a pass of the identity through B and A, which
are left to the rows of a batch: the gradient of a single example can be read off them.
"""

from __future__ import annotations

from abc import ABC
from collections.abc import Iterator
from typing import Any, Final, cast, final

import torch
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.dora import DoraEmbeddingLayer, DoraLinearLayer
from peft.utils.integrations import dequantize_module_weight
from peft.utils.other import transpose
from torch import nn
from torch.nn import functional as F

from wardround.core.errors import ModelError
from wardround.training.base_model import LoadedBase

SAVED: Final = ".lora_magnitude_vector"
"""End of PEFT's name of a layer's magnitudes."""


class Magnitudes(DoraLinearLayer, ABC):
    """Abstract: m of one layer, and what it makes of the layer's output.

    Args:
        layer: PEFT's, with factors of the given name.
        name: Of the adapter that trains.

    Attributes:
        weight: m (d_out,), float32.
    """

    rest_a: torch.Tensor | None
    rest_b: torch.Tensor | None

    def __init__(self, layer: LoraLayer, name: str, *, fan_in_fan_out: bool) -> None:
        super().__init__(fan_in_fan_out)  # type: ignore[no-untyped-call]  # PEFT leaves it unannotated
        self._around = (layer, name)  # a tuple, so that the layer does not become a part of its own part
        self.let_rest(None)
        self.weight = nn.Parameter(self.norms(*self.factors()))

    def let_rest(self, factors: tuple[torch.Tensor, torch.Tensor] | None) -> None:
        """Put frozen B' (d_out, k) and A' (k, d_in) beside the factors that train; None takes them away."""
        b, a = factors or (None, None)
        self.register_buffer("rest_b", b, persistent=False)
        self.register_buffer("rest_a", a, persistent=False)

    def factors(self) -> tuple[torch.Tensor, torch.Tensor]:
        """B (d_out, r) and A (r, d_in)."""
        layer, name = self._around
        if name in layer.lora_embedding_A:
            return layer.lora_embedding_B[name], layer.lora_embedding_A[name]
        b, a = (cast("nn.Linear", side).weight for side in self.sides())
        return b, a

    def sides(self) -> tuple[nn.Module, nn.Module]:
        """The layers of B and A, of a layer that has them as such."""
        layer, name = self._around
        return layer.lora_B[name], layer.lora_A[name]

    def norms(self, b: torch.Tensor, a: torch.Tensor) -> torch.Tensor:
        """‖W + s · B A‖ of each output: a constant.

        Args:
            b: B (…, d_out, r).
            a: A (…, r, d_in).

        Returns:
            (…, d_out), float32.
        """
        with torch.no_grad():
            product = b @ a
            if self.rest_b is not None and self.rest_a is not None:
                product = product + self.rest_b @ self.rest_a
            norms: torch.Tensor = torch.linalg.norm(self._frozen().float() + self._scaling * product, dim=-1)
            return norms

    @property
    def _scaling(self) -> float:
        layer, name = self._around
        return float(layer.scaling[name])

    def _frozen(self) -> torch.Tensor:
        """W (d_out, d_in), of a quantised base dequantised."""
        weight = dequantize_module_weight(self._around[0].get_base_layer()).detach()
        return transpose(weight, self.fan_in_fan_out)


@final
class LinearMagnitudes(Magnitudes):
    """Of a linear layer, or GPT-2's Conv1D, which keeps W transposed."""

    def forward(self, x: torch.Tensor, **given: Any) -> torch.Tensor:
        """What the layer adds to its base layer's output: (m/n − 1) · W x + (m/n) · s · B A x.

        Args:
            x: (…, d_in), of the factors' type; dropped out, where the adapter has dropout.
            given: As PEFT calls it: `lora_A`, `lora_B`, and `base_result`, the base layer's output, without
                dropout.
        """
        own, learnt = self.parts(x, **given)
        factor = self.weight / self.norms(*self.factors())
        return (factor - 1) * own + factor * learnt

    def directions(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(W + s · B A) x (…, d_out), and its norms, which it is divided by before m scales it."""
        own, learnt = self.parts(x)
        return own + learnt, self.norms(*self.factors())

    def parts(self, x: torch.Tensor, **given: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """W x, without the bias, and s · B A x: (…, d_out) each."""
        own, bias = given.get("base_result"), self._around[0].get_base_layer().bias
        if own is None:
            own = F.linear(x, self._frozen().to(x.dtype))
        elif bias is not None:
            own = own - bias
        if "lora_A" in given:
            learnt = given["lora_B"](given["lora_A"](x))
        else:
            b, a = self.factors()
            learnt = F.linear(F.linear(x, a), b)
        if self.rest_b is not None and self.rest_a is not None:
            learnt = learnt + F.linear(F.linear(x, self.rest_a), self.rest_b)
        return own, learnt * self._scaling


@final
class EmbeddingMagnitudes(Magnitudes):
    """Of an embedding: W (vocabulary, d) has a magnitude for each of d."""

    def forward(self, x: torch.Tensor, **given: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """m/n (d,), and (m/n) · s · B A[:, x], (…, d): what PEFT makes of both.

        Args:
            x: Indices.
            given: As PEFT calls it: `lora_A` and `lora_B` transposed, and `embed_fn`.
        """
        factor = self.weight / self.norms(*self.factors())
        look_up = given["embed_fn"]
        learnt = look_up(x, given["lora_A"]) @ given["lora_B"]
        if self.rest_b is not None and self.rest_a is not None:
            learnt = learnt + look_up(x, self.rest_a.T) @ self.rest_b.T
        return factor, factor * learnt * self._scaling


def require_readable(base: LoadedBase) -> None:
    """Refuse weights whose norms cannot be taken.

    Raises:
        ModelError: The base is in 8 bits: PEFT 0.21.2 takes apart what bitsandbytes computes with when it
            dequantises such a layer on a CPU.
    """
    if base.config.quantisation == "8bit":
        raise ModelError(
            "DoRA reads the base's weights, and PEFT cannot give those of 8 bits back as they were",
            found="model.quantisation=8bit", expected="none or 4bit",
            remedy="set model.quantisation=4bit, or adapter.options.dora to false",
        )  # fmt: skip


def decompose(model: nn.Module, name: str) -> None:
    """Put magnitudes in the places of PEFT's, which begin as the norms of the base's weights.

    Args:
        model: With a fresh adapter of a configuration with `use_dora`.
        name: Of that adapter.

    Raises:
        ModelError: A layer is neither linear nor an embedding, or an output of it has no weights: there is no
            direction to scale.
    """
    for path, layer in _layers(model, name):
        kind = type(layer.lora_magnitude_vector[name])
        path = path.removeprefix("base_model.model.")  # noqa: PLW2901 - as the base calls it
        if kind not in (DoraLinearLayer, DoraEmbeddingLayer):
            raise ModelError(
                "DoRA is for linear layers and embeddings", found=f"{path}, a {type(layer).__name__}",
                remedy="leave it out of adapter.options.targets, or set adapter.options.dora to false",
            )  # fmt: skip
        made: type[Magnitudes] = LinearMagnitudes if kind is DoraLinearLayer else EmbeddingMagnitudes
        transposed = kind is DoraEmbeddingLayer or bool(getattr(layer, "fan_in_fan_out", False))
        own = made(layer, name, fan_in_fan_out=transposed)
        if not bool((own.weight > 0).all()):
            raise ModelError(
                "an output without weights has no direction, and DoRA would divide by its norm",
                found=f"{int((own.weight <= 0).sum())} of {own.weight.numel()} at {path}",
                remedy="leave it out of adapter.options.targets, or set adapter.options.dora to false",
            )  # fmt: skip
        layer.lora_magnitude_vector[name] = own


def magnitudes_of(layer: LoraLayer, name: str) -> Magnitudes | None:
    """Those of a layer; None where it has none of ours."""
    held = layer.lora_magnitude_vector
    found = held[name] if name in held else None  # noqa: SIM401 - a ModuleDict has no `get`
    return found if isinstance(found, Magnitudes) else None


def _layers(model: nn.Module, name: str) -> Iterator[tuple[str, LoraLayer]]:
    for path, module in model.named_modules():
        if isinstance(module, LoraLayer) and name in module.lora_magnitude_vector:
            yield path, module
