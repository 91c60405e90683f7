"""The clipped sums of logical batches: of one site, or of several whose rows share the passes.

Microbatch by microbatch: losses of rows → their gradients → sums of units, clipped → one total a site. A
site's rows, units, rule and total are its own; what it shares is the pass of the base, in which rows stand
beside each other as those of one site do.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

import torch
from torch import nn

from wardround.core.errors import ConfigError
from wardround.training.device_memory import fitted, make_room, out_of_memory
from wardround.training.private.clipping import Clipping
from wardround.training.private.per_example import ExampleGradients, Recording
from wardround.training.private.units import ClippedSum, ClippedUnits, unit_pieces
from wardround.training.tasks.contract import Batch, Encoded, Task
from wardround.training.workbench import Workbench

LOG = logging.getLogger(__name__)

Shares: TypeAlias = Callable[[Sequence[int]], AbstractContextManager[None]]
"""So many rows of a microbatch are each site's, in order: while it is open the model reads them so."""


@dataclass(frozen=True, repr=False)
class WantedSum:
    """A private step that waits for the clipped sum of its batch. Who is in that is secret.

    Attributes:
        rows: Of the batch, those with a target; there may be none.
        targets: Of each row.
        units: Of each row, as a number.
        clipping: How a unit is shortened.
        seed: Of dropout's masks; secret.
        recording: Of the rows' gradients.
    """

    rows: Sequence[Encoded]
    targets: Sequence[int]
    units: Sequence[int]
    clipping: Clipping
    seed: int
    recording: Recording

    def alone(self, bench: Workbench) -> Summed:
        """The sum, by the adapter that the bench has loaded.

        Raises:
            ConfigError: Examples cannot be told apart; names the module or the task.
            InternalError: A weight outside the adapter moved.
        """
        return clipped_sums(bench, [self])[0]


@dataclass(frozen=True, repr=False)
class Summed:
    """What a batch gave. Nothing of it may leave a site before `clipped.total` is noised.

    Attributes:
        clipped: The sum.
        loss: Summed loss terms in nats, without those that are not finite.
    """

    clipped: ClippedUnits
    loss: float


def clipped_sums(
    bench: Workbench, wanted: Sequence[WantedSum], shares: Shares = lambda _: nullcontext()
) -> list[Summed]:
    """The clipped sum of each site's batch, without noise.

    Units come to a site's total in the order in which they come where it is alone; the other sites' rows
    change where microbatches are cut, which is float64 rounding, and how long a row is padded.

    Args:
        bench: Model, task, microbatch size; in training mode, without dropout where there are several sites.
        wanted: Of each site, at least one; all have one recording.
        shares: Lets the model multiply each site's rows by that site's adapter.

    Raises:
        ConfigError: Examples cannot be told apart; names the module or the task.
        InternalError: A weight outside the adapter moved.
    """
    recorder, device = wanted[0].recording.gradients, bench.device
    rows = [row for each in wanted for row in each.rows]
    targets = [float(count) for each in wanted for count in each.targets]
    sites = [site for site, each in enumerate(wanted) for _ in each.rows]
    units = [(site, unit) for site, each in enumerate(wanted) for unit in each.units]

    def attempt(size: int | None) -> list[Summed]:
        torch.manual_seed(wanted[0].seed)  # of one site: several have no masks
        alone = size == 1 or len(rows) == 1
        totals = [ClippedSum(recorder.size, each.clipping, device) for each in wanted]
        losses = [torch.zeros((), device=device) for _ in wanted]
        for piece in unit_pieces(units, [row.length for row in rows], size):
            # Site by site, and within a site as the piece has them.
            entries = sorted(zip(piece.examples, piece.units, strict=True), key=lambda entry: sites[entry[0]])
            own = [sum(sites[row] == site for row, _ in entries) for site in range(len(wanted))]
            counts = torch.tensor([targets[row] for row, _ in entries]).to(device)
            with shares(own):
                gradients, means = _fitting(
                    bench, recorder, [rows[row] for row, _ in entries], counts, alone=alone
                )
            start = 0
            for site, count in enumerate(own):
                place = slice(start, start + count)
                start += count
                if count:
                    fold_piece(totals[site], gradients[place], [unit for _, unit in entries[place]])
                    losses[site] += (means[place] * counts[place]).nan_to_num(0.0, 0.0, 0.0).sum()
        return [Summed(total.close(), float(loss)) for total, loss in zip(totals, losses, strict=True)]

    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        # Of a batch that begins again nothing was released: its sum is noised once.
        sums = fitted(bench.fit, bench.machine.microbatch_size, len(rows), attempt, recorder.forget)
    wanted[0].recording.frozen.require_unmoved()
    return sums


def _fitting(
    bench: Workbench,
    recorder: ExampleGradients,
    rows: Sequence[Encoded],
    counts: torch.Tensor,
    *,
    alone: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """As `gradients_of_rows`; a row that does not fit into memory even alone has no finite gradient.

    So its unit contributes zero, and is counted as dropped: an error in its place would leave the site
    exactly when that unit is drawn.
    """
    try:
        return gradients_of_rows(bench, recorder, rows, counts)
    except (RuntimeError, MemoryError) as error:
        if not (alone and out_of_memory(error)):
            raise
    # Only here the error's frames are gone, and with them the tensors that they held.
    make_room()
    LOG.warning("the device's memory does not hold a row's step even alone: its unit contributes nothing")
    return recorder.undefined(len(rows))


def gradients_of_rows(
    bench: Workbench, recorder: ExampleGradients, rows: Sequence[Encoded], counts: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradients (n, P) of a microbatch, which the next call overwrites, and the mean loss of each row.

    Args:
        bench: Model and task.
        recorder: Of the model.
        rows: Of the microbatch.
        counts: Targets of each, on the device.

    Raises:
        ConfigError: Examples cannot be told apart; names the module or the task.
    """
    collated = bench.task.collate(rows, bench.data)
    tensors = {name: tensor.to(bench.device) for name, tensor in collated.items()}
    lines = len(next(iter(tensors.values())))
    if lines != len(rows):
        raise ConfigError(
            f"the task {bench.task.name!r} does not read one line for each example",
            found=f"{lines} lines of {len(rows)} examples", expected="as many lines as examples",
            remedy="train without differential privacy",
        )  # fmt: skip
    return recorder.of(partial(example_means, bench.task, bench.model, tensors, counts), lines)


# Each of the two below is a step of the mathematics; tests break them one at a time, and have to notice.


def example_means(task: Task, model: nn.Module, tensors: Batch, counts: torch.Tensor) -> torch.Tensor:
    """Loss of each example, (n,): a mean over the example's own targets, and never over anybody else's.

    Dividing by the batch's tokens, as Hugging Face's `labels=` does, lets one long row shrink all others:
    then removing it moves the sum by more than C.
    """
    return task.example_losses(model, tensors) / counts


def fold_piece(total: ClippedSum, gradients: torch.Tensor, units: Sequence[int]) -> None:
    """Clip a microbatch's units and add them: no noise here."""
    total.add(gradients, units)
