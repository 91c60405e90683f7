"""The round loop's transport over a Flower grid: in memory in the simulator, networked in a deployment."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from flwr.app import Message
from flwr.serverapp import Grid

from wardround.core.errors import PeerError
from wardround.core.messages import Reply, Request, answers, reply_to
from wardround.runtime.flower_codec import decode_reply, encode_request

MESSAGE_TYPE = "train"


@dataclass
class GridTransport:
    """Sends requests as Flower messages and maps replies back by the message that they answer.

    Attributes:
        grid: Flower's grid.
        node_of: Site → Flower node that serves it.
        poll_s: Pause between two looks for replies.
        life_s: Seconds for which Flower keeps a request and its reply; None leaves Flower's own 12 hours.
        waiting: Message id → its request.
    """

    grid: Grid
    node_of: Callable[[str], int]
    poll_s: float = 0.2
    life_s: float | None = None
    waiting: dict[str, Request] = field(default_factory=dict)

    def send(self, requests: Sequence[Request]) -> int:
        """Push one message a site."""
        messages, total = [], 0
        for request in requests:
            content, size = encode_request(request)
            node, group = self.node_of(request.site), str(request.round)
            messages.append(Message(content, node, MESSAGE_TYPE, ttl=self.life_s, group_id=group))
            total += size
        self.waiting.clear()
        for message_id, request in zip(self.grid.push_messages(messages), requests, strict=True):
            self.waiting[message_id] = request
        return total

    def receive(self, timeout_s: float) -> Sequence[tuple[Reply, int]]:
        """Pull what has arrived."""
        end = time.monotonic() + timeout_s
        while True:
            arrived = [self._read(message) for message in self.grid.pull_messages(list(self.waiting))]
            if arrived or not self.waiting or time.monotonic() >= end:
                return [item for item in arrived if item is not None]
            time.sleep(self.poll_s)

    def _read(self, message: Message) -> tuple[Reply, int] | None:
        request = self.waiting.pop(message.metadata.reply_to_message_id, None)
        if request is None:
            return None
        if message.has_error():
            return _failed(
                request, "crashed", f"the site's process failed: {message.error.reason or 'no reason given'}"
            ), 0
        try:
            reply = decode_reply(message.content)
        except PeerError as error:
            return _failed(request, "malformed_reply", error.what), 0
        if not answers(reply, request):  # else nobody would ever settle this request
            return _failed(request, "malformed_reply", "the reply names another request"), 0
        return reply, reply.size


def _failed(request: Request, code: str, reason: str) -> Reply:
    return reply_to(request, status="failed", code=code, reason=reason)
