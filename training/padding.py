"""A model's layers without the padding between rows: each token once, one row behind the other.

Real texts are of many lengths, and in a batch that is padded to its longest a third to a half of all tokens
stand for nothing; what a layer does token by token (products, norms, activations: nearly all of its work) is
done for them too. Here the stack of layers sees one long row, (1, tokens of all rows, width); attention alone
takes each row by itself, and everything before and after the stack never notices.

Which models this suits is not written down by name: a few made-up rows have to give the same both ways.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final, Self, TypeAlias, cast

import torch
from torch import nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_layers import GradientCheckpointingLayer

from wardround.core.errors import InternalError
from wardround.training.frozen_products import RoundedProduct

WORTH: Final = 0.95
"""Of a batch's places: where more are tokens, copies cost more than the rest of the padding."""
LENGTHS: Final = (7, 3, 5)
"""Of the made-up rows."""
TOLERANCE: Final = 1e-4
"""Of the largest logit."""
COARSE: Final = 3e-2
"""The same where weights or products have few bits."""
POSITIONS: Final = ("position_embeddings", "position_ids")
"""What a model hands to its layers of (1 or batch, tokens, …), beside the hidden states."""

Masks: TypeAlias = "list[torch.Tensor | None]"
"""Of each row, (1, heads, tokens, tokens)."""


class _Packed(torch.autograd.Function):
    """Rows of a table at some places; the derivative by the others is zero."""

    @staticmethod
    def forward(ctx: Any, table: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(places)
        ctx.length = len(table)
        return table.index_select(0, places)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        (places,) = ctx.saved_tensors
        return _spread(gradients[0], places, ctx.length), None


class _Padded(torch.autograd.Function):
    """The other way round."""

    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor, places: torch.Tensor, length: int) -> torch.Tensor:
        ctx.save_for_backward(places)
        return _spread(rows, places, length)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (places,) = ctx.saved_tensors
        return gradients[0].index_select(0, places), None, None


def _spread(rows: torch.Tensor, places: torch.Tensor, length: int) -> torch.Tensor:
    return rows.new_zeros(length, *rows.shape[1:]).index_copy_(0, places, rows)


@dataclass(frozen=True)
class Tokens:
    """Where the tokens of a batch stand.

    Attributes:
        mask: (batch, tokens), bool.
        places: (count,), indices into the batch's flattened places.
    """

    mask: torch.Tensor
    places: torch.Tensor

    @classmethod
    def of(cls, mask: torch.Tensor) -> Self:
        """Of an attention mask, (batch, tokens)."""
        return cls(mask.bool(), mask.flatten().nonzero()[:, 0])

    @property
    def count(self) -> int:
        """Tokens of all rows."""
        return len(self.places)

    @property
    def right(self) -> bool:
        """Whether every row has a token, and its padding behind them."""
        return bool(self.mask[:, 0].all() and (self.mask[:, 1:] <= self.mask[:, :-1]).all())

    @cached_property
    def lengths(self) -> list[int]:
        """Tokens of each row."""
        return cast("list[int]", self.mask.sum(dim=1).tolist())

    def by_share(self, shares: int) -> list[int]:
        """Tokens of so many equal shares of the rows."""
        return cast("list[int]", self.mask.view(shares, -1).sum(dim=1).tolist())

    def packed(self, padded: torch.Tensor) -> torch.Tensor:
        """(batch, tokens, …) → (1, count, …)."""
        return cast("torch.Tensor", _Packed.apply(padded.flatten(0, 1), self.places))[None]  # type: ignore[no-untyped-call]  # torch leaves it untyped

    def padded(self, packed: torch.Tensor) -> torch.Tensor:
        """(1, count, …) → (batch, tokens, …), zero where no token is."""
        table = cast("torch.Tensor", _Padded.apply(packed[0], self.places, self.mask.numel()))  # type: ignore[no-untyped-call]  # torch leaves it untyped
        return table.view(*self.mask.shape, *table.shape[1:])

    def positions(self, given: Any) -> Any:
        """What belongs to places (a tensor or several), packed; anything else as it is."""
        if isinstance(given, tuple):
            return tuple(self.positions(part) for part in given)
        if not isinstance(given, torch.Tensor) or given.shape[1:2] != self.mask.shape[1:]:
            return given
        return self.packed(given.expand(len(self.mask), *given.shape[1:]))


@dataclass
class PaddingFree:
    """A model's stack of layers, which can go without padding or not.

    Attributes:
        model: With its adapter.
        wanted: Whether it may.
        tokens: Of the batch that is under way; None: everything goes as the model has it.
        attended: So many times attention was asked for it.
    """

    model: nn.Module
    wanted: bool = True
    tokens: Tokens | None = None
    attended: int = field(default=0, repr=False)
    _known: dict[tuple[int, bool], tuple[torch.Tensor, Masks]] = field(default_factory=dict, repr=False)
    _suits: bool | None = field(default=None, repr=False)

    @contextmanager
    def of(self, batch: Mapping[str, torch.Tensor]) -> Iterator[Tokens | None]:
        """The forward and backward pass of one batch within; gives where its tokens stand, or None: padded.

        Args:
            batch: Goes padded unless it has `input_ids` and an `attention_mask` of (batch, tokens).
        """
        tokens = self._tokens_of(batch)
        if tokens is None:
            yield None
            return
        with self.on(tokens):
            yield tokens

    def _tokens_of(self, batch: Mapping[str, torch.Tensor]) -> Tokens | None:
        mask = batch.get("attention_mask")
        if not self.wanted or "input_ids" not in batch or mask is None:
            return None
        if mask.shape != batch["input_ids"].shape or len(mask) == 1 or mask.device.type != "cpu":
            return None
        tokens = Tokens.of(mask)
        if tokens.count > WORTH * mask.numel() or not tokens.right:
            return None
        if self._suits is None:
            self._suits = _same_both_ways(self)
        return tokens if self._suits else None

    @contextmanager
    def on(self, tokens: Tokens) -> Iterator[None]:
        """Batches whose tokens stand like that go without padding within."""
        layers = stack_of(self.model)
        with ExitStack() as hooks:
            for layer in layers:
                hooks.callback(layer.register_forward_pre_hook(self._enter, with_kwargs=True).remove)
            hooks.callback(layers[-1].register_forward_hook(self._leave).remove)
            modules = [module for layer in layers for module in layer.modules()]
            self.tokens, self.attended = tokens, 0
            try:
                _OWNERS.update(dict.fromkeys(modules, self))
                yield
            finally:
                for module in modules:
                    _OWNERS.pop(module, None)
                self.tokens = None
                self._known.clear()

    def _enter(
        self, _: nn.Module, given: tuple[Any, ...], named: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Pack what comes padded to a layer: hidden states to the first one, positions to each."""
        tokens = self._now()
        named = {name: tokens.positions(it) if name in POSITIONS else it for name, it in named.items()}
        if given and given[0].shape[:2] == tokens.mask.shape:
            given = (tokens.packed(given[0]), *given[1:])
        elif "hidden_states" in named and named["hidden_states"].shape[:2] == tokens.mask.shape:
            named["hidden_states"] = tokens.packed(named["hidden_states"])
        return given, named

    def _leave(self, _: nn.Module, __: tuple[Any, ...], made: Any) -> Any:
        """Pad what the last layer makes of packed rows."""
        if isinstance(made, tuple):
            return (self._leave(_, __, made[0]), *made[1:])
        tokens = self._now()
        return tokens.padded(made) if made.shape[:2] == (1, tokens.count) else made

    def _now(self) -> Tokens:
        if self.tokens is None:
            raise InternalError("no batch is under way without padding")
        return self.tokens

    def attention(
        self, module: nn.Module, states: Sequence[torch.Tensor], mask: torch.Tensor | None, **named: Any
    ) -> tuple[torch.Tensor, None]:
        """Attention of packed queries, keys and values, (1, heads, count, width) each, row by row."""
        tokens = self._now()
        self.attended += 1
        parts = [torch.split(it, tokens.lengths, dim=2) for it in states]
        causal = named.get("is_causal")
        masks = self._masks(mask, bool(getattr(module, "is_causal", True) if causal is None else causal))
        made = [
            sdpa_attention_forward(module, query, key, value, own, **named)[0]
            for query, key, value, own in zip(*parts, masks, strict=True)
        ]
        return torch.cat(made, dim=1), None

    def _masks(self, mask: torch.Tensor | None, causal: bool) -> Masks:
        """Of each row; None where it says no more than that what follows is not seen (`causal`), or nothing.

        A model has one mask for all its layers, or one for each kind of them.
        """
        tokens = self._now()
        if mask is None:
            return [None] * len(tokens.lengths)
        if (id(mask), causal) not in self._known:
            own = [row[..., :length, :length] for row, length in zip(mask, tokens.lengths, strict=True)]
            masks = [None if _plain(row, causal) else row[None] for row in own]
            self._known[id(mask), causal] = mask, masks
        return self._known[id(mask), causal][1]


def _plain(mask: torch.Tensor, causal: bool) -> bool:
    """Whether every token sees every one, or every one up to itself; mask (heads, tokens, tokens)."""
    every = torch.ones_like(mask, dtype=torch.bool)
    return mask.dtype == torch.bool and torch.equal(mask, every.tril() if causal else every)


_OWNERS: dict[nn.Module, PaddingFree] = {}
"""Attention module → whose layers it stands in, while a batch of theirs is under way."""


def stack_of(model: nn.Module) -> list[nn.Module]:
    """The layers of a model that has one stack of them, all of a kind; none of any other."""
    stacks = [
        list(module)
        for module in model.modules()
        if isinstance(module, nn.ModuleList)
        and len(module)
        and all(isinstance(layer, GradientCheckpointingLayer) for layer in module)
    ]
    return stacks[0] if len(stacks) == 1 and len({type(layer) for layer in stacks[0]}) == 1 else []


def _attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **named: Any,
) -> tuple[torch.Tensor, None]:
    """The attention `sdpa` of transformers, of packed rows where a batch goes without padding."""
    owner = _OWNERS.get(module)
    tokens = None if owner is None else owner.tokens
    if owner is None or tokens is None or (query.shape[0], query.shape[2]) != (1, tokens.count):
        return sdpa_attention_forward(module, query, key, value, attention_mask, **named)
    return owner.attention(module, (query, key, value), attention_mask, **named)


AttentionInterface.register("sdpa", _attention)


@torch.no_grad()
def _same_both_ways(free: PaddingFree) -> bool:
    """Whether made-up rows give the same logits both ways, and each layer asked for attention once."""
    model: Any = free.model
    layers, training = stack_of(model), model.training
    if not layers:
        return False
    mask = (torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]).long()
    pad = getattr(model.config, "pad_token_id", None) or 0
    ids = (torch.arange(mask.numel()).view_as(mask) * 7 + 1) % (
        model.get_input_embeddings().num_embeddings - 1
    )
    batch = {"input_ids": torch.where(mask == 1, ids + (ids >= pad), pad), "attention_mask": mask}
    model.train(False)
    try:
        padded = model(**batch).logits
        with free.on(tokens := Tokens.of(batch["attention_mask"])):
            found = model(**batch).logits
    except (RuntimeError, TypeError, ValueError, LookupError, AttributeError):
        return False  # it reads its layers' shapes in a way of its own
    finally:
        model.train(training)
    if padded.shape[:2] == mask.shape:  # of a language model: what it says about padding is nobody's business
        padded, found = padded[tokens.mask], found[tokens.mask]
    apart = (found - padded).abs().max() / padded.abs().max().clamp(min=torch.finfo(torch.float32).tiny)
    return free.attended == len(layers) and bool(apart <= _tolerance(model))


def _tolerance(model: nn.Module) -> float:
    exact = all(parameter.dtype == torch.float32 for parameter in model.parameters())
    rounded = any(isinstance(module.__dict__.get("forward"), RoundedProduct) for module in model.modules())
    return TOLERANCE if exact and not rounded else COARSE
