"""Which trained tensors belong to a model's vocabulary: by what their layers are, whatever their names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch


def of_vocabulary(model: torch.nn.Module, trained: Mapping[str, torch.nn.Parameter]) -> tuple[str, ...]:
    """Names of trained tensors on an embedding, or on the layer that gives out words; sorted.

    Args:
        model: With the adapter on it.
        trained: Name → a parameter of the model.
    """
    owners = {id(p): path for path, module in model.named_modules() for p in module.parameters(recurse=False)}
    words = _words(model)
    found = (
        name
        for name, parameter in trained.items()
        if any(_is_one(module, words) for module in _around(model, owners.get(id(parameter), "")))
    )
    return tuple(sorted(found))


def _around(model: torch.nn.Module, path: str) -> list[Any]:
    """The module of a path, and the base layers of those around it: an adapter's own layers lie in them."""
    parts, found = path.split("."), [model.get_submodule(path)]
    for end in range(len(parts) - 1, 0, -1):
        outer = model.get_submodule(".".join(parts[:end]))
        base = getattr(outer, "base_layer", None) or getattr(outer, "original_module", None)
        if base is not None:
            found.append(base)
    return found


def _words(model: torch.nn.Module) -> set[int]:
    """The weights by which words go in and come out, by identity: tied ones are one."""
    weights: set[int] = set()
    for ask in ("get_input_embeddings", "get_output_embeddings"):
        getter = getattr(model, ask, None)
        try:
            layer = None if getter is None else getter()
        except (NotImplementedError, AttributeError):
            layer = None
        base = getattr(layer, "base_layer", layer)
        weight = getattr(base, "weight", None)
        if weight is not None:
            weights.add(weight.data_ptr())
    return weights


def _is_one(module: Any, words: set[int]) -> bool:
    weight = getattr(module, "weight", None)
    known = isinstance(weight, torch.Tensor) and weight.data_ptr() in words
    return known or isinstance(module, torch.nn.Embedding)
