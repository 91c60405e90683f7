"""Later broadcasts are made by the sites themselves; whoever cannot is sent them. Nothing else changes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from wardround.client.fold_check import FoldCheck
from wardround.core.messages import BEHIND
from wardround.core.plan import RoundRules
from wardround.runtime.events import RoundFolded, SiteReplied
from wardround.server.rounds import run_rounds

MODES = pytest.mark.parametrize("mode", ["off", "accounted", "real"])


def firsts(transport: Any) -> list[tuple[int, str, bool]]:
    """Round, site and whether a broadcast was with it, of each request that began a round."""
    asked = [request for request in transport.asked if request.exchange == 0 and request.attempt == 0]
    assert all((request.broadcast is None) == bool(request.follows) for request in asked)
    return [(request.round, request.site, request.broadcast is not None) for request in asked]


@MODES
def test_the_broadcast_goes_out_in_the_first_round_alone(bench: Any, mode: str) -> None:
    """Its digest and the opened sums afterwards, in the exchange that only scores as well."""
    plan = bench.plan_of(mode, rounds=RoundRules(rounds=3))
    transport = bench.transport(plan)
    outcome = run_rounds(bench.run(transport), bench.initial)
    assert {(round, sent) for round, _, sent in firsts(transport)} == {
        (1, True), (2, False), (3, False), (4, False),
    }  # fmt: skip
    np.testing.assert_array_equal(outcome.last.adapter.vector, bench.expected_adapter(transport, 3))


@MODES
def test_a_site_that_has_forgotten_is_sent_it_and_is_in_the_round(bench: Any, mode: str) -> None:
    """Within the same exchange; its reply that it is behind is no failure, and is told to nobody."""
    plan = bench.plan_of(mode, rounds=RoundRules(rounds=3))
    transport = bench.transport(plan)

    def forgets(request: Any, reply: Any) -> list[Any]:
        if (request.round, request.site) == (1, "b"):
            transport.folds["b"] = FoldCheck(plan, transport.folds["b"].strategy)
        return [reply]

    transport.fault = forgets
    outcome = run_rounds(bench.run(transport), bench.initial)
    of_b = [(round, sent) for round, site, sent in firsts(transport) if site == "b"]
    assert of_b == [(1, True), (2, False), (2, True), (3, False), (4, False)]
    np.testing.assert_array_equal(outcome.last.adapter.vector, bench.expected_adapter(transport, 3))
    assert not [event for event in bench.recorder.of(SiteReplied) if event.status != "ok"]
    assert all(not event.missing for event in bench.recorder.of(RoundFolded))


def test_a_site_that_is_always_behind_fails_and_is_named(bench: Any) -> None:
    """It is sent the broadcast once a round; the others' round goes on."""
    plan = bench.plan_of("off", rounds=RoundRules(rounds=2))

    def behind(request: Any, reply: Any) -> list[Any]:
        if (request.round, request.site) != (2, "b"):
            return [reply]
        return [bench.replace(reply, status="failed", code=BEHIND, reason="", sums={})]

    transport = bench.transport(plan, behind)
    outcome = run_rounds(bench.run(transport), bench.initial)
    told = [(event.round, event.site, event.code) for event in bench.recorder.of(SiteReplied)]
    assert told.count((2, "b", BEHIND)) == 1
    of_b = [(round, sent) for round, site, sent in firsts(transport) if site == "b"]
    assert of_b[:3] == [(1, True), (2, False), (2, True)]
    np.testing.assert_array_equal(
        outcome.last.adapter.vector, bench.expected_adapter(transport, 2, {2: {"b"}})
    )


def test_a_site_that_was_silent_is_sent_the_next_broadcast(bench: Any) -> None:
    """The server does not guess of whoever did not answer to the last one."""
    plan = bench.plan_of("off", rounds=RoundRules(rounds=3, deadline_s=0.02))

    def silent(request: Any, reply: Any) -> list[Any]:
        return [] if (request.round, request.site) == (2, "b") else [reply]

    transport = bench.transport(plan, silent)
    run_rounds(bench.run(transport), bench.initial)
    of_b = [(round, sent) for round, site, sent in firsts(transport) if site == "b"]
    assert of_b[:3] == [(1, True), (2, False), (3, True)]


def test_a_server_that_went_on_sends_everything(bench: Any) -> None:
    """It does not know who was sent what; sites that know the state take it as what they expect."""
    plan = bench.plan_of("real", rounds=RoundRules(rounds=4))
    transport = bench.transport(plan)
    run = bench.run(transport)

    def ends(request: Any, reply: Any) -> list[Any]:
        if request.round == 3:
            raise KeyboardInterrupt
        return [reply]

    transport.fault = ends
    with pytest.raises(KeyboardInterrupt):
        run_rounds(run, bench.initial)
    transport.fault, transport.arrived = lambda request, reply: [reply], []
    before = len(transport.asked)
    outcome = run_rounds(bench.run(transport), bench.initial)
    transport.asked = transport.asked[before:]
    assert {(round, sent) for round, _, sent in firsts(transport)} >= {(3, True), (4, False)}
    assert outcome.last.round == 4
