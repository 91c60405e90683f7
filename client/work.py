"""What a site computes in a round: scores of the broadcast adapter, the local round, its contribution.

Under differential privacy a round is reserved in the site's ledger before a row is touched, and the
contribution is sealed there before it may leave. Beside the noised sum nothing exact leaves: no loss, no
number of targets, and no weight but the plan's.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from statistics import fmean

import numpy as np

from wardround.client.checkpoints import RoundPlace
from wardround.client.memory import Figures, Kept, Trained
from wardround.client.own_rank import start_of
from wardround.client.parties import compressed_contribution, contribution
from wardround.client.private import SitePrivacy
from wardround.client.site import Site
from wardround.core.counting import train_loss, training_counters
from wardround.core.errors import TrainingError
from wardround.core.messages import SPENT, Request
from wardround.core.metrics import METRICS
from wardround.core.packed import Adapter, Array, Counters, zeros
from wardround.core.ranks import AtRank, beside
from wardround.privacy.compression import Compressed
from wardround.privacy.quantisation import Quantised
from wardround.privacy.secagg.offer import Offer
from wardround.privacy.sums.contract import TRAINING, Lanes
from wardround.strategies.contract import (
    Broadcast,
    LocalRules,
    LocalUpdate,
    PersonalStrategy,
    ProductStrategy,
    SiteMemory,
    adapter_at,
)
from wardround.training.evaluation import ScoringJob, score
from wardround.training.local_round import LocalJob, LocalResult, train_locally
from wardround.training.moments import turned
from wardround.training.optimisers import OptimiserState
from wardround.training.private.dry_pass import require_apart
from wardround.training.private.gradient import StepFigures
from wardround.training.private.local import PrivateRound


def scoring_of(round: int, broadcast: Broadcast, site: Site) -> ScoringJob:
    """What the site scores: its validation part, through the global adapter, or its own where a part stays.

    Raises:
        StorageError: What it kept of its own part is damaged.
    """
    personal = isinstance(site.strategy, PersonalStrategy)
    memory = site.store.load(before_round=round).memory if personal else SiteMemory()
    adapter = adapter_at(site.strategy, broadcast, memory)
    return ScoringJob(adapter, site.validation, site.plan.task, site.plan.data)


def measure(request: Request, broadcast: Broadcast, site: Site) -> dict[str, Array]:
    """Metric numerators of the broadcast adapter on the site's validation part, as they may leave it.

    Empty where it has none.

    Raises:
        StorageError: As `scoring_of`.
        TrainingError: A loss is not finite.
    """
    if not site.validation:
        return {}
    job = scoring_of(request.round, broadcast, site)
    together = None if site.together is None else site.together.scored(request, broadcast, site, job)
    counters = score(site.bench, job) if together is None else together
    rows = sum(row.rows for row in site.validation if site.bench.task.targets(row) > 0)
    return METRICS.get(site.plan.task.metrics).coarse(counters, site.validation_cells, rows).tensors()


def trained_for(
    request: Request, broadcast: Broadcast, site: Site, offer: Offer, local: dict[str, float]
) -> tuple[Trained, SiteMemory]:
    """What this round's training gave, and the strategy's memory before this stage.

    With a strategy of one stage a site trains whenever it is asked. With more of them it trains once for a
    broadcast: the later stages, and a stage 0 that is asked again, take what it trained then.

    Args:
        request: The server's.
        broadcast: Of stage 0.
        site: Its rows, and what it keeps.
        offer: Of the sum that the contribution goes into.
        local: Gets the site's own figures.

    Raises:
        TrainingError: As `train_locally`, or a later stage is asked of a site that has not trained.
        BudgetError: The site's ledger does not allow this round.
        StorageError: What it kept is damaged, or the ledger cannot be written.
    """
    if request.stage:
        found = site.store.load_stage(round=request.round, stage=request.stage - 1)
        if found is None:
            raise TrainingError(
                "nothing_trained", f"site {site.name!r} has trained nothing that stage {request.stage} could "
                "go on from", remedy="the round has to begin again with stage 0",
            )  # fmt: skip
        return found[0], found[1].memory
    kept = site.store.load(before_round=request.round)
    before = site.store.load_stage(round=request.round, stage=0) if site.strategy.stages > 1 else None
    if before is not None and before[0].broadcast == broadcast.digest:
        return before[0], kept.memory
    return train(request, broadcast, site, kept, offer, local), kept.memory


def train(
    request: Request,
    broadcast: Broadcast,
    site: Site,
    kept: Kept,
    offer: Offer,
    local: dict[str, float],
) -> Trained:
    """Train one local round from the broadcast adapter.

    Raises:
        TrainingError: No rows, or a loss that is not finite.
        BudgetError: The site's ledger does not allow this round.
        ConfigError: A parameter trains that has no gradient of single examples, or the model does not keep
            them apart; nothing is charged.
    """
    whole = adapter_at(site.strategy, broadcast, kept.memory)
    start = start_of(site.strategy, whole, site.rank, site.plan, site.name, request.round)
    privacy, checkpoints = site.privacy, site.checkpoints
    place = RoundPlace(request.round, broadcast.digest, site.rows, start.trained.layout)
    resumed = None if checkpoints is None else checkpoints.load(place)
    rules = site.strategy.local_rules(broadcast, kept.memory, request.round)
    private: PrivateRound | None = None
    left: Callable[[int], None] | None = None
    if privacy is not None:
        moving = {name: p for name, p in site.bench.parameters().items() if name not in rules.frozen}
        # Whatever can be refused is refused before it is charged.
        require_apart(site.bench, moving, site.plan.task)
        stand = privacy.stand(request.round, trained_size(start, rules))
        resumed = privacy.usable(resumed, stand)
        private = privacy.private_round(request.round, kept.clip_norm, resumed, stand)
        draw = privacy.draw(request.round) if stand is None else stand.name
        local[SPENT] = privacy.reserve(
            site.plan,
            site.run_id,
            request.round,
            cohort=len(offer.cohort),
            coordinates=offer.coordinates,
            done=private.done,
            draw=draw,
            stand=stand,
        )
        left = partial(_settle, privacy, site.run_id, request.round, draw, private.done)
    job = replace(
        job_of(request.round, site, kept, start, rules), private=private, resumed=resumed,
        checkpoints=None if checkpoints is None else checkpoints.of(place, left),
    )  # fmt: skip
    together = None if site.together is None else site.together(request, broadcast, site, job)
    result = train_locally(site.bench, job) if together is None else together
    if privacy is not None:
        privacy.keep(result, request.round)
    if privacy is not None and privacy.simulation:
        local |= private_figures(result.private)
    return Trained(
        broadcast.digest, beside(start.trained, start.rest), beside(result.adapter, start.rest),
        figures_of(site, result), result.optimiser_state, result.update, result.clip_norm, result.gradient,
    )  # fmt: skip


def _settle(privacy: SitePrivacy, run_id: str, round: int, draw: str, before: int, done: int) -> None:
    """The process ends after so many steps of a round, `before` of them another reservation's."""
    privacy.settle(run_id, round, draw, done - before)


def job_of(round: int, site: Site, kept: Kept, start: AtRank, rules: LocalRules) -> LocalJob:
    """The local round of a site without privacy, from the beginning."""
    return LocalJob(
        site.training, start.trained, site.plan.local, rules, round=round, rounds=site.plan.rounds.rounds,
        seed_root=site.plan.seed, site=site.name, optimiser_state=kept_state(site, kept, start.trained),
        rest=start.rest,
    )  # fmt: skip


def job_ahead(request: Request, broadcast: Broadcast, site: Site) -> LocalJob:
    """What a simulated site would train in a round if it were asked now; what came of it is taken later.

    A private one is charged in its turn, before that: batches and noise come from the seed, so that both are
    the same draw, and what the ledger refuses is not taken. Correlated noise goes on from where the site's
    last round left it, and that has been kept before another one begins.

    Raises:
        StorageError: What it kept is damaged.
        ConfigError: Its correlated noise is more than it can keep.
    """
    kept = site.store.load(before_round=request.round)
    whole = adapter_at(site.strategy, broadcast, kept.memory)
    start = start_of(site.strategy, whole, site.rank, site.plan, site.name, request.round)
    rules = site.strategy.local_rules(broadcast, kept.memory, request.round)
    job = job_of(request.round, site, kept, start, rules)
    if site.privacy is None or not site.privacy.simulation:
        return job
    stand = site.privacy.stand(request.round, trained_size(start, rules))
    return replace(job, private=site.privacy.private_round(request.round, kept.clip_norm, stand=stand))


def trained_size(start: AtRank, rules: LocalRules) -> int:
    """Coordinates that a site trains in a round."""
    return sum(spec.size for spec in start.trained.layout.tensors if spec.name not in rules.frozen)


def kept_state(site: Site, kept: Kept, start: Adapter) -> OptimiserState | None:
    """The optimiser's state from the last round; turned as a fold over products has turned the factors."""
    state = kept.optimiser_state
    if state is None or kept.frame is None:
        return state
    return turned(state, kept.frame, start, site.plan.local.betas)


def private_figures(steps: tuple[StepFigures, ...]) -> dict[str, float]:
    """What a simulation shows of a private round, under names that say that none of it may leave a site."""
    if not steps:
        return {}
    units, targets = sum(step.units for step in steps), sum(step.targets for step in steps)
    return {
        "private.loss": sum(step.loss_sum for step in steps) / max(1, targets),
        "private.units_a_step": units / len(steps),
        "private.clipped_share": sum(step.clipped for step in steps) / max(1, units),
        "private.dropped": float(sum(step.dropped for step in steps)),
        "private.median_norm": fmean(step.median_norm for step in steps),
        "private.signal_to_noise": fmean(step.signal_to_noise for step in steps),
    }


def contribute(
    request: Request,
    broadcast: Broadcast,
    site: Site,
    trained: Trained,
    memory: SiteMemory,
    offer: Offer,
    local: dict[str, float],
) -> Lanes:
    """The statistics as the plan has them travel; what strategy, optimiser and compression keep is stored.

    Raises:
        TrainingError: The statistics are not finite, or the site weighs more than the plan allows.
        StorageError: What is to be kept cannot be written.
    """
    before, after, privacy = trained.before, trained.after, site.privacy
    if trained.update is not None:  # a linear strategy sends it as it is, without float32's rounding
        before, after = zeros(trained.update.layout, np.float64), trained.update
    statistics, left = site.strategy.contribute(
        broadcast, LocalUpdate(before, after, trained.gradient), memory, request.round, request.stage
    )
    counters = counted(trained.figures, request.stage, private=site.plan.privacy is not None)
    encoded: Quantised | Compressed
    if site.plan.encoding.compression is None:
        lanes, encoded = contribution(
            statistics.vector, counters, trained.figures.weight, offer, site.plan, site.name,
            None if privacy is None else privacy.share(request.round),
        )  # fmt: skip
        rest = None
    else:
        lanes, encoded = compressed_contribution(
            statistics.vector, counters, trained.figures.weight, offer, site.plan, site.name,
            site.store.load(before_round=request.round).rest,
        )  # fmt: skip
        rest = encoded.rest
    if request.stage < site.strategy.stages - 1:
        site.store.save_stage(trained, left, round=request.round, stage=request.stage)
    else:
        turns = isinstance(site.strategy, ProductStrategy)
        site.store.save(trained.kept(left, rest, turns=turns), round=request.round)
    loss = train_loss(counters)
    if loss is not None:
        local |= {
            "train.loss": loss,
            "train.steps": float(trained.figures.steps),
            "train.examples": float(trained.figures.examples),
        }
    rules = site.plan.privacy
    if rules is not None and not rules.trains_privately:
        return lanes  # how long the update is says what the noise on the sum is there to hide
    if trained.update is None or (privacy is not None and privacy.simulation):
        local |= {"clipped": float(encoded.clipped), "shortened_by": encoded.shortened_by}
    return lanes


def unkept(name: str, request: Request, site: Site) -> None:
    """A contribution could not be kept, and none will leave: the next round goes on from what was before it.

    Raises:
        StorageError: What was kept for the strategy cannot be removed.
    """
    if name == TRAINING and request.stage == site.strategy.stages - 1:
        site.store.forget(round=request.round)


def seal(name: str, request: Request, site: Site, lanes: Lanes) -> None:
    """Mark a private contribution as the round's, once it is kept and before anything of it leaves.

    The same one again does no harm: a site that was killed in between seals it then. Its checkpoints go: what
    is kept is what is sent.

    Raises:
        PolicyError: Another contribution of the round is sealed already.
        StorageError: The ledger cannot be written.
    """
    if name != TRAINING:
        return
    if site.privacy is not None and not request.stage:  # a later one goes on from what is noised and sealed
        site.privacy.seal(site.run_id, request.round, digest_of(lanes))
    if site.checkpoints is not None:
        site.checkpoints.destroy()


def digest_of(lanes: Lanes) -> str:
    """SHA-256 of a contribution before it is masked."""
    state = hashlib.sha256(np.ascontiguousarray(lanes.coordinates).tobytes())
    state.update(np.ascontiguousarray(lanes.counters).tobytes())
    return state.hexdigest()


def counted(figures: Figures, stage: int, *, private: bool) -> Counters:
    """What rides beside a contribution; training sums are counted in stage 0 alone, and never privately."""
    if stage or private:
        return training_counters(weight=figures.weight)
    return training_counters(weight=figures.weight, loss_sum=figures.loss_sum, targets=figures.targets)


def figures_of(site: Site, result: LocalResult) -> Figures:
    """What is counted of a local round, as it may leave the site: no count is exact, no mean is changed."""
    rows, cells = result.examples, site.training_cells
    examples, targets = cells.rows(rows), cells.scaled(result.targets, rows)
    exact, weight = {
        "examples": (rows, examples),
        "targets": (result.targets, targets),
        "uniform": (1, 1),
    }[site.plan.strategy.weighting]
    most = max(exact, site.plan.encoding.most_weight)  # rounding takes no site out of a round
    return Figures(
        weight=min(max(1, weight), most),
        examples=examples,
        targets=targets,
        steps=result.steps,
        loss_sum=result.loss_sum * (targets / result.targets) if result.targets else 0.0,
    )
