"""One private gradient: what the local round writes into `.grad` instead of the gradient of a sum.

g̃ = (1/B) (Σ_u f(‖h_u‖) h_u + N(0, (σ C)² I)): Abadi et al. 2016, arXiv:1607.00133v2, Algorithm 1, with a unit
(a patient) where they have an example.

1. The batch is a Poisson draw at the rate of the account, not used before, within what was reserved.
2. Microbatch by microbatch: losses of examples → their gradients → sums of units, clipped → one total.
3. Noise, once for the logical batch, whatever it holds; an empty one is noise alone.
4. Division by B, a constant of the plan.
5. `.grad`, in float32, under PEFT's own names; any optimiser may take it from there.

Where the run is one mechanism with correlated noise (`blocks.py`, `privacy/noise/correlated.py`) 1 is the
block whose turn it is, and 3 takes a part of earlier steps' noise back.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from wardround.core.errors import BudgetError, ConfigError, InternalError
from wardround.privacy.accounting.mechanisms import BandedGaussian, BoundedMixture, SampledGaussian
from wardround.privacy.noise.correlated import CorrelatedNoise
from wardround.privacy.noise.gaussian import noised
from wardround.privacy.noise.source import RandomSource
from wardround.training.device_memory import fitted, make_room, out_of_memory
from wardround.training.private.blocks import BlockBatch, Pattern
from wardround.training.private.clipping import Adaptive, Clipping
from wardround.training.private.guards import (
    AdapterStart,
    FrozenWeights,
    no_other_backward,
    require_no_gradients,
)
from wardround.training.private.per_example import ExampleGradients, record_gradients
from wardround.training.private.sampling import PoissonBatch, repeatable, require_drawn
from wardround.training.private.units import ClippedSum, ClippedUnits, unit_pieces
from wardround.training.tasks.contract import Batch, Encoded, Task
from wardround.training.workbench import Workbench

LOG = logging.getLogger(__name__)

Sampled: TypeAlias = SampledGaussian | BoundedMixture
"""What was reserved for the steps to come: q, σ and how many."""


@dataclass(frozen=True)
class Correlated:
    """What was reserved for a whole run whose noise is correlated over its steps, and where it stands.

    Attributes:
        mechanism: b, σ and the steps of the run.
        noise: Of the steps to come.
        pattern: Who is in which of them.
    """

    mechanism: BandedGaussian
    noise: CorrelatedNoise
    pattern: Pattern

    @property
    def sigma(self) -> float:
        """σ, of what is fresh in a step."""
        return self.mechanism.sigma


@dataclass(frozen=True, repr=False)
class StepFigures:
    """Of one step. Exact, hence for the site's own eyes: no figure leaves, or steers what leaves.

    Attributes:
        loss_sum: Summed loss terms in nats, without those that are not finite.
        targets: Loss terms.
        examples: Rows that have one.
        units: Units that have one.
        clipped: Units that were longer than the bound.
        dropped: Units that were not finite, or did not fit into memory, and contributed zero.
        median_norm: Of the units' gradients before clipping; 0 of none.
        signal_to_noise: Length of the clipped sum over the expected length of its noise, σ C √P.
    """

    loss_sum: float
    targets: int
    examples: int
    units: int
    clipped: int
    dropped: int
    median_norm: float
    signal_to_noise: float


@contextmanager
def private_gradients(
    bench: Workbench,
    parameters: Mapping[str, nn.Parameter],
    rows: Sequence[Encoded],
    mechanism: Sampled | Correlated,
    clipping: Clipping,
    *,
    expected_batch: float,
    source: RandomSource,
    simulation: bool = False,
) -> Iterator[PrivateGradients]:
    """Prepare a bench for the private steps of a local round; it is put back on the way out.

    Guarantee: under add-or-remove neighbours that differ by one unit (of the sampler that draws the batches),
        what the steps write is what `mechanism` describes, if each step's batch comes from a sampler over
        units that `rows` are grouped by, and its rate is the mechanism's. Gradients of other units are taken
        to be what they are without the unit: batched kernels round with the size of the batch, in float32 by
        about 1e-6 (the audit allows 1e-5), in half precision by less than the clipping rule's slack.
        Dropout masks are drawn under a fresh secret seed at each step, since under a known one a unit that is
        missing would shift everybody's masks. Torch keeps 32 bits of a seed on the CPU and 64 on CUDA, which
        is what hides them: without dropout nothing has to be hidden.

    Args:
        bench: Model, task, microbatch size; in training mode, with only `parameters` requiring gradients.
        parameters: What trains, by its name in the layout.
        rows: All rows that batches are drawn from, in the order of the sampler's units.
        mechanism: q, σ and the number of steps, as reserved; or what was reserved for the whole run.
        clipping: Rule and bound C.
        expected_batch: B, a constant of the plan, never the size of a batch.
        source: Of noise and of dropout's seeds.
        simulation: Says "not private": lets sources and batches from a seed pass.

    Yields:
        What computes the gradients, step by step. Weights outside the adapter are compared bit by bit at the
        end.

    Raises:
        ConfigError: Rows are packed; B is none; a parameter trains that has no rule.
        PolicyError: The noise is repeatable, and this is no simulation.
        InternalError: A weight outside the adapter moved, or another backward pass reached the adapter.
    """
    if source.repeatable and not simulation:
        raise repeatable("noise")
    if any(row.rows > 1 for row in rows):
        raise ConfigError(
            "packed rows have no gradients of their own",
            found="several rows in one sequence", expected="one row a sequence",
            remedy="set data.packing=false, or train without differential privacy",
        )  # fmt: skip
    if not (np.isfinite(expected_batch) and expected_batch > 0):
        raise ConfigError("the expected batch is none", found=expected_batch, expected="a number above 0")
    if isinstance(clipping, Adaptive) and isinstance(mechanism, Correlated):
        raise InternalError("correlated noise has one scale in all steps, and adaptive clipping has many")
    if isinstance(clipping, Adaptive):
        clipping.gradient_sigma(mechanism.sigma)  # refused before anything runs
    with (
        torch.random.fork_rng(devices=[bench.device] if bench.device.type == "cuda" else []),
        record_gradients(bench.model, parameters) as recorder,
        no_other_backward(parameters, lambda: recorder.lines is not None),
    ):
        frozen = FrozenWeights(bench.model, parameters.values())
        yield PrivateGradients(
            bench, recorder, rows, mechanism, clipping, frozen, expected_batch, source, simulation=simulation
        )
        frozen.require_unmoved(exact=True)


@final
class PrivateGradients:
    """See `private_gradients`, which makes it.

    Attributes:
        clipping: Rule of the next step. An adaptive one moves, by what was released alone: it may be kept.
        noise_variance: Of every entry of the gradient that was written last, (σ C / B)².
    """

    def __init__(
        self,
        bench: Workbench,
        recorder: ExampleGradients,
        rows: Sequence[Encoded],
        mechanism: Sampled | Correlated,
        clipping: Clipping,
        frozen: FrozenWeights,
        expected_batch: float,
        source: RandomSource,
        *,
        simulation: bool,
    ) -> None:
        self.clipping = clipping
        self.noise_variance = 0.0
        self._bench, self._recorder, self._rows = bench, recorder, rows
        self._targets = [bench.task.targets(row) for row in rows]
        self._mechanism, self._expected, self._source = mechanism, expected_batch, source
        self._frozen, self._simulation = frozen, simulation
        self._start: AdapterStart | None = AdapterStart(recorder.parameters)
        self._used: set[PoissonBatch | BlockBatch] = set()
        self._open = False

    def write(self, batch: PoissonBatch | BlockBatch) -> StepFigures:
        """Put the noised gradient of a batch into `.grad`; `stepped` has to follow the optimiser's step.

        Raises:
            InternalError: What was given is no fresh Poisson draw from these rows at the account's rate, a
                gradient lies in a `.grad`, a weight outside the adapter moved, or the step before was not
                closed. Nothing was written.
            PolicyError: The batch is repeatable, and this is no simulation.
            BudgetError: More steps than were reserved.
            ConfigError: Examples cannot be told apart; names the module or the task.
        """
        if self._open:
            raise InternalError(
                "a private gradient was not stepped with", expected="stepped() after each step"
            )
        clipped, figures = self.clipped_sum(batch)
        deviation = self._deviation()
        total = self._noised(clipped.total.cpu().numpy())
        mean = torch.from_numpy(total / self._expected).to(torch.float32).to(self._bench.device)
        for name, place in self._recorder.columns.items():
            parameter = self._recorder.parameters[name]
            parameter.grad = mean[place].view(parameter.shape)
        self.noise_variance = (deviation / self._expected) ** 2
        if isinstance(self.clipping, Adaptive):
            balance = np.array([clipped.balance])
            released = add_noise(balance, self.clipping.count_sigma, self._source)
            self.clipping = self.clipping.moved(float(released[0]))
        self._open = True
        return figures

    def clipped_sum(self, batch: PoissonBatch | BlockBatch) -> tuple[ClippedUnits, StepFigures]:
        """The clipped sum of a batch, without noise: for whoever adds it elsewhere (in the ring).

        It counts as a step.

        Raises:
            As `write`.
        """
        self._admit(batch)
        require_no_gradients(self._recorder.parameters)
        seed = int(self._source.words(1)[0]) >> 1
        used = [place for place, index in enumerate(batch.indices) if self._targets[index] > 0]
        indices = [batch.indices[place] for place in used]
        rows = [self._rows[index] for index in indices]
        units = [batch.units[place] for place in used]

        def attempt(size: int | None) -> tuple[ClippedSum, torch.Tensor]:
            torch.manual_seed(seed)
            alone = size == 1 or len(rows) == 1
            total = ClippedSum(self._recorder.size, self.clipping, self._bench.device)
            loss = torch.zeros((), device=self._bench.device)
            for piece in unit_pieces(units, [row.length for row in rows], size):
                some = [rows[example] for example in piece.examples]
                counts = torch.tensor([float(self._targets[indices[example]]) for example in piece.examples])
                counts = counts.to(self._bench.device)
                gradients, losses = self._fitting(some, counts, alone=alone)
                fold_piece(total, gradients, piece.units)
                loss += (losses * counts).nan_to_num(0.0, 0.0, 0.0).sum()
            return total, loss

        # Of a batch that begins again nothing was released: its sum is noised once.
        total, loss = fitted(
            self._bench.fit, self._bench.machine.microbatch_size, len(rows), attempt, self._recorder.forget
        )
        self._frozen.require_unmoved()
        clipped = total.close()
        return clipped, self._figures(clipped, indices, float(loss))

    def stepped(self) -> None:
        """Close a step that the optimiser has taken.

        Raises:
            TrainingError: `nothing_moved`, after the first step.
        """
        self._open = False
        if self._start is not None:
            self._start.require_moved()
            self._start = None

    def _noised(self, total: NDArray[np.float64]) -> NDArray[np.float64]:
        if isinstance(self._mechanism, Correlated):
            fresh = self._mechanism.sigma * self.clipping.bound
            return add_correlated(total, fresh, self._source, self._mechanism.noise)
        return add_noise(total, self._deviation(), self._source)

    def _fitting(
        self, rows: Sequence[Encoded], counts: torch.Tensor, *, alone: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """As `gradients_of_rows`; a row that does not fit into memory even alone has no finite gradient.

        So its unit contributes zero, and is counted as dropped: an error in its place would leave the site
        exactly when that unit is drawn.
        """
        try:
            return gradients_of_rows(self._bench, self._recorder, rows, counts)
        except (RuntimeError, MemoryError) as error:
            if not (alone and out_of_memory(error)):
                raise
        # Only here the error's frames are gone, and with them the tensors that they held.
        make_room()
        LOG.warning("the device's memory does not hold a row's step even alone: its unit contributes nothing")
        return self._recorder.undefined(len(rows))

    def _admit(self, batch: PoissonBatch | BlockBatch) -> None:
        """Take a batch that the account knows of, once."""
        mechanism = self._mechanism
        if isinstance(mechanism, Correlated):
            done, steps = mechanism.noise.done, mechanism.mechanism.steps
        else:
            done, steps = len(self._used), mechanism.steps
            require_drawn(batch, mechanism.sample_rate, len(self._rows))
        if batch.repeatable and not self._simulation:
            raise repeatable("batch")
        if batch in self._used:
            raise InternalError("a batch serves one step", remedy="draw another one")
        if done >= steps:
            raise BudgetError(
                "more private steps than were reserved", found=f"step {done + 1}", expected=f"{steps} steps"
            )
        if isinstance(mechanism, Correlated):
            mechanism.pattern.require(batch, done)
        self._used.add(batch)

    def _deviation(self) -> float:
        """Standard deviation of the next sum's noise: σ C, or of what it is under correlated noise."""
        rule, mechanism = self.clipping, self._mechanism
        if isinstance(mechanism, Correlated):
            return mechanism.sigma * rule.bound * math.sqrt(mechanism.noise.variance)
        sigma = mechanism.sigma
        return (rule.gradient_sigma(sigma) if isinstance(rule, Adaptive) else sigma) * rule.bound

    def _figures(self, clipped: ClippedUnits, indices: Sequence[int], loss: float) -> StepFigures:
        noise = self._deviation() * self._recorder.size**0.5
        return StepFigures(
            loss_sum=loss,
            targets=sum(self._targets[index] for index in indices),
            examples=len(indices),
            units=clipped.units,
            clipped=clipped.clipped,
            dropped=clipped.dropped,
            median_norm=float(clipped.norms.median()) if clipped.units else 0.0,
            signal_to_noise=float(clipped.total.norm()) / noise,
        )


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


# Each of the four below is a step of the mathematics; tests break them one at a time, and have to notice.


def example_means(task: Task, model: nn.Module, tensors: Batch, counts: torch.Tensor) -> torch.Tensor:
    """Loss of each example, (n,): a mean over the example's own targets, and never over anybody else's.

    Dividing by the batch's tokens, as Hugging Face's `labels=` does, lets one long row shrink all others:
    then removing it moves the sum by more than C.
    """
    return task.example_losses(model, tensors) / counts


def fold_piece(total: ClippedSum, gradients: torch.Tensor, units: Sequence[int]) -> None:
    """Clip a microbatch's units and add them: no noise here."""
    total.add(gradients, units)


def add_noise(total: NDArray[np.float64], deviation: float, source: RandomSource) -> NDArray[np.float64]:
    """N(0, deviation²) on every entry of the sum: once a logical batch."""
    return noised(total, deviation, source)


def add_correlated(
    total: NDArray[np.float64], deviation: float, source: RandomSource, noise: CorrelatedNoise
) -> NDArray[np.float64]:
    """The same with noise that takes some of the earlier steps' back: N(0, deviation²) of it is fresh."""
    return noise.add(total, deviation, source)
