"""Packs short rows into long ones, without letting any row see another.

Plain attention with a two-dimensional mask cannot keep packed rows apart, so `block_causal_mask` gives the
four-dimensional one that transformers passes on as it stands: true where a query may look at a key, that is
at itself and at earlier tokens of its own row. Position ids restart with each row.
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from peft import PeftModel

from wardround.core.errors import ModelError
from wardround.training.encoded_text import EncodedText


def pack_rows(rows: Sequence[EncodedText], max_length: int) -> list[EncodedText]:
    """First fit: each row goes into the first bin that has room, in order; the same rows give the same bins.

    A bin has `example` −1 and sums `cut` and `text_bytes`. The first target of every row in it is −100, so
    that no row's end predicts the next one's beginning. Rows without targets are left out, except that
    the first is kept where there is no other; what truncation cut of them is counted in the first bin.

    Args:
        rows: EncodedText rows of at most `max_length` tokens each.
    """
    useful = [row for row in rows if (row.targets[1:] >= 0).any()] or list(rows[:1])
    bins: list[list[EncodedText]] = []
    for row, place in zip(useful, first_fit([row.tokens.size for row in useful], max_length), strict=True):
        if place == len(bins):
            bins.append([])
        bins[place].append(row)
    packed = [_join(members) for members in bins]
    if packed:
        left_out = sum(row.cut for row in rows) - sum(row.cut for row in packed)
        packed[0] = replace(packed[0], cut=packed[0].cut + left_out)
    return packed


def first_fit(lengths: Sequence[int], capacity: int) -> list[int]:
    """Bin of each length, in order: the first one with room for it, or the next new one.

    O(n log n) by a tree over the bins whose nodes hold the most room below them (Johnson 1974, First Fit).

    Args:
        lengths: None above `capacity`.
        capacity: Room of an empty bin.
    """
    leaves = 1 << max(0, len(lengths) - 1).bit_length()
    most = [capacity] * (2 * leaves)  # node n has children 2n and 2n + 1; bins not yet begun are empty ones
    places = []
    for length in lengths:
        node = 1
        while node < leaves:
            node *= 2
            if most[node] < length:
                node += 1
        places.append(node - leaves)
        most[node] -= length
        while node > 1:
            node //= 2
            most[node] = max(most[2 * node], most[2 * node + 1])
    return places


def segment_bounds(row: EncodedText) -> list[tuple[int, int]]:
    """Half-open token ranges of the rows that were packed into this one."""
    if row.positions.size == 0:
        return [(0, row.tokens.size)]
    starts = [*np.flatnonzero(row.positions == 0).tolist(), row.tokens.size]
    return list(itertools.pairwise(starts))


def block_causal_mask(positions: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """Which key each query may look at.

    Args:
        positions: (batch, tokens); a row of the bin begins at each 0.
        lengths: (batch,), tokens before the padding.

    Returns:
        Bool, (batch, 1, tokens, tokens). Padding looks at itself alone, so that no softmax is empty.
    """
    tokens = positions.shape[1]
    place = torch.arange(tokens, device=positions.device)
    segment = (positions == 0).cumsum(dim=1)
    segment = torch.where(place < lengths[:, None], segment, -1 - place)
    same = segment[:, :, None] == segment[:, None, :]
    causal = place[:, None] >= place[None, :]
    return (same & causal)[:, None]


def require_packable(config: Any, tokens: int) -> None:
    """Refuse models in whose layers the block-causal mask does not hold, or replaces a mask of their own.

    Args:
        config: The model's, as transformers has it; of a model for images and text, that of its text part.
        tokens: Length of the packed rows.

    Raises:
        ModelError: A sliding window shorter than the rows, or layers that are no full attention.
    """
    layers = set(getattr(config, "layer_types", None) or ())
    slides = not layers or "sliding_attention" in layers  # a config may name a window that no layer uses
    window = getattr(config, "sliding_window", None) if slides else None
    kinds = layers - {"full_attention", "sliding_attention"}
    if kinds or (window is not None and window < tokens):
        raise ModelError(
            "rows cannot be packed for this base model",
            found=f"layers of kind {', '.join(sorted(kinds))}" if kinds else f"a sliding window of {window}",
            expected=f"full attention over {tokens} tokens, so that one mask serves every layer",
            remedy="set data.packing=false, or data.max_length to at most the window",
        )


def require_positions(model: torch.nn.Module) -> None:
    """Refuse models that cannot be told that positions restart within a bin.

    They take `position_ids` and pass over them: BART counts on from row to row, RWKV reads on through them
    whatever the mask says, and ALiBi (BLOOM, Falcon) is made from a two-dimensional mask.

    Raises:
        ModelError: The architecture has no position ids, or does not use them.
    """
    whole: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    if "position_ids" not in inspect.signature(whole.forward).parameters or getattr(
        whole.config.get_text_config(), "alibi", False
    ):
        raise ModelError(
            "rows cannot be packed for this base model",
            found=f"{type(whole).__name__}, which takes no position ids",
            expected="a model whose positions can restart with each row",
            remedy="set data.packing=false",
        )


def additive_mask(mask: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The mask as numbers to add to attention scores: what eager and fused attention both take."""
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(
        ~mask, torch.finfo(dtype).min
    )


def _join(rows: Sequence[EncodedText]) -> EncodedText:
    targets: list[NDArray[np.int32]] = []
    for row in rows:
        first = row.targets.copy()
        first[:1] = -100
        targets.append(first)
    return EncodedText(
        tokens=np.concatenate([row.tokens for row in rows]),
        targets=np.concatenate(targets),
        positions=np.concatenate([np.arange(row.tokens.size, dtype=np.int32) for row in rows]),
        cut=sum(row.cut for row in rows),
        text_bytes=sum(row.text_bytes for row in rows),
    )
