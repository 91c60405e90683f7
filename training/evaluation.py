"""Scores a model on encoded rows: counters that add up over batches, rows and sites."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from wardround.core.errors import InternalError
from wardround.core.packed import Adapter, Counters, zeros
from wardround.core.plan import DataContract, TaskSpec
from wardround.training.tasks.contract import Encoded, Example, Task
from wardround.training.workbench import Workbench


@dataclass(frozen=True)
class ScoringJob:
    """Rows to be scored through an adapter.

    Attributes:
        adapter: Of the bench's layout.
        encoded: The rows; those without a target are passed over.
        task: Of the plan.
        data: Likewise.
        batches: Of `evaluate`.
    """

    adapter: Adapter
    encoded: Sequence[Encoded]
    task: TaskSpec
    data: DataContract
    batches: range | None = None


def score(bench: Workbench, job: ScoringJob) -> Counters:
    """Metric numerators of a job's rows; the bench holds its adapter afterwards.

    Raises:
        TrainingError: As `evaluate`.
    """
    bench.load_adapter(job.adapter)
    return evaluate(
        bench.model, bench.task, job.task, job.data, job.encoded,
        batch_size=bench.machine.evaluation_batch_size, device=bench.device, tokenizer=bench.tokenizer,
        batches=job.batches,
    )  # fmt: skip


def batches_of(bench: Workbench, encoded: Sequence[Encoded]) -> int:
    """So many batches are these rows when they are scored."""
    usable = sum(bench.task.targets(row) > 0 for row in encoded)
    return -(-usable // bench.machine.evaluation_batch_size)


@torch.inference_mode()
def evaluate(
    model: torch.nn.Module,
    task: Task,
    spec: TaskSpec,
    data: DataContract,
    encoded: Sequence[Encoded],
    *,
    batch_size: int,
    device: torch.device,
    tokenizer: Any = None,
    batches: range | None = None,
) -> Counters:
    """Metric numerators of the rows that have a target; no rows give zeros.

    Rows of like length share a batch, to save padding, the longest first, so that a machine that is too
    small fails at once. The result does not depend on the batch size, but
    for what padding does to the last bits of a float.

    Args:
        model: In any mode, which is put back afterwards.
        encoded: From `task.encode`.
        batch_size: Rows at once.
        tokenizer: What the task's processor loaded (`Workbench.tokenizer`), for counters that need it, such
            as ROUGE-L of generated answers.
        batches: Only these of them, counted from 0. The counters of ranges that make up all batches add up to
            those of all rows: what a task counts of the rows as a whole is with the first batch.

    Raises:
        TrainingError: A loss is not finite.
        InternalError: The task's options ask for counters that need the tokenizer, and it was not given.
    """
    layout = task.counter_layout(data, spec)
    totals = zeros(layout, np.int64)
    usable = [row for row in encoded if task.targets(row) > 0]
    order = sorted(usable, key=lambda row: -row.length)
    filled: set[str] = set()
    starts = range(0, len(order), batch_size)
    whole_too = usable and (batches is None or 0 in batches)
    with evaluating(model):
        for start in starts if batches is None else starts[batches.start : batches.stop]:
            rows = order[start : start + batch_size]
            batch = {name: tensor.to(device) for name, tensor in task.collate(rows, data).items()}
            for name, array in task.count(model, batch, rows, data, spec).items():
                totals[name][...] += array
                filled.add(name)
        if whole_too:
            whole = task.count_whole(
                model, tokenizer, usable, data, spec, batch_size=batch_size, device=device
            )
            for name, array in whole.items():
                totals[name][...] += array
                filled.add(name)
    if whole_too and (unfilled := sorted(set(layout.offsets) - filled)):
        raise InternalError(
            "an evaluation left counters empty",
            found=", ".join(unfilled),
            remedy="give evaluate the tokenizer; a task has to fill every counter of its layout",
        )
    return totals


def predict_rows(
    model: torch.nn.Module,
    task: Task,
    spec: TaskSpec,
    data: DataContract,
    examples: Sequence[Example],
    *,
    tokenizer: Any,
    batch_size: int,
    device: torch.device,
) -> list[dict[str, Any]]:
    """What the task predicts for each example, in order: labels with probabilities, or generated answers."""
    with evaluating(model):
        return task.predict(model, tokenizer, examples, data, spec, batch_size=batch_size, device=device)


@contextmanager
def evaluating(model: torch.nn.Module) -> Iterator[None]:
    """Evaluation mode (no dropout); every module's own mode is put back afterwards."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training
