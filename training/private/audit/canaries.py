"""The third test of the gate: a lower bound on ε, from canaries in one run of the private step.

White-box gradient canaries (Steinke, Nasr & Jagielski 2023, arXiv:2305.08846): canary j is a
unit whose gradient is K e_j, K far beyond C, on a coordinate of its own. Each is in the run with probability
1/2. The run's noised sums are observed at every step; a canary's score is what they hold at its coordinate,
added up over the steps. The highest scores are guessed to be in, the lowest to be out, and
`privacy/accounting/one_run.py` says what ε so many right guesses refute.

Batches are really drawn, sums clipped and noised by the step's own code; the model is not asked for the
canaries' gradients, which are given. So it sees what a missing clip, too little noise or another sampling do
to the claim as a whole, roughly: half the noise may stay below it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, ClassVar, Final, cast, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from wardround.privacy.accounting.account import Account
from wardround.privacy.accounting.mechanisms import SampledGaussian
from wardround.privacy.accounting.one_run import shown_epsilon
from wardround.training.private.audit.findings import Finding
from wardround.training.private.audit.stage import Stage, written
from wardround.training.private.gradient import PrivateGradients
from wardround.training.private.guards import FrozenWeights
from wardround.training.private.per_example import ExampleGradients, Recording, columns_of
from wardround.training.private.rounding import slack_of
from wardround.training.private.sampling import PoissonSampler

DELTA: Final = 1e-6
"""At which both the bound and the claim are meant."""
_LOUDER: Final = 1e3
"""K over C."""
_CLAIM: Final = 2.0
"""Steps are taken until about this ε is claimed: a larger claim hides more, a smaller one shows less."""
_MOST_STEPS: Final = 256
_GUESSES: Final = ((0.05, 0.05), (0.125, 0.125), (0.125, 0.0), (0.5, 0.5))
"""Shares of the canaries that are guessed in and out; all are tried, each at its part of the 5 %."""
_BUFFER: Final = 1 << 24
"""Entries of gradients at once."""


@dataclass(frozen=True)
class Shown:
    """What the guesses show.

    Attributes:
        epsilon: Lower bound at 95 %.
        claimed: The accountant's, of the same steps.
        most: The bound that nothing but right guesses would have given: where it is below the claim, a test
            of so many canaries has no power.
        canaries: m.
        guesses: r, of the choice that shows most.
        right: v.
        steps: Taken.
    """

    epsilon: float
    claimed: float
    most: float
    canaries: int
    guesses: int
    right: int
    steps: int

    @property
    def finding(self) -> Finding:
        """The bound against the claim."""
        note = (
            f"ε at δ = {DELTA:g}, 95 %; {self.right} of {self.guesses} guesses right, "
            f"{self.canaries} canaries, {self.steps} steps; at most {self.most:.2f} could be shown"
        )
        return Finding("canaries, lower bound", self.epsilon, 0.0, self.claimed, note)


def canaries(stage: Stage, *, most: int = 2000, steps: int | None = None, seed: int = 0) -> Shown:
    """Audit the step with canaries.

    Args:
        stage: Of the audit; of the adapter only so many tensors train as have room for the canaries.
        most: Canaries, at most one for each coordinate.
        steps: To take; None: so many that about ε = 2 is claimed.
        seed: Which canaries are in.
    """
    cost = stage.private.cost
    taken = steps or steps_for(cost.sample_rate, cost.sigma)
    mechanism = SampledGaussian(sample_rate=cost.sample_rate, sigma=cost.sigma, steps=taken)
    claimed = claimed_epsilon(mechanism)
    rng = np.random.default_rng(seed)
    with _few_train(stage, most) as parameters:
        columns = columns_of(parameters)
        size = sum(parameter.numel() for parameter in parameters.values())
        places = rng.permutation(size)[:most]
        included = rng.random(len(places)) < 0.5  # noqa: PLR2004 - a coin
        rows = [Canary(int(place)) for place in places[included]]
        clipping = stage.private.clipping(columns, slack_of(stage.bench.model))
        task = CanaryTask()
        lines = max(1, _BUFFER // size)
        machine = stage.bench.machine.model_copy(update={"microbatch_size": lines})
        gradients = PrivateGradients(
            replace(stage.bench, task=cast("Any", task), machine=machine), parameters,
            Recording(
                cast("ExampleGradients", _Given(parameters, columns, task, _LOUDER * clipping.bound)),
                FrozenWeights(stage.bench.model, parameters.values()),
            ),
            rows, mechanism, clipping, stage.private.expected_batch, stage.private.noise, simulation=True,
        )  # fmt: skip
        sampler = PoissonSampler(range(len(rows)), cost.sample_rate, stage.private.batches)
        scores = np.zeros(size)
        for _ in range(taken):
            gradients.write(sampler.draw())
            scores += written(parameters).numpy()
            gradients.stepped()
    return guessed(scores[places], included, claimed, taken)


@lru_cache(maxsize=64)
def claimed_epsilon(mechanism: SampledGaussian) -> float:
    """The accountant's tight ε: of a schedule that is fixed beforehand, as this one is."""
    return Account(mechanisms=(mechanism,)).fixed_schedule_epsilon(DELTA, units=1).value


def steps_for(sample_rate: float, sigma: float) -> int:
    """As many steps, a power of two, as cost about ε = 2; at least one."""

    def epsilon(steps: int) -> float:
        mechanism = SampledGaussian(sample_rate=sample_rate, sigma=sigma, steps=steps)
        return Account(mechanisms=(mechanism,)).epsilon(DELTA, units=1).value

    steps = 1
    while 2 * steps <= _MOST_STEPS and epsilon(2 * steps) <= _CLAIM:
        steps *= 2
    return steps


def guessed(scores: NDArray[np.float64], included: NDArray[np.bool_], claimed: float, steps: int) -> Shown:
    """What the scores of canaries show.

    Args:
        scores: (m,).
        included: (m,), which were in.
        claimed: The accountant's ε.
        steps: That were taken.
    """
    order, m = np.argsort(-scores, kind="stable"), len(scores)
    confidence = 1 - 0.05 / len(_GUESSES)
    best: Shown | None = None
    for high, low in _GUESSES:
        ins, outs = order[: int(high * m)], order[m - int(low * m) :]
        guesses = len(ins) + len(outs)
        right = int(included[ins].sum()) + int((~included[outs]).sum())
        shown = shown_epsilon(m, guesses, right, DELTA, confidence=confidence)
        could = shown_epsilon(m, guesses, guesses, DELTA, confidence=confidence)
        most = max(could, best.most) if best else could
        if best is None or shown > best.epsilon:
            best = Shown(shown, claimed, most, m, guesses, right, steps)
        best = replace(best, most=most)
    assert best is not None  # noqa: S101 - there are choices
    return best


@dataclass(frozen=True)
class Canary:
    """A row with the gradient K e_place.

    Attributes:
        place: Its coordinate.
        length: As a row says it.
        rows: Likewise.
        cut: Likewise.
    """

    place: int
    length: int = 1
    rows: int = 1
    cut: int = 0


@final
class CanaryTask:
    """What the step asks of a task, for canaries.

    Attributes:
        places: Of the microbatch that is on its way.
    """

    name: ClassVar[str] = "canaries"

    def __init__(self) -> None:
        self.places: list[int] = []

    def targets(self, encoded: Canary) -> int:  # noqa: ARG002 - one each
        """One."""
        return 1

    def collate(self, encoded: Sequence[Canary], data: Any) -> dict[str, torch.Tensor]:  # noqa: ARG002 - as a task's
        """The places."""
        self.places = [canary.place for canary in encoded]
        return {"place": torch.tensor(self.places)}


@final
class _Given:
    """Stands in for `ExampleGradients`: the canaries' gradients."""

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        columns: Mapping[str, slice],
        task: CanaryTask,
        length: float,
    ) -> None:
        self.parameters = dict(sorted(parameters.items()))
        self.columns = dict(columns)
        self.size = max(place.stop for place in columns.values())
        self._task, self._length = task, length
        self._device = next(iter(self.parameters.values())).device

    def of(self, losses: object, lines: int) -> tuple[torch.Tensor, torch.Tensor]:  # noqa: ARG002 - they stand for losses
        """K e_j for each line."""
        gradients = torch.zeros(lines, self.size, device=self._device)
        if lines:
            gradients[torch.arange(lines), torch.tensor(self._task.places)] = self._length
        return gradients, torch.zeros(lines, device=self._device)

    def forget(self) -> None:
        """There is no buffer."""


@contextmanager
def _few_train(stage: Stage, enough: int) -> Iterator[dict[str, nn.Parameter]]:
    """The smallest tensor of the adapter with room for so many canaries, or the largest ones together.

    Under clipping by layer the largest alone: a canary would get no more than its layer's part of C.
    """
    parameters = stage.bench.parameters()
    by_size = sorted(parameters.items(), key=lambda item: item[1].numel())
    roomy = [(name, parameter) for name, parameter in by_size if parameter.numel() >= enough][:1]
    chosen: dict[str, nn.Parameter] = {}
    largest = by_size[-1:] if stage.private.rules.clipping == "per_layer" else by_size[::-1]
    for name, parameter in roomy or largest:
        if sum(each.numel() for each in chosen.values()) < enough:
            chosen[name] = parameter
    try:
        for name, parameter in parameters.items():
            parameter.requires_grad_(name in chosen)
        yield chosen
    finally:
        for parameter in parameters.values():
            parameter.requires_grad_(True)


def is_powerless(shown: Shown) -> bool:
    """Whether even right guesses alone could not have gone beyond the claim."""
    return not math.isfinite(shown.claimed) or shown.most <= shown.claimed
