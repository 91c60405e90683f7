"""Classification of one text or of a pair of texts into the plan's label list."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from wardround.core.checked import Frozen, parse_options
from wardround.core.errors import ConfigError, DataError, ModelError, TrainingError
from wardround.core.metrics import METRICS
from wardround.core.metrics.classification import count_rows
from wardround.core.packed import Layout
from wardround.core.plan import DataContract, TaskSpec
from wardround.training.encoded_text import EncodedText
from wardround.training.processors import TOKENIZER, Processor
from wardround.training.tasks._longest_row import check_length
from wardround.training.tasks.contract import Batch, Example

_TEXTS = ("text", "text_pair")


class ClassificationOptions(Frozen):
    """The task has no options: labels and lengths stand in the data contract."""


class SequenceClassification:
    """Cross-entropy over the plan's labels; a pair is read as the tokenizer joins pairs."""

    name: ClassVar[str] = "sequence_classification"
    Options: ClassVar[type[ClassificationOptions]] = ClassificationOptions
    processor: ClassVar[Processor] = TOKENIZER
    peft_task_type: ClassVar[str | None] = "SEQ_CLS"
    metric_family: ClassVar[str] = "classification"
    auto_class: ClassVar[str] = "AutoModelForSequenceClassification"
    pipeline_tag: ClassVar[str] = "text-classification"
    caution: ClassVar[str] = "A text outside the labels above still gets one of them."

    def load_model(
        self, path: str, data: DataContract, **keywords: Any
    ) -> tuple[PreTrainedModel, dict[str, Any]]:
        """Through `AutoModelForSequenceClassification`, with a head for the plan's labels.

        A head of another size is replaced, and reported as `mismatched_keys`. No code from the model's
        folder or repository is run.

        Raises:
            ConfigError: The plan names fewer than two labels, or one twice; or rows longer than the model
                reads.
            ModelError: The checkpoint has a head for the same labels in another order, or its body has
                other shapes than its configuration says.
        """
        labels = data.labels
        if len(set(labels)) < max(2, len(labels)):
            raise ConfigError(
                "a classifier needs at least two labels, each named once",
                found=f"{len(labels)} labels, {len(set(labels))} of them different",
                remedy="set data.labels",
            )
        keywords["trust_remote_code"] = False
        _check_checkpoint(path, keywords.get("revision"), data)
        model, info = AutoModelForSequenceClassification.from_pretrained(
            path,
            num_labels=len(labels),
            id2label=dict(enumerate(labels)),
            label2id={label: index for index, label in enumerate(labels)},
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            **keywords,
        )
        body = f"{model.base_model_prefix}."
        wrong = sorted(key for key, *_ in info["mismatched_keys"] if key.startswith(body))
        if wrong:
            raise ModelError(
                "the checkpoint's weights have other shapes than its configuration says",
                found=f"{len(wrong)} weights, {wrong[0]!r} among them",
                remedy="give the folder of a checkpoint as it was saved",
            )
        check_length(model, data.max_length)
        # A decoder's classifier reads the last token that is not padding, and finds it by this id.
        pad = data.pad_token_id if data.pad_token_id >= 0 else _tokenizer_pad(path, keywords.get("revision"))
        if pad is not None:
            model.config.pad_token_id = pad
        return model, info

    def required_roles(self, spec: TaskSpec, *, predict: bool = False) -> dict[str, bool]:
        """Text, perhaps a second one, and the label unless it is to be predicted."""
        _check(spec)
        roles = {"text": True, "text_pair": False}
        return roles if predict else {**roles, "label": True}

    def fault(self, example: Example, spec: TaskSpec, *, predict: bool = False) -> str | None:
        """Both texts have to be text, and the first one has to be there."""
        del spec, predict
        if not example.roles.get("text"):
            return "empty:text"
        for role in _TEXTS:
            value = example.roles.get(role)
            if value is not None and not isinstance(value, str):
                return f"not_text:{role}"
        return None

    def encode(
        self,
        examples: Sequence[Example],
        tokenizer: PreTrainedTokenizerBase,
        data: DataContract,
        spec: TaskSpec,
    ) -> list[EncodedText]:
        """Tokens with the tokenizer's frame; of a pair the longer text is cut first.

        Raises:
            ConfigError: Packing is asked for, or `max_length` has no room for the tokenizer's frame.
            DataError: A row has a fault, by number and code.
        """
        _check(spec)
        if data.packing:
            raise ConfigError(
                "data.packing is for language models: a classifier reads one row at a time",
                remedy="set data.packing=false",
            )
        for example in examples:
            fault = self.fault(example, spec)
            if fault is not None:
                raise DataError(f"row {example.number} is no text to classify", found=fault)
        return [
            EncodedText(
                tokens=np.asarray(kept["input_ids"], np.int32),
                label=-1 if example.label is None else example.label,
                segments=np.asarray(kept["token_type_ids"], np.int32),
                cut=kept["cut"],
                text_bytes=sum(len((example.roles.get(role) or "").encode()) for role in _TEXTS),
                example=index,
            )
            for index, (example, kept) in enumerate(
                zip(examples, _tokenise(examples, tokenizer, data.max_length), strict=True)
            )
        ]

    def collate(self, encoded: Sequence[EncodedText], data: DataContract) -> Batch:
        """Pad on the right to the longest of the batch.

        Returns:
            `input_ids` and `attention_mask` (batch, tokens), `labels` (batch,), int64; `token_type_ids`
            where a row is a pair.
        """
        shape = (len(encoded), max(row.tokens.size for row in encoded))
        ids = np.full(shape, max(data.pad_token_id, 0), np.int64)
        mask = np.zeros(shape, np.int64)
        segments = np.zeros(shape, np.int64)
        for place, row in enumerate(encoded):
            ids[place, : row.tokens.size] = row.tokens
            mask[place, : row.tokens.size] = 1
            segments[place, : row.segments.size] = row.segments
        arrays = {
            "input_ids": ids,
            "attention_mask": mask,
            "labels": np.asarray([row.label for row in encoded], np.int64),
        }
        if segments.any():
            arrays["token_type_ids"] = segments
        return {name: torch.from_numpy(array) for name, array in arrays.items()}

    def targets(self, encoded: EncodedText) -> int:
        """One class a row; none where the label is not known."""
        return 1 if encoded.label >= 0 else 0

    def example_losses(self, model: torch.nn.Module, batch: Batch) -> torch.Tensor:
        """−log p of the true class, nats, float32, (batch,)."""
        return F.cross_entropy(_logits(model, batch), batch["labels"], reduction="none")

    def counter_layout(self, data: DataContract, spec: TaskSpec) -> Layout:
        """Of the metric family `classification`."""
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
        """Confusion matrix, score histograms, calibration bins, loss: see the metric family."""
        del encoded, data, spec
        logits = _logits(model, batch).cpu().double()  # on the CPU first: MPS has no float64
        labels = batch["labels"].cpu()
        if not torch.isfinite(logits).all():
            raise TrainingError(
                "non_finite_loss",
                "the scores of an evaluated row are not finite",
                remedy="lower the learning rate, or use bfloat16 or float32 for float16",
            )
        losses = F.cross_entropy(logits, labels, reduction="none")
        return count_rows(logits.softmax(dim=-1).numpy(), labels.numpy(), losses.numpy())

    def count_whole(
        self,
        model: torch.nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        encoded: Sequence[EncodedText],
        data: DataContract,
        spec: TaskSpec,
        *,
        batch_size: int,
        device: torch.device,
    ) -> dict[str, NDArray[np.int64]]:
        """Nothing: every figure comes from `count`."""
        del model, tokenizer, encoded, data, spec, batch_size, device
        return {}

    @torch.inference_mode()
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
        """`id`, the likeliest `label`, and every label's probability, in the order of the examples."""
        encoded = self.encode(examples, tokenizer, data, spec)
        rows: list[dict[str, Any]] = [{} for _ in encoded]
        order = sorted(range(len(encoded)), key=lambda place: -encoded[place].tokens.size)
        for start in range(0, len(order), batch_size):
            places = order[start : start + batch_size]
            batch = self.collate([encoded[place] for place in places], data)
            logits = _logits(model, {name: tensor.to(device) for name, tensor in batch.items()})
            for place, scores in zip(places, logits.cpu().double().softmax(dim=-1).tolist(), strict=True):
                probabilities = dict(zip(data.labels, scores, strict=True))
                likeliest = max(probabilities, key=probabilities.__getitem__)
                rows[place] = {
                    "id": examples[place].id,
                    "label": likeliest,
                    "probabilities": probabilities,
                }
        return rows


def _logits(model: torch.nn.Module, batch: Batch) -> torch.Tensor:
    """(batch, classes), float32."""
    keywords = {name: tensor for name, tensor in batch.items() if name != "labels"}
    logits: torch.Tensor = model(**keywords).logits
    return logits.float()


def _tokenise(
    examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase, max_length: int
) -> Iterator[dict[str, Any]]:
    """Ids, segments (empty unless a second one occurs) and the number of tokens cut, row by row."""
    for example in examples:
        text, pair = example.roles["text"], example.roles.get("text_pair")
        whole = tokenizer(text, pair, verbose=False)
        kept, length = whole, len(whole["input_ids"])
        if length > max_length:
            kept = tokenizer(text, pair, truncation="longest_first", max_length=max_length, verbose=False)
        left = len(kept["input_ids"])
        if left > max_length:  # a tokenizer that cannot cut enough returns the whole row
            raise ConfigError(
                "data.max_length has no room for the tokens that the tokenizer puts around a row",
                found=max_length,
                remedy="raise data.max_length",
            )
        segments = kept.get("token_type_ids", ())
        yield {
            # A text of which the tokenizer leaves nothing still has to be answered.
            "input_ids": kept["input_ids"] or [_end_or_pad(tokenizer)],
            "token_type_ids": segments if any(segments) else (),
            "cut": length - left,
        }


def _end_or_pad(tokenizer: PreTrainedTokenizerBase) -> int:
    """An id that stands for an empty text."""
    end, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    return int(end if end is not None else pad or 0)


def _check_checkpoint(path: str, revision: str | None, data: DataContract) -> None:
    """Hold the plan against what the checkpoint says of itself.

    Raises:
        ModelError: The head stands for the plan's labels, in another order.
    """
    keywords = {} if revision is None else {"revision": revision}
    config = AutoConfig.from_pretrained(path, trust_remote_code=False, **keywords)
    own = tuple(config.id2label[index] for index in sorted(config.id2label))
    if own != data.labels and set(own) == set(data.labels):
        raise ModelError(
            "the base model's own head has the plan's labels in another order",
            found=", ".join(own),
            expected=", ".join(data.labels),
            remedy="put data.labels into the model's order",
        )


def _check(spec: TaskSpec) -> None:
    parse_options(ClassificationOptions, spec.options, "options of task 'sequence_classification'")


def _tokenizer_pad(path: str, revision: str | None) -> int | None:
    """The id that the model's own tokenizer pads with; its end token where it has no pad token."""
    keywords = {} if revision is None else {"revision": revision}
    tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False, **keywords)
    pad = tokenizer.pad_token_id
    chosen: int | None = tokenizer.eos_token_id if pad is None else pad
    return chosen


TASK = SequenceClassification()
