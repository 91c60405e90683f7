"""At the node: nothing of the worker's passes that is not recorded, whatever the worker says."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import pytest
from flwr.proto.error_pb2 import Error
from flwr.proto.fleet_pb2 import PullMessagesRequest, PushMessagesRequest
from flwr.proto.message_pb2 import Message, Metadata, ObjectTree, PushObjectRequest
from flwr.supernode.fleet_http_client import FleetHttpClient

from wardround.client.history.gate import ANNOUNCE, CONTENTLESS, OFFER, PIECE, Asked, Gate
from wardround.client.history.rows import read_left
from wardround.core.errors import InternalError, PeerError, StorageError

PLACE = {"run_id": "one", "round": 2, "stage": 0, "attempt": 1, "exchange": 3, "sums": ["training"]}
CONTENT = b"what the worker made"
NAME = hashlib.sha256(CONTENT).hexdigest()


class Node:
    """What a node knows, and its gate."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self.full = False
        self.asked = {"r": Asked("train", PLACE), "o": Asked(OFFER, {"run_id": "one"})}
        self.answered: dict[str, Mapping[str, Any]] = {"m": {"status": "ok"}}
        self.gate = Gate(
            self.record, self.asked.get, lambda name: self.answered.get(name, {}), lambda _: 1000
        )

    def record(self, left: Mapping[str, Any]) -> None:
        if self.full:
            raise StorageError("the disk is full")
        self.rows.append(read_left(left).model_dump(exclude_defaults=True))


@pytest.fixture
def node() -> Node:
    """One."""
    return Node()


def announcement(reply_to: str = "r", **more: Any) -> PushMessagesRequest:
    """Of a reply with one piece."""
    message = Message(metadata=Metadata(message_id="m", reply_to_message_id=reply_to), **more)
    return PushMessagesRequest(messages_list=[message], message_object_trees=[ObjectTree(object_id=NAME)])


def piece(content: bytes = CONTENT, name: str = NAME) -> PushObjectRequest:
    """Of it."""
    return PushObjectRequest(object_id=name, object_content=content)


def test_a_reply_is_recorded_before_it_is_announced(node: Node) -> None:
    """With its place as the server asked for it, all its bytes, and the digest of what names every piece."""
    asked = announcement()
    node.gate.check(ANNOUNCE, asked)
    bytes_of = asked.SerializeToString(deterministic=True)
    assert node.rows == [
        {
            "kind": "reply", "run": "one", "round": 2, "stage": 0, "attempt": 1, "exchange": 3,
            "sums": ("training",), "note": "ok", "bytes": len(bytes_of) + 1000,
            "digest": hashlib.sha256(bytes_of).hexdigest(),
        }
    ]  # fmt: skip
    node.gate.check(PIECE, piece())
    node.gate.check(ANNOUNCE, asked)  # the line was lost: the same bytes again are the same message
    assert len(node.rows) == 1
    asked.clientapp_runtime_list.append(1.0)  # anything else is another one
    node.gate.check(ANNOUNCE, asked)
    assert len(node.rows) == 2


def test_what_was_not_recorded_does_not_leave(node: Node) -> None:
    """Nor does a piece of it; once there is space again it is recorded, and does."""
    node.full = True
    for _ in range(2):
        with pytest.raises(StorageError, match="full"):
            node.gate.check(ANNOUNCE, announcement())
        with pytest.raises(PeerError, match="not recorded"):
            node.gate.check(PIECE, piece())
    node.full = False
    node.gate.check(ANNOUNCE, announcement())
    node.gate.check(PIECE, piece())
    assert len(node.rows) == 1


@pytest.mark.parametrize(
    "wrong", [piece(b"something else"), piece(b"else", hashlib.sha256(b"else").hexdigest())]
)
def test_a_piece_that_was_not_announced_does_not_pass(node: Node, wrong: PushObjectRequest) -> None:
    """Under the name of one that was, or under its own."""
    node.gate.check(ANNOUNCE, announcement())
    with pytest.raises(PeerError, match="not recorded"):
        node.gate.check(PIECE, wrong)


def test_every_kind_of_message_is_named(node: Node) -> None:
    """Answers to offers, errors, and what nobody asked for or nobody can read."""
    node.gate.check(ANNOUNCE, announcement(error=Error(code=3, reason="KeyError")))
    node.answered["m"] = {"verdict": "refused", "status": "ok"}
    node.gate.check(ANNOUNCE, announcement("o"))
    node.answered["m"] = {"status": "patient 17 has the flu"}
    node.gate.check(ANNOUNCE, announcement())
    node.gate.check(ANNOUNCE, announcement("nobody asked"))
    found = [(row["kind"], row.get("run"), row.get("round"), row.get("note")) for row in node.rows]
    assert found == [
        ("error", "one", 2, "code 3"),
        ("answer", "one", None, "refused"),
        ("other", "one", 2, None),
        ("other", None, None, None),
    ]
    assert all(row["bytes"] > 1000 for row in node.rows)


def test_what_a_manifest_claims_cannot_stop_the_record(node: Node) -> None:
    """Types and lengths of anything."""
    node.asked["r"] = Asked(
        "train", {"run_id": ["x"], "round": -1, "stage": True, "sums": [1, "y" * 999, "z"]}
    )
    node.gate.check(ANNOUNCE, announcement())
    (row,) = node.rows
    assert row["sums"] == ("", "y" * 200)
    assert {"run", "round", "stage"}.isdisjoint(row)


def test_every_route_of_flowers_node_is_judged(node: Node) -> None:
    """A new one does not pass. Registering is not among them: our nodes have keys."""
    paths = []

    class Client(FleetHttpClient):
        def __init__(self) -> None:
            """No connection."""

        def _unary_unary(self, *, path: str, **_: Any) -> None:  # type: ignore[override]  # it only looks
            paths.append(path)

    for name in dir(FleetHttpClient):
        if name[0].isupper():
            getattr(Client(), name)(None)
    unused = {"/v1/fleet/register-node", "/v1/fleet/unregister-node"}
    assert set(paths) - unused == CONTENTLESS | {ANNOUNCE, PIECE}
    for path in CONTENTLESS:
        node.gate.check(path, PullMessagesRequest())
    assert node.rows == []
    with pytest.raises(InternalError, match="nobody has judged"):
        node.gate.check("/v1/fleet/new", PullMessagesRequest())
