"""Answers by greedy decoding: fixed, so that the same model gives the same answers everywhere."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from peft import PeftModel
from rouge_score.rouge_scorer import RougeScorer
from transformers import GenerationConfig, PreTrainedTokenizerBase

from wardround.core.metrics.language import ROUGE_UNIT
from wardround.core.plan import DataContract
from wardround.training.encoded_text import EncodedText
from wardround.training.packing import segment_bounds

Ids = NDArray[np.int32]


@dataclass(frozen=True)
class Question:
    """What is to be answered and the answer that the data holds, as tokens; the end token left out."""

    prompt: Ids
    reference: Ids


@dataclass(frozen=True)
class SampleAnswer:
    """One answer for a report. It holds text from the data: it stays where the data may be read."""

    prompt: str
    reference: str
    answer: str


def questions(encoded: Sequence[EncodedText], data: DataContract, count: int) -> list[Question]:
    """The first `count` questions: of each row its last answer, with all before it as the prompt.

    Packed rows are taken apart. Rows without a prompt or without an answer left after truncation are passed
    over; an answer that was cut is compared with what was left of it.
    """
    found: list[Question] = []
    for row in encoded:
        for start, stop in segment_bounds(row):
            if len(found) >= count:
                return found
            under = row.targets[start:stop] >= 0
            places = np.flatnonzero(under)
            if places.size == 0:
                continue
            gaps = np.flatnonzero(np.diff(places) > 1)
            first = int(places[gaps[-1] + 1] if gaps.size else places[0])
            if first <= 1 and not under[0]:
                continue  # plain text: at most a begin token stands in front
            tokens = row.tokens[start:stop]
            answer = tokens[first : int(places[-1]) + 1]
            ends = np.flatnonzero(np.isin(answer, data.end_token_ids))
            found.append(Question(tokens[:first], answer[: int(ends[0])] if ends.size else answer))
    return found


@torch.inference_mode()
def generate_greedy(
    model: Any,
    prompts: Sequence[Ids],
    *,
    pad_token_id: int,
    end_token_ids: Sequence[int],
    max_new_tokens: int,
    batch_size: int,
    device: torch.device,
) -> list[Ids]:
    """Answers, in the order of the prompts, without the end token that stopped them.

    Batches are padded on the left and formed by length. A prompt that would not leave room in the model's
    positions loses its beginning, and no answer is longer than they are.

    Args:
        model: Anything with transformers' `generate`; its training mode is put back afterwards.
        prompts: Token ids, int32, 1-D, not empty.
    """
    longest = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    max_new_tokens = max_new_tokens if longest is None else min(max_new_tokens, int(longest))
    room = None if longest is None else max(1, int(longest) - max_new_tokens)
    settings = GenerationConfig(  # type: ignore[no-untyped-call]  # transformers leaves it unannotated
        do_sample=False,
        num_beams=1,
        repetition_penalty=1.0,
        no_repeat_ngram_size=0,
        max_new_tokens=max_new_tokens,
        max_length=None,
        eos_token_id=list(end_token_ids),
        pad_token_id=pad_token_id,
        use_cache=True,
    )
    answers: list[Ids] = [np.empty(0, np.int32)] * len(prompts)
    order = sorted(range(len(prompts)), key=lambda place: prompts[place].size)
    training = model.training
    model.eval()
    try:
        for start in range(0, len(order), batch_size):
            places = order[start : start + batch_size]
            ids, mask = pad_left(
                [prompts[place][-room:] if room else prompts[place] for place in places], pad_token_id
            )
            with _own_settings_aside(model):
                produced = model.generate(
                    input_ids=ids.to(device), attention_mask=mask.to(device), generation_config=settings
                )
            for place, row in zip(places, produced[:, ids.shape[1] :].tolist(), strict=True):
                answers[place] = _before_end(row, end_token_ids)
    finally:
        model.train(training)
    return answers


@contextmanager
def _own_settings_aside(model: Any) -> Iterator[None]:
    """Put the model's own generation settings away for the moment.

    Transformers fills what ours leave open from them (banned words, least lengths), and no plan holds them.
    """
    holder = model.get_base_model() if isinstance(model, PeftModel) else model
    own = holder.generation_config
    holder.generation_config = GenerationConfig()  # type: ignore[no-untyped-call]  # transformers leaves it unannotated
    try:
        yield
    finally:
        holder.generation_config = own


def pad_left(prompts: Sequence[Ids], pad_token_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and attention mask, int64, (batch, longest), with padding in front."""
    longest = max(prompt.size for prompt in prompts)
    ids = np.full((len(prompts), longest), pad_token_id, np.int64)
    mask = np.zeros((len(prompts), longest), np.int64)
    for row, prompt in enumerate(prompts):
        ids[row, longest - prompt.size :] = prompt
        mask[row, longest - prompt.size :] = 1
    return torch.from_numpy(ids), torch.from_numpy(mask)


def count_answers(references: Sequence[str], answers: Sequence[str]) -> dict[str, NDArray[np.int64]]:
    """Numerators of exact match (white space aside) and of ROUGE-L (Lin 2004; F-measure, no stemmer)."""
    scorer = RougeScorer(["rougeL"], use_stemmer=False)
    exact, rouge = 0, 0
    for reference, answer in zip(references, answers, strict=True):
        exact += reference.split() == answer.split()
        rouge += round(scorer.score(reference, answer)["rougeL"].fmeasure / ROUGE_UNIT)
    return {
        "answers": np.asarray(len(references), np.int64),
        "exact_answers": np.asarray(exact, np.int64),
        "rouge_l": np.asarray(rouge, np.int64),
    }


def sample_answers(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    encoded: Sequence[EncodedText],
    data: DataContract,
    *,
    count: int,
    max_new_tokens: int,
    batch_size: int,
    device: torch.device,
) -> list[SampleAnswer]:
    """Answers to the first `count` questions, beside what the data says: for scores and for a report."""
    asked = questions(encoded, data, count)
    answers = generate_greedy(
        model,
        [question.prompt for question in asked],
        pad_token_id=data.pad_token_id,
        end_token_ids=data.end_token_ids,
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        device=device,
    )
    return [
        SampleAnswer(
            decode(tokenizer, question.prompt),
            decode(tokenizer, question.reference),
            decode(tokenizer, answer),
        )
        for question, answer in zip(asked, answers, strict=True)
    ]


def decode(tokenizer: PreTrainedTokenizerBase, ids: Ids) -> str:
    """Text of tokens, special ones left out, without white space around it."""
    return str(tokenizer.decode(ids.tolist(), skip_special_tokens=True)).strip()


def _before_end(row: Sequence[int], end_token_ids: Sequence[int]) -> Ids:
    stop = next((place for place, token in enumerate(row) if token in end_token_ids), len(row))
    return np.asarray(row[:stop], np.int32)
