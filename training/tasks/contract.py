"""What a task is: how a row becomes what the model reads, what the loss is, what is counted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel

from wardround.core.packed import Layout
from wardround.core.plan import DataContract, TaskSpec
from wardround.training.examples import Example

if TYPE_CHECKING:  # so that the names of the tasks are known without torch
    import torch
    from transformers import PreTrainedModel

    from wardround.training.processors import Processor

__all__ = ["Batch", "Encoded", "Example", "Task"]


class Encoded(Protocol):
    """One example as the model reads it; of what kind is the task's affair (a text: `EncodedText`).

    The shared code batches, counts and reports, and asks for no more than this.
    """

    @property
    def length(self) -> int:
        """What its memory grows with: tokens, or 1 where all are alike. Rows of like length share a batch."""

    @property
    def rows(self) -> int:
        """Rows of the source in it: 1, or more where rows were packed."""

    @property
    def cut(self) -> int:
        """Tokens that truncation dropped, 0 where nothing is cut."""


Batch: TypeAlias = "dict[str, torch.Tensor]"
"""Keyword arguments of the model's forward, plus `labels` which the task's loss reads.

An example may take several lines of them (the two answers of a preference); its loss is one number.
"""


class Task(Protocol):
    """One kind of fine-tuning. Stateless: everything arrives as arguments.

    `processor` in the methods is what the task's own processor loaded: a tokenizer, None, something else.
    `encoded` are values of the task's own kind, each an `Encoded`: what `encode` gave.
    """

    name: ClassVar[str]
    Options: ClassVar[type[BaseModel]]
    processor: ClassVar[Processor]
    """What it reads rows through (`training/processors.py`): `TOKENIZER`, `NOTHING`, or one of its own."""
    peft_task_type: ClassVar[str | None]
    """`CAUSAL_LM` or `SEQ_CLS`: what PEFT calls it; None where PEFT has no name for it."""
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
        processor: Any,
        data: DataContract,
        spec: TaskSpec,
    ) -> list[Any]:
        """What the model reads of each example, in order (fewer, longer ones under packing)."""

    def collate(self, encoded: Sequence[Any], data: DataContract) -> Batch:
        """Pad to the longest of the batch."""

    def targets(self, encoded: Any) -> int:
        """How many terms this example adds to the loss: target tokens, or 1 for a class."""

    def example_losses(self, model: torch.nn.Module, batch: Batch) -> torch.Tensor:
        """Sum of the loss terms of each example, float32, (batch,). Never a mean over examples."""

    def counter_layout(self, data: DataContract, spec: TaskSpec) -> Layout:
        """Counters that `count` fills."""

    def count(
        self,
        model: torch.nn.Module,
        batch: Batch,
        encoded: Sequence[Any],
        data: DataContract,
        spec: TaskSpec,
    ) -> dict[str, NDArray[np.int64]]:
        """Metric numerators of one batch, summed over its examples; exact integers."""

    def count_whole(
        self,
        model: torch.nn.Module,
        processor: Any,
        encoded: Sequence[Any],
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
        processor: Any,
        examples: Sequence[Example],
        data: DataContract,
        spec: TaskSpec,
        *,
        batch_size: int,
        device: torch.device,
    ) -> list[dict[str, Any]]:
        """What the model says about each example, in order, with the example's `id`; ready for JSON."""
