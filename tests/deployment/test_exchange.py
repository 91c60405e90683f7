"""Messages between a server and a site's real processes, over TLS with node authentication."""

from __future__ import annotations

import os
from collections import Counter
from typing import Any

import numpy as np
import pytest
from answering_site import LAYOUT, PRIVATE
from deployed import Running, answer, ask

from wardround.core.messages import Request
from wardround.core.packed import Packed
from wardround.server.fleet import FleetApp
from wardround.server.grid_transport import GridTransport


def test_a_message_is_answered_by_the_resident_worker(running: Running) -> None:
    """Twice by the same process; nothing of either message stays in the server's store."""
    first, second = (answer(ask(running.run, "north", do="echo", size=20)) for _ in range(2))
    assert first["do"] == "echo"
    assert first["pid"] == second["pid"] not in {None, os.getpid()}
    assert running.site.states()[1].pid == first["pid"]
    state = running.link._state
    assert (state.num_message_ins(), state.num_message_res(), len(state.object_store)) == (0, 0, 0)


def test_a_large_answer_arrives_whole(running: Running) -> None:
    """8 MB, above what other requests may hold."""
    assert len(answer(ask(running.run, "north", do="echo", size=8_000_000))["data"]) == 8_000_000


def test_the_text_of_an_exception_stays_at_the_site(running: Running) -> None:
    """Its kind goes out."""
    reply = ask(running.run, "north", do="raise")
    assert reply is not None
    assert reply.error.reason == "RuntimeError"
    assert PRIVATE not in repr(reply.error)


def test_a_worker_that_dies_is_answered_for_and_replaced(running: Running) -> None:
    """At once, and the next message finds a new one."""
    before = answer(ask(running.run, "north", do="echo"))["pid"]
    reply = ask(running.run, "north", do="die", seconds=20)
    assert reply is not None
    assert "ended before it had answered" in str(reply.error.reason)
    assert answer(ask(running.run, "north", do="echo"))["pid"] != before
    assert running.site.states()[1].restarts >= 1


def test_a_worker_that_hangs_is_ended_at_its_deadline(running: Running) -> None:
    """Which is 4 s here."""
    reply = ask(running.run, "north", do="hang", seconds=30)
    assert reply is not None
    assert "longer" in str(reply.error.reason)
    assert answer(ask(running.run, "north", do="echo"))["do"] == "echo"


@pytest.mark.parametrize("site", ["south", "nobody"])
def test_a_site_without_a_node_is_answered_for_at_once(running: Running, site: str) -> None:
    """Not admitted."""
    reply = ask(running.run, site, do="echo", seconds=5)
    assert reply is not None
    assert "admitted" in str(reply.error.reason)


def test_the_round_loops_transport_works_over_it(running: Running) -> None:
    """A megabyte of broadcast, for two sites of which one is not there: its failure is named at once."""
    transport = GridTransport(running.run.grid, running.run.node_of, life_s=100)
    broadcast = Packed(LAYOUT, np.ones(250_000, dtype=np.float32))
    requests = [
        Request("run", "d", 1, site, {"training": b"offer"}, broadcast=broadcast)
        for site in ("north", "south")
    ]
    assert sum(transport.send(requests).values()) > 2_000_000
    replies = {}
    while len(replies) < 2:
        for reply, _ in transport.receive(30):
            replies[reply.site] = reply
    assert replies["north"].sums == {"training": b"offer", "total": b"250000.0"}
    assert (replies["south"].status, replies["south"].code) == ("failed", "crashed")
    assert "admitted" in replies["south"].reason
    assert len(running.link._state.object_store) == 0


def test_a_message_and_its_reply_take_few_requests(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """Six objects down and three up; each is a request of its own, and those are what a round costs."""
    seen: Counter[str] = Counter()
    handle = FleetApp._handle

    def counted(self: FleetApp, request: Any) -> bytes:
        seen[request.url.path.rpartition("/")[2]] += 1
        return handle(self, request)

    transport = GridTransport(running.run.grid, running.run.node_of, life_s=100)
    broadcast = Packed(LAYOUT, np.ones(250_000, dtype=np.float32))
    request = Request("run", "d", 1, "north", {"training": b"offer"}, broadcast=broadcast)
    monkeypatch.setattr(FleetApp, "_handle", counted)
    transport.send([request])
    ((reply, _),) = transport.receive(30)
    assert reply.status == "ok"
    assert {name: seen[name] for name in ("pull-object", "confirm-message-received", "push-messages")} == {
        "pull-object": 6, "confirm-message-received": 1, "push-messages": 1,
    }  # fmt: skip
    assert seen["push-object"] == 3


@pytest.mark.slow
def test_a_worker_that_no_thread_of_its_own_can_end_is_ended(running: Running) -> None:
    """It sleeps with the interpreter's lock."""
    reply = ask(running.run, "north", do="stuck", seconds=40)
    assert reply is not None
    assert reply.has_error()
    assert answer(ask(running.run, "north", do="echo"))["do"] == "echo"
