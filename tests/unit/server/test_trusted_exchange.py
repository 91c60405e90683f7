"""Rounds through a trusted aggregator: a relay that alters, repeats, swaps or keeps envelopes."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest

from wardround.core.plan import RoundRules
from wardround.privacy.sums.contract import TRAINING
from wardround.runtime.events import RoundFolded, SiteReplied, SumOpened
from wardround.server.rounds import run_rounds


def altered(kept: dict[Any, Any], kind: str, b: Any, reply: Any) -> Any:
    """What the relay makes of one reply."""
    message = reply.sums[TRAINING]
    other = kept.get((reply.site, reply.round - 1), b"")
    changed = {
        "tampered": message[:-1] + bytes([message[-1] ^ 1]),
        "replayed": other,
        "of another site": kept.get(("a", reply.round), b""),
        "cut": message[:-1],
        "garbage": b"no envelope",
    }[kind]
    assert changed != message
    return b.replace(reply, sums={**reply.sums, TRAINING: changed})


@pytest.mark.parametrize("kind", ["tampered", "replayed", "of another site", "cut", "garbage"])
def test_what_the_relay_does_to_an_envelope_costs_that_site_its_part_in_the_round(
    bench: Any, kind: str
) -> None:
    """It is named, its score counts all the same, and the others' sum is folded without it."""
    kept: dict[Any, Any] = {}

    def relay(request: Any, reply: Any) -> Any:
        if TRAINING in reply.sums:
            kept[request.site, request.round] = reply.sums[TRAINING]
            if (request.site, request.round) == ("b", 2):
                return [altered(kept, kind, bench, reply)]
        return [reply]

    transport = bench.transport(bench.plan_of("trusted", rounds=RoundRules(rounds=3)), relay)
    outcome = run_rounds(bench.run(transport), bench.initial)
    np.testing.assert_array_equal(
        outcome.last.adapter.vector, bench.expected_adapter(transport, 3, {2: {"b"}})
    )
    assert [e.missing for e in bench.recorder.of(RoundFolded)] == [(), ("b",), ()]
    told = [(e.site, e.round, e.status) for e in bench.recorder.of(SiteReplied) if e.status != "ok"]
    assert told == [("b", 2, "quarantined")]


def test_a_second_attempt_asks_for_what_was_kept_and_adds_each_site_once(bench: Any) -> None:
    """Two of four are lost under a quorum of three: all are asked again, nobody trains twice."""
    plan = bench.plan_of("trusted", rounds=RoundRules(rounds=2, quorum=0.75, deadline_s=0.05))
    contributed: Counter[Any] = Counter()
    envelopes: list[bytes] = []

    def relay(request: Any, reply: Any) -> Any:
        envelopes.extend(reply.sums.values())
        lost = (request.round, request.attempt) == (1, 0) and request.site in "cd"
        return [] if lost else [reply, reply]  # and everything else comes twice

    def counted(name: str, request: Any, lanes: Any) -> Any:
        contributed[name, request.round, request.site] += 1
        return lanes

    transport = bench.transport(plan, relay, tamper=counted)
    outcome = run_rounds(bench.run(transport), bench.initial)
    np.testing.assert_array_equal(outcome.last.adapter.vector, bench.expected_adapter(transport, 2))
    opened = [(e.round, e.attempt, e.survivors) for e in bench.recorder.of(SumOpened) if e.name == TRAINING]
    assert opened == [(1, 1, 4), (2, 0, 4)]
    assert set(contributed.values()) == {1}
    assert len(set(envelopes)) == len(envelopes), "a kept contribution is sealed anew"


def test_contributions_kept_for_a_second_attempt_never_go_out_in_the_clear(bench: Any) -> None:
    """What goes over the transport holds no piece of the packed lanes."""
    from wardround.privacy.packing import pack

    plan = bench.plan_of("trusted", rounds=RoundRules(rounds=1))
    sent: list[bytes] = []

    def relay(request: Any, reply: Any) -> Any:
        sent.extend(reply.sums.values())
        return [reply]

    transport = bench.transport(plan, relay)
    run_rounds(bench.run(transport), bench.initial)
    assert len(sent) == 3 * 4
    for parties in transport.parties.values():
        _, lanes = parties.kept[TRAINING]
        packed = pack(lanes.coordinates, plan.encoding.bits)
        assert all(packed[i : i + 6] not in message for i in range(len(packed) - 5) for message in sent)
