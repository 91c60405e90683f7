"""PyTorch's optimisers from a plan, and their state as named arrays that survive a restart bit for bit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from wardround.core.errors import StorageError
from wardround.core.plan import LocalWork
from wardround.training.private.adam import DPAdam

SEPARATOR = "//"
"""Between a tensor's name and the slot's: `…lora_A.weight//exp_avg`."""

OptimiserState = dict[str, NDArray[Any]]


def build_optimiser(work: LocalWork, parameters: Mapping[str, torch.nn.Parameter]) -> torch.optim.Optimizer:
    """The plan's optimiser over named parameters, in their order.

    Weight decay falls on matrices only, never on biases and other vectors. The rate is set before each
    step by whoever steps; it starts at the plan's peak.
    """
    groups = [
        {"params": [p for p in parameters.values() if p.ndim > 1], "weight_decay": work.weight_decay},
        {"params": [p for p in parameters.values() if p.ndim <= 1], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    match work.optimiser:
        case "adamw":
            return torch.optim.AdamW(
                groups, work.learning_rate, work.betas, work.epsilon, fused=_fused(parameters)
            )
        case "adam":
            return torch.optim.Adam(
                groups, work.learning_rate, work.betas, work.epsilon, fused=_fused(parameters)
            )
        case "dp_adam":
            floor = work.epsilon**2
            return DPAdam(
                groups, work.learning_rate, work.betas, weight_decay=0.0, noise_variance=0.0, floor=floor
            )
        case "sgd":
            return torch.optim.SGD(groups, lr=work.learning_rate, momentum=work.momentum)


def _fused(parameters: Mapping[str, torch.nn.Parameter]) -> bool | None:
    """Whether one kernel takes each tensor through its step: on a CPU a quarter of the time.

    Elsewhere None leaves it to torch, which fuses nothing by itself. Numbers with few bits stay with torch's
    other way as well.
    """
    return (
        True
        if all(p.device.type == "cpu" and p.dtype == torch.float32 for p in parameters.values())
        else None
    )


def set_rate(optimiser: torch.optim.Optimizer, rate: float) -> None:
    """Give every group the learning rate of the coming step."""
    for group in optimiser.param_groups:
        group["lr"] = rate


def export_state(
    optimiser: torch.optim.Optimizer, parameters: Mapping[str, torch.nn.Parameter]
) -> OptimiserState:
    """Copies of every slot that the optimiser holds: `NAME//SLOT` → array; step counts are scalars."""
    state: OptimiserState = {}
    for name, parameter in parameters.items():
        for slot, value in optimiser.state.get(parameter, {}).items():
            if isinstance(value, torch.Tensor):
                state[f"{name}{SEPARATOR}{slot}"] = value.detach().cpu().numpy().copy()
    return state


def import_state(
    optimiser: torch.optim.Optimizer, parameters: Mapping[str, torch.nn.Parameter], state: OptimiserState
) -> None:
    """Put exported slots back. Parameters that the state does not name start fresh.

    Raises:
        StorageError: A slot's shape is not its parameter's; names both.
    """
    for key in sorted(state):
        name, _, slot = key.rpartition(SEPARATOR)
        parameter = parameters.get(name)
        if parameter is None:
            continue
        value = torch.from_numpy(np.array(state[key]))
        if value.ndim > 0 and value.shape != parameter.shape:
            raise StorageError(
                f"the kept optimiser state does not fit the adapter at {key!r}",
                found=tuple(value.shape),
                expected=tuple(parameter.shape),
                remedy="delete the site's kept state, or set optimiser_state=reset",
            )
        # Step counts stay on the CPU, as torch itself keeps them.
        optimiser.state[parameter][slot] = value if value.ndim == 0 else value.to(parameter.device)
