"""A private local round: what the site hands to it, and the gradients that the round steps along.

The loop is the one of every local round (`training/local_round.py`); what differs is where the gradient of a
step comes from.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
from torch import nn

from wardround.core.errors import InternalError
from wardround.core.packed import Array
from wardround.core.privacy_rules import PrivacyRules
from wardround.privacy.accounting.mechanisms import SampledGaussian
from wardround.privacy.accounting.of_plan import RoundCost
from wardround.privacy.noise.correlated import CorrelatedNoise, NoiseState
from wardround.privacy.noise.source import RandomSource
from wardround.training.private.blocks import BlockBatch, BlockSampler, Pattern
from wardround.training.private.clipping import Adaptive, Automatic, Clipping, Flat, split_by_layer
from wardround.training.private.gradient import (
    Correlated,
    PrivateGradients,
    Sampled,
    StepFigures,
    private_gradients,
)
from wardround.training.private.per_example import columns_of
from wardround.training.private.rounding import slack_of
from wardround.training.private.sampling import PoissonBatch, PoissonSampler
from wardround.training.private.summing import Summed, WantedSum
from wardround.training.tasks.contract import Encoded
from wardround.training.workbench import Place


class Sampler(Protocol):
    """Gives the batch of each step."""

    def draw(self) -> PoissonBatch | BlockBatch:
        """The next one."""


@dataclass(frozen=True, repr=False)
class PrivateRound:
    """What makes one local round private.

    Attributes:
        rules: The plan's.
        cost: Rate, noise and steps, as they were reserved.
        expected_batch: B, by which sums are divided: a constant of the plan.
        units: The unit of each training row.
        clip_norm: C of the first step; under adaptive clipping it is what the last round left.
        batches: Words for who is in a batch.
        noise: Words for the noise.
        simulation: Says "not private": batches and noise may come from a seed.
        done: Steps that an earlier process did, under a reservation of its own; this one may do the rest.
        state: Where the run's correlated noise stands; None where every step has its own.
    """

    rules: PrivacyRules
    cost: RoundCost
    expected_batch: float
    units: Sequence[str]
    clip_norm: float
    batches: RandomSource
    noise: RandomSource
    simulation: bool = False
    done: int = 0
    state: NoiseState | None = None

    def steps(self) -> Sampled | Correlated:
        """What was reserved for the steps to come.

        Raises:
            InternalError: Noise is correlated, and nobody knows where it stands.
        """
        banded = self.cost.banded
        if banded is None:
            left = self.cost.after(self.done)
            return SampledGaussian(sample_rate=left.sample_rate, sigma=left.sigma, steps=left.steps)
        if self.state is None:
            raise InternalError("a round with correlated noise begins without the noise of the steps before")
        noise = CorrelatedNoise(banded.bands, banded.steps, self.state)
        return Correlated(banded, noise, Pattern(self.units, banded.bands, noise.key))

    def copied(self) -> PrivateRound:
        """The round with sources of its own: what it draws from a seed, this one draws as well.

        For a round that may fail, and of which nothing is released then. Words of the operating system are
        fresh ones every time.
        """
        batches, noise = (
            deepcopy(source) if source.repeatable else source for source in (self.batches, self.noise)
        )
        return replace(self, batches=batches, noise=noise)

    def sampler(self, steps: Sampled | Correlated) -> Sampler:
        """Draws the batches of those steps."""
        most = self.rules.most_examples if self.rules.unit == "patient" else None
        if isinstance(steps, Correlated):
            return BlockSampler(steps.pattern, self.units, steps.noise.done, self.batches, most)
        return PoissonSampler(self.units, self.cost.sample_rate, self.batches, most)

    def clipping(self, columns: Mapping[str, slice], slack: float) -> Clipping:
        """The plan's rule.

        Args:
            columns: Name of a tensor → its place in a row of gradients.
            slack: What the model's arithmetic rounds (`rounding.py:slack_of`).
        """
        match self.rules.clipping:
            case "flat":
                return Flat(self.clip_norm, slack)
            case "per_layer":
                return split_by_layer(self.clip_norm, columns, slack)
            case "automatic":
                return Automatic(self.clip_norm, slack=slack)
            case "adaptive":
                settings = self.rules.adaptive
                return Adaptive(
                    self.clip_norm,
                    self.expected_batch,
                    settings.count_noise,
                    settings.quantile,
                    settings.rate,
                    settings.smallest,
                    settings.largest,
                    slack,
                )


@dataclass
class NoisedGradients:
    """Gradients of a round in which every step is noised at the site.

    Attributes:
        steps: Of the whole round, whoever does them.
        noise: Of a run whose noise is correlated over its steps.
        figures: Of the steps so far; exact, hence for the site's own eyes.
    """

    gradients: PrivateGradients
    sampler: Sampler
    steps: int
    device: torch.device
    noise: CorrelatedNoise | None = None
    figures: list[StepFigures] = field(default_factory=list)

    def write(self, step: int) -> Generator[WantedSum, Summed, tuple[torch.Tensor, int]]:  # noqa: ARG002 - the sampler knows whose turn it is
        """Draw a batch, wait for its clipped sum, and put the noised gradient into `.grad`."""
        wanted = self.gradients.wanted(self.sampler.draw())
        self.figures.append(self.gradients.noise(wanted, (yield wanted)))
        return torch.zeros((), device=self.device), 0

    def stepped(self) -> None:
        """Close the step."""
        self.gradients.stepped()

    @property
    def noise_variance(self) -> float:
        """Of every entry of the gradient that was written last."""
        return self.gradients.noise_variance

    @property
    def clip_norm(self) -> float:
        """C of the next step: a function of what was released."""
        return self.gradients.clipping.bound

    @property
    def state(self) -> NoiseState | None:
        """Where correlated noise stands."""
        return None if self.noise is None else self.noise.state


@contextmanager
def noised_gradients(
    bench: Place, parameters: Mapping[str, nn.Parameter], rows: Sequence[Encoded], private: PrivateRound
) -> Iterator[NoisedGradients]:
    """Gradients of the round's steps.

    Raises:
        ConfigError: A parameter trains that has no rule, or rows are packed.
        InternalError: A weight outside the adapter moved.
    """
    steps = private.steps()
    with _opened(bench, parameters, rows, private, steps) as gradients:
        noise = steps.noise if isinstance(steps, Correlated) else None
        yield NoisedGradients(gradients, private.sampler(steps), private.cost.steps, bench.device, noise)


def clipped_sum(
    bench: Place, parameters: Mapping[str, nn.Parameter], rows: Sequence[Encoded], private: PrivateRound
) -> Generator[WantedSum, Summed, tuple[dict[str, Array], StepFigures]]:
    """The clipped sum of one batch over B, without noise: where it is added as a share in the ring.

    Yields:
        What it waits for.

    Returns:
        Name of a tensor → its part, float64, of the tensor's shape.

    Raises:
        ConfigError: As `noised_gradients`.
    """
    steps = private.steps()
    with _opened(bench, parameters, rows, private, steps) as gradients:
        wanted = gradients.wanted(private.sampler(steps).draw())
        summed = yield wanted
        figures = gradients.figures(wanted, summed)
    columns = columns_of(parameters)
    mean = summed.clipped.total.cpu().numpy() / private.expected_batch
    return {name: mean[columns[name]].reshape(parameters[name].shape) for name in parameters}, figures


@contextmanager
def _opened(
    bench: Place,
    parameters: Mapping[str, nn.Parameter],
    rows: Sequence[Encoded],
    private: PrivateRound,
    steps: Sampled | Correlated,
) -> Iterator[PrivateGradients]:
    with private_gradients(
        bench, parameters, rows, steps, private.clipping(columns_of(parameters), slack_of(bench.model)),
        expected_batch=private.expected_batch, source=private.noise, simulation=private.simulation,
    ) as gradients:  # fmt: skip
        yield gradients
