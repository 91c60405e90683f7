"""A PEFT model whose LoRA factors take another rank, in place, with frozen directions beside them or without.

The frozen ones are a second PEFT adapter of the same layers: both are active, one trains. Where a layer has
magnitudes (DoRA), which scale the sum of both, they stand in there (`_magnitudes.py`). Memory for gradients
and optimiser goes with the rank that trains.
"""

from __future__ import annotations

from typing import Final, cast
from weakref import WeakSet

import numpy as np
import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import nn

from wardround.core.errors import ConfigError
from wardround.core.lora import Pair, pairs
from wardround.core.packed import Adapter, Layout
from wardround.core.ranks import same_but_for_ranks
from wardround.training.adapters._magnitudes import magnitudes_of

REST: Final = "rest"
"""Name of the adapter of frozen directions."""


_WITH_REST: Final[WeakSet[PeftModel]] = WeakSet()


def take_rank(model: PeftModel, name: str, present: Layout, wanted: Layout, rest: Adapter | None) -> bool:
    """Give every factor the rank that a layout says, and put frozen directions beside it.

    What the factors held is lost; whoever calls writes them next.

    Args:
        model: With an adapter of the given name.
        name: Of the adapter that trains.
        present: Its layout as it is.
        wanted: At the ranks to take.
        rest: The frozen directions; None takes away those that are there.

    Returns:
        Whether anything was changed: not where the two layouts differ in more than ranks.

    Raises:
        ConfigError: A layer is another variant of LoRA than DoRA.
    """
    same = present.digest == wanted.digest
    if same and rest is None and model not in _WITH_REST:
        return False
    if not same_but_for_ranks(present, wanted):
        return False
    layers = _layers(model, name)
    kept = {} if rest is None else {pair.module: pair for pair in pairs(rest.layout)}
    for pair in pairs(wanted):
        layer = layers[pair.module]
        if layer.lora_variant and magnitudes_of(layer, name) is None:
            raise ConfigError(
                "this kind of adapter has one rank at all sites", found="a variant of LoRA",
                expected="plain LoRA, or DoRA", remedy="leave the sites' ranks out",
            )  # fmt: skip
        _without_rest(layer, name)
        _resize(layer, name, pair)
        if rest is not None and pair.module in kept:
            _with_rest(layer, name, rest, kept[pair.module])
    if rest is None:
        _WITH_REST.discard(model)
    else:
        _WITH_REST.add(model)
    return True


def is_rest(name: str) -> bool:
    """Whether a parameter's name is that of frozen directions."""
    return f".{REST}" in name.rpartition(".lora_")[2]


def _layers(model: PeftModel, name: str) -> dict[str, LoraLayer]:
    """Name in the layout of a module's factors → its layer."""
    return {
        module_name: module
        for module_name, module in model.named_modules()
        if isinstance(module, LoraLayer) and name in module.scaling
    }


def _resize(layer: LoraLayer, name: str, pair: Pair) -> None:
    if layer.r[name] == pair.rank:
        return
    layer.r[name] = pair.rank
    if name in layer.lora_embedding_A:
        for holder, shape in ((layer.lora_embedding_A, pair.a.shape), (layer.lora_embedding_B, pair.b.shape)):
            holder[name] = _empty(holder[name], shape)
        return
    a, b = cast("nn.Linear", layer.lora_A[name]), cast("nn.Linear", layer.lora_B[name])
    a.weight, b.weight = _empty(a.weight, pair.a.shape), _empty(b.weight, pair.b.shape)
    a.out_features = b.in_features = pair.rank


def _empty(like: torch.Tensor, shape: tuple[int, ...]) -> nn.Parameter:
    return nn.Parameter(torch.empty(shape, dtype=like.dtype, device=like.device))


def _with_rest(layer: LoraLayer, name: str, rest: Adapter, pair: Pair) -> None:
    magnitudes = magnitudes_of(layer, name)
    if magnitudes is not None:
        like = magnitudes.weight
        b, a = (
            torch.from_numpy(np.array(rest[spec.name], dtype=np.float32)).to(like.device)
            for spec in (pair.b, pair.a)
        )
        magnitudes.let_rest((b, a))
        return
    layer.scaling[REST] = layer.scaling[name]
    layer.r[REST], layer.lora_alpha[REST] = pair.rank, layer.lora_alpha[name]
    layer.lora_dropout[REST] = layer.lora_dropout[name]
    embedding = name in layer.lora_embedding_A
    for side, spec in (("A", pair.a), ("B", pair.b)):
        own = getattr(layer, f"lora_embedding_{side}" if embedding else f"lora_{side}")
        like = own[name] if embedding else own[name].weight
        frozen = torch.from_numpy(np.array(rest[spec.name], dtype=np.float32)).to(like.device, like.dtype)
        weight = nn.Parameter(frozen, requires_grad=False)
        if embedding:
            own[REST] = weight
        else:
            linear = nn.Linear(spec.shape[1], spec.shape[0], bias=False, device="meta")
            linear.weight = weight
            own[REST] = linear
    layer._active_adapter = [name, REST]  # noqa: SLF001 - `set_adapter` would let the frozen one train


def _without_rest(layer: LoraLayer, name: str) -> None:
    magnitudes = magnitudes_of(layer, name)
    if magnitudes is not None:
        magnitudes.let_rest(None)
    if REST not in layer.scaling:
        return
    for numbers in (layer.scaling, layer.r, layer.lora_alpha):
        del numbers[REST]
    for holder in (
        layer.lora_dropout,
        layer.lora_A,
        layer.lora_B,
        layer.lora_embedding_A,
        layer.lora_embedding_B,
    ):
        if REST in holder:
            del holder[REST]
    layer._active_adapter = [name]  # noqa: SLF001 - as it was before the frozen one came
