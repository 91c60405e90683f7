"""A preference task in one file, as somebody else would write it: two sequences a row, one loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from pydantic import BaseModel
from transformers import AutoModelForCausalLM, PreTrainedModel

from wardround.core.metrics import METRICS
from wardround.core.metrics.classification import count_rows
from wardround.core.packed import Array, Layout
from wardround.core.plan import (
    DataContract,
    TaskSpec,
)
from wardround.training.examples import Example
from wardround.training.processors import TOKENIZER, Processor
from wardround.training.tasks.contract import Batch


@dataclass(frozen=True)
class Pair:
    """Two answers to one prompt, tokens with the prompt in front; `starts` is where the answers begin."""

    chosen: NDArray[np.int32]
    rejected: NDArray[np.int32]
    starts: int
    cut: int = 0
    rows: int = 1

    @property
    def length(self) -> int:
        """Of the longer one."""
        return max(self.chosen.size, self.rejected.size)


class Preference:
    """Direct preference optimisation: −log σ(β (Δ chosen − Δ rejected)), Rafailov et al. 2023, eq. 7.

    Δ is the log-likelihood of an answer under the adapter less that under the base alone.
    """

    class Options(BaseModel):
        """β is fixed."""

    name: ClassVar[str] = "preference"
    processor: ClassVar[Processor] = TOKENIZER
    peft_task_type: ClassVar[str | None] = "CAUSAL_LM"
    metric_family: ClassVar[str] = "classification"
    auto_class: ClassVar[str] = "AutoModelForCausalLM"
    pipeline_tag: ClassVar[str] = "text-generation"
    caution: ClassVar[str] = "It is what one group of people preferred."

    def load_model(
        self, path: str, data: DataContract, **keywords: Any
    ) -> tuple[PreTrainedModel, dict[str, Any]]:
        """A plain language model."""
        loaded: Any = AutoModelForCausalLM.from_pretrained(path, output_loading_info=True, **keywords)
        return loaded[0], loaded[1]

    def required_roles(self, spec: TaskSpec, *, predict: bool = False) -> dict[str, bool]:
        """A prompt and two answers."""
        return {"prompt": True, "chosen": True, "rejected": True}

    def fault(self, example: Example, spec: TaskSpec, *, predict: bool = False) -> str | None:
        """All are texts."""
        return None if all(isinstance(text, str) for text in example.roles.values()) else "not_text"

    def encode(
        self, examples: Sequence[Example], processor: Any, data: DataContract, spec: TaskSpec
    ) -> list[Pair]:
        """Prompt and answer, cut from the right."""
        pairs = []
        for example in examples:
            prompt = processor(example.roles["prompt"])["input_ids"]
            whole = [
                prompt + processor(example.roles[role])["input_ids"] + [processor.eos_token_id]
                for role in ("chosen", "rejected")
            ]
            chosen, rejected = (np.asarray(ids[: data.max_length], np.int32) for ids in whole)
            cut = sum(max(0, len(ids) - data.max_length) for ids in whole)
            pairs.append(Pair(chosen, rejected, len(prompt), cut))
        return pairs

    def collate(self, encoded: Sequence[Pair], data: DataContract) -> Batch:
        """Two lines an example, (2 · batch, tokens): all the chosen, then all the rejected."""
        lines = [pair.chosen for pair in encoded] + [pair.rejected for pair in encoded]
        width = max(line.size for line in lines)
        ids = np.full((len(lines), width), data.pad_token_id, np.int64)
        mask, labels = np.zeros_like(ids), np.full_like(ids, -100)
        for place, line in enumerate(lines):
            ids[place, : line.size], mask[place, : line.size] = line, 1
            start = encoded[place % len(encoded)].starts
            labels[place, start : line.size] = line[start:]
        arrays = {"input_ids": ids, "attention_mask": mask, "labels": labels}
        return {name: torch.from_numpy(array) for name, array in arrays.items()}

    def targets(self, encoded: Pair) -> int:
        """One comparison, where truncation left an answer."""
        return int(encoded.length > encoded.starts)

    def example_losses(self, model: torch.nn.Module, batch: Batch) -> torch.Tensor:
        """One number for two lines."""
        return -F.logsigmoid(_margins(model, batch))

    def counter_layout(self, data: DataContract, spec: TaskSpec) -> Layout:
        """The better answer is class 1 of two."""
        return METRICS.get(self.metric_family).layout(data.labels, spec.options)

    @torch.inference_mode()
    def count(
        self,
        model: torch.nn.Module,
        batch: Batch,
        encoded: Sequence[Pair],
        data: DataContract,
        spec: TaskSpec,
    ) -> dict[str, Array]:
        """Every row is of class 1, and hit where the model prefers as people did."""
        margins = _margins(model, batch).cpu().double()
        better = margins.sigmoid().numpy()
        return count_rows(
            np.stack([1 - better, better], axis=1), np.ones(len(encoded), np.int64),
            -F.logsigmoid(margins).numpy(),
        )  # fmt: skip

    def count_whole(self, *arguments: Any, **options: Any) -> dict[str, Array]:
        """Nothing more."""
        return {}

    def predict(
        self,
        model: torch.nn.Module,
        processor: Any,
        examples: Sequence[Example],
        data: DataContract,
        spec: TaskSpec,
        *,
        batch_size: int,
        device: torch.device,
    ) -> list[dict[str, Any]]:
        """Which answer the model prefers."""
        rows = []
        for example, pair in zip(examples, self.encode(examples, processor, data, spec), strict=True):
            batch = {name: tensor.to(device) for name, tensor in self.collate([pair], data).items()}
            with torch.inference_mode():
                rows.append({"id": example.id, "prefers": bool(_margins(model, batch).item() > 0)})
        return rows


def _margins(model: Any, batch: Batch) -> torch.Tensor:
    """β (Δ chosen − Δ rejected), (batch,)."""
    with torch.no_grad(), model.disable_adapter():
        reference = _log_likelihoods(model, batch)
    change = _log_likelihoods(model, batch) - reference
    chosen, rejected = change.chunk(2)
    return 0.5 * (chosen - rejected)


def _log_likelihoods(model: torch.nn.Module, batch: Batch) -> torch.Tensor:
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1]
    losses = F.cross_entropy(
        logits.float().transpose(1, 2), batch["labels"][:, 1:], reduction="none", ignore_index=-100
    )
    return -losses.sum(dim=1)


TASK = Preference()
