"""DP-Adam with its second moment corrected."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from wardround.core.errors import ConfigError
from wardround.training.optimisers import export_state, import_state, set_rate
from wardround.training.private.adam import DPAdam, set_noise_variance


def parameters(seed: int = 0) -> dict[str, torch.nn.Parameter]:
    """A matrix and a vector."""
    source = torch.Generator().manual_seed(seed)
    return {
        "a.weight": torch.nn.Parameter(torch.randn(3, 4, generator=source)),
        "a.bias": torch.nn.Parameter(torch.randn(4, generator=source)),
    }


def built(named: dict[str, torch.nn.Parameter], **options: Any) -> DPAdam:
    """With defaults for the tests."""
    settings = {"lr": 0.1, "betas": (0.9, 0.99), "weight_decay": 0.0, "noise_variance": 0.25, "floor": 1e-3}
    return DPAdam(named.values(), **{**settings, **options})


def step(optimiser: torch.optim.Optimizer, named: dict[str, torch.nn.Parameter], seed: int) -> None:
    """Along a random gradient."""
    source = torch.Generator().manual_seed(seed)
    for parameter in named.values():
        parameter.grad = torch.randn(parameter.shape, generator=source)
    optimiser.step()


@pytest.mark.parametrize("variances", [(0.25,) * 7, (0.25, 4.0, 0.1, 0.0, 2.0, 0.3, 0.3)])
def test_steps_are_those_of_the_paper(variances: tuple[float, ...]) -> None:
    """Algorithm 1 by hand, in float64; a variance that changes is averaged like the squares."""
    named = parameters()
    optimiser = built(named, weight_decay=0.2)
    theta = {name: value.detach().double() for name, value in named.items()}
    m, v = ({name: torch.zeros_like(value) for name, value in theta.items()} for _ in range(2))
    noise = 0.0
    for t, variance in enumerate(variances, 1):
        noise = 0.99 * noise + 0.01 * variance
        set_noise_variance(optimiser, variance)
        step(optimiser, named, t)
        for name, parameter in named.items():
            g = parameter.grad.double()
            m[name] = 0.9 * m[name] + 0.1 * g
            v[name] = 0.99 * v[name] + 0.01 * g * g
            scale = torch.maximum(v[name] / (1 - 0.99**t) - noise / (1 - 0.99**t), torch.tensor(1e-3)).sqrt()
            theta[name] = theta[name] * (1 - 0.1 * 0.2) - 0.1 * m[name] / (1 - 0.9**t) / scale
    for name, parameter in named.items():
        torch.testing.assert_close(parameter.detach().double(), theta[name], rtol=1e-4, atol=1e-5)


def test_without_noise_it_is_adam() -> None:
    """Torch's own, where the floor is below every square."""
    ours, theirs = parameters(), parameters()
    optimiser = built(ours, noise_variance=0.0, floor=1e-30)
    adam = torch.optim.AdamW(theirs.values(), lr=0.1, betas=(0.9, 0.99), eps=1e-15, weight_decay=0.0)
    for seed in range(6):
        step(optimiser, ours, seed)
        step(adam, theirs, seed)
    for name in ours:
        torch.testing.assert_close(ours[name].detach(), theirs[name].detach(), rtol=1e-4, atol=1e-6)


def test_the_correction_finds_the_gradient_under_the_noise() -> None:
    """Signals of 1 and 0.1 under noise of 0.5 move nearly alike; uncorrected the weak one falls behind."""
    source = torch.Generator().manual_seed(0)
    signal = torch.tensor([1.0, 0.1]).repeat_interleave(500)

    def moved(noise_variance: float) -> float:
        named = {"w": torch.nn.Parameter(torch.zeros(1000))}
        optimiser = built(named, lr=1.0, betas=(0.99, 0.999), noise_variance=noise_variance, floor=1e-4)
        for _ in range(1500):
            named["w"].grad = signal + 0.5 * torch.randn(1000, generator=source)
            optimiser.step()
        strong, weak = named["w"].detach().reshape(2, 500).median(dim=1).values
        return float(weak / strong)

    assert moved(0.0) < 0.3
    assert moved(0.25) > 0.6


def test_a_variance_that_changes_is_averaged_like_the_squares() -> None:
    """Under adaptive clipping: what is subtracted is what the moving average holds of noise."""
    named = {"w": torch.nn.Parameter(torch.zeros(20_000))}
    optimiser = built(named, lr=0.0, betas=(0.9, 0.9), noise_variance=1.0)
    source = torch.Generator().manual_seed(1)
    for variance in (1.0, 4.0, 0.25, 9.0):
        set_noise_variance(optimiser, variance)
        named["w"].grad = variance**0.5 * torch.randn(20_000, generator=source)
        optimiser.step()
    state = optimiser.state[named["w"]]
    assert float(state["exp_avg_sq"].mean()) == pytest.approx(float(state["noise_avg"]), rel=0.05)


def test_kept_state_survives_a_restart_bit_for_bit(tmp_path: Path) -> None:
    """As that of the other optimisers does, through the same functions."""
    straight = parameters()
    optimiser = built(straight)
    for seed in range(6):
        set_noise_variance(optimiser, 0.1 + seed / 10)
        step(optimiser, straight, seed)
    before = parameters()
    optimiser = built(before)
    for seed in range(3):
        set_noise_variance(optimiser, 0.1 + seed / 10)
        step(optimiser, before, seed)
    save_file(export_state(optimiser, before), tmp_path / "state.safetensors")
    after = {name: torch.nn.Parameter(value.detach().clone()) for name, value in before.items()}
    optimiser = built(after)
    import_state(optimiser, after, load_file(tmp_path / "state.safetensors"))
    for seed in range(3, 6):
        set_noise_variance(optimiser, 0.1 + seed / 10)
        step(optimiser, after, seed)
    assert all(torch.equal(after[name], straight[name]) for name in straight)


def test_groups_rates_and_tensors_without_a_gradient() -> None:
    """Weight decay by group; the rate is set from outside; what has no gradient stays."""
    named = parameters()
    before = {name: value.detach().clone() for name, value in named.items()}
    weight, bias = named.values()
    groups = [{"params": [weight], "weight_decay": 0.5}, {"params": [bias], "weight_decay": 0.0}]
    optimiser = DPAdam(groups, 0.1, (0.9, 0.99), 0.0, 0.25, 1e-3)
    weight.grad = torch.zeros_like(weight)
    optimiser.step()
    torch.testing.assert_close(weight.detach(), before["a.weight"] * 0.95)
    assert torch.equal(bias, before["a.bias"])
    set_rate(optimiser, 0.0)
    now = weight.detach().clone()
    step(optimiser, named, 0)
    assert torch.equal(weight, now)
    assert optimiser.step(lambda: 3.0) == 3.0


@pytest.mark.parametrize(
    "options", [{"floor": 0.0}, {"noise_variance": -1.0}, {"betas": (0.9, 1.0)}, {"floor": np.nan}]
)
def test_settings_that_are_none(options: dict[str, Any]) -> None:
    """Refused when it is built."""
    with pytest.raises(ConfigError):
        built(parameters(), **options)
