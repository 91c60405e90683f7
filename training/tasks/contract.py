"""What a task is: how a row becomes tokens, what the loss is, what is counted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from wardround.core.packed import Layout
from wardround.core.plan import DataContract, TaskSpec
from wardround.training.examples import Example

__all__ = ["Batch", "Encoded", "Example", "Task"]


@dataclass(frozen=True)
class Encoded:
    """One example as the model reads it.

    Attributes:
        tokens: Input ids, int32, 1-D.
        targets: For a causal LM, int32 like `tokens`, −100 where no loss falls; else empty.
        label: Class index, or −1.
        segments: Token type ids where the model has them (pairs), else empty.
        positions: Position ids where several rows were packed (each restarts at 0), else empty.
        cut: Tokens that truncation dropped.
        text_bytes: UTF-8 bytes of the text under loss, for bits per byte.
        example: Index of the example in the list it was encoded from, or −1 where packed.
    """

    tokens: NDArray[np.int32]
    targets: NDArray[np.int32] = field(default_factory=lambda: np.empty(0, np.int32))
    label: int = -1
    segments: NDArray[np.int32] = field(default_factory=lambda: np.empty(0, np.int32))
    positions: NDArray[np.int32] = field(default_factory=lambda: np.empty(0, np.int32))
    cut: int = 0
    text_bytes: int = 0
    example: int = -1


Batch = dict[str, torch.Tensor]
"""Keyword arguments of the model's forward, plus `labels` which the task's loss reads."""


class Task(Protocol):
    """One kind of fine-tuning. Stateless: everything arrives as arguments."""

    name: ClassVar[str]
    Options: ClassVar[type[BaseModel]]
    peft_task_type: ClassVar[str]
    """`CAUSAL_LM` or `SEQ_CLS`: what PEFT calls it."""
    metric_family: ClassVar[str]
    """Name in `core/metrics` of the family whose counters `count` fills."""
    auto_class: ClassVar[str]
    """Class of transformers that loads the model in plain code, for the model card."""
    pipeline_tag: ClassVar[str]
    """What Hugging Face calls the task."""
    caution: ClassVar[str]
    """A sentence for the model card: how its answers go wrong."""

    def load_model(
        self, path: str, data: DataContract, **keywords: Any
    ) -> tuple[PreTrainedModel, dict[str, Any]]:
        """The pretrained model through its Auto class, and transformers' loading info."""

    def required_roles(self, spec: TaskSpec, *, predict: bool = False) -> dict[str, bool]:
        """Role → whether it has to be mapped (True) or may be (False); `predict`: without the answer."""

    def fault(self, example: Example, spec: TaskSpec, *, predict: bool = False) -> str | None:
        """Code of what makes a row unreadable for the task, or None; holds nothing of the row.

        Rows with a fault are quarantined before `encode`, which refuses them.
        """

    def encode(
        self,
        examples: Sequence[Example],
        tokenizer: PreTrainedTokenizerBase,
        data: DataContract,
        spec: TaskSpec,
    ) -> list[Encoded]:
        """Tokens and targets, in order (fewer, longer ones under packing)."""

    def collate(self, encoded: Sequence[Encoded], data: DataContract) -> Batch:
        """Pad to the longest of the batch."""

    def targets(self, encoded: Encoded) -> int:
        """How many terms this example adds to the loss: target tokens, or 1 for a class."""

    def example_losses(self, model: torch.nn.Module, batch: Batch) -> torch.Tensor:
        """Sum of the loss terms of each example, float32, (batch,). Never a mean over examples."""

    def counter_layout(self, data: DataContract, spec: TaskSpec) -> Layout:
        """Counters that `count` fills."""

    def count(
        self,
        model: torch.nn.Module,
        batch: Batch,
        encoded: Sequence[Encoded],
        data: DataContract,
        spec: TaskSpec,
    ) -> dict[str, NDArray[np.int64]]:
        """Metric numerators of one batch, summed over its examples; exact integers."""

    def count_whole(
        self,
        model: torch.nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        encoded: Sequence[Encoded],
        data: DataContract,
        spec: TaskSpec,
        *,
        batch_size: int,
        device: torch.device,
    ) -> dict[str, NDArray[np.int64]]:
        """Numerators that `count` cannot give, such as scores of generated answers; {} where there are none.

        Called once with every row that has a target. `count` and `count_whole` together fill the layout.
        """

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
        """What the model says about each example, in order, with the example's `id`; ready for JSON."""
