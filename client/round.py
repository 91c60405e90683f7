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
from functools import partial
from time import monotonic, sleep
from typing import Literal

from wardround.client.fold_check import whole
from wardround.client.own_figures import answer_after, leaving_figures
from wardround.client.parties import scores_only
from wardround.client.site import Site
from wardround.client.work import contribute, measure, seal, trained_for, unkept
from wardround.core.compression import keeps_a_rest
from wardround.core.counting import metric_counters, scores
from wardround.core.errors import (
    BudgetError,
    ConfigError,
    PeerError,
    PolicyError,
    RolledBackError,
    StorageError,
    TrainingError,
    WardroundError,
)
from wardround.core.messages import BEHIND, SECONDS, Reply, Request, reply_to
from wardround.core.packed import require_finite
from wardround.privacy.sums.contract import EVALUATION, GROUPS, SUMS, TRAINING, Lanes
from wardround.privacy.sums.opened import sites_in
from wardround.strategies.contract import Broadcast, RememberingStrategy

LOG = logging.getLogger(__name__)

INTERNAL = "internal"


class RequestError(PeerError):
    """The server asks for what does not follow from the plan."""


CODES: tuple[tuple[type[WardroundError], Literal["refused", "failed"], str], ...] = (
    (RequestError, "refused", "bad_request"),
    (PolicyError, "refused", "policy"),
    (BudgetError, "refused", "budget"),
    (RolledBackError, "refused", "rolled_back"),
    (StorageError, "failed", "storage"),
    (ConfigError, "failed", "configuration"),
    (PeerError, "refused", "bad_message"),
)
"""Error → status and stable code of the reply; a `TrainingError` has a code of its own."""
SEND_IT = "this site cannot make the state of the round from what it knows"
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
    came = monotonic()
    try:
        if request.round == 0:
            return reply_to(request, sums={GROUPS: drawn(request, site)})
        asked = _whole(request, site)
        if asked is None:
            return reply_to(request, status="failed", code=BEHIND, reason=SEND_IT)
        check_request(asked, site)
        if asked.broadcast is None:
            go_on(asked, site, sums)
        else:
            try:
                work(asked, asked.broadcast, site, sums, local)
            finally:
                hold(asked, site, came)
    except Exception as error:  # noqa: BLE001 - every failure is named to the server and told in the site's log
        status, code, reason = told(error, request, site)
        return reply_to(request, status=status, code=code, reason=reason, sums=sums, local=leaving(site, {}))
    return reply_to(request, sums=sums, local=leaving(site, local))


def _whole(request: Request, site: Site) -> Request | None:
    """The request with its broadcast, which the site may have to make itself; None where it cannot.

    Raises:
        RequestError: Another run, plan or site.
    """
    if not request.follows:
        return request
    try:
        _check_run(request, site)
    except PeerError as error:
        raise RequestError(error.what, found=error.found, expected=error.expected) from error
    return whole(request, site.folds, site.parties.parties[TRAINING].confirmed(request.round - 1))


def leaving(site: Site, local: dict[str, float]) -> dict[str, float]:
    """The site's own figures of an exchange as they leave it, with what its sums took."""
    figures = local | site.parties.spent()
    return figures if site.figures is None else leaving_figures(site.figures, figures)


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
                if checked and request.round > 1 and not went_in(request, site):
                    site.store.forget(round=request.round - 1)
            else:
                confirmed = site.parties.parties[TRAINING].confirmed(request.round)
                site.folds.check_stage(
                    request.round, request.stage, request.broadcast, request.opened, dict(confirmed)
                )
    except PeerError as error:
        raise RequestError(error.what, found=error.found, expected=error.expected) from error


def went_in(request: Request, site: Site) -> bool:
    """Whether the state that is broadcast has what this site made of the round before.

    Not if that round was burnt. Where a strategy remembers what it has sent, or compression what it has not,
    neither if this site is not in its sum.

    Raises:
        PeerError: The sum is malformed.
    """
    strategy = site.strategy
    remembers = isinstance(strategy, RememberingStrategy) or keeps_a_rest(site.plan.encoding.compression)
    if not request.opened or not remembers:
        return bool(request.opened)
    layout = strategy.statistics_layout(strategy.stages - 1)
    return site.name in sites_in(request.opened[-1], layout, site.plan.encoding.bits)


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
    site.folds.learn(site.grouped.groups)
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
    if request.broadcast is None and (request.exchange, request.attempt) == (0, 0):
        raise PeerError("the first exchange of a first attempt has no broadcast")
    if request.broadcast is not None and request.exchange:
        raise PeerError("only the first exchange of an attempt has a broadcast")


def _check_broadcast(request: Request, broadcast: Broadcast, site: Site) -> None:
    layout, expected = broadcast.layout.digest, site.strategy.broadcast_layout(request.stage).digest
    if layout != expected:
        raise PeerError(
            "the request names another broadcast layout", found=layout[:12], expected=expected[:12]
        )
    require_finite(broadcast, "the broadcast")
    if request.round == 1 and request.stage == 0:
        found, initial = site.strategy.adapter_of(broadcast).digest, site.plan.adapter.initial_digest
        if found != initial:
            raise PeerError(
                "the broadcast of round 1 is not the plan's initial adapter",
                found=found[:12],
                expected=initial[:12],
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
    site.store.forget_stages(round=request.round - 1)
    if site.checkpoints is not None:
        site.checkpoints.forget(round=request.round - 1)

    # After a server's or a site's end all of a round begins again: what was kept of it goes in as it is.
    kept = {name for name in request.sums if site.parties.has_kept(name, request, digest)}
    for name in sorted(kept):
        sums[name] = site.parties.again(name, request, digest, partial(seal, name, request, site))
    contributions: dict[str, Lanes] = {}
    wrong: Exception | None = None
    if EVALUATION in request.sums and EVALUATION not in kept:
        counted = metric_counters(site.plan, measure(request, broadcast, site))
        contributions[EVALUATION] = scores_only(counted)
        local |= {f"validation.{name}": value for name, value in scores(site.plan, counted).values.items()}
    if TRAINING in request.sums and TRAINING not in kept:
        try:
            trained, memory = trained_for(request, broadcast, site, offers[TRAINING], local)
            contributions[TRAINING] = contribute(
                request, broadcast, site, trained, memory, offers[TRAINING], local
            )
        except PeerError as error:  # the request has passed its checks: this is what the site made itself
            wrong = TrainingError("bad_contribution", error.what, found=error.found)
        except Exception as error:  # noqa: BLE001 - raised below, once the scores are in
            wrong = error
    # No sooner: an offer is answered once, and whoever is killed in training is asked the same again.
    for name, lanes in contributions.items():
        try:
            sums[name] = site.parties.begin(name, request, digest, lanes, partial(seal, name, request, site))
        except StorageError as error:
            wrong = wrong or error
            if not site.parties.has_kept(name, request, digest):
                unkept(name, request, site)
    if wrong is not None:
        raise wrong
    local[SECONDS] = time.perf_counter() - started


def hold(request: Request, site: Site, came: float) -> None:
    """Let what a private round made, or went wrong with, leave on the grid of times.

    A step takes the longer the more rows its Poisson batch holds, and whoever carries the messages sees when
    they pass.
    """
    if TRAINING in request.sums and site.privacy is not None and not site.privacy.simulation:
        spent = monotonic() - came
        sleep(answer_after(spent, min(site.plan.rounds.deadline_s, site.message_s)) - spent)


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
    return site.parties.again(name, request, broadcast, partial(seal, name, request, site))


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
