"""Bytes of a message as a site's node sends it, measured on one that is made and taken apart likewise.

Uses Flower's internals as `client/supernode.py` does; tests/contract/test_supernode_internals.py holds them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from flwr.app import Message, RecordDict
from flwr.app.message.message import remove_content_from_message
from flwr.common.serde import message_to_proto
from flwr.proto.fleet_pb2 import PushMessagesRequest
from flwr.proto.node_pb2 import Node
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
from flwr.supercore.task_identity import TaskIdentity

NUMBER: Final = 2**63 + 1
"""Flower's numbers are random, of 64 bits; nearly all of them take ten bytes."""
SECONDS: Final = 3600.0


def sent_bytes(records: RecordDict, message_type: str, group: str) -> int:
    """Bytes of the announcement and of all pieces of a reply.

    Args:
        records: Its content, of random bytes where it has arrays: equal parts of an array travel once.
        message_type: Of the request, in Flower's words.
        group: Of the request.
    """
    with _identity():
        request = Message(RecordDict(), NUMBER, message_type, ttl=SECONDS, group_id=group)
        metadata = request.metadata.__dict__
        metadata["_message_id"] = "0" * 64
        reply = Message(records, reply_to=request)
        reply.metadata.__dict__["_message_id"] = reply.object_id
    announced = PushMessagesRequest(
        node=Node(node_id=NUMBER),
        messages_list=[message_to_proto(remove_content_from_message(reply))],
        message_object_trees=[get_object_tree(reply)],
        clientapp_runtime_list=[1.5],
    )
    pieces = get_all_nested_objects(reply)
    return int(announced.ByteSize()) + sum(len(piece.deflate()) for piece in pieces.values())


@contextmanager
def _identity() -> Iterator[None]:
    """As in a worker that works on a task."""
    names = ("_task_id", "_run_id", "_node_id")
    before = {name: getattr(TaskIdentity, name) for name in names}
    for name in names:
        setattr(TaskIdentity, name, NUMBER)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(TaskIdentity, name, value)
