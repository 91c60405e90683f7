"""The site's handler of one round. The simulator and a real site run this same file.

check the request → load the broadcast adapter → evaluate → train → contribute → encode → reply
"""

from __future__ import annotations

import time

from wardround.client.memory import Kept
from wardround.client.site import Site
from wardround.core.counting import fill_counters, reply_layout, train_loss, validation_scores
from wardround.core.errors import PeerError, TrainingError
from wardround.core.messages import Reply, Request, reply_to
from wardround.core.packed import Adapter, Array, require_finite
from wardround.privacy.ring import encode
from wardround.training.evaluation import evaluate
from wardround.training.local_round import LocalResult, train_locally


def answer(request: Request, site: Site) -> Reply:
    """Answer one request; what goes wrong with the training or the request becomes a named reply."""
    try:
        check_request(request, site)
        return ok_reply(request, site)
    except TrainingError as error:
        return reply_to(request, status="failed", code=error.code, reason=error.what)
    except PeerError as error:
        return reply_to(request, status="refused", code="bad_request", reason=error.what)


def check_request(request: Request, site: Site) -> None:
    """Refuse what does not follow the plan that this site accepted.

    Raises:
        PeerError: Another run, plan, site or layout, or a broadcast that is not finite.
    """
    for what, found, expected in (
        ("run", request.run_id, site.run_id),
        ("plan", request.plan_digest, site.plan.digest),
        ("site", request.site, site.name),
        ("broadcast layout", request.broadcast.layout.digest, site.strategy.broadcast_layout().digest),
    ):
        if found != expected:
            raise PeerError(f"the request names another {what}", found=found[:12], expected=expected[:12])
    require_finite(request.broadcast, "the broadcast")


def ok_reply(request: Request, site: Site) -> Reply:
    """Evaluate and train as the request asks."""
    started = time.perf_counter()
    adapter = site.strategy.adapter_of(request.broadcast)
    validation = measure(adapter, site) if request.evaluate and site.validation else None
    statistics, layout_digest, result = None, "", None
    weight = 0
    if request.train:
        result = train(request, site, adapter)
        weight = weight_of(site, result)
        statistics = contribute(request, site, adapter, result, weight)
        layout_digest = site.strategy.statistics_layout(request.stage).digest
    counters = fill_counters(
        reply_layout(site.plan),
        weight=weight,
        loss_sum=result.loss_sum if result else 0.0,
        targets=result.targets if result else 0,
        validation=validation,
    )
    local = {
        f"validation.{name}": value for name, value in validation_scores(site.plan, counters).values.items()
    }
    local["seconds"] = time.perf_counter() - started
    loss = train_loss(counters)
    if result is not None and loss is not None:
        local |= {
            "train.loss": loss,
            "train.steps": float(result.steps),
            "train.examples": float(result.examples),
        }
    return reply_to(
        request,
        statistics=statistics,
        statistics_layout_digest=layout_digest,
        counters=counters,
        local=local,
    )


def measure(adapter: Adapter, site: Site) -> dict[str, Array]:
    """Metric numerators of the broadcast adapter on the site's validation part."""
    site.bench.load_adapter(adapter)
    bench = site.bench
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


def train(request: Request, site: Site, adapter: Adapter) -> LocalResult:
    """Train one local round from the broadcast adapter.

    Raises:
        TrainingError: No rows, or a loss that is not finite.
    """
    kept = site.store.load(before_round=request.round)
    return train_locally(
        site.bench,
        site.training,
        adapter,
        site.plan.local,
        site.strategy.local_rules(request.broadcast, kept.memory, request.stage),
        round=request.round,
        rounds=site.plan.rounds.rounds,
        seed_root=site.plan.seed,
        site=site.name,
        optimiser_state=kept.optimiser_state,
    )


def contribute(request: Request, site: Site, before: Adapter, result: LocalResult, weight: int) -> Array:
    """The weighted statistics as ring integers; what strategy and optimiser keep stays in the store."""
    kept = site.store.load(before_round=request.round)
    statistics, memory = site.strategy.contribute(
        request.broadcast, before, result.adapter, kept.memory, request.stage
    )
    integers = encode(statistics.vector, weight, site.plan.encoding, sites=request.cohort_size)
    state = result.optimiser_state if site.plan.local.optimiser_state == "keep" else None
    site.store.save(Kept(memory, state), round=request.round)
    return integers


def weight_of(site: Site, result: LocalResult) -> int:
    """The site's weight in the mean, as the plan defines it."""
    match site.plan.strategy.weighting:
        case "examples":
            return max(1, result.examples)
        case "targets":
            return max(1, result.targets)
        case "uniform":
            return 1
