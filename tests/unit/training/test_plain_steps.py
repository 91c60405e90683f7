"""A federation whose sites take one plain step a round: the server sees the gradient over all rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from wardround.core.plan import LocalWork
from wardround.strategies.contract import LocalRules
from wardround.training.encoded_text import EncodedText
from wardround.training.local_round import LocalJob, train_locally

Vector = np.ndarray[Any, Any]


@pytest.mark.parametrize(("kind", "weighting"), [("classifier", "examples"), ("causal", "targets")])
def test_the_mean_of_plain_steps_is_the_step_on_all_rows(
    kind: str, weighting: str, tiny_llama: Path, toys: Any
) -> None:
    """However rows are spread, if a site weighs what its loss is a mean over; with equal weights not."""
    bench = toys.bench(tiny_llama, getattr(toys, kind))
    vector = np.random.default_rng(0).normal(0, 0.05, bench.layout.size).astype(np.float32)
    before, rows = bench.initial_adapter().with_vector(vector), toys.rows(13)
    work = LocalWork(epochs=1, batch_size=100, optimiser="sgd", learning_rate=1.0, max_grad_norm=None)

    def update(part: list[EncodedText]) -> tuple[Vector, int]:
        result = train_locally(
            bench, LocalJob(part, before, work, LocalRules(), round=1, rounds=1, seed_root=0, site="a")
        )
        assert result.steps == 1
        return result.adapter.vector.astype(np.float64) - vector, getattr(result, weighting)

    parts = [update(rows[:1]), update(rows[1:4]), update(rows[4:])]
    mean: Vector = np.sum([moved * weight for moved, weight in parts], axis=0) / sum(w for _, w in parts)
    equal: Vector = np.mean([moved for moved, _ in parts], axis=0)
    whole, _ = update(rows)
    assert np.linalg.norm(whole) > 1e-3
    assert np.linalg.norm(mean - whole) <= 1e-4 * np.linalg.norm(whole)
    assert np.linalg.norm(equal - whole) > 1e-2 * np.linalg.norm(whole)
