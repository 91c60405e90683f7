"""A site that started anew over a request is asked the same again, a few times."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from flwr.app import Error, Message
from flwr.supercore.task_identity import TaskIdentity

from wardround.core.messages import NODE_STARTED_ANEW, WORKER_ENDED, Request, reply_to
from wardround.core.packed import Layout, Packed, TensorSpec
from wardround.runtime.flower_codec import decode_request, encode_reply
from wardround.server.grid_transport import MOST_AGAIN, GridTransport

LAYOUT = Layout(tensors=(TensorSpec(name="x", shape=(4,)),))


@pytest.fixture(autouse=True)
def identity() -> None:
    """A message asks who makes it."""
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1


@dataclass
class Scripted:
    """A grid whose site answers by a script: codes of errors, then a reply.

    Attributes:
        codes: Of the errors to come.
        asked: Every request that was pushed.
    """

    codes: list[int]
    asked: list[Request] = field(default_factory=list)
    unread: dict[str, Message] = field(default_factory=dict)

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Answer at once."""
        return [self.answer(message) for message in messages]

    def answer(self, message: Message) -> str:
        """By the script."""
        number = str(len(self.asked))
        message.metadata.__dict__["_message_id"] = number
        request = decode_request(message.content, LAYOUT)
        self.asked.append(request)
        if self.codes:
            reply = Message(Error(self.codes.pop(0), "ended"), reply_to=message)
        else:
            records, _ = encode_reply(reply_to(request, sums=request.sums))
            reply = Message(records, reply_to=message)
        self.unread[number] = reply
        return number

    def pull_messages(self, ids: Iterable[str]) -> list[Message]:
        """Each once."""
        return [self.unread.pop(number) for number in list(ids) if number in self.unread]


def outcome(codes: list[int], **fields: Any) -> tuple[list[Request], Any]:
    """Every request that was sent, and the one reply."""
    grid = Scripted(codes)
    transport = GridTransport(grid, lambda _: 7, poll_s=0.001)  # type: ignore[arg-type]  # as far as it is used
    broadcast = Packed(LAYOUT, np.arange(4, dtype=np.float32))
    request = Request("run", "d", 1, "ward", {"training": b"offer"}, **({"broadcast": broadcast} | fields))
    transport.send([request])
    replies: list[Any] = []
    while transport.waiting:
        replies += [reply for reply, _ in transport.receive(0.01)]
    (reply,) = replies
    return grid.asked, reply


@pytest.mark.parametrize("code", [NODE_STARTED_ANEW, WORKER_ENDED])
def test_it_is_asked_the_same_again(code: int) -> None:
    """With the broadcast; what it then answers counts."""
    asked, reply = outcome([code])
    assert reply.status == "ok"
    assert len(asked) == 2
    assert asked[0].broadcast is not None
    assert asked[1].broadcast is not None
    assert asked[0].broadcast.digest == asked[1].broadcast.digest
    assert asked[0].sums == asked[1].sums


@pytest.mark.parametrize("code", [NODE_STARTED_ANEW, WORKER_ENDED])
def test_not_for_ever(code: int) -> None:
    """A site that starts anew again and again has failed."""
    asked, reply = outcome([code] * 10)
    assert (reply.status, reply.code) == ("failed", "crashed")
    assert len(asked) == 1 + MOST_AGAIN


def test_what_failed_by_itself_is_not_asked_again() -> None:
    """An error of another kind: Flower's, or a worker's that took too long."""
    asked, reply = outcome([8])
    assert (reply.status, reply.code, len(asked)) == ("failed", "crashed", 1)


def test_a_worker_that_ended_has_no_later_exchange_to_go_on_with() -> None:
    """Its node may: the worker beside it still has what it answered."""
    later: dict[str, Any] = {"exchange": 2, "broadcast": None}
    assert len(outcome([WORKER_ENDED], **later)[0]) == 1
    assert len(outcome([NODE_STARTED_ANEW], **later)[0]) == 2


def test_the_count_begins_anew_with_every_exchange() -> None:
    """So that a site that was killed once a round stays in all of them."""
    grid = Scripted([WORKER_ENDED, WORKER_ENDED])
    transport = GridTransport(grid, lambda _: 7, poll_s=0.001)  # type: ignore[arg-type]  # as far as it is used
    for number in (1, 2):
        grid.codes[:] = [WORKER_ENDED] * MOST_AGAIN
        transport.send([Request("run", "d", number, "ward", {"training": b"offer"})])
        replies: list[Any] = []
        while transport.waiting:
            replies += [reply for reply, _ in transport.receive(0.01)]
        assert [reply.status for reply in replies] == ["ok"]


def test_no_more_requests_are_on_their_way_than_there_are_slots() -> None:
    """Of forty sites eight at a time; each is asked once, and its size is known before it is asked."""
    grid = Scripted([])
    transport = GridTransport(grid, lambda _: 7, poll_s=0.001, most_out=8)  # type: ignore[arg-type]  # as above
    broadcast = Packed(LAYOUT, np.arange(4, dtype=np.float32))
    names = [f"site_{number:02}" for number in range(40)]
    requests = [
        Request("run", "d", 1, name, {"training": bytes(number)}, broadcast=broadcast, opened=(b"sum",))
        for number, name in enumerate(names)
    ]
    sizes = transport.send(requests)
    all_at_once = GridTransport(Scripted([]), lambda _: 7)  # type: ignore[arg-type]  # as above
    assert sizes == all_at_once.send(requests)
    assert len(grid.asked) == 8
    answered: list[str] = []
    while len(answered) < len(names):
        found = transport.receive(0.01)
        assert found
        answered += [reply.site for reply, _ in found]
        assert len(grid.asked) <= len(answered) + 8
    assert sorted(answered) == names
    assert [request.site for request in grid.asked] == names


def test_what_was_not_sent_yet_is_dropped_with_what_nobody_waits_for() -> None:
    """The next exchange begins anew."""
    grid = Scripted([])
    transport = GridTransport(grid, lambda _: 7, poll_s=0.001, most_out=1)  # type: ignore[arg-type]  # as above
    transport.send([Request("run", "d", 1, name, {"training": b"o"}) for name in "abc"])
    transport.send([Request("run", "d", 2, "d", {"training": b"o"})])
    while transport.waiting:
        transport.receive(0.01)
    assert [(request.site, request.round) for request in grid.asked] == [("a", 1), ("d", 2)]
