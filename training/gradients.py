"""Where the gradient of a step comes from without differential privacy: the mean over a batch.

`private/local.py` has the other kind: a clipped and noised sum over units.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass

import torch

from wardround.training.batches import Indices, microbatches
from wardround.training.checkpoint import generators, restore_generators
from wardround.training.device_memory import fitted
from wardround.training.tasks.contract import Encoded
from wardround.training.workbench import Workbench


@dataclass(frozen=True)
class Wanted:
    """A step that waits for its gradient: that of the mean over a batch, in the parameters' `.grad`."""

    rows: Sequence[Encoded]
    batch: Indices

    def alone(self, bench: Workbench) -> tuple[torch.Tensor, int]:
        """As `accumulate_gradient`, of the adapter that the bench has loaded."""
        return accumulate_gradient(bench, self.rows, self.batch)


@dataclass(frozen=True)
class MeanGradients:
    """∇ (Σ loss terms / number of terms) of one logical batch after the other.

    Attributes:
        rows: Those with a target.
        batches: Indices into them.
        figures: A private round's; none here.
        clip_norm: Likewise.
        noise_variance: Of an entry of the gradient: there is no noise.
        state: Of correlated noise, likewise.
    """

    rows: Sequence[Encoded]
    batches: Sequence[Indices]
    figures: tuple[()] = ()
    clip_norm: None = None
    noise_variance: float = 0.0
    state: None = None

    @property
    def steps(self) -> int:
        """One a batch."""
        return len(self.batches)

    def write(self, step: int) -> Generator[Wanted, tuple[torch.Tensor, int], tuple[torch.Tensor, int]]:
        """Wait for the gradient of a step's batch; gives its summed loss and the number of its terms."""
        return (yield Wanted(self.rows, self.batches[step]))

    def stepped(self) -> None:
        """Nothing follows."""


def accumulate_gradient(
    bench: Workbench, rows: Sequence[Encoded], batch: Indices
) -> tuple[torch.Tensor, int]:
    """Put ∇ (Σ loss terms / number of terms) of one logical batch into the parameters' `.grad`.

    Where the device's memory does not hold a microbatch the batch begins again in smaller ones, to the bits
    that it would have had with them from the start.

    Returns:
        The summed loss in nats, as a scalar on the device, and the number of terms.

    Raises:
        TrainingError: `out_of_memory`: not one row fits.
    """
    before = generators(bench.device)

    def undo() -> None:
        for parameter in bench.parameters().values():
            parameter.grad = None
        restore_generators(before, bench.device)

    return fitted(
        bench.fit, bench.machine.microbatch_size, len(batch),
        lambda size: _accumulated(bench, rows, batch, size), undo,
    )  # fmt: skip


def _accumulated(
    bench: Workbench, rows: Sequence[Encoded], batch: Indices, size: int | None
) -> tuple[torch.Tensor, int]:
    count = sum(bench.task.targets(rows[index]) for index in batch)
    total = torch.zeros((), device=bench.device)
    for piece in microbatches(batch, rows, size):
        tensors = bench.task.collate([rows[index] for index in piece], bench.data)
        on_device = {name: tensor.to(bench.device) for name, tensor in tensors.items()}
        with bench.padding.of(on_device):
            loss = bench.task.example_losses(bench.model, on_device).sum()
            (loss / count).backward()  # type: ignore[no-untyped-call]  # torch leaves backward untyped
        total += loss.detach()
    return total, count
