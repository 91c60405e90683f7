"""Flower's internals that the simulator stands on: this fails loudly when one of them moves."""

from __future__ import annotations

import inspect
import threading
from dataclasses import replace
from importlib import metadata
from typing import Any

import numpy as np
import pytest
from flwr.app import Message
from flwr.clientapp import ClientApp
from flwr.server.superlink.fleet.vce import vce_api
from flwr.server.superlink.fleet.vce.backend.backend import Backend
from flwr.server.superlink.linkstate.in_memory_linkstate import RunRecord
from flwr.serverapp import Grid
from flwr.supercore.run import Run

from wardround.core.messages import Reply, Request
from wardround.core.packed import Layout, Packed, TensorSpec
from wardround.runtime.flower_codec import addressee, decode_request, encode_reply
from wardround.server.grid_transport import GridTransport
from wardround.simulations import flower_engine
from wardround.simulations.flower_engine import simulate

LAYOUT = Layout(tensors=(TensorSpec(name="x", shape=(4,)),))


def requests(count: int) -> list[Request]:
    """One a site."""
    broadcast = Packed(LAYOUT, np.arange(4, dtype=np.float32))
    return [
        Request("run", "d", 1, f"site_{i}", {"training": b"offer"}, broadcast=broadcast) for i in range(count)
    ]


def echo() -> ClientApp:
    """Answers with the round it was asked for; the third site's handler breaks."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Any) -> Message:
        request = decode_request(message.content, LAYOUT)
        _, site, _ = addressee(message.content)
        if site == "site_3":
            raise RuntimeError("out of order")
        reply = Reply("run", "d", request.round, site, code="echo", sums=request.sums)
        return Message(encode_reply(reply)[0], reply_to=message)

    return app


def test_the_internals_are_where_they_were() -> None:
    """Version, signatures and fields that `simulations/flower_engine.py` uses."""
    assert metadata.version("flwr").startswith("1.41.")
    assert list(inspect.signature(vce_api._register_nodes).parameters) == ["num_nodes", "state_factory"]
    assert list(inspect.signature(vce_api._register_node_info_stores).parameters) == [
        "nodes_mapping",
        "run",
        "app_dir",
    ]
    assert list(inspect.signature(vce_api.worker).parameters) == [
        "messageins_queue", "messageres_queue", "node_info_store", "backend", "f_stop", "metrics",
    ]  # fmt: skip
    assert list(inspect.signature(vce_api.add_messages_to_queue).parameters) == [
        "state", "queue", "nodes_mapping", "f_stop",
    ]  # fmt: skip
    assert list(inspect.signature(vce_api.put_message_into_state).parameters) == ["state", "queue", "f_stop"]
    assert {"build", "is_worker_idle", "terminate", "process_message"} <= Backend.__abstractmethods__
    assert "run" in inspect.signature(RunRecord).parameters
    run = Run.create_empty(run_id=7)
    assert {"primary_task_id", "federation_id"} <= set(vars(run))


def test_messages_go_out_and_come_back_over_a_few_lanes() -> None:
    """Twenty sites over three nodes: every reply arrives once, a broken handler is a named failure."""
    collected: dict[str, Reply] = {}

    def server(grid: Grid, nodes: list[int]) -> None:
        assert len(nodes) == 3
        transport = GridTransport(grid, lambda site: nodes[int(site[5:]) % 3], poll_s=0.01)
        assert sum(transport.send(requests(20)).values()) > 20 * 16
        for _ in range(200):
            for reply, size in transport.receive(0.2):
                assert reply.site not in collected
                assert size == len(b"".join(reply.sums.values()))
                collected[reply.site] = reply
            if len(collected) == 20:
                return

    simulate(server, echo(), lanes=3)
    assert sorted(collected) == sorted(f"site_{i}" for i in range(20))
    assert (collected["site_3"].status, collected["site_3"].code) == ("failed", "crashed")
    echoes = [reply for site, reply in collected.items() if site != "site_3"]
    assert {reply.code for reply in echoes} == {"echo"}
    assert all(reply.sums == {"training": b"offer"} for reply in echoes)


@pytest.mark.parametrize(
    "change",
    [{"stage": 1}, {"attempt": 1}, {"exchange": 1}, {"round": 2}, {"run_id": "x"}, {"site": "site_9"}],
    ids=str,
)
def test_a_reply_that_names_another_request_settles_its_own(
    monkeypatch: pytest.MonkeyPatch, change: dict[str, Any]
) -> None:
    """It would otherwise be waited for until the deadline, and in a simulation for ever."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Any) -> Message:
        site = addressee(message.content).site
        reply = replace(Reply("run", "d", 1, site), **change)
        return Message(encode_reply(reply)[0], reply_to=message)

    collected: list[Reply] = []
    lives: list[float] = []

    def server(grid: Grid, nodes: list[int]) -> None:
        push = grid.push_messages

        def seen(messages: Any) -> Any:
            lives.extend(message.metadata.ttl for message in messages)
            return push(messages)

        monkeypatch.setattr(grid, "push_messages", seen)
        transport = GridTransport(grid, lambda site: nodes[0], poll_s=0.01, life_s=1e6)
        transport.send(requests(2))
        for _ in range(200):
            collected.extend(reply for reply, _size in transport.receive(0.2))
            if len(collected) == 2:
                return

    simulate(server, app, lanes=1)
    places = [(r.site, r.run_id, r.round, r.stage, r.attempt, r.exchange, r.code) for r in collected]
    assert sorted(places) == [
        (f"site_{i}", "run", 1, 0, 0, 0, "malformed_reply") for i in range(2)
    ]  # fmt: skip
    assert lives == [1e6, 1e6]


def test_what_the_server_raises_reaches_the_caller() -> None:
    """And the engine's threads end."""
    before = set(threading.enumerate())

    def server(grid: Grid, nodes: list[int]) -> None:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        simulate(server, echo(), lanes=1)
    assert set(threading.enumerate()) <= before


@pytest.mark.timeout(60)
def test_no_message_waits_for_flowers_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """It looks for messages every 0.1 s and ends within a second; with endless pauses nothing changes."""
    wait, get = flower_engine._Stop.wait, flower_engine._Messages.get
    monkeypatch.setattr(flower_engine._Stop, "wait", lambda stop, timeout=None: wait(stop))
    monkeypatch.setattr(flower_engine._Messages, "get", lambda queue, block=True, timeout=None: get(queue))
    test_messages_go_out_and_come_back_over_a_few_lanes()
    test_what_the_server_raises_reaches_the_caller()
