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


@dataclass(frozen=True)
class Example:
    """A row after the column mapping, with the roles that the task asked for.

    Attributes:
        number: Row number in its source.
        roles: Role → value: strings, or whatever the format needs (a list of messages).
        label: Index into the contract's label list, or None where the task has no labels.
        id: Row id as text, or the row number where the contract names no id column.
        unit: Unit to protect; the row's id where the contract names no unit column.
        site: Value of the partition's key column, where one is used.
    """

    number: int
    roles: dict[str, Any]
    label: int | None = None
    id: str = ""
    unit: str = ""
    site: str = ""


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

    def load_model(self, path: str, data: DataContract, **keywords: Any) -> tuple[PreTrainedModel, dict[str, Any]]:
        """The pretrained model through its Auto class, and transformers' loading info."""

    def required_roles(self, spec: TaskSpec) -> dict[str, bool]:
        """Role → whether it has to be mapped (True) or may be (False)."""

    def encode(
        self, examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase, data: DataContract, spec: TaskSpec
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
        self, model: torch.nn.Module, batch: Batch, encoded: Sequence[Encoded], data: DataContract, spec: TaskSpec
    ) -> dict[str, NDArray[np.int64]]:
        """Metric numerators of one batch, summed over its examples; exact integers."""
