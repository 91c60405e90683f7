"""Where a local round stands between two steps: enough to go on there in another process, bit for bit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from wardround.core.packed import Adapter, Packed
from wardround.privacy.noise.correlated import NoiseState
from wardround.training.optimisers import OptimiserState

Generators = Mapping[str, NDArray[np.uint8]]
"""Kind of device → state of torch's generator there."""


@dataclass(frozen=True)
class Checkpoint:
    """After a step of a local round.

    Attributes:
        done: Steps taken.
        of: Steps of the whole round.
        adapter: float32.
        optimiser_state: Every slot, whatever the plan keeps between rounds.
        losses: (done,) summed loss of each step, in nats, float64; zeros in a private round.
        targets: Loss terms processed.
        generators: What dropout draws from next; empty in a private round, which draws a fresh seed a step.
        clip_norm: Of the next private step, where it adapts.
        gradient: Sum of the steps' own gradients, float32, where the strategy wants their mean.
        noise: Where correlated noise stands: it is resumed, and never begun anew.
    """

    done: int
    of: int
    adapter: Adapter
    optimiser_state: OptimiserState
    losses: NDArray[np.float64]
    targets: int
    generators: Generators
    clip_norm: float | None = None
    gradient: Packed | None = None
    noise: NoiseState | None = None


class Checkpoints(Protocol):
    """Where the checkpoints of one round go."""

    def due(self) -> bool:
        """Whether it is time for one."""

    def keep(self, checkpoint: Checkpoint) -> None:
        """Keep it in place of the one before. Never raises: no round fails for want of a checkpoint."""


def generators(device: torch.device) -> dict[str, NDArray[np.uint8]]:
    """The state of the generators that training on a device draws from."""
    states: dict[str, Any] = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return {kind: state.numpy().copy() for kind, state in states.items()}


def restore_generators(states: Generators, device: torch.device) -> None:
    """Put generators back; those of another kind of device are left alone."""
    if "cpu" in states:
        torch.set_rng_state(torch.from_numpy(np.array(states["cpu"])))
    if "cuda" in states and device.type == "cuda":
        torch.cuda.set_rng_state(torch.from_numpy(np.array(states["cuda"])), device)
