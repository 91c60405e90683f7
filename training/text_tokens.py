"""From a written text with spans to tokens and targets: what is under loss, the end token, the cut."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedTokenizerBase

from wardround.core.errors import ModelError
from wardround.training.chat_spans import Written
from wardround.training.encoded_text import EncodedText

NO_LOSS = -100
"""Target of a token that is not under loss: what torch's cross-entropy ignores."""


@dataclass(frozen=True)
class _Tokens:
    """Ids and character offsets of a text; `added` marks what the tokenizer put in by itself."""

    ids: list[int]
    offsets: list[tuple[int, int]]
    added: list[bool]


def encode_written(
    written: Written, tokenizer: PreTrainedTokenizerBase, end_ids: Sequence[int], max_length: int
) -> EncodedText:
    """Tokens and targets of one text, cut from the right.

    Every assistant turn carries its end token under loss: one that the template writes after the span
    counts as part of it; where the text stops without one, the first of `end_ids` is appended. The first
    token is never a target, since nothing precedes it. A text whose targets were all cut keeps its tokens
    and has none: training leaves it out.

    Args:
        end_ids: Tokens that end an answer; at least one.
        max_length: Tokens to keep.

    Raises:
        ModelError: The tokenizer gives no character offsets.
    """
    tokens = _tokenize(written, tokenizer)
    loss = tokens_under_loss(tokens.offsets, tokens.added, written.spans)
    ended = _take_in_end_tokens(loss, tokens, written, end_ids)
    if written.complete and not ended:
        tokens = dataclasses.replace(
            tokens,
            ids=[*tokens.ids, end_ids[0]],
            offsets=[*tokens.offsets, (len(written.text), len(written.text))],
            added=[*tokens.added, True],
        )
        loss = [*loss, True]
    kept = slice(0, max_length)
    ids = np.asarray(tokens.ids[kept], np.int32)
    under = np.asarray(loss[kept], bool)
    under[:1] = False
    return EncodedText(
        tokens=ids,
        targets=np.where(under, ids, NO_LOSS).astype(np.int32),
        cut=max(0, len(tokens.ids) - max_length),
        text_bytes=_bytes_under_loss(written.text, tokens, under, set(tokenizer.all_special_ids)),
    )


def prompt_tokens(
    written: Written, tokenizer: PreTrainedTokenizerBase
) -> np.ndarray[tuple[int], np.dtype[np.int32]]:
    """Tokens of a text that is to be answered, int32, without an end token that the tokenizer adds."""
    tokens = _tokenize(written, tokenizer)
    ids = list(tokens.ids)
    if ids and tokens.added[-1] and len(ids) > 1:
        ids.pop()
    return np.asarray(ids, np.int32)


def tokens_under_loss(
    offsets: Sequence[tuple[int, int]], added: Sequence[bool], spans: Sequence[tuple[int, int]]
) -> list[bool]:
    """Which tokens overlap a span.

    A token that reaches over a span's edge belongs to it, as in transformers' assistant mask. Some byte-level
    tokenizers trim spaces off their offsets, so that a lone space is an empty range at its own end.
    """
    loss = []
    for (start, stop), own in zip(offsets, added, strict=True):
        inside = any(
            (start < to and stop > since) if start < stop else since < start <= to for since, to in spans
        )
        loss.append(inside and not own)
    return loss


def _tokenize(written: Written, tokenizer: PreTrainedTokenizerBase) -> _Tokens:
    if not tokenizer.is_fast:
        raise ModelError(
            "the tokenizer cannot say which characters a token covers",
            found=type(tokenizer).__name__,
            expected="a fast tokenizer (tokenizer.json)",
        )
    result = tokenizer(
        written.text,
        add_special_tokens=written.special,
        return_offsets_mapping=True,
        return_special_tokens_mask=True,
        verbose=False,
    )
    # The mask marks what a post-processor added, and with add_special_tokens=False nothing was.
    added = [bool(mark) and written.special for mark in result["special_tokens_mask"]]
    return _Tokens(list(result["input_ids"]), [(int(a), int(b)) for a, b in result["offset_mapping"]], added)


def _take_in_end_tokens(loss: list[bool], tokens: _Tokens, written: Written, end_ids: Sequence[int]) -> bool:
    """Put an end token that follows a span, across white space, under loss where the span holds none itself.

    Returns:
        Whether the last span has its end token.
    """
    ended = False
    for start, end in written.spans:
        inside = [
            place
            for place, (since, to) in enumerate(tokens.offsets)
            if loss[place] and since < end and to > start
        ]
        ended = any(tokens.ids[place] in end_ids for place in inside)
        if ended:
            continue
        first = stop = inside[-1] + 1 if inside else _first_at(tokens, end)
        while stop < len(loss) and tokens.ids[stop] not in end_ids and _is_blank(tokens, stop, written.text):
            stop += 1
        if stop < len(loss) and tokens.ids[stop] in end_ids:
            loss[first : stop + 1] = [True] * (stop + 1 - first)
            ended = True
    return ended


def _is_blank(tokens: _Tokens, place: int, text: str) -> bool:
    since, to = tokens.offsets[place]
    return not text[since:to].strip()


def _first_at(tokens: _Tokens, character: int) -> int:
    return next(
        (
            place
            for place, (since, to) in enumerate(tokens.offsets)
            if since >= character and to > character and not tokens.added[place]
        ),
        len(tokens.ids),
    )


def _bytes_under_loss(
    text: str, tokens: _Tokens, under: np.ndarray[tuple[int], np.dtype[np.bool_]], special: set[int]
) -> int:
    """UTF-8 bytes of the runs of targets; special tokens are no text.

    A run begins where the token before it stops, since offsets may leave out a leading space.
    """
    total, previous = 0, 0
    for place, target in enumerate(under):
        to = tokens.offsets[place][1]
        if target and not tokens.added[place] and tokens.ids[place] not in special:
            total += len(text[previous:to].encode())
        previous = max(previous, to)
    return total
