"""Adam on noised gradients, with the noise taken out of its second moment.

Tang, Shpilevskiy & Lécuyer 2023, arXiv:2312.14334v1, "DP-AdamBC", Algorithm 1. Noise of variance
Φ = (σ C / B)² on every entry of the gradient adds Φ to Adam's v̂; where the noise outweighs the signal, √v̂ is
the same for all entries, and DP-Adam is DP-SGD with momentum. So, with their γ' as `floor`,

    θ ← θ − η m̂ / √max(v̂ − Φ̂, floor).

Φ̂ is the same moving average of the variances that v̂ is of the squares: Φ itself, unless adaptive clipping
moved C on the way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, final

import torch

from wardround.core.errors import ConfigError


@final
class DPAdam(torch.optim.Optimizer):
    """DP-AdamBC, with decoupled weight decay.

    Everything that it keeps is a function of the noised gradients and of constants. One entry moves by as
    much as η |m̂| / √floor in a step, and not by about η as under Adam: what is left of v̂ is often the floor.

    Args:
        params: Tensors or groups of them, as torch's optimisers take them.
        lr: η.
        betas: Decay of both moments.
        weight_decay: λ; θ ← (1 − η λ) θ before the step.
        noise_variance: Φ; `set_noise_variance` changes it.
        floor: Of the corrected second moment (a variance, not a standard deviation).

    Raises:
        ConfigError: A setting is none.
    """

    def __init__(
        self,
        params: Iterable[torch.Tensor] | Iterable[dict[str, Any]],
        lr: float,
        betas: tuple[float, float],
        weight_decay: float,
        noise_variance: float,
        floor: float,
    ) -> None:
        if not (floor > 0 and noise_variance >= 0 and all(0 <= beta < 1 for beta in betas)):
            raise ConfigError(
                "settings of DP-Adam are none",
                found=f"floor {floor}, noise variance {noise_variance}, betas {betas}",
                expected="a floor above 0, a noise variance of at least 0, betas in [0, 1)",
            )
        defaults = {
            "lr": lr, "betas": betas, "weight_decay": weight_decay, "noise_variance": noise_variance,
            "floor": floor,
        }  # fmt: skip
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]  # torch overloads it by closure
        """One step; a parameter without a gradient is left alone."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._move(parameter, group)
        return loss

    def _move(self, parameter: torch.Tensor, group: dict[str, Any]) -> None:
        """θ, m, v and the average of Φ, of one tensor."""
        state = self.state[parameter]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32)
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)
            state["noise_avg"] = torch.zeros((), dtype=torch.float64)
        first, second = group["betas"]
        gradient = parameter.grad
        state["step"] += 1
        state["exp_avg"].lerp_(gradient, 1 - first)
        state["exp_avg_sq"].mul_(second).addcmul_(gradient, gradient, value=1 - second)
        state["noise_avg"].mul_(second).add_(group["noise_variance"], alpha=1 - second)
        steps = float(state["step"])
        left = 1 - second**steps
        noise = float(state["noise_avg"]) / left
        scale = state["exp_avg_sq"].div(left).sub_(noise).clamp_min_(group["floor"]).sqrt_()
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        parameter.addcdiv_(state["exp_avg"], scale, value=-group["lr"] / (1 - first**steps))


def set_noise_variance(optimiser: torch.optim.Optimizer, noise_variance: float) -> None:
    """Give every group the variance of the gradient that it steps with next."""
    for group in optimiser.param_groups:
        group["noise_variance"] = noise_variance
