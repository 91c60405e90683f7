"""Causal language modelling and instruction tuning.

How a row becomes text is a text format's affair (`training/text_formats/`), which tokens are under loss that
of `training/text_tokens.py`. A row whose targets truncation cut off altogether is encoded with none:
`targets` is 0 and the local round leaves it out.
"""

from __future__ import annotations

import string
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, ClassVar, cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from pydantic import Field, field_validator
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from wardround.core.checked import Frozen, parse_options
from wardround.core.errors import ConfigError, DataError, ModelError, TrainingError
from wardround.core.metrics import METRICS
from wardround.core.metrics.contract import LARGEST_LOSS, LOSS_UNIT
from wardround.core.packed import Layout
from wardround.core.plan import DataContract, TaskSpec
from wardround.training.chat_spans import Written, render_chat, write_chat
from wardround.training.encoded_text import EncodedText
from wardround.training.generation import count_answers, decode, generate_greedy, sample_answers
from wardround.training.packing import (
    additive_mask,
    block_causal_mask,
    pack_rows,
    require_packable,
    require_positions,
)
from wardround.training.processors import TOKENIZER, Processor
from wardround.training.tasks._longest_row import check_length
from wardround.training.tasks._target_places import at_places, head_at
from wardround.training.tasks.contract import Batch, Example
from wardround.training.text_formats import FORMATS
from wardround.training.text_formats.contract import Completion, Conversation, Wording
from wardround.training.text_tokens import NO_LOSS, encode_written, prompt_tokens


class CausalOptions(Frozen):
    """Options of the task.

    Attributes:
        format: Text format, by its name in `training/text_formats/`.
        system: System prompt for rows that bring none.
        instruction_template: For alpaca: a prompt with {instruction} and {input}.
        use_chat_template: Whether questions become chat turns; None: where the tokenizer has a template.
        generate: Examples a site answers by greedy decoding for exact match and ROUGE-L; 0 leaves it out.
        max_new_tokens: Longest answer.
    """

    format: str = "prompt_completion"
    system: str | None = None
    instruction_template: str | None = None
    use_chat_template: bool | None = None
    generate: int = Field(default=0, ge=0)
    max_new_tokens: int = Field(default=64, gt=0)

    @field_validator("instruction_template")
    @classmethod
    def _plain_fields(cls, template: str | None) -> str | None:
        for _, name, form, conversion in string.Formatter().parse(template or ""):
            if name is not None and (name not in {"instruction", "input"} or form or conversion):
                raise ValueError("its fields may be {instruction} and {input}, nothing else")
        return template


class CausalLM:
    """Next-token loss on the parts of a text that the format names."""

    name: ClassVar[str] = "causal_lm"
    Options: ClassVar[type[CausalOptions]] = CausalOptions
    processor: ClassVar[Processor] = TOKENIZER
    peft_task_type: ClassVar[str | None] = "CAUSAL_LM"
    metric_family: ClassVar[str] = "language"
    auto_class: ClassVar[str] = "AutoModelForCausalLM"
    pipeline_tag: ClassVar[str] = "text-generation"
    caution: ClassVar[str] = "What it writes can be wrong and sound right."

    def load_model(
        self, path: str, data: DataContract, **keywords: Any
    ) -> tuple[PreTrainedModel, dict[str, Any]]:
        """Through `AutoModelForCausalLM`; no code from the model's folder or repository is run.

        Raises:
            ConfigError: Rows may be longer than the model reads.
        """
        keywords["trust_remote_code"] = False
        loaded: Any = AutoModelForCausalLM.from_pretrained(path, output_loading_info=True, **keywords)
        model, info = loaded
        check_length(model, data.max_length)
        return model, info

    def required_roles(self, spec: TaskSpec, *, predict: bool = False) -> dict[str, bool]:
        """Those of the text format; a prediction does without the answer."""
        text_format = FORMATS.get(_options(spec).format)
        left_out = {text_format.answer_role} if predict else set()
        return {role: needed for role, needed in text_format.roles.items() if role not in left_out}

    def fault(self, example: Example, spec: TaskSpec, *, predict: bool = False) -> str | None:
        """What the text format finds wrong with the row."""
        return FORMATS.get(_options(spec).format).fault(example.roles, answered=not predict)

    def encode(
        self,
        examples: Sequence[Example],
        tokenizer: PreTrainedTokenizerBase,
        data: DataContract,
        spec: TaskSpec,
    ) -> list[EncodedText]:
        """Tokens and targets; under `data.packing` short rows share a sequence of `max_length` tokens."""
        options = _options(spec)
        end_ids = _end_ids(tokenizer, data)
        rows = []
        for index, text in enumerate(_texts(examples, tokenizer, options, predict=False)):
            with _in_row(examples[index].number):
                written = _spans(text, tokenizer)
            row = encode_written(written, tokenizer, end_ids, data.max_length)
            rows.append(replace(row, example=index))
        return pack_rows(rows, data.max_length) if data.packing else rows

    def collate(self, encoded: Sequence[EncodedText], data: DataContract) -> Batch:
        """Pad on the right to the longest of the batch.

        Returns:
            `input_ids`, `labels` and `attention_mask`, int64 (batch, tokens). Where a row is packed also
            `position_ids`, and the mask is block-causal, bool (batch, 1, tokens, tokens).
        """
        shape = (len(encoded), max(row.tokens.size for row in encoded))
        ids = np.full(shape, max(data.pad_token_id, 0), np.int64)
        labels = np.full(shape, NO_LOSS, np.int64)
        mask = np.zeros(shape, np.int64)
        positions = np.zeros(shape, np.int64)
        for place, row in enumerate(encoded):
            length = row.tokens.size
            ids[place, :length] = row.tokens
            labels[place, :length] = row.targets
            mask[place, :length] = 1
            positions[place, :length] = row.positions if row.positions.size else np.arange(length)
        batch = {"input_ids": ids, "labels": labels, "attention_mask": mask}
        tensors = {name: torch.from_numpy(array) for name, array in batch.items()}
        if any((row.positions == 0).sum() > 1 for row in encoded):
            tensors["position_ids"] = torch.from_numpy(positions)
            lengths = torch.from_numpy(mask.sum(axis=1))
            tensors["attention_mask"] = block_causal_mask(tensors["position_ids"], lengths)
        return tensors

    def targets(self, encoded: EncodedText) -> int:
        """Target tokens; the first token of a sequence is never one."""
        return int((encoded.targets[1:] != NO_LOSS).sum())

    def example_losses(self, model: torch.nn.Module, batch: Batch) -> torch.Tensor:
        """Sum of −log p over the target tokens of each row, nats, float32, (batch,)."""
        logits, labels, places = _target_logits(model, batch)
        return _sum_rows(F.cross_entropy(logits, labels, reduction="none"), places)

    def counter_layout(self, data: DataContract, spec: TaskSpec) -> Layout:
        """Of the metric family `language`."""
        return METRICS.get(self.metric_family).layout(data.labels, spec.options)

    @torch.inference_mode()
    def count(
        self,
        model: torch.nn.Module,
        batch: Batch,
        encoded: Sequence[EncodedText],
        data: DataContract,
        spec: TaskSpec,
    ) -> dict[str, NDArray[np.int64]]:
        """Loss, rounded row by row so that batching changes nothing; target tokens, bytes, correct tokens."""
        del data, spec
        logits, labels, places = _target_logits(model, batch)
        losses = _sum_rows(F.cross_entropy(logits, labels, reduction="none"), places)
        nats = losses.cpu().double().numpy()  # on the CPU first: MPS has no float64
        if not np.isfinite(nats).all():
            raise TrainingError(
                "non_finite_loss",
                "the loss of an evaluated row is not finite",
                remedy="lower the learning rate, or use bfloat16 or float32 for float16",
            )
        counts = {
            "loss": np.rint(np.minimum(nats, LARGEST_LOSS) / LOSS_UNIT).astype(np.int64).sum(),
            "tokens": labels.numel(),
            "bytes": sum(row.text_bytes for row in encoded),
            "correct_tokens": int((logits.argmax(dim=-1) == labels).sum()),
        }
        return {name: np.asarray(value, np.int64) for name, value in counts.items()}

    def count_whole(
        self,
        model: torch.nn.Module,
        tokenizer: PreTrainedTokenizerBase | None,
        encoded: Sequence[EncodedText],
        data: DataContract,
        spec: TaskSpec,
        *,
        batch_size: int,
        device: torch.device,
    ) -> dict[str, NDArray[np.int64]]:
        """Exact match and ROUGE-L of the first `generate` answers; nothing where the option is 0."""
        options = _options(spec)
        if not options.generate or tokenizer is None:
            return {}
        samples = sample_answers(
            model, tokenizer, encoded, data,
            count=options.generate, max_new_tokens=options.max_new_tokens,
            batch_size=batch_size, device=device,
        )  # fmt: skip
        return count_answers([sample.reference for sample in samples], [sample.answer for sample in samples])

    def predict(
        self,
        model: torch.nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        examples: Sequence[Example],
        data: DataContract,
        spec: TaskSpec,
        *,
        batch_size: int,
        device: torch.device,
    ) -> list[dict[str, Any]]:
        """`id` and the greedy `answer` of each example; prompts are cut from the left to `max_length`."""
        options = _options(spec)
        prompts = []
        for example, text in zip(examples, _texts(examples, tokenizer, options, predict=True), strict=True):
            with _in_row(example.number):
                written = _question(text, tokenizer)
            prompts.append(prompt_tokens(written, tokenizer)[-data.max_length :])
        answers = generate_greedy(
            model, prompts,
            pad_token_id=max(data.pad_token_id, 0), end_token_ids=_end_ids(tokenizer, data),
            max_new_tokens=options.max_new_tokens, batch_size=batch_size, device=device,
        )  # fmt: skip
        return [
            {"id": example.id, "answer": decode(tokenizer, answer)}
            for example, answer in zip(examples, answers, strict=True)
        ]


def _options(spec: TaskSpec) -> CausalOptions:
    options = cast("CausalOptions", parse_options(CausalOptions, spec.options, "options of task 'causal_lm'"))
    if options.generate and not FORMATS.get(options.format).asks:
        raise ConfigError(
            f"task.options.generate scores answers, and rows of the format {options.format!r} have none",
            remedy="set task.options.generate=0, or use a format with a prompt",
        )
    return options


def _texts(
    examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase, options: CausalOptions, *, predict: bool
) -> list[Conversation | Completion]:
    """Every example as its text format writes it.

    Raises:
        DataError: A row that the format cannot read, by number and code.
    """
    text_format = FORMATS.get(options.format)
    wanted = options.use_chat_template
    chat = bool(tokenizer.chat_template) if wanted is None else wanted
    wording = Wording(chat or text_format.needs_chat_template, options.system, options.instruction_template)
    texts = []
    for example in examples:
        fault = text_format.fault(example.roles, answered=not predict)
        if fault is not None:
            raise DataError(
                f"row {example.number} cannot be read as {options.format}",
                found=fault,
                remedy="run `wardround data check` on the source; see docs/data.md for the format",
            )
        texts.append(text_format.write(example.roles, wording))
    return texts


@contextmanager
def _in_row(number: int) -> Iterator[None]:
    """Say in which row it is that the chat template cannot be followed: one of many may be enough."""
    try:
        yield
    except ModelError as error:
        raise ModelError(
            f"row {number}: {error.what}", found=error.found, expected=error.expected, remedy=error.remedy
        ) from error


def _spans(text: Conversation | Completion, tokenizer: PreTrainedTokenizerBase) -> Written:
    if isinstance(text, Conversation):
        return write_chat(text, tokenizer)
    start = len(text.prompt)
    whole = text.prompt + text.completion
    return Written(whole, ((start, len(whole)),), complete=True, special=True)


def _question(text: Conversation | Completion, tokenizer: PreTrainedTokenizerBase) -> Written:
    if isinstance(text, Conversation):
        return Written(render_chat(text.question(), tokenizer, ask=True), (), complete=False, special=False)
    return Written(text.question().prompt, (), complete=False, special=True)


def _end_ids(tokenizer: PreTrainedTokenizerBase, data: DataContract) -> tuple[int, ...]:
    """The plan's end tokens, the tokenizer's own first: that is the one appended where a text has none."""
    own = tokenizer.eos_token_id
    known = data.end_token_ids
    if own is None and not known:
        raise ModelError(
            "the tokenizer has no end token", remedy="set eos_token in its tokenizer_config.json"
        )
    if own is None or (known and own not in known):
        return known
    return (int(own), *(token for token in known if token != own))


def _target_logits(model: torch.nn.Module, batch: Batch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits (targets, vocabulary) in float32 at the target tokens alone, their labels, and where they stand.

    Only the rows that count are copied to float32: prompts and padding stay as the model gave them.
    """
    keywords: Mapping[str, torch.Tensor] = {
        name: tensor for name, tensor in batch.items() if name != "labels"
    }
    if keywords["attention_mask"].ndim == 4:  # noqa: PLR2004 - (batch, heads, queries, keys)
        require_positions(model)
        require_packable(cast("Any", model).config.get_text_config(), keywords["attention_mask"].shape[-1])
        mask = additive_mask(keywords["attention_mask"], _dtype(model))
        keywords = {**keywords, "attention_mask": mask}
    labels = batch["labels"][:, 1:]
    places = labels != NO_LOSS
    with head_at(model, places):
        logits = model(**keywords, use_cache=False).logits
    return at_places(logits, places).float(), labels[places], places


def _sum_rows(losses: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """Losses back at their places, summed by row: each row's sum is its own, in its own order."""
    table = losses.new_zeros(places.shape)
    table[places] = losses
    return table.sum(dim=1)


def _dtype(model: torch.nn.Module) -> torch.dtype:
    """Of the activations: that of the embeddings, which adapters and quantisation leave alone."""
    return cast("torch.Tensor", cast("Any", model).get_input_embeddings().weight).dtype


TASK = CausalLM()
