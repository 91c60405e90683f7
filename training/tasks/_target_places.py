"""A language model's head at the target places alone.

Its product is as wide as the vocabulary, and what it gives for prompts and padding is thrown away: a large
part of a step of a small model, forwards and backwards. The hidden states are cut to the places under loss
just before a frozen head; a row's logits are the ones that it has among all the others.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import nn


@contextmanager
def head_at(model: nn.Module, places: torch.Tensor) -> Iterator[None]:
    """Let the head of a causal LM see the hidden states at some places and no others.

    Not where it trains or is no plain linear layer (an adapter's, a quantised one): it is left alone then,
    and `at_places` takes what is wanted out of all logits.

    Args:
        model: Whose forward pass is taken within.
        places: (batch, tokens − 1), bool: of the place before each target.
    """
    ask = getattr(model, "get_output_embeddings", None)
    head = None if ask is None else cast("Any", ask)()
    if type(head) is not nn.Linear or any(parameter.requires_grad for parameter in head.parameters()):
        yield
        return
    whole = (len(places), places.shape[1] + 1)

    def cut(_: nn.Module, given: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...] | None:
        if len(given) != 1 or given[0].shape[:-1] != whole:
            return None
        return (given[0][:, :-1][places].unsqueeze(0),)

    handle = head.register_forward_pre_hook(cut)
    try:
        yield
    finally:
        handle.remove()


def at_places(logits: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """(targets, vocabulary), of logits that are those alone, or of those of every token."""
    return logits[:, :-1][places] if logits.shape[:-1] == (len(places), places.shape[1] + 1) else logits[0]
