"""One private gradient: what the local round writes into `.grad` instead of the gradient of a sum.

g̃ = (1/B) (Σ_u f(‖h_u‖) h_u + N(0, (σ C)² I)): Abadi et al. 2016, arXiv:1607.00133v2, Algorithm 1, with a unit
(a patient) where they have an example.

1. The batch is a Poisson draw at the rate of the account, not used before, within what was reserved.
2. Its clipped sum is asked for (`summing.py`); other sites' may come from the same passes.
3. Noise, once for the logical batch, whatever it holds; an empty one is noise alone.
4. Division by B, a constant of the plan.
5. `.grad`, in float32, under PEFT's own names; any optimiser may take it from there.

Where the run is one mechanism with correlated noise (`blocks.py`, `privacy/noise/correlated.py`) 1 is the
block whose turn it is, and 3 takes a part of earlier steps' noise back.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
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
from wardround.training.private.blocks import BlockBatch, Pattern
from wardround.training.private.clipping import Adaptive, Clipping
from wardround.training.private.guards import AdapterStart, no_other_backward, require_no_gradients
from wardround.training.private.per_example import Recording, columns_of
from wardround.training.private.sampling import PoissonBatch, repeatable, require_drawn
from wardround.training.private.summing import Summed, WantedSum
from wardround.training.private.units import ClippedUnits
from wardround.training.tasks.contract import Encoded
from wardround.training.workbench import Place, Workbench

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
    bench: Place,
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
        bench: A whole one, in training mode, with only `parameters` requiring gradients; or a seat at one.
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
        bench.recording(parameters) as recording,
        no_other_backward(parameters, lambda: recording.gradients.lines is not None),
    ):
        yield PrivateGradients(
            bench, parameters, recording, rows, mechanism, clipping, expected_batch, source,
            simulation=simulation,
        )  # fmt: skip


@final
class PrivateGradients:
    """See `private_gradients`, which makes it.

    A step asks for a sum (`wanted`), takes it and leaves a gradient (`noise`), and is closed (`stepped`).

    Attributes:
        clipping: Rule of the next step. An adaptive one moves, by what was released alone: it may be kept.
        noise_variance: Of every entry of the gradient that was written last, (σ C / B)².
    """

    def __init__(
        self,
        bench: Place,
        parameters: Mapping[str, nn.Parameter],
        recording: Recording,
        rows: Sequence[Encoded],
        mechanism: Sampled | Correlated,
        clipping: Clipping,
        expected_batch: float,
        source: RandomSource,
        *,
        simulation: bool,
    ) -> None:
        self.clipping = clipping
        self.noise_variance = 0.0
        self._bench, self._parameters, self._recording, self._rows = bench, parameters, recording, rows
        self._columns = columns_of(parameters)
        if recording.gradients.columns != self._columns:
            raise InternalError("gradients are recorded of other tensors than those that train")
        self._targets = [bench.task.targets(row) for row in rows]
        self._mechanism, self._expected, self._source = mechanism, expected_batch, source
        self._simulation = simulation
        self._start: AdapterStart | None = AdapterStart(parameters)
        self._used: set[PoissonBatch | BlockBatch] = set()
        self._open = False

    def wanted(self, batch: PoissonBatch | BlockBatch) -> WantedSum:
        """The sum of a batch that the account knows of; it counts as a step.

        Raises:
            InternalError: What was given is no fresh Poisson draw from these rows at the account's rate, a
                gradient lies in a `.grad`, or the step before was not closed. Nothing was written.
            PolicyError: The batch is repeatable, and this is no simulation.
            BudgetError: More steps than were reserved.
        """
        if self._open:
            raise InternalError(
                "a private gradient was not stepped with", expected="stepped() after each step"
            )
        self._admit(batch)
        require_no_gradients(self._parameters)
        seed = int(self._source.words(1)[0]) >> 1
        used = [place for place, index in enumerate(batch.indices) if self._targets[index] > 0]
        indices = [batch.indices[place] for place in used]
        return WantedSum(
            [self._rows[index] for index in indices], [self._targets[index] for index in indices],
            [batch.units[place] for place in used], self.clipping, seed, self._recording,
        )  # fmt: skip

    def noise(self, wanted: WantedSum, summed: Summed) -> StepFigures:
        """Put the noised sum of a batch into `.grad`; `stepped` has to follow the optimiser's step."""
        figures = self.figures(wanted, summed)
        require_no_gradients(self._parameters)  # of the pass that the sum comes from
        deviation = self._deviation()
        total = self._noised(summed.clipped.total.cpu().numpy())
        mean = torch.from_numpy(total / self._expected).to(torch.float32).to(self._bench.device)
        for name, place in self._columns.items():
            parameter = self._parameters[name]
            parameter.grad = mean[place].view(parameter.shape)
        self.noise_variance = (deviation / self._expected) ** 2
        if isinstance(self.clipping, Adaptive):
            balance = np.array([summed.clipped.balance])
            released = add_noise(balance, self.clipping.count_sigma, self._source)
            self.clipping = self.clipping.moved(float(released[0]))
        self._open = True
        return figures

    def figures(self, wanted: WantedSum, summed: Summed) -> StepFigures:
        """Of a step whose noise is added here or elsewhere (in the ring)."""
        clipped = summed.clipped
        noise = self._deviation() * self._recording.gradients.size**0.5
        return StepFigures(
            loss_sum=summed.loss,
            targets=sum(wanted.targets),
            examples=len(wanted.rows),
            units=clipped.units,
            clipped=clipped.clipped,
            dropped=clipped.dropped,
            median_norm=float(clipped.norms.median()) if clipped.units else 0.0,
            signal_to_noise=float(clipped.total.norm()) / noise,
        )

    def write(self, batch: PoissonBatch | BlockBatch) -> StepFigures:
        """`wanted` and `noise`, with the sum computed at the bench itself.

        Raises:
            As `wanted` and `WantedSum.alone`; nothing was written.
        """
        wanted = self.wanted(batch)
        return self.noise(wanted, wanted.alone(_whole(self._bench)))

    def clipped_sum(self, batch: PoissonBatch | BlockBatch) -> tuple[ClippedUnits, StepFigures]:
        """`wanted` and `figures`, likewise: a step without noise.

        Raises:
            As `write`.
        """
        wanted = self.wanted(batch)
        summed = wanted.alone(_whole(self._bench))
        return summed.clipped, self.figures(wanted, summed)

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


def _whole(bench: Place) -> Workbench:
    if not isinstance(bench, Workbench):
        raise InternalError("at a seat a sum is computed with the other sites'")
    return bench


# Each of the two below is a step of the mathematics; tests break them one at a time, and have to notice.


def add_noise(total: NDArray[np.float64], deviation: float, source: RandomSource) -> NDArray[np.float64]:
    """N(0, deviation²) on every entry of the sum: once a logical batch."""
    return noised(total, deviation, source)


def add_correlated(
    total: NDArray[np.float64], deviation: float, source: RandomSource, noise: CorrelatedNoise
) -> NDArray[np.float64]:
    """The same with noise that takes some of the earlier steps' back: N(0, deviation²) of it is fresh."""
    return noise.add(total, deviation, source)
