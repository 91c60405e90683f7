"""One local round of one site, in one place.

load adapter → batches → forward, backward → constrain the gradient → step → read adapter

Private or not, the loop is the same: the gradient of a step comes from the mean over a batch, or from a
clipped and noised sum over units (`gradients.py`, `private/`).
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch

from wardround.core.errors import InternalError, TrainingError
from wardround.core.packed import Adapter, Layout, Packed, zeros
from wardround.core.plan import LocalWork
from wardround.core.schedules import rate, single_rate
from wardround.core.seeds import Purpose, generator, seed_for
from wardround.privacy.noise.correlated import NoiseState
from wardround.strategies.contract import LocalRules
from wardround.training.batches import plan_batches
from wardround.training.checkpoint import Checkpoint, Checkpoints, generators, restore_generators
from wardround.training.gradients import MeanGradients, Wanted
from wardround.training.optimisers import (
    OptimiserState,
    build_optimiser,
    export_state,
    import_state,
    set_rate,
)
from wardround.training.private.adam import DPAdam, set_noise_variance
from wardround.training.private.gradient import StepFigures
from wardround.training.private.local import NoisedGradients, PrivateRound, clipped_sum, noised_gradients
from wardround.training.private.summing import WantedSum
from wardround.training.tasks.contract import Encoded
from wardround.training.workbench import Place, Workbench


@dataclass(frozen=True)
class LocalResult:
    """What one local round gives.

    Attributes:
        adapter: After the last step, float32.
        optimiser_state: To keep for the next round, or None where the plan resets it.
        steps: Optimiser steps taken.
        examples: Distinct rows that this site trains on, n_k of FedAvg; rows without a target do not count.
        targets: Loss terms processed, over all passes: target tokens, or rows of a classifier.
        loss_sum: Their summed loss in nats, each at the time of its step.
        update: Where noise is added to the contribution itself: the step along one clipped sum, float64;
            `adapter` then is where training started. None otherwise.
        private: Figures of a private round's steps, exact, for the site's own eyes; empty otherwise.
        clip_norm: What adaptive clipping leaves to the next round.
        gradient: Mean over the steps of the loss's own gradient, float32, where the strategy asked for it;
            zero of a frozen tensor.
        noise: Where correlated noise stands after the round; secret.
    """

    adapter: Adapter
    optimiser_state: OptimiserState | None
    steps: int
    examples: int
    targets: int
    loss_sum: float
    update: Packed | None = None
    private: tuple[StepFigures, ...] = ()
    clip_norm: float | None = None
    gradient: Packed | None = None
    noise: NoiseState | None = None


@dataclass(frozen=True)
class LocalJob:
    """What one local round is made of.

    Attributes:
        encoded: The site's training rows; those without a target are passed over.
        before: Where training starts, and what the proximal term pulls towards.
        work: Amount, optimiser, schedule.
        rules: What the strategy demands.
        round: Counts from 1.
        rounds: Rounds of the run, for the schedule.
        seed_root: Root of the seed tree.
        site: Name of the site, part of the seeds.
        optimiser_state: What the last round kept, or None.
        private: What makes the round private, or None; it counts the steps that are done (`private.done`).
        resumed: Where an earlier process left this very round; all else is as that one had it. What it gives
            then are the bits of the undisturbed round, of a private one those of fresh draws.
        checkpoints: Where to leave it, from time to time; None where nobody would go on.
        rest: Directions that stand frozen beside the adapter, at a site of a smaller rank.
    """

    encoded: Sequence[Encoded]
    before: Adapter
    work: LocalWork
    rules: LocalRules
    round: int
    rounds: int
    seed_root: int
    site: str
    optimiser_state: OptimiserState | None = None
    private: PrivateRound | None = None
    resumed: Checkpoint | None = None
    checkpoints: Checkpoints | None = None
    rest: Adapter | None = None


Steps: TypeAlias = Generator[Wanted | WantedSum, Any, LocalResult]
"""A local round, step by step: it is sent what the `alone` of each that it waits for would give."""


def train_locally(bench: Workbench, job: LocalJob) -> LocalResult:
    """Train one local round; equal inputs give equal bits at equal thread counts on a CPU.

    Microbatches of any size give the gradient of the one big batch: sums over targets, divided once.
    Only under dropout (the adapter's, or the base's unless `model.dropout=off`) does their size matter: it
    decides which masks are drawn.

    Args:
        bench: Model, task and device. It holds the trained adapter afterwards.
        job: The round.

    Raises:
        TrainingError: `no_rows`, `nothing_trains`, or `non_finite_loss` before the step that it would spoil.
        InternalError: A mean gradient of a private round, which would be exact.
    """
    with closing(local_round(bench, job)) as steps:
        try:
            wanted = next(steps)
            while True:
                wanted = steps.send(wanted.alone(bench))
        except StopIteration as done:
            result: LocalResult = done.value
            return result


def local_round(bench: Place, job: LocalJob) -> Steps:
    """One local round that asks for what each step needs, so that several sites' can be computed together.

    That is a mean gradient, or a clipped sum, which a private round noises itself.

    Raises:
        TrainingError: As `train_locally`.
        InternalError: Likewise.
    """
    work, rules, private, resumed, site = job.work, job.rules, job.private, job.resumed, job.site
    if private is not None and rules.mean_gradient:
        raise InternalError("a private round has no mean gradient that may be used")
    usable = [row for row in job.encoded if bench.task.targets(row) > 0]
    if not usable and private is None:
        raise TrainingError(
            "no_rows", f"site {site!r} has no row to train on",
            found=f"{len(job.encoded)} rows, none of them with a target",
            remedy="leave the site out, or look at what the column mapping and max_length leave of its rows",
        )  # fmt: skip
    bench.load_adapter(job.before if resumed is None else resumed.adapter, job.rest)
    dropout_seed = seed_for(job.seed_root, Purpose.DROPOUT, round=job.round, site=site)
    losses = [] if resumed is None else resumed.losses.tolist()
    targets = 0 if resumed is None else resumed.targets
    with ExitStack() as opened:
        parameters = opened.enter_context(bench.training(rules.frozen, dropout_seed))
        if private is not None and private.rules.noise == "distributed":
            return (yield from _one_sum(bench, parameters, job, private))
        gradients: MeanGradients | NoisedGradients
        if private is None:
            shuffle = generator(job.seed_root, Purpose.SHUFFLE, round=job.round, site=site)
            gradients = MeanGradients(usable, plan_batches(len(usable), work, shuffle))
        else:
            gradients = opened.enter_context(noised_gradients(bench, parameters, job.encoded, private))
        optimiser = build_optimiser(work, parameters)
        strategy_terms = pulls(rules, job.before, parameters, bench.device)
        mean = MeanOfSteps.begin(parameters, resumed) if rules.mean_gradient else None
        if job.optimiser_state is not None and work.optimiser_state == "keep":
            import_state(optimiser, parameters, job.optimiser_state)
        if resumed is not None:
            import_state(optimiser, parameters, resumed.optimiser_state)
            restore_generators(resumed.generators, bench.device)
        for step in range(len(losses), gradients.steps):
            done = (
                step + 0.5
            ) / gradients.steps  # its middle, so that warm-up never begins with a step of zero
            set_rate(
                optimiser,
                rate(work.schedule, work.learning_rate, round=job.round, rounds=job.rounds, fraction=done),
            )
            optimiser.zero_grad(set_to_none=True)
            loss, count = yield from gradients.write(step)
            if mean is not None:
                mean.add(parameters)
            for name, pull in strategy_terms.items():
                pull.add_to(parameters[name])
            norm = torch.nn.utils.clip_grad_norm_(parameters.values(), work.max_grad_norm or math.inf)
            losses.append(_require_finite(loss, norm, step=step + 1, site=site))
            targets += count
            if isinstance(optimiser, DPAdam):
                set_noise_variance(optimiser, gradients.noise_variance)
            optimiser.step()
            gradients.stepped()
            if job.checkpoints is not None and step + 1 < gradients.steps and job.checkpoints.due():
                job.checkpoints.keep(
                    Checkpoint(
                        done=step + 1,
                        of=gradients.steps,
                        adapter=bench.read_adapter(),
                        optimiser_state=export_state(optimiser, parameters),
                        losses=np.array(losses),
                        targets=targets,
                        generators=generators(bench.device) if private is None else {},
                        clip_norm=gradients.clip_norm,
                        gradient=None if mean is None else mean.total(bench.layout),
                        noise=gradients.state,
                    )
                )
        kept = export_state(optimiser, parameters) if work.optimiser_state == "keep" else None
    return LocalResult(
        adapter=bench.read_adapter(),
        # Moments of tensors that are frozen in this round wait for the round in which they train again.
        optimiser_state=None if kept is None else {**(job.optimiser_state or {}), **kept},
        steps=gradients.steps,
        examples=sum(map(rows_in, usable)),
        targets=targets,
        loss_sum=sum(losses),
        private=tuple(gradients.figures),
        clip_norm=gradients.clip_norm,
        gradient=None if mean is None else mean.over(gradients.steps, bench.layout),
        noise=gradients.state,
    )


def _one_sum(
    bench: Place, parameters: dict[str, torch.nn.Parameter], job: LocalJob, private: PrivateRound
) -> Steps:
    """The step along one clipped sum that the noise is still missing from; the adapter stays where it was."""
    mean, figures = yield from clipped_sum(bench, parameters, job.encoded, private)
    step = single_rate(job.work, round=job.round, rounds=job.rounds)
    update = zeros(job.before.layout, np.float64)
    for name, part in mean.items():
        update[name][...] = -step * part
    return LocalResult(
        adapter=job.before,
        optimiser_state=None,
        steps=1,
        examples=sum(map(rows_in, job.encoded)),
        targets=0,
        loss_sum=0.0,
        update=update,
        private=(figures,),
    )


def rows_in(encoded: Encoded) -> int:
    """Rows of the source in one encoded example: more than one where rows were packed."""
    return encoded.rows


@dataclass(frozen=True)
class MeanOfSteps:
    """The loss's own gradient, summed over the steps of a round: before offset, proximal term and clipping.

    Attributes:
        sums: Name → sum, float32, on the device; of the tensors that move.
    """

    sums: dict[str, torch.Tensor]

    @staticmethod
    def begin(parameters: Mapping[str, torch.nn.Parameter], resumed: Checkpoint | None) -> MeanOfSteps:
        """Zero, or what an earlier process had summed."""
        sums = {
            name: torch.zeros_like(parameter, dtype=torch.float32, requires_grad=False)
            for name, parameter in parameters.items()
        }
        if resumed is not None:
            if resumed.gradient is None:
                raise InternalError("the checkpoint has no sum of the gradients that the strategy wants")
            for name, summed in sums.items():
                summed.copy_(torch.from_numpy(np.array(resumed.gradient[name])))
        return MeanOfSteps(sums)

    def add(self, parameters: Mapping[str, torch.nn.Parameter]) -> None:
        """Add what lies in `.grad`."""
        for name, summed in self.sums.items():
            gradient = parameters[name].grad
            if gradient is not None:
                summed.add_(gradient)

    def total(self, layout: Layout) -> Packed:
        """The sum so far; zero of a tensor that does not move."""
        packed = zeros(layout)
        for name, summed in self.sums.items():
            packed[name][...] = summed.cpu().numpy()
        return packed

    def over(self, steps: int, layout: Layout) -> Packed:
        """The mean over so many steps."""
        total = self.total(layout)
        return total.with_vector(total.vector / np.float32(max(1, steps)))


@dataclass(frozen=True)
class Pull:
    """What a strategy adds to one tensor's gradient: μ (θ − θ₀) + offset.

    The first term is the gradient of μ/2 ‖θ − θ₀‖² (FedProx, Li et al. 2020, arXiv:1812.06127v5, eq. 2).
    """

    proximal: float
    start: torch.Tensor | None
    offset: torch.Tensor | None

    def add_to(self, parameter: torch.nn.Parameter) -> None:
        """Add both terms in place."""
        if parameter.grad is None:
            return
        if self.start is not None:
            parameter.grad.add_(parameter.detach() - self.start, alpha=self.proximal)
        if self.offset is not None:
            parameter.grad.add_(self.offset)


def pulls(rules: LocalRules, before: Adapter, names: Iterable[str], device: torch.device) -> dict[str, Pull]:
    """The strategy's terms by tensor name; none where it asks for none."""
    if not rules.proximal and rules.gradient_offset is None:
        return {}

    def on_device(adapter: Adapter, name: str) -> torch.Tensor:
        return torch.from_numpy(np.array(adapter[name], dtype=np.float32)).to(device)

    return {
        name: Pull(
            rules.proximal,
            on_device(before, name) if rules.proximal else None,
            on_device(rules.gradient_offset, name) if rules.gradient_offset is not None else None,
        )
        for name in names
    }


def _require_finite(loss: torch.Tensor, norm: torch.Tensor, *, step: int, site: str) -> float:
    """The loss as a number, once it and the gradient are known to be finite: one wait for the device."""
    value, length = torch.stack([loss, norm.to(loss.device)]).tolist()
    if not (math.isfinite(value) and math.isfinite(length)):
        raise TrainingError(
            "non_finite_loss", f"the loss of site {site!r} is not finite at step {step}",
            found=f"loss {value}, gradient norm {length}", expected="finite numbers",
            remedy="lower the learning rate, use bfloat16 or float32 for float16, or look at the site's rows",
        )  # fmt: skip
    return float(value)
