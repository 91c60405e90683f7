"""Benches with an adapter that is not zero, and the slow twin: one example at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from wardround.training.private.per_example import ExampleGradients, record_gradients
from wardround.training.workbench import Workbench


def losses_of(bench: Workbench, rows: Sequence[Any]) -> torch.Tensor:
    """The mean loss of each example over its own targets, (examples,)."""
    counts = torch.tensor([float(bench.task.targets(row)) for row in rows])
    return bench.task.example_losses(bench.model, bench.task.collate(rows, bench.data)) / counts


def stirred(bench: Workbench, seed: int = 0) -> Workbench:
    """Random numbers around the fresh adapter, so that every factor has a gradient; training mode."""
    fresh = bench.initial_adapter()
    shake = np.random.default_rng(seed).normal(0, 0.05, bench.layout.size).astype(np.float32)
    bench.load_adapter(fresh.with_vector(fresh.vector + shake))
    bench.model.train()
    return bench


def one_by_one(
    bench: Workbench, rows: Sequence[Any], losses: Callable[..., torch.Tensor] = losses_of
) -> torch.Tensor:
    """The slow twin (lines, P): autograd on a batch of one, in the layout's order."""
    parameters = dict(sorted(bench.parameters().items()))
    found = []
    for row in rows:
        losses(bench, [row]).sum().backward()
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters.values()]
        found.append(torch.cat([grad.reshape(-1).float() for grad in grads]))
        for parameter in parameters.values():
            parameter.grad = None
    return torch.stack(found)


def recorded(gradients: ExampleGradients, bench: Workbench, rows: Sequence[Any]) -> torch.Tensor:
    """Rows of one microbatch, copied."""
    return gradients.of(lambda: losses_of(bench, rows), len(rows))[0].clone()


def all_at_once(bench: Workbench, rows: Sequence[Any]) -> torch.Tensor:
    """What one forward and one backward give, (lines, P)."""
    with record_gradients(bench.model, bench.parameters()) as gradients:
        return recorded(gradients, bench, rows)


def difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    """The worst row's ‖found − expected‖ / ‖expected‖."""
    lengths = expected.norm(dim=1)
    assert (lengths > 0).all()
    return float(((found - expected).norm(dim=1) / lengths).max())


@pytest.fixture(scope="session")
def rows_of_gradients() -> Any:
    """The functions above."""
    return SimpleNamespace(
        losses=losses_of, stirred=stirred, slow=one_by_one, fast=all_at_once, of=recorded, error=difference
    )
