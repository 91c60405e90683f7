"""Flower's fleet routes without Flower's application around them."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable
from typing import Any

import pytest
from fastapi import HTTPException
from flwr.proto.fleet_pb2 import PullMessagesRequest, PullMessagesResponse, PushMessagesRequest
from flwr.proto.message_pb2 import Message, Metadata, ObjectTree
from flwr.proto.node_pb2 import Node
from flwr.supercore.error import ApiErrorCode, FlowerError

from wardround.core.errors import StorageError
from wardround.server import fleet
from wardround.server.fleet import FleetApp, in_its_own_name

PULL = "/v1/fleet/pull-messages"


class State:
    """What Flower's factory asks for."""

    database_url, federation_manager = "x", None


def answered(
    app: FleetApp, body: bytes, path: str = PULL, media: bytes = b"application/protobuf"
) -> tuple[int, bytes]:
    """Status and body of one request."""
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http", "path": path, "method": "POST", "query_string": b"", "scheme": "https",
        "server": ("here", 1), "headers": [(b"content-type", media)],
    }  # fmt: skip
    asyncio.run(app(scope, receive, send))
    return sent[0]["status"], sent[1]["body"]


def app(handler: Callable[..., Any]) -> FleetApp:
    """One whose handler of PULL is this."""
    made = FleetApp(State(), threads=1)  # type: ignore[arg-type]  # not looked at
    made.handlers = {PULL: handler}
    return made


@pytest.fixture
def let_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everybody."""
    monkeypatch.setattr(fleet, "authenticate_node", lambda _: None)


@pytest.mark.usefixtures("let_in")
def test_a_request_reaches_flowers_handler_and_its_answer_the_node() -> None:
    """As Protobuf, both ways."""
    asked: list[PullMessagesRequest] = []

    def handler(request: Any, state: Any) -> PullMessagesResponse:
        asked.append(request)
        return PullMessagesResponse(message_object_trees=[ObjectTree(object_id="x")])

    sent = PullMessagesRequest(node=Node(node_id=5))
    status, body = answered(app(handler), sent.SerializeToString())
    assert (status, asked) == (200, [sent])
    assert PullMessagesResponse.FromString(body).message_object_trees[0].object_id == "x"


def test_nobody_reaches_a_handler_without_flowers_authentication() -> None:
    """Here nothing is signed."""
    status, _ = answered(app(lambda **_: pytest.fail("reached")), b"")
    assert status == 401


@pytest.mark.usefixtures("let_in")
@pytest.mark.parametrize(
    ("request_", "expected"),
    [((b"\xff", PULL, b"application/protobuf"), 400), ((b"", PULL, b"text/plain"), 415),
     ((b"", "/v1/fleet/other", b"application/protobuf"), 404)],
)  # fmt: skip
def test_what_is_no_request_is_refused(request_: tuple[bytes, str, bytes], expected: int) -> None:
    """No Protobuf, another media type, no such route."""
    assert answered(app(lambda **_: pytest.fail("reached")), *request_)[0] == expected


@pytest.mark.usefixtures("let_in")
def test_a_late_reply_to_an_earlier_run_is_one_quiet_line(caplog: pytest.LogCaptureFixture) -> None:
    """The site hears what Flower says; the operator reads no error."""

    def handler(request: Any, state: Any) -> None:
        raise FlowerError(ApiErrorCode.FLEET_RUN_STATUS_NOT_ALLOWED, "Run is finished.")

    with caplog.at_level(logging.DEBUG):
        status, body = answered(app(handler), b"")
    assert status >= 400
    assert json.loads(body)["code"] == ApiErrorCode.FLEET_RUN_STATUS_NOT_ALLOWED
    lines = [record for record in caplog.records if record.levelno >= logging.INFO]
    assert [(line.levelname, line.getMessage()) for line in lines] == [
        ("INFO", "what belongs to an earlier run is refused (pull-messages)")
    ]


@pytest.mark.usefixtures("let_in")
def test_any_other_fault_is_told_without_its_text() -> None:
    """To the node."""

    def handler(request: Any, state: Any) -> None:
        raise RuntimeError("a path of the server")

    status, body = answered(app(handler), b"")
    assert status == 500
    assert b"path" not in body


def test_a_node_answers_for_itself_alone() -> None:
    """One reply a request, and in its own name."""
    tree, own = ObjectTree(), Message(metadata=Metadata(src_node_id=5))
    other = Message(metadata=Metadata(src_node_id=6))
    in_its_own_name(
        PushMessagesRequest(node=Node(node_id=5), messages_list=[own], message_object_trees=[tree])
    )
    for messages, trees in (([other], [tree]), ([own, own], [tree, tree]), ([own], []), ([], [])):
        asked = PushMessagesRequest(node=Node(node_id=5), messages_list=messages, message_object_trees=trees)
        with pytest.raises(HTTPException, match="name"):
            in_its_own_name(asked)


@pytest.mark.usefixtures("let_in")
def test_a_full_disk_is_answered_with_503_and_no_line_of_its_own(caplog: pytest.LogCaptureFixture) -> None:
    """The node tries again for as long as it lasts; who refused has told of it."""

    def handler(request: Any, state: Any) -> None:
        raise StorageError("cannot write /somewhere")

    with caplog.at_level(logging.INFO):
        status, body = answered(app(handler), b"")
    assert status == 503
    assert b"somewhere" not in body
    assert [line for line in caplog.messages if "asyncio" not in line] == []
