"""The round loop's transport over a Flower grid: in memory in the simulator, networked in a deployment."""

from __future__ import annotations

import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from flwr.app import Message
from flwr.serverapp import Grid

from wardround.core.errors import PeerError
from wardround.core.messages import (
    NODE_STARTED_ANEW,
    WORKER_ENDED,
    Reply,
    Request,
    answers,
    reply_to,
)
from wardround.runtime.flower_codec import decode_reply, encode_request, request_size
from wardround.runtime.flower_records import OTHER_VERSION, OtherVersionError

LOG = logging.getLogger(__name__)

MESSAGE_TYPE = "train"
MOST_AT_ONCE = 2
"""Replies that are in memory together."""
MOST_AGAIN = 2
"""So often a site that started anew is asked the same again in one exchange."""


@dataclass
class GridTransport:
    """Sends requests as Flower messages and maps replies back by the message that they answer.

    Attributes:
        grid: Flower's grid.
        node_of: Site → Flower node that serves it.
        poll_s: Pause between two looks for replies.
        life_s: Seconds for which Flower keeps a request and its reply; None leaves Flower's own 12 hours.
        withdraw: Called with messages that were sent and whose answers nobody waits for any more.
        most_out: Requests that are on their way at once, the others follow as replies come: one process that
            plays all sites answers no sooner for having all of them before it. None: all at once.
        waiting: Message id → its request.
        again: Site → how often it was asked again in this exchange.
    """

    grid: Grid
    node_of: Callable[[str], int]
    poll_s: float = 0.2
    life_s: float | None = None
    withdraw: Callable[[Sequence[str]], None] = field(default=lambda _: None)
    waiting: dict[str, Request] = field(default_factory=dict)
    again: Counter[str] = field(default_factory=Counter)
    most_out: int | None = None
    _later: deque[Request] = field(default_factory=deque, repr=False)

    def send(self, requests: Sequence[Request]) -> Mapping[str, int]:
        """Push one message a site, each before the next is made: memory does not grow with their number."""
        self.withdraw(list(self.waiting))  # a site that comes back late goes on with what is asked now
        self.waiting.clear()
        self.again.clear()
        at_once = len(requests) if self.most_out is None else self.most_out
        self._later = deque(requests[at_once:])
        sizes = {request.site: self._push(request) for request in requests[:at_once]}
        return sizes | {request.site: request_size(request) for request in self._later}

    def send_more(self, request: Request) -> int:
        """As `Transport`."""
        return self._push(request)

    def _push(self, request: Request) -> int:
        content, size = encode_request(request)
        node, group = self.node_of(request.site), str(request.round)
        message = Message(content, node, MESSAGE_TYPE, ttl=self.life_s, group_id=group)
        (message_id,) = self.grid.push_messages([message])
        self.waiting[message_id] = request
        return size

    def receive(self, timeout_s: float) -> Sequence[tuple[Reply, int]]:
        """Pull what has arrived, of a few sites at a time: the others' replies stay in Flower's store."""
        end = time.monotonic() + timeout_s
        while True:
            waiting = list(self.waiting)
            for start in range(0, len(waiting), MOST_AT_ONCE):
                arrived = [
                    self._read(message)
                    for message in self.grid.pull_messages(waiting[start : start + MOST_AT_ONCE])
                ]
                if arrived:
                    self._push_more()
                    return [item for item in arrived if item is not None]
            if not waiting or time.monotonic() >= end:
                return []
            time.sleep(self.poll_s)

    def _push_more(self) -> None:
        while self._later and self.most_out is not None and len(self.waiting) < self.most_out:
            self._push(self._later.popleft())

    def _read(self, message: Message) -> tuple[Reply, int] | None:
        request = self.waiting.pop(message.metadata.reply_to_message_id, None)
        if request is None:
            return None
        if message.has_error() and self._ask_again(request, message.error.code):
            return None
        if message.has_error() and message.error.code == OTHER_VERSION:
            return _failed(request, "version", str(message.error.reason or "it does not say which")[:300]), 0
        if message.has_error():
            return _failed(
                request, "crashed", f"the site's process failed: {message.error.reason or 'no reason given'}"
            ), 0
        try:
            reply = decode_reply(message.content)
        except OtherVersionError as error:
            return _failed(request, "version", error.what), 0
        except PeerError as error:
            return _failed(request, "malformed_reply", error.what), 0
        if not answers(reply, request):  # else nobody would ever settle this request
            return _failed(request, "malformed_reply", "the reply names another request"), 0
        return reply, reply.size

    def _ask_again(self, request: Request, code: int) -> bool:
        """Send a request again to a site that started anew over it: it goes on from its checkpoint.

        Not in a later exchange where the worker has ended: what it would go on with was in its memory.
        """
        lost = code == NODE_STARTED_ANEW or (code == WORKER_ENDED and request.exchange == 0)
        if not lost or self.again[request.site] >= MOST_AGAIN:
            return False
        self.again[request.site] += 1
        LOG.warning("site %s started anew in round %d: it is asked again", request.site, request.round)
        self._push(request)
        return True


def _failed(request: Request, code: str, reason: str) -> Reply:
    return reply_to(request, status="failed", code=code, reason=reason)
