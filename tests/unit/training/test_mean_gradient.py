"""The mean of a local round's own gradients, which control variates are made of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from wardround.core.errors import InternalError
from wardround.core.packed import Adapter
from wardround.core.plan import LocalWork
from wardround.strategies.contract import LocalRules
from wardround.training.local_round import LocalJob, LocalResult, train_locally
from wardround.training.workbench import Workbench

SGD = LocalWork(steps=3, batch_size=8, optimiser="sgd", learning_rate=0.5, max_grad_norm=None)


@pytest.fixture(scope="module")
def bench(tiny_llama: Path, toys: Any) -> Workbench:
    """A language model without dropout."""
    made: Workbench = toys.bench(tiny_llama, toys.causal)
    return made


@pytest.fixture(scope="module")
def rows(toys: Any) -> Any:
    """Sixteen."""
    return toys.rows(16)


def noise(bench: Workbench, seed: int) -> Adapter:
    """An adapter none of whose factors is zero."""
    start = bench.initial_adapter()
    random = np.random.default_rng(seed).normal(0, 0.02, start.vector.size)
    return start.with_vector((start.vector + random).astype(np.float32))


def train(bench: Workbench, rows: Any, rules: LocalRules, work: LocalWork = SGD, **more: Any) -> LocalResult:
    """One round from the same adapter."""
    return train_locally(
        bench, LocalJob(rows, noise(bench, 0), work, rules, round=1, rounds=1, seed_root=1, site="a", **more)
    )


def test_it_is_option_two_of_scaffold(bench: Workbench, rows: Any) -> None:
    """Under plain SGD (x − y)/(K η) less the offset; zero of what is frozen, none where nobody asks.

    And asking for it changes nothing of what is trained.
    """
    before, offset = noise(bench, 0), noise(bench, 4)
    frozen = frozenset([bench.layout.tensors[0].name])
    plain = train(bench, rows, LocalRules(gradient_offset=offset, frozen=frozen))
    assert plain.gradient is None
    found = train(bench, rows, LocalRules(gradient_offset=offset, frozen=frozen, mean_gradient=True))
    assert found.gradient is not None
    np.testing.assert_array_equal(found.adapter.vector, plain.adapter.vector)
    moved = (before.vector.astype(np.float64) - found.adapter.vector) / (3 * SGD.learning_rate)
    expected = before.with_vector(moved - offset.vector)
    for name, tensor in found.gradient.tensors().items():
        if name in frozen:
            assert not tensor.any()
        else:
            assert tensor.any()
            np.testing.assert_allclose(tensor, expected[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("term", ["clip", "proximal", "offset"])
def test_it_is_the_losss_own(bench: Workbench, rows: Any, term: str) -> None:
    """Whatever is done to the gradient before the step, in the first one of them it is the same."""
    one = SGD.model_copy(update={"steps": 1})
    alone = train(bench, rows, LocalRules(mean_gradient=True), one)
    other = {
        "clip": lambda: train(
            bench, rows, LocalRules(mean_gradient=True), one.model_copy(update={"max_grad_norm": 1e-3})
        ),
        "proximal": lambda: train(bench, rows, LocalRules(proximal=5.0, mean_gradient=True), one),
        "offset": lambda: train(
            bench, rows, LocalRules(gradient_offset=noise(bench, 4), mean_gradient=True), one
        ),
    }[term]()
    assert alone.gradient is not None
    assert other.gradient is not None
    np.testing.assert_array_equal(other.gradient.vector, alone.gradient.vector)


def test_it_is_the_mean_over_the_steps(bench: Workbench, rows: Any) -> None:
    """Under AdamW as well: of as many steps as were taken."""
    frozen_rate = LocalWork(steps=4, batch_size=16, learning_rate=1e-12)
    found = train(bench, rows, LocalRules(mean_gradient=True), frozen_rate)
    once = train(bench, rows, LocalRules(mean_gradient=True), frozen_rate.model_copy(update={"steps": 1}))
    assert found.gradient is not None
    assert once.gradient is not None
    np.testing.assert_allclose(found.gradient.vector, once.gradient.vector, rtol=1e-3, atol=1e-6)


def test_a_private_round_gives_none(bench: Workbench, rows: Any) -> None:
    """It would be exact, or be used as if it were."""
    with pytest.raises(InternalError, match="private"):
        train(bench, rows, LocalRules(mean_gradient=True), private=object())
