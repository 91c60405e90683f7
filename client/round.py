"""The site's handler of one round. The simulator and a real site run this same file.

    first exchange    check the request → score the broadcast adapter → train → contribute → encode
                      → begin each sum → reply
    those after it    the next phase of each sum → reply

What goes wrong becomes a named reply. No text of a foreign exception leaves the site, since it may quote a
row; the whole story goes to the site's own log.
"""

from __future__ import annotations

import logging
import time
from typing import Literal

from wardround.client.memory import Figures, Trained
from wardround.client.parties import contribution, scores_only
from wardround.client.site import Site
from wardround.core.counting import metric_counters, scores, train_loss, training_counters
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
from wardround.privacy.secagg.offer import Offer
from wardround.privacy.sums.contract import EVALUATION, GROUPS, SUMS, TRAINING, Lanes
from wardround.strategies.contract import Broadcast, SiteMemory
from wardround.training.evaluation import evaluate
from wardround.training.local_round import LocalResult, train_locally

LOG = logging.getLogger(__name__)

INTERNAL = "internal"


class RequestError(PeerError):
    """The server asks for what does not follow from the plan."""


CODES: tuple[tuple[type[WardroundError], Literal["refused", "failed"], str], ...] = (
    (RequestError, "refused", "bad_request"),
    (PolicyError, "refused", "policy"),
    (BudgetError, "refused", "budget"),
    (StorageError, "failed", "storage"),
    (ConfigError, "failed", "configuration"),
    (PeerError, "refused", "bad_message"),
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
    sums: dict[str, bytes] = {}
    local: dict[str, float] = {}
    try:
        if request.round == 0:
            return reply_to(request, sums={GROUPS: drawn(request, site)})
        check_request(request, site)
        if request.broadcast is None:
            go_on(request, site, sums)
        else:
            work(request, request.broadcast, site, sums, local)
    except Exception as error:  # noqa: BLE001 - every failure is named to the server and told in the site's log
        status, code, reason = told(error, request, site)
        return reply_to(
            request, status=status, code=code, reason=reason, sums=sums, local=site.parties.spent()
        )
    return reply_to(request, sums=sums, local=local | site.parties.spent())


def check_request(request: Request, site: Site) -> None:
    """Refuse what does not follow the plan that this site accepted.

    Raises:
        RequestError: Another run, plan, site, stage, sum or layout, a broadcast that is not finite, one of
            round 1 that is not the plan's initial adapter, or one that is not the fold of the last sum.
    """
    try:
        _check_place(request, site)
        if request.broadcast is not None:
            _check_broadcast(request, request.broadcast, site)
            if request.stage == 0:
                confirmed = site.parties.parties[TRAINING].confirmed(request.round - 1)
                checked = site.folds.check(request.round, request.broadcast, request.opened, dict(confirmed))
                if checked and request.round > 1 and not request.opened:  # the round before was burnt
                    site.store.forget(round=request.round - 1)
    except PeerError as error:
        raise RequestError(error.what, found=error.found, expected=error.expected) from error


def drawn(request: Request, site: Site) -> bytes:
    """This site's part in the draw of the groups, before the first round.

    Raises:
        RequestError: Another run or plan, or the strategy has no groups, or as `Grouped.answer`.
        PolicyError: The site's own rules refuse.
    """
    if site.grouped is None:
        raise RequestError("the plan's strategy has no groups")
    try:
        _check_run(request, site)
        answer = site.grouped.answer(request)
    except PeerError as error:
        raise RequestError(error.what, found=error.found, expected=error.expected) from error
    site.folds.groups = site.grouped.groups
    return answer


def _check_run(request: Request, site: Site) -> None:
    for what, found, expected in (
        ("run", request.run_id, site.run_id),
        ("plan", request.plan_digest, site.plan.digest),
        ("site", request.site, site.name),
    ):
        if found != expected:
            raise PeerError(f"the request names another {what}", found=found[:12], expected=expected[:12])


def _check_place(request: Request, site: Site) -> None:
    _check_run(request, site)
    stages = site.strategy.stages
    if not 0 <= request.stage < stages:
        raise PeerError(
            "the request names a stage that the strategy does not have",
            found=request.stage,
            expected=f"0 to {stages - 1}",
        )
    if not request.sums or not set(request.sums) <= set(SUMS):
        raise PeerError(
            "the request asks for no sum, or for one that there is not", expected=" or ".join(SUMS)
        )
    if EVALUATION in request.sums and request.stage:
        raise PeerError("the request evaluates in a later stage", found=request.stage, expected="stage 0")
    if (request.broadcast is not None) != (request.exchange == 0 and request.attempt == 0):
        raise PeerError("only the first exchange of a first attempt has a broadcast, and it has to have one")


def _check_broadcast(request: Request, broadcast: Broadcast, site: Site) -> None:
    layout, expected = broadcast.layout.digest, site.strategy.broadcast_layout(request.stage).digest
    if layout != expected:
        raise PeerError(
            "the request names another broadcast layout", found=layout[:12], expected=expected[:12]
        )
    require_finite(broadcast, "the broadcast")
    spec = site.plan.adapter
    first = request.round == 1 and request.stage == 0 and layout == spec.layout.digest
    if first and broadcast.digest != spec.initial_digest:
        raise PeerError(
            "the broadcast of round 1 is not the plan's initial adapter",
            found=broadcast.digest[:12],
            expected=spec.initial_digest[:12],
        )


def work(
    request: Request, broadcast: Broadcast, site: Site, sums: dict[str, bytes], local: dict[str, float]
) -> None:
    """Score and train as asked, and begin the sums; what is finished stands in `sums`, whatever follows."""
    started, digest = time.perf_counter(), bytes.fromhex(broadcast.digest)
    statistics = site.strategy.statistics_layout(request.stage)
    # Refused before anything is computed for it.
    offers = {
        name: site.parties.check(name, request, site.plan, site.run_id, statistics, digest)
        for name in sorted(request.sums)
    }
    if site.grouped is not None and TRAINING in offers:
        site.grouped.check(offers[TRAINING])
    # The broadcast passed as the fold of the round before, or that one is burnt or was missed; and the server
    # signed that another one begins. Not sooner: whoever cannot sign must not make a site lose anything.
    site.parties.kept.forget(round=request.round - 1)

    def begin(name: str, lanes: Lanes) -> None:
        sums[name] = site.parties.begin(name, request, digest, lanes)

    if EVALUATION in request.sums:
        counted = metric_counters(site.plan, measure(site.strategy.adapter_of(broadcast), site))
        begin(EVALUATION, scores_only(counted))
        local |= {f"validation.{name}": value for name, value in scores(site.plan, counted).values.items()}
    if TRAINING in request.sums:
        try:
            trained, memory = trained_for(request, broadcast, site)
            lanes = contribute(request, broadcast, site, trained, memory, offers[TRAINING], local)
        except PeerError as error:  # the request has passed its checks: this is what the site made itself
            raise TrainingError("bad_contribution", error.what, found=error.found) from error
        begin(TRAINING, lanes)
    local["seconds"] = time.perf_counter() - started


def go_on(request: Request, site: Site, sums: dict[str, bytes]) -> None:
    """The next phase of each sum, or the first one of another attempt: nothing is trained or scored.

    Raises:
        WardroundError: The first that went wrong; the other sums have gone on.
    """
    wrong: list[WardroundError] = []
    for name in sorted(request.sums):
        try:
            if request.exchange:
                sums[name] = site.parties.step(name, request)
            else:
                sums[name] = begin_again(name, request, site)
        except WardroundError as error:
            wrong.append(error)
    if wrong:
        raise wrong[0]


def begin_again(name: str, request: Request, site: Site) -> bytes:
    """Another attempt: what was kept goes in again."""
    broadcast = site.parties.broadcast_of(name, request)
    statistics = site.strategy.statistics_layout(request.stage)
    site.parties.check(name, request, site.plan, site.run_id, statistics, broadcast)
    return site.parties.again(name, request, broadcast)


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


def trained_for(request: Request, broadcast: Broadcast, site: Site) -> tuple[Trained, SiteMemory]:
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
    if before is not None and before[0].broadcast == broadcast.digest:
        return before[0], kept.memory
    return train(request, broadcast, site, kept.memory, kept.optimiser_state), kept.memory


def train(
    request: Request,
    broadcast: Broadcast,
    site: Site,
    memory: SiteMemory,
    optimiser_state: dict[str, Array] | None,
) -> Trained:
    """Train one local round from the broadcast adapter.

    Raises:
        TrainingError: No rows, or a loss that is not finite.
    """
    adapter = site.strategy.adapter_of(broadcast)
    result = train_locally(
        site.bench,
        site.training,
        adapter,
        site.plan.local,
        site.strategy.local_rules(broadcast, memory, request.stage),
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
    return Trained(broadcast.digest, adapter, result.adapter, figures, result.optimiser_state)


def contribute(
    request: Request,
    broadcast: Broadcast,
    site: Site,
    trained: Trained,
    memory: SiteMemory,
    offer: Offer,
    local: dict[str, float],
) -> Lanes:
    """The weighted statistics as ring integers; what strategy and optimiser keep stays in the store.

    Raises:
        TrainingError: The statistics are not finite, or the site weighs more than the plan allows.
        StorageError: What is to be kept cannot be written.
    """
    statistics, after = site.strategy.contribute(
        broadcast, trained.before, trained.after, memory, request.stage
    )
    counters = counted(trained.figures, request.stage)
    lanes, quantised = contribution(
        statistics.vector, counters, trained.figures.weight, offer, site.plan, site.name
    )
    if request.stage < site.strategy.stages - 1:
        site.store.save_stage(trained, after, round=request.round, stage=request.stage)
    else:
        site.store.save(trained.kept(after), round=request.round)
    loss = train_loss(counters)
    if loss is not None:
        local |= {
            "train.loss": loss,
            "train.steps": float(trained.figures.steps),
            "train.examples": float(trained.figures.examples),
        }
    local |= {"clipped": float(quantised.clipped), "shortened_by": quantised.shortened_by}
    return lanes


def counted(figures: Figures, stage: int) -> Counters:
    """What rides beside a contribution; training sums are counted in stage 0 alone."""
    if stage:
        return training_counters(weight=figures.weight)
    return training_counters(weight=figures.weight, loss_sum=figures.loss_sum, targets=figures.targets)


def told(error: Exception, request: Request, site: Site) -> tuple[Literal["refused", "failed"], str, str]:
    """Status, code and reason of an error; the whole of it goes to the site's own log."""
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
    return status, code, reason


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
