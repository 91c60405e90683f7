"""Flower's grid over the link state in this process: what a run sends to sites, and what they answer.

With link_state.py, superlink.py and fleet.py the server's only imports of Flower's internals.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Iterable

from flwr.app import Error, Message, Metadata, RecordDict
from flwr.app.message import make_message, remove_content_from_message
from flwr.common.constant import SUPERLINK_NODE_ID
from flwr.proto.node_pb2 import NodeInfo
from flwr.serverapp import Grid
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from flwr.supercore.run import Run

from wardround.core.messages import NODE_STARTED_ANEW
from wardround.server.full_disk import PATIENCE_S
from wardround.server.link_state import LinkState

UNKNOWN_ERROR = 0
"""Flower's code for an error of no kind of its own."""
NOT_THERE = "no node of this site is admitted"
RESTARTED = "the site's node started anew before it answered"
UNREADABLE = "the reply cannot be read"
TOO_LARGE = "the reply is larger than this server takes"


class LinkGrid(Grid):
    """Flower's grid for a run of ours, over the link state in this process.

    Flower's own `InMemoryGrid` keeps contents where nodes over HTTP never look for them; its `HttpGrid` needs
    the Runtime routes. Contents are freed as soon as the node has them, replies as soon as they are read.
    What can never be answered (no such node, a node that started anew) is answered here, at once.

    Args:
        state: The link state.
        run: The run that messages belong to.
        largest_reply: Most bytes of one reply.
    """

    def __init__(self, state: LinkState, run: Run, largest_reply: int) -> None:
        self._state = state
        self._run = run
        self._largest = largest_reply
        self._lock = threading.Lock()
        self._nodes: dict[str, int] = {}
        """Unanswered message → its node."""
        self._failed: dict[str, str] = {}
        """Unanswered message → why no answer will come."""
        state.on_activation.append(self._restarted)
        state.disk.forget()

    def set_run(self, run: Run) -> None:
        """Flower's; the run is given once."""
        self._run = run

    @property
    def run(self) -> Run:
        """Flower's description of the run."""
        return Run(**vars(self._run))

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Flower's old way of making a message."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """Nodes that are online."""
        return self._state.get_nodes(self._run.run_id)

    def get_nodes(self) -> Iterable[NodeInfo]:
        """The same, as Flower describes them."""
        return self._state.get_node_info(node_ids=list(self.get_node_ids()))

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Store messages for their nodes; gives one id a message, in their order."""
        return [self._push(message) for message in messages]

    def _push(self, message: Message) -> str:
        metadata = message.metadata
        metadata.__dict__["_run_id"] = self._run.run_id
        metadata.__dict__["_src_node_id"] = SUPERLINK_NODE_ID
        metadata.__dict__["_src_task_id"] = self._run.primary_task_id
        with no_object_id_recompute():
            metadata.__dict__["_message_id"] = message_id = message.object_id
            stored = self._store(message)
        with self._lock:
            if not stored:
                message_id = str(uuid.uuid4())
                self._failed[message_id] = NOT_THERE
            self._nodes[message_id] = metadata.dst_node_id
        return message_id

    def _store(self, message: Message) -> bool:
        """Whole, or not at all; False where the node is not there. It is seen when all of it is here.

        Raises:
            StorageError: The disk refuses it.
        """
        objects, state = self._state.objects, self._state
        missing = objects.preregister(self._run.run_id, get_object_tree(message))
        try:
            parts = get_all_nested_objects(message)
            for object_id in missing:
                objects.put(object_id, parts[object_id].deflate())
            stored = state.store_message_ins(remove_content_from_message(message)) is not None
        except BaseException:
            objects.delete(message.object_id)
            raise
        if not stored:
            objects.delete(message.object_id)
        return stored

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Replies that have arrived; each is given once.

        Raises:
            StorageError: The disk has refused for a while what sites send: none can arrive any more.
        """
        if (refused := self._state.disk.lasting(PATIENCE_S)) is not None:
            raise refused
        with self._lock:
            asked = [message_id for message_id in message_ids if message_id in self._nodes]
            failed = {
                message_id: self._failed[message_id] for message_id in asked if message_id in self._failed
            }
        replies = self._state.complete_replies(asked) if asked else {}
        return [
            *(self._read(message_id, reply_id) for message_id, reply_id in replies.items()),
            *(
                self._fail(message_id, why, code=NODE_STARTED_ANEW if why == RESTARTED else UNKNOWN_ERROR)
                for message_id, why in failed.items()
                if message_id not in replies
            ),
        ]

    def _read(self, message_id: str, reply_id: str) -> Message:
        contents = self._state.contents(reply_id, self._largest)
        if contents is None:
            return self._fail(message_id, TOO_LARGE, reply_id)
        try:
            message = inflate_object_from_contents(reply_id, contents)
        except Exception:  # noqa: BLE001 - whatever bytes of a stranger do to Flower's decoder
            return self._fail(message_id, UNREADABLE, reply_id)
        if not isinstance(message, Message) or message.metadata.reply_to_message_id != message_id:
            return self._fail(message_id, UNREADABLE, reply_id)
        message.metadata.__dict__["_message_id"] = reply_id
        self._settle(message_id, reply_id)
        return message

    def _fail(
        self, message_id: str, why: str, reply_id: str | None = None, code: int = UNKNOWN_ERROR
    ) -> Message:
        node_id = self._nodes.get(message_id, 0)
        self._settle(message_id, reply_id)
        metadata = Metadata(
            run_id=self._run.run_id,
            message_id="",
            src_node_id=node_id,
            dst_node_id=SUPERLINK_NODE_ID,
            reply_to_message_id=message_id,
            group_id="",
            created_at=time.time(),
            ttl=0,
            message_type="system",
        )
        return make_message(metadata=metadata, error=Error(code, why))

    def _settle(self, message_id: str, reply_id: str | None) -> None:
        with self._lock:
            self._nodes.pop(message_id, None)
            self._failed.pop(message_id, None)
        self._state.forget(message_id, reply_id)

    def _restarted(self, node_id: int) -> None:
        """What this node had fetched and not answered it has lost."""
        with self._lock:
            its = [message_id for message_id, node in self._nodes.items() if node == node_id]
        lost = self._state.fetched(its) if its else set()
        with self._lock:
            self._failed.update({message_id: RESTARTED for message_id in lost if message_id in self._nodes})

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Push, and pull until all have answered or the timeout, in seconds, is over."""
        waiting = set(self.push_messages(messages))
        end = None if timeout is None else time.monotonic() + timeout
        replies: list[Message] = []
        while waiting:
            for reply in self.pull_messages(waiting):
                waiting.discard(reply.metadata.reply_to_message_id)
                replies.append(reply)
            if not waiting or (end is not None and time.monotonic() >= end):
                break
            time.sleep(0.1)
        return replies

    def withdraw(self, message_ids: Iterable[str]) -> None:
        """Take messages back whose answers nobody waits for any more.

        A node that has not fetched them by now never does, and what it answers to them is dropped.
        """
        for message_id in message_ids:
            if message_id in self._nodes:
                self._settle(message_id, self._state.reply_to(message_id))

    def close(self) -> None:
        """No more news of nodes."""
        if self._restarted in self._state.on_activation:
            self._state.on_activation.remove(self._restarted)
