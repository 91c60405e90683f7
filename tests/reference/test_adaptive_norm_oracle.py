"""Opacus's AdaClip as the oracle of adaptive clipping: the noise of its gradients, and how its norm moves."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest
import torch

from wardround.privacy.clip_norm import JointLength, next_norm, vector_sigma

if importlib.util.find_spec("opacus") is None:
    pytest.skip("opacus, the oracle, is not installed: `make test` installs it", allow_module_level=True)


def opacus_step(
    monkeypatch: pytest.MonkeyPatch, *, sigma: float, count_sigma: float, norms: list[float]
) -> tuple[list[float], float]:
    """One step of Opacus on gradients of these lengths, norm 0.8, without any draw.

    Returns:
        The deviations of the noise that it asks for, of gradient and count; the norm of the next step.
    """
    from opacus.optimizers import adaclipoptimizer

    asked: list[float] = []

    def recorded(std: float, reference: torch.Tensor, **_: Any) -> torch.Tensor:
        asked.append(float(std))
        return torch.zeros_like(reference)

    monkeypatch.setattr(adaclipoptimizer, "_generate_noise", recorded)
    weight = torch.nn.Parameter(torch.zeros(3))
    optimiser = adaclipoptimizer.AdaClipDPOptimizer(
        torch.optim.SGD([weight], lr=0.1), noise_multiplier=sigma, target_unclipped_quantile=0.3,
        clipbound_learning_rate=0.4, max_clipbound=100.0, min_clipbound=0.01, unclipped_num_std=count_sigma,
        max_grad_norm=0.8, expected_batch_size=len(norms),
    )  # fmt: skip
    weight.grad_sample = torch.tensor([[norm, 0.0, 0.0] for norm in norms])  # type: ignore[attr-defined]  # as Opacus's hooks do
    optimiser.step()
    return asked, float(optimiser.max_grad_norm)


@pytest.mark.parametrize(("sigma", "count_sigma"), [(1.0, 0.6), (1.0, 20.0), (7.0, 5.0)])
def test_the_budget_is_split_as_opacus_splits_it(
    monkeypatch: pytest.MonkeyPatch, sigma: float, count_sigma: float
) -> None:
    """z_Δ C on the gradient and σ_b on the count; and so is one noise on a joint vector."""
    (gradient, count), _ = opacus_step(monkeypatch, sigma=sigma, count_sigma=count_sigma, norms=[1.0, 0.1])
    assert vector_sigma(sigma, count_sigma) * 0.8 == pytest.approx(gradient)
    joint = JointLength.of(0.8, sigma, count_sigma)
    assert sigma * 0.8 * (0.8 / joint.vector) == pytest.approx(gradient)
    assert sigma * 0.8 / joint.count == pytest.approx(count)


def test_the_norm_moves_as_opacus_moves_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three of five gradients are short enough; their quantile is to be 0.3."""
    _, moved = opacus_step(monkeypatch, sigma=1.0, count_sigma=2.0, norms=[0.1, 2.0, 0.5, 0.2, 3.0])
    found = next_norm(0.8, 3 / 5, quantile=0.3, rate=0.4, smallest=0.01, largest=100.0)
    assert found == pytest.approx(moved)
