"""A server that answers with a fault of its own: the node takes it for a lost line, and loses nothing."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.app import Error, Message, RecordDict
from flwr.proto.fleet_pb2 import (
    ActivateNodeResponse,
    PullMessagesRequest,
    PullMessagesResponse,
    PushMessagesResponse,
)
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest, SendNodeHeartbeatResponse
from flwr.proto.message_pb2 import PushObjectRequest
from flwr.supercore.inflatable.inflatable_object import get_object_tree
from flwr.supercore.task_identity import TaskIdentity
from flwr.supernode import fleet_http_connection
from flwr.supernode.fleet_http_client import FleetHttpClient

from wardround.client import supernode
from wardround.client.history.gate import Gate
from wardround.client.polling import Polling
from wardround.core.errors import StorageError

ROUTES = {
    "/v1/fleet/activate-node": ActivateNodeResponse(node_id=5),
    "/v1/fleet/deactivate-node": ActivateNodeResponse(),
    "/v1/fleet/send-node-heartbeat": SendNodeHeartbeatResponse(success=True),
    "/v1/fleet/pull-messages": PullMessagesResponse(),
    "/v1/fleet/push-messages": PushMessagesResponse(),
}
PULL, BEAT = "/v1/fleet/pull-messages", "/v1/fleet/send-node-heartbeat"
PUSH, ELSEWHERE = "/v1/fleet/push-messages", "/elsewhere"


class Faulty:
    """A server that answers as it is told, by path, and well otherwise."""

    def __init__(self) -> None:
        self.faults: dict[str, list[int]] = {}
        self.asked: list[str] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["content-length"]))
                outer.asked.append(self.path)
                waiting = outer.faults.get(self.path) or [200]
                status = waiting.pop(0)
                body = ROUTES[self.path].SerializeToString() if status == 200 else b"{}"
                self.send_response(status)
                if status == 307:
                    self.send_header("location", ELSEWHERE)
                self.send_header("content-length", str(len(body)))
                self.send_header("content-type", "application/protobuf")
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                """Nothing."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.server.server_port}"


@pytest.fixture
def faulty() -> Iterator[Faulty]:
    """It serves."""
    made = Faulty()
    yield made
    made.server.shutdown()
    made.server.server_close()


def recorded(_: Mapping[str, Any]) -> None:
    """A supervisor that records all."""


@contextmanager
def connected(
    faulty: Faulty, record: Callable[[Mapping[str, Any]], None] = recorded
) -> Iterator[tuple[Any, Any, int]]:
    """Flower's callbacks of a node, our watch over them, and where it tells of the line."""
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    watch = supernode._Watch(Polling(0.1, 1.0), supernode._Line(writing))
    key = ec.generate_private_key(ec.SECP384R1())
    try:
        with (
            supernode._watched(watch, Gate(record, lambda _: None, lambda _: {}, lambda _: 0)),
            fleet_http_connection.http_request_response(
                faulty.address, insecure=True, authentication_keys=(key, key.public_key())
            ) as callbacks,
        ):
            yield callbacks, watch, reading
    finally:
        os.close(reading)
        os.close(writing)


def told(reading: int) -> list[str]:
    """What was said of the line."""
    return os.read(reading, 10_000).decode().split("\n")[:-1]


@pytest.mark.parametrize("status", [500, 503, 507])
def test_a_fault_of_the_servers_is_a_lost_line(
    faulty: Faulty, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    """The request is made again, and answered; site and log say what is the matter, once."""
    with connected(faulty) as ((_, receive, *_), watch, reading):
        faulty.faults[PULL] = [status, status]
        assert receive() is None  # Flower tries again by itself
        assert faulty.asked.count(PULL) == 3
        _, said, better = told(reading)
    assert f"(it answers {status})" in said
    assert better == ""
    assert watch.line.lost_at is None
    assert sum("cannot be reached" in line for line in caplog.messages) == 1


def test_one_route_that_works_says_nothing_of_another(faulty: Faulty) -> None:
    """Heartbeats pass while an upload is put off: nobody reads every few seconds that all is well."""
    _, writing = os.pipe()
    line = supernode._Line(writing)
    line.lost("it answers 503", "push")
    line.works("beat")
    assert line.lost_at is not None
    line.works("push")
    assert line.lost_at is None
    line.lost("ConnectError")
    line.works("beat")
    assert line.lost_at is None


def test_a_server_that_cannot_answer_does_not_end_the_heartbeats(
    faulty: Faulty, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Flower's thread of them ends with any status but 502, 503 and 504, and nobody starts it again."""
    monkeypatch.setattr(supernode, "PATIENCE_S", 0.0)
    faulty.faults[BEAT] = [500, 507]
    with connected(faulty):
        end = time.monotonic() + 20
        while faulty.asked.count(BEAT) < 3:
            assert time.monotonic() < end, "no heartbeat came after the fault"
            time.sleep(0.05)


@pytest.mark.parametrize("status", [400, 413, 501])
def test_what_is_refused_is_not_asked_again(faulty: Faulty, status: int) -> None:
    """It would be refused again."""
    with connected(faulty) as ((_, receive, *_), *_):
        faulty.faults[PULL] = [status]
        with pytest.raises(httpx.HTTPStatusError):
            receive()
    assert faulty.asked.count(PULL) == 1


def test_a_fault_that_stays_ends(faulty: Faulty, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a site sends may be the cause: it must not be sent for ever."""
    with connected(faulty) as ((_, receive, *_), watch, _):
        faulty.faults[PULL] = [500] * 50
        monkeypatch.setattr(supernode, "PATIENCE_S", 0.2)
        with pytest.raises(httpx.HTTPStatusError):
            receive()
        assert faulty.asked.count(PULL) < 50
        faulty.faults[PULL] = []
        assert receive() is None
        assert watch.broken == {}


def test_nothing_leaves_that_the_history_cannot_take(faulty: Faulty) -> None:
    """The node waits, says why, and sends when it is recorded; heartbeats and looks for a message go on."""
    rows: list[Mapping[str, Any]] = []
    refusals = 2

    def record(left: Mapping[str, Any]) -> None:
        if len(asked_before) < refusals:
            asked_before.append(list(faulty.asked))
            raise StorageError("cannot write history.jsonl", found="No space left on device")
        rows.append(left)

    asked_before: list[list[str]] = []
    with connected(faulty, record) as ((_, receive, send, *_), _, reading):
        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 7, 1
        reply = Message(Error(3, "KeyError"), reply_to=Message(RecordDict(), 5, "train", ttl=60))
        reply.metadata.__dict__["_message_id"] = reply.object_id
        send(reply, get_object_tree(reply), 0.0)
        assert receive() is None
        _, said, better = told(reading)
    assert [PUSH in asked for asked in asked_before] == [False, False]
    assert faulty.asked.count(PUSH) == len(rows) == 1
    assert "nothing is sent since" in said
    assert "No space left on device" in said
    assert better == ""


def test_what_leaves_goes_nowhere_but_to_the_server(faulty: Faulty) -> None:
    """A server that points elsewhere is not followed."""
    with connected(faulty) as ((_, receive, *_), _, _):
        faulty.faults[PULL] = [307]
        with pytest.raises(httpx.HTTPStatusError):
            receive()
    assert ELSEWHERE not in faulty.asked


def test_a_piece_of_a_reply_is_waited_for_on_a_slow_line(
    faulty: Faulty, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Minutes without a word of the system's; a heartbeat and all else as Flower has it."""
    asked: dict[str, Any] = {}

    def noted(_: Any, *, path: str, timeout: Any = None, **rest: Any) -> Any:
        del rest
        asked[path] = timeout

    with connected(faulty), monkeypatch.context() as patch:
        patch.setattr(FleetHttpClient, "_unary_unary", noted)
        patch.setattr(Gate, "check", lambda *_: None)
        client = fleet_http_connection.FleetHttpClient("http://127.0.0.1:1")
        client.PushObject(PushObjectRequest())
        client.PullMessages(PullMessagesRequest())
        client.SendNodeHeartbeat(SendNodeHeartbeatRequest())
    assert asked[f"/v1/fleet{supernode.PIECE}"] == supernode.SLOW
    assert asked[PULL] is None
    assert asked[BEAT] == 5
