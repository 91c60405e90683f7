"""Where the audit looks at a private step: the run's own model and rules, the real code of the step.

Two things are put in the step's way: chosen batches, so that neighbours can be compared, and a task whose
losses can be made louder, so that clipping has something to do. Dropout is off: its masks are secret and
independent of the rows, and one noise more would hide what is measured.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Final, cast, final

import torch
from torch import nn

from wardround.core.errors import ConfigError
from wardround.privacy.accounting.mechanisms import SampledGaussian
from wardround.training.base_model import without_dropout
from wardround.training.private.clipping import Clipping
from wardround.training.private.gradient import Correlated, PrivateGradients, Sampled, private_gradients
from wardround.training.private.local import PrivateRound
from wardround.training.private.per_example import columns_of
from wardround.training.private.rounding import slack_of
from wardround.training.private.sampling import PoissonBatch
from wardround.training.tasks.contract import Batch, Encoded, Task
from wardround.training.workbench import Workbench

MANY_STEPS: Final = 10**6
"""The audit's own steps are charged to nobody: what they write goes nowhere."""
CUTS: Final = (1, 2, None)
"""Microbatch sizes."""
_SMALL_STEP: Final = 1e-3


@final
class Loud:
    """A task whose losses are multiplied, all of them or those of some rows. Everything else is the task's.

    Attributes:
        factor: Of every loss.
        rows: `id` of a row → a further factor; infinity is one.
    """

    def __init__(self, task: Task) -> None:
        self.factor = 1.0
        self.rows: dict[int, float] = {}
        self._task = task
        self._of_batch: list[float] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._task, name)

    def collate(self, encoded: Sequence[Any], data: Any) -> Batch:
        """As the task; notes whose lines they are."""
        self._of_batch = [self.factor * self.rows.get(id(row), 1.0) for row in encoded]
        return self._task.collate(encoded, data)

    def example_losses(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        """The task's own, multiplied."""
        losses = self._task.example_losses(model, batch)
        return losses * torch.tensor(self._of_batch, dtype=losses.dtype, device=losses.device)


@dataclass(frozen=True, repr=False)
class Stage:
    """A bench in training mode, without dropout, and what the audit may turn on it.

    Attributes:
        bench: Its task is `loud`.
        loud: Makes losses louder.
        private: Rules, rate, noise and sources of the round that is audited.
        rows: Batches are chosen from them.
    """

    bench: Workbench
    loud: Loud
    private: PrivateRound
    rows: Sequence[Encoded]

    @property
    def mechanism(self) -> SampledGaussian:
        """The run's q and σ, for as many steps as the audit takes."""
        cost = self.private.cost
        return SampledGaussian(sample_rate=cost.sample_rate, sigma=cost.sigma, steps=MANY_STEPS)

    def clipping(self) -> Clipping:
        """The run's rule, over all that trains."""
        return self.private.clipping(columns_of(self.bench.parameters()), slack_of(self.bench.model))

    @contextmanager
    def step(
        self, microbatch_size: int | None, steps: Sampled | Correlated | None = None
    ) -> Iterator[PrivateGradients]:
        """The real step over the rows, cut into microbatches of a size.

        Args:
            microbatch_size: Most rows at once; None leaves a batch whole.
            steps: What is taken; None: batches that are chosen, with noise of their own.

        Raises:
            ConfigError: As `private_gradients`.
        """
        machine = self.bench.machine.model_copy(update={"microbatch_size": microbatch_size})
        with private_gradients(
            replace(self.bench, machine=machine), self.bench.parameters(), self.rows, steps or self.mechanism,
            self.clipping(), expected_batch=self.private.expected_batch, source=self.private.noise,
            simulation=True,
        ) as gradients:  # fmt: skip
            yield gradients

    def batch(self, units: Sequence[Sequence[int]]) -> PoissonBatch:
        """A batch that was not drawn but chosen: the rows of each unit."""
        return PoissonBatch(
            indices=tuple(row for rows in units for row in rows),
            units=tuple(unit for unit, rows in enumerate(units) for _ in rows),
            rate=self.private.cost.sample_rate,
            population=len(self.rows),
            repeatable=True,
        )


@contextmanager
def on_stage(bench: Workbench, private: PrivateRound, rows: Sequence[Encoded]) -> Iterator[Stage]:
    """Prepare a bench for the audit; adapter, dropout and modes are put back afterwards.

    Args:
        bench: With the adapter on it that is audited.
        private: As a round of the run gets it.
        rows: Real ones, of different lengths if there are such; those without a target are passed over.

    Raises:
        ConfigError: No row has a target.
    """
    usable = [row for row in rows if bench.task.targets(row) > 0]
    if not usable:
        raise ConfigError("there is no row to audit with", found="no row with a target")
    loud, before = Loud(bench.task), bench.read_adapter()
    try:
        with without_dropout(bench.model):
            bench.model.train()
            yield Stage(replace(bench, task=cast("Task", loud)), loud, private, usable)
    finally:
        for parameter in bench.parameters().values():
            parameter.grad = None
        bench.load_adapter(before)


def written(parameters: dict[str, nn.Parameter]) -> torch.Tensor:
    """What a step put into `.grad`, (P,) float64 on the CPU, sorted by name; a small step is taken along it.

    The step is taken because the real one insists that something moves.
    """
    found = []
    with torch.no_grad():
        for _, parameter in sorted(parameters.items()):
            gradient = parameter.grad
            if gradient is None:
                found.append(torch.zeros(parameter.numel(), dtype=torch.float64))
                continue
            found.append(gradient.detach().reshape(-1).cpu().double())
            longest = float(gradient.abs().max())
            # A broken step may give zeros, which has to be seen by the tests and not by the step.
            parameter.sub_(gradient * (_SMALL_STEP / longest) if longest > 0 else _SMALL_STEP)
            parameter.grad = None
    return torch.cat(found)
