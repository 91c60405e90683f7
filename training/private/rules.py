"""One layer's gradient for each example, from what the layer read and the gradient of what it gave.

For y = W x over the positions t of example i, dL_i/dW = Σ_t g_t x_tᵀ: one batched product, the same number of
operations as the gradient of the sum. LoRA's factors are written out in full, since r · d numbers an example
are fewer than what norms without gradients have to keep once 2r < T (compare Li et al. 2022,
arXiv:2110.05679v6, § 4, whose norms cost O(T²)). Other layers take the rule that Opacus has registered for
them (Yousefpour et al. 2021, arXiv:2109.12298v4, § 3), where there is one and it holds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, Final

import torch
from peft.tuners import lora
from torch import nn
from torch.nn import functional as F
from transformers.pytorch_utils import Conv1D

from wardround.training.adapters._magnitudes import LinearMagnitudes, magnitudes_of

Pairs = Iterator[tuple[nn.Parameter, torch.Tensor]]
"""(parameter, its gradients (n, *shape)): one for each parameter that trains."""


@dataclass(frozen=True)
class Rule:
    """How one module's parameters get their gradients.

    Attributes:
        parameters: Those that train, at least one.
        gradients: (inputs (n, …), gradient of the output (n, …, d_out)) → `Pairs`.
        looks_up: The input holds indices; one line of them may serve every example (positions).
        multiplies: A product that autocast runs in half precision.
    """

    parameters: tuple[nn.Parameter, ...]
    gradients: Callable[[torch.Tensor, torch.Tensor], Pairs]
    looks_up: bool = False
    multiplies: bool = False


# The same code under several names, `weight * x / rms(x)`; Gemma's, with `1 + weight`, is not among them.
_RMS_NORMS: Final = frozenset(
    {"LlamaRMSNorm", "MistralRMSNorm", "MixtralRMSNorm", "Qwen2RMSNorm", "Qwen3RMSNorm", "Phi3RMSNorm"}
)
_BY_DISTANCE: Final = frozenset(
    {
        "relative_attention_bias", "global_relative_attention_bias", "rel_attn_embed", "rel_embeddings",
        "rel_pos_emb", "distance_embedding", "bias_values",
    }
)  # fmt: skip
# Layers of PEFT whose forward is B(A(dropout(x))) through the factors' own modules; Embedding has its rule.
_PRODUCTS: Final = frozenset({"Linear", "Linear8bitLt", "Linear4bit", "Embedding"})


def rule_of(module: nn.Module) -> Rule | None:
    """The rule of a module with parameters of its own that train, or None where there is none."""
    if isinstance(module, lora.Embedding):
        return _lora_embedding(module)
    trained = tuple(p for p in module.parameters(recurse=False) if p.requires_grad)
    if not trained:
        return None

    def bound(rule: Callable[[Any, torch.Tensor, torch.Tensor], Pairs]) -> Callable[..., Pairs]:
        return lambda inputs, gradient: rule(module, inputs, gradient)

    kind = type(module)
    if kind is nn.Linear:
        return Rule(trained, bound(_linear), multiplies=True)
    if kind is Conv1D:
        return Rule(trained, bound(_conv1d), multiplies=True)
    if kind is LinearMagnitudes:
        return Rule(trained, bound(_magnitudes))
    if kind is nn.Embedding:
        usable = _plain_lookup(module) and _opacus(kind) is not None
        return Rule(trained, bound(_embedding), looks_up=True) if usable else None
    if kind in (nn.LayerNorm, nn.RMSNorm):
        return Rule(trained, bound(_torch_norm)) if _opacus(kind) is not None else None
    if kind.__name__ in _RMS_NORMS and kind.__module__.startswith("transformers.models."):
        return Rule(trained, bound(_rms_norm))
    return None


def by_distance(name: str) -> bool:
    """True for a table that is looked up by the distance of two positions, once for all examples.

    T5 and its kin read theirs at (T, T) places. Where a batch happens to have T examples, places pass for
    examples, and nothing but the table's name tells.
    """
    return not _BY_DISTANCE.isdisjoint(name.split("."))


def unruled_layer(module: nn.Module) -> bool:
    """True for a layer of PEFT that reads its factors in another way than through their own modules.

    PEFT's variants (DoRA but for ours on linear layers whose bias is frozen), factors on attention as a whole
    or on bare parameters, convolutions.
    """
    if not isinstance(module, lora.LoraLayer):
        return False
    for name in module.lora_variant:
        # The bias is taken out of what magnitudes scale: past its own module, if it trained.
        bias = getattr(module.get_base_layer(), "bias", None)
        known = isinstance(magnitudes_of(module, name), LinearMagnitudes)
        if not known or (bias is not None and bias.requires_grad):
            return True
    return type(module).__name__ not in _PRODUCTS


def _by_position(tensor: torch.Tensor) -> torch.Tensor:
    """(n, …, d) → (n, T, d), with T = 1 where there are no positions."""
    return tensor.reshape(tensor.shape[0], -1, tensor.shape[-1])


def _linear(layer: Any, inputs: torch.Tensor, gradient: torch.Tensor) -> Pairs:
    """W (d_out, d_in): Σ_t g_t x_tᵀ; b: Σ_t g_t."""
    g = _by_position(gradient)
    if layer.weight.requires_grad:
        yield layer.weight, torch.bmm(g.mT, _by_position(inputs).to(g.dtype))
    if layer.bias is not None and layer.bias.requires_grad:
        yield layer.bias, g.sum(1)


def _magnitudes(layer: LinearMagnitudes, inputs: torch.Tensor, gradient: torch.Tensor) -> Pairs:
    """The m of y = (m/n) · V x − W x with V = W + s · B A: Σ_t g_t · V x_t / n, its norms n a constant."""
    with torch.no_grad():
        turned, norms = layer.directions(inputs)
        yield layer.weight, _by_position(gradient.float() * turned / norms).sum(1)


def _conv1d(layer: Any, inputs: torch.Tensor, gradient: torch.Tensor) -> Pairs:
    """As `_linear`; Hugging Face's Conv1D keeps W transposed, (d_in, d_out)."""
    g = _by_position(gradient)
    if layer.weight.requires_grad:
        yield layer.weight, torch.bmm(_by_position(inputs).to(g.dtype).mT, g)
    if layer.bias.requires_grad:
        yield layer.bias, g.sum(1)


def _rms_norm(layer: Any, inputs: torch.Tensor, gradient: torch.Tensor) -> Pairs:
    """Scales of y = w · x / √(mean x² + ε), in float32: Σ_t g_t · x_t / rms(x_t)."""
    x = inputs.float()
    normed = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + layer.variance_epsilon)
    yield layer.weight, _by_position(normed * gradient.float()).sum(1)


def _plain_lookup(layer: Any) -> bool:
    """Whether a lookup is one: no renormalising in place, no counts over the batch, no sparse gradient."""
    return layer.max_norm is None and not layer.scale_grad_by_freq and not layer.sparse


def _embedding(layer: nn.Embedding, inputs: torch.Tensor, gradient: torch.Tensor) -> Pairs:
    """Opacus' rule, and a row for padding that does not train, as in torch itself."""
    rule: Any = _opacus(nn.Embedding)
    for parameter, grads in rule(layer, [inputs], gradient.float()).items():
        if layer.padding_idx is not None:
            grads[:, layer.padding_idx] = 0
        yield parameter, grads


def _torch_norm(layer: nn.LayerNorm | nn.RMSNorm, inputs: torch.Tensor, gradient: torch.Tensor) -> Pairs:
    """Opacus' rule in float32; it expects a bias, which a LayerNorm may lack."""
    seen: Any = layer
    if isinstance(layer, nn.LayerNorm) and layer.bias is None:
        seen = SimpleNamespace(
            weight=layer.weight, bias=SimpleNamespace(requires_grad=False),
            normalized_shape=layer.normalized_shape, eps=layer.eps,
        )  # fmt: skip
    rule: Any = _opacus(type(layer))
    yield from rule(seen, [inputs.float()], gradient.float()).items()


def _opacus(kind: type[nn.Module]) -> Any:
    """The rule that Opacus has registered for a layer, or None; imported here, as few runs need it."""
    from opacus.grad_sample import GradSampleModule

    return GradSampleModule.GRAD_SAMPLERS.get(kind)


def _lora_embedding(layer: Any) -> Rule | None:
    """Factors of y = E[i] + s · B A[:, i] with A (r, V), B (d, r), which PEFT keeps as bare parameters."""
    active = [name for name in layer.active_adapters if name in layer.lora_embedding_A]
    if len(active) != 1 or not _plain_lookup(layer.get_base_layer()):
        return None
    a, b = layer.lora_embedding_A[active[0]], layer.lora_embedding_B[active[0]]
    trained = tuple(parameter for parameter in (a, b) if parameter.requires_grad)
    if not trained:
        return None
    padding = layer.get_base_layer().padding_idx
    # Gemma multiplies its embeddings by a constant, and PEFT what it adds to them.
    constant = getattr(layer, "_get_embed_scale", lambda: None)()

    def gradients(inputs: torch.Tensor, gradient: torch.Tensor) -> Pairs:
        indices = inputs.reshape(inputs.shape[0], -1)
        g = _by_position(gradient).float() * layer.scaling[active[0]]
        if constant is not None:
            g = g * constant.to(g)
        if b.requires_grad:
            yield b, torch.bmm(g.mT, F.embedding(indices, a.detach().mT).to(g.dtype))
        if a.requires_grad:
            back = g @ b.detach().to(g.dtype)  # (n, T, r)
            if padding is not None:
                back = back.masked_fill((indices == padding).unsqueeze(-1), 0)
            places = indices.unsqueeze(-1).expand_as(back)
            table = back.new_zeros(len(indices), a.shape[1], a.shape[0])
            yield a, table.scatter_add_(1, places, back).mT

    return Rule(trained, gradients, looks_up=True)
