"""Where the gradient of a step comes from without differential privacy: the mean over a batch.

`private/local.py` has the other kind: a clipped and noised sum over units.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from wardround.training.batches import Indices, microbatches
from wardround.training.tasks.contract import Encoded
from wardround.training.workbench import Workbench


@dataclass(frozen=True)
class MeanGradients:
    """∇ (Σ loss terms / number of terms) of one logical batch after the other.

    Attributes:
        bench: Model and task.
        rows: Those with a target.
        batches: Indices into them.
        figures: A private round's; none here.
        clip_norm: Likewise.
        noise_variance: Of an entry of the gradient: there is no noise.
    """

    bench: Workbench
    rows: Sequence[Encoded]
    batches: Sequence[Indices]
    figures: tuple[()] = ()
    clip_norm: None = None
    noise_variance: float = 0.0

    @property
    def steps(self) -> int:
        """One a batch."""
        return len(self.batches)

    def write(self, step: int) -> tuple[torch.Tensor, int]:
        """Put a step's gradient, counted from 0, into the parameters' `.grad`; as `accumulate_gradient`."""
        return accumulate_gradient(self.bench, self.rows, self.batches[step])

    def stepped(self) -> None:
        """Nothing follows."""


def accumulate_gradient(
    bench: Workbench, rows: Sequence[Encoded], batch: Indices
) -> tuple[torch.Tensor, int]:
    """Add ∇ (Σ loss terms / number of terms) of one logical batch to the parameters' `.grad`.

    Returns:
        The summed loss in nats, as a scalar on the device, and the number of terms.
    """
    count = sum(bench.task.targets(rows[index]) for index in batch)
    total = torch.zeros((), device=bench.device)
    for piece in microbatches(batch, rows, bench.machine.microbatch_size):
        tensors = bench.task.collate([rows[index] for index in piece], bench.data)
        on_device = {name: tensor.to(bench.device) for name, tensor in tensors.items()}
        loss = bench.task.example_losses(bench.model, on_device).sum()
        (loss / count).backward()  # type: ignore[no-untyped-call]  # torch leaves backward untyped
        total += loss.detach()
    return total, count
