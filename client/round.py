"""The site's handler of one round. The simulator and a real site run this same file.

check the request → evaluate the broadcast adapter → train → contribute → encode → reply

What goes wrong becomes a named reply. No text of a foreign exception leaves the site, since it may quote a
row; the whole story goes to the site's own log.
"""

from __future__ import annotations

import logging
import time
from typing import Literal

from wardround.client.memory import Figures, Trained
from wardround.client.site import Site
from wardround.core.counting import fill_counters, reply_layout, train_loss, validation_scores
from wardround.core.errors import (
    BudgetError,
    ConfigError,
    PeerError,
    PolicyError,
    StorageError,
    TrainingError,
    WardroundError,
)
from wardround.core.messages import Reply, Request, reply_to
from wardround.core.packed import Adapter, Array, Counters, require_finite
from wardround.privacy.ring import encode
from wardround.strategies.contract import SiteMemory
from wardround.training.evaluation import evaluate
from wardround.training.local_round import LocalResult, train_locally

LOG = logging.getLogger(__name__)

INTERNAL = "internal"
CODES: tuple[tuple[type[WardroundError], Literal["refused", "failed"], str], ...] = (
    (PolicyError, "refused", "policy"),
    (BudgetError, "refused", "budget"),
    (StorageError, "failed", "storage"),
    (ConfigError, "failed", "configuration"),
    # The request has passed its checks: what does not hold now is what this site made.
    (PeerError, "failed", "bad_contribution"),
)
"""Error → status and stable code of the reply; a `TrainingError` has a code of its own."""
OWN_FILES = "the site could not read or write its own files"
"""Reason of a `StorageError`, whose own sentence names paths of the site's machine."""


def answer(request: Request, site: Site) -> Reply:
    """Answer one request.

    `refused`, code `bad_request`: the request does not follow the plan. `failed`, with the code of the error:
    what this site did went wrong. What it had scored before that is in the reply, so that one site's failed
    training does not change over which rows the broadcast adapter is scored.
    """
    validation: dict[str, Array] | None = None
    try:
        try:
            check_request(request, site)
        except PeerError as error:
            return reply_to(request, status="refused", code="bad_request", reason=error.what)
        started = time.perf_counter()
        if request.evaluate:
            validation = measure(site.strategy.adapter_of(request.broadcast), site)
        if not request.train:
            return ok_reply(request, site, started, validation)
        trained, memory = trained_for(request, site)
        statistics = contribute(request, site, trained, memory)
        return ok_reply(request, site, started, validation, trained.figures, statistics)
    except Exception as error:  # noqa: BLE001 - every failure is named to the server and told in the site's log
        return failed_reply(request, site, error, validation)


def check_request(request: Request, site: Site) -> None:
    """Refuse what does not follow the plan that this site accepted.

    Raises:
        PeerError: Another run, plan, site, stage or layout, a broadcast that is not finite, or one of round 1
            that is not the plan's initial adapter.
    """
    for what, found, expected in (
        ("run", request.run_id, site.run_id),
        ("plan", request.plan_digest, site.plan.digest),
        ("site", request.site, site.name),
    ):
        if found != expected:
            raise PeerError(f"the request names another {what}", found=found[:12], expected=expected[:12])
    stages = site.strategy.stages
    if not 0 <= request.stage < stages:
        raise PeerError(
            "the request names a stage that the strategy does not have",
            found=request.stage,
            expected=f"0 to {stages - 1}",
        )
    if request.evaluate and request.stage:
        raise PeerError("the request evaluates in a later stage", found=request.stage, expected="stage 0")
    layout, expected = request.broadcast.layout.digest, site.strategy.broadcast_layout(request.stage).digest
    if layout != expected:
        raise PeerError(
            "the request names another broadcast layout", found=layout[:12], expected=expected[:12]
        )
    require_finite(request.broadcast, "the broadcast")
    spec = site.plan.adapter
    first = request.round == 1 and request.stage == 0 and layout == spec.layout.digest
    if first and request.broadcast.digest != spec.initial_digest:
        raise PeerError(
            "the broadcast of round 1 is not the plan's initial adapter",
            found=request.broadcast.digest[:12],
            expected=spec.initial_digest[:12],
        )


def measure(adapter: Adapter, site: Site) -> dict[str, Array]:
    """Metric numerators of the broadcast adapter on the site's validation part; empty where it has none."""
    if not site.validation:
        return {}
    bench = site.bench
    bench.load_adapter(adapter)
    counters = evaluate(
        bench.model,
        bench.task,
        site.plan.task,
        site.plan.data,
        site.validation,
        batch_size=bench.machine.evaluation_batch_size,
        device=bench.device,
        tokenizer=bench.tokenizer,
    )
    return counters.tensors()


def trained_for(request: Request, site: Site) -> tuple[Trained, SiteMemory]:
    """What this round's training gave, and the strategy's memory before this stage.

    With a strategy of one stage a site trains whenever it is asked. With more of them it trains once for a
    broadcast: the later stages, and a stage 0 that is asked again, take what it trained then.

    Raises:
        TrainingError: As `train_locally`, or a later stage is asked of a site that has not trained.
        StorageError: What it kept is damaged.
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
    if before is not None and before[0].broadcast == request.broadcast.digest:
        return before[0], kept.memory
    return train(request, site, kept.memory, kept.optimiser_state), kept.memory


def train(
    request: Request, site: Site, memory: SiteMemory, optimiser_state: dict[str, Array] | None
) -> Trained:
    """Train one local round from the broadcast adapter.

    Raises:
        TrainingError: No rows, or a loss that is not finite.
    """
    adapter = site.strategy.adapter_of(request.broadcast)
    result = train_locally(
        site.bench,
        site.training,
        adapter,
        site.plan.local,
        site.strategy.local_rules(request.broadcast, memory, request.stage),
        round=request.round,
        rounds=site.plan.rounds.rounds,
        seed_root=site.plan.seed,
        site=site.name,
        optimiser_state=optimiser_state,
    )
    figures = Figures(
        weight=weight_of(site, result),
        examples=result.examples,
        targets=result.targets,
        steps=result.steps,
        loss_sum=result.loss_sum,
    )
    return Trained(request.broadcast.digest, adapter, result.adapter, figures, result.optimiser_state)


def contribute(request: Request, site: Site, trained: Trained, memory: SiteMemory) -> Array:
    """The weighted statistics as ring integers; what strategy and optimiser keep stays in the store.

    Raises:
        PeerError: The trained adapter is not finite, or the statistics do not fit the ring.
        StorageError: What is to be kept cannot be written.
    """
    statistics, after = site.strategy.contribute(
        request.broadcast, trained.before, trained.after, memory, request.stage
    )
    weight = trained.figures.weight
    integers = encode(statistics.vector, weight, site.plan.encoding, sites=request.cohort_size)
    if request.stage < site.strategy.stages - 1:
        site.store.save_stage(trained, after, round=request.round, stage=request.stage)
    else:
        site.store.save(trained.kept(after), round=request.round)
    return integers


def ok_reply(
    request: Request,
    site: Site,
    started: float,
    validation: dict[str, Array] | None,
    figures: Figures | None = None,
    statistics: Array | None = None,
) -> Reply:
    """The reply to a request that was fulfilled; training sums are counted in stage 0 alone."""
    fresh = figures is not None and request.stage == 0
    counters = fill_counters(
        reply_layout(site.plan),
        weight=figures.weight if figures else 0,
        loss_sum=figures.loss_sum if figures and fresh else 0.0,
        targets=figures.targets if figures and fresh else 0,
        validation=validation,
    )
    local = {
        f"validation.{name}": value for name, value in validation_scores(site.plan, counters).values.items()
    }
    local["seconds"] = time.perf_counter() - started
    loss = train_loss(counters)
    if figures is not None and loss is not None:
        local |= {
            "train.loss": loss,
            "train.steps": float(figures.steps),
            "train.examples": float(figures.examples),
        }
    layout = "" if statistics is None else site.strategy.statistics_layout(request.stage).digest
    return reply_to(
        request, statistics=statistics, statistics_layout_digest=layout, counters=counters, local=local
    )


def failed_reply(
    request: Request, site: Site, error: Exception, validation: dict[str, Array] | None
) -> Reply:
    """A reply that names what went wrong, with what was measured before it did."""
    status, code, reason = named(error)
    LOG.log(
        logging.ERROR if code == INTERNAL else logging.WARNING,
        "site %s, round %d of %s: %s",
        site.name,
        request.round,
        request.run_id,
        error if isinstance(error, WardroundError) else reason,
        exc_info=error if code == INTERNAL else None,
    )
    counters: Counters | None = None
    if validation is not None:
        counters = fill_counters(reply_layout(site.plan), validation=validation)
    return reply_to(request, status=status, code=code, reason=reason, counters=counters)


def named(error: Exception) -> tuple[Literal["refused", "failed"], str, str]:
    """Status, code and reason of an error, as they may leave the site."""
    if isinstance(error, TrainingError):
        return "failed", error.code, error.what
    for kind, status, code in CODES:
        if isinstance(error, kind):
            return status, code, OWN_FILES if kind is StorageError else error.what
    if isinstance(error, WardroundError):
        return "failed", INTERNAL, error.what
    return "failed", INTERNAL, type(error).__name__


def weight_of(site: Site, result: LocalResult) -> int:
    """The site's weight in the mean, as the plan defines it."""
    match site.plan.strategy.weighting:
        case "examples":
            return max(1, result.examples)
        case "targets":
            return max(1, result.targets)
        case "uniform":
            return 1
