"""Two small tasks of the tests' own, and work benches over the tiny models."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from wardround.core.plan import DataContract
from wardround.training.adapters import ADAPTERS
from wardround.training.base_model import BaseModelConfig
from wardround.training.encoded_text import EncodedText
from wardround.training.processors import TOKENIZER
from wardround.training.workbench import Machine, Workbench, open_workbench


def pytest_collection_finish() -> None:
    """What was imported lives as long as the process: no collection of garbage has to look at it again."""
    gc.freeze()


def pad(rows: Sequence[np.ndarray], value: int) -> torch.Tensor:
    """Right-padded int64 matrix."""
    width = max(len(row) for row in rows)
    return torch.tensor([[*row.tolist(), *[value] * (width - len(row))] for row in rows], dtype=torch.int64)


class ToyClassifier:
    """Sequence classification: one target a row."""

    name = "toy_classifier"
    processor = TOKENIZER
    peft_task_type: ClassVar[str] = "SEQ_CLS"

    def load_model(self, path: str, data: DataContract, **keywords: Any) -> Any:
        """Through the plain Auto class."""
        return AutoModelForSequenceClassification.from_pretrained(
            path, num_labels=len(data.labels), output_loading_info=True, **keywords
        )

    def collate(self, encoded: Sequence[EncodedText], data: DataContract) -> dict[str, torch.Tensor]:
        """Right-padded."""
        tokens = [row.tokens for row in encoded]
        return {
            "input_ids": pad(tokens, data.pad_token_id),
            "attention_mask": pad([np.ones_like(row) for row in tokens], 0),
            "labels": torch.tensor([row.label for row in encoded]),
        }

    def targets(self, encoded: EncodedText) -> int:
        """Loss terms of one row."""
        return int(encoded.label >= 0)

    def example_losses(self, model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Summed loss of each row."""
        labels = batch["labels"]
        output = model(**{key: value for key, value in batch.items() if key != "labels"})
        return F.cross_entropy(output.logits.float(), labels, reduction="none")


class ToyCausal:
    """Causal LM: every token whose target is not −100 counts."""

    name = "toy_causal"
    processor = TOKENIZER
    peft_task_type: ClassVar[str] = "CAUSAL_LM"

    def load_model(self, path: str, data: DataContract, **keywords: Any) -> Any:
        """Through the plain Auto class."""
        return AutoModelForCausalLM.from_pretrained(path, output_loading_info=True, **keywords)

    def collate(self, encoded: Sequence[EncodedText], data: DataContract) -> dict[str, torch.Tensor]:
        """Right-padded."""
        return {
            "input_ids": pad([row.tokens for row in encoded], data.pad_token_id),
            "attention_mask": pad([np.ones_like(row.tokens) for row in encoded], 0),
            "labels": pad([row.targets for row in encoded], -100),
        }

    def targets(self, encoded: EncodedText) -> int:
        """Loss terms of one row."""
        return int((encoded.targets[1:] != -100).sum())

    def example_losses(self, model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Summed loss of each row."""
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        losses = F.cross_entropy(
            logits[:, :-1].float().transpose(1, 2),
            batch["labels"][:, 1:],
            reduction="none",
            ignore_index=-100,
        )
        return losses.sum(dim=1)


CLASSIFIER, CAUSAL = ToyClassifier(), ToyCausal()


def ragged_rows(n: int, *, seed: int = 0, longest: int = 40, classes: int = 3) -> list[EncodedText]:
    """Rows of very different lengths, usable by both tasks; the first third of each is no target."""
    rng = np.random.default_rng(seed)
    rows = []
    for index in range(n):
        tokens = rng.integers(6, 380, size=int(rng.integers(3, longest)), dtype=np.int32)
        targets = tokens.copy()
        targets[: len(tokens) // 3] = -100
        rows.append(EncodedText(tokens=tokens, targets=targets, label=index % classes, example=index))
    return rows


def make_bench(
    folder: Path, task: Any, *, seed: int = 7, machine: Machine | None = None, **options: Any
) -> Workbench:
    """A bench over a model folder; `options`: `method`, what it takes, and the base's, such as dtype."""
    method = ADAPTERS.get(options.pop("method", "lora"))
    kept = ("dtype", "attention", "quantisation", "base_dropout")
    base = {key.removeprefix("base_"): options.pop(key) for key in kept if key in options}
    labels = ("a", "b", "c") if task is CLASSIFIER else ()
    return open_workbench(
        BaseModelConfig(path=str(folder), **base), task, DataContract(columns={}, labels=labels),
        method, method.Options(**options), machine or Machine(device="cpu"), seed=seed,
    )  # fmt: skip


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> Iterator[None]:
    """Equal thread counts give equal bits; one keeps the tests of this room out of each other's way."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def toys() -> Any:
    """The tasks `classifier` and `causal`, `rows(n)` and `bench(folder, task)`."""
    bench: Callable[..., Workbench] = make_bench
    return SimpleNamespace(classifier=CLASSIFIER, causal=CAUSAL, rows=ragged_rows, bench=bench)
