"""Optimisers from a plan, and their state across a restart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from wardround.core.errors import StorageError
from wardround.core.plan import LocalWork
from wardround.training.optimisers import build_optimiser, export_state, import_state, set_rate


def parameters(seed: int = 0) -> dict[str, torch.nn.Parameter]:
    """A matrix and a vector."""
    source = torch.Generator().manual_seed(seed)
    return {
        "a.weight": torch.nn.Parameter(torch.randn(3, 4, generator=source)),
        "a.bias": torch.nn.Parameter(torch.randn(4, generator=source)),
    }


def step(optimiser: torch.optim.Optimizer, named: dict[str, torch.nn.Parameter], seed: int) -> None:
    """One step along a random gradient."""
    source = torch.Generator().manual_seed(seed)
    for parameter in named.values():
        parameter.grad = torch.randn(parameter.shape, generator=source)
    optimiser.step()


WORKS: list[dict[str, Any]] = [
    {"optimiser": "adamw", "weight_decay": 0.1},
    {"optimiser": "adam"},
    {"optimiser": "sgd", "momentum": 0.9},
    {"optimiser": "sgd"},
]


@pytest.mark.parametrize("options", WORKS, ids=lambda options: "-".join(map(str, options.values())))
def test_kept_state_survives_a_restart_bit_for_bit(options: dict[str, Any], tmp_path: Path) -> None:
    """Three steps, saved to disk, restored in a new optimiser, three more: equal to six in a row."""
    work = LocalWork(steps=1, learning_rate=0.1, optimiser_state="keep", **options)
    straight = parameters()
    optimiser = build_optimiser(work, straight)
    for seed in range(6):
        step(optimiser, straight, seed)

    before = parameters()
    optimiser = build_optimiser(work, before)
    for seed in range(3):
        step(optimiser, before, seed)
    save_file(export_state(optimiser, before), tmp_path / "state.safetensors")

    after = {name: torch.nn.Parameter(value.detach().clone()) for name, value in before.items()}
    optimiser = build_optimiser(work, after)
    import_state(optimiser, after, load_file(tmp_path / "state.safetensors"))
    for seed in range(3, 6):
        step(optimiser, after, seed)
    assert all(torch.equal(after[name], straight[name]) for name in straight)


def test_weight_decay_falls_on_matrices_only() -> None:
    """Without a gradient signal a matrix shrinks and a bias does not."""
    named = parameters()
    before = {name: value.detach().clone() for name, value in named.items()}
    optimiser = build_optimiser(LocalWork(steps=1, learning_rate=0.1, weight_decay=0.5), named)
    for parameter in named.values():
        parameter.grad = torch.zeros_like(parameter)
    optimiser.step()
    assert torch.equal(named["a.bias"], before["a.bias"])
    torch.testing.assert_close(named["a.weight"].detach(), before["a.weight"] * 0.95)


def test_the_rate_reaches_every_group() -> None:
    """A rate of zero moves nothing."""
    named = parameters()
    before = {name: value.detach().clone() for name, value in named.items()}
    optimiser = build_optimiser(LocalWork(steps=1), named)
    set_rate(optimiser, 0.0)
    step(optimiser, named, 1)
    assert all(torch.equal(named[name], before[name]) for name in named)


def test_state_of_another_shape_is_refused() -> None:
    """A kept state of another rank names the slot and both shapes."""
    named = parameters()
    optimiser = build_optimiser(LocalWork(steps=1), named)
    with pytest.raises(StorageError, match=r"a\.weight//exp_avg"):
        import_state(optimiser, named, {"a.weight//exp_avg": np.zeros((2, 2), np.float32)})


def test_state_of_tensors_that_do_not_train_is_passed_over() -> None:
    """Names that the optimiser does not know change nothing."""
    named = parameters()
    optimiser = build_optimiser(LocalWork(steps=1), named)
    import_state(optimiser, named, {"gone.weight//exp_avg": np.zeros(3, np.float32)})
    assert export_state(optimiser, named) == {}


@pytest.mark.parametrize("kind", ["adamw", "adam"])
def test_one_kernel_a_tensor_steps_as_torch_does_operation_by_operation(kind: str) -> None:
    """Ten steps of many sizes, beside torch's own loop over operations and tensors, up to rounding."""
    work = LocalWork(
        steps=1, learning_rate=0.01, optimiser=kind, weight_decay=0.1 if kind == "adamw" else 0.0
    )
    source = torch.Generator().manual_seed(3)
    shapes = [(8, 96), (96, 8), (5,), (), (1, 1), (33, 7)]
    named, looped = (
        {str(n): torch.nn.Parameter(tensor.clone()) for n, tensor in enumerate(drawn)}
        for drawn in [[torch.randn(shape, generator=source) for shape in shapes]] * 2
    )
    optimiser, other = build_optimiser(work, named), build_optimiser(work, looped)
    assert all(group["fused"] for group in optimiser.param_groups)
    for group in other.param_groups:
        group["fused"], group["foreach"] = False, False
    for seed in range(10):
        step(optimiser, named, seed)
        step(other, looped, seed)
    ours, theirs = export_state(optimiser, named), export_state(other, looped)
    assert ours.keys() == theirs.keys()
    pairs = [(named[name].detach().numpy(), looped[name].detach().numpy()) for name in named]
    for mine, other_one in [*pairs, *((ours[key], theirs[key]) for key in ours)]:
        np.testing.assert_allclose(mine, other_one, rtol=2e-6, atol=1e-7)


def test_weights_of_few_bits_step_as_torch_has_it() -> None:
    """They are not one kernel's."""
    named = {"a.weight": torch.nn.Parameter(torch.zeros(2, 2, dtype=torch.bfloat16))}
    optimiser = build_optimiser(LocalWork(steps=1), named)
    assert not any(group["fused"] for group in optimiser.param_groups)
