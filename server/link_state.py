"""Flower's link state with our rules, and a grid over it: messages and replies in one SQLite file.

With superlink.py and fleet.py the server's only imports of Flower's internals;
tests/contract/test_superlink_internals.py fails loudly when one of them moves.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from flwr.app import Error, Message, Metadata, RecordDict
from flwr.app.message import make_message, remove_content_from_message
from flwr.common.constant import SUPERLINK_NODE_ID, Status
from flwr.proto.message_pb2 import ObjectTree
from flwr.proto.node_pb2 import NodeInfo
from flwr.server.superlink.linkstate.sql_linkstate import SqlLinkState
from flwr.serverapp import Grid
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from flwr.supercore.run import Run, RunStatus
from flwr.supercore.sql_mixin import SqlMixin
from flwr.supercore.state.schema.linkstate_models import MessageIns
from flwr.superlink.federation import NoOpFederationManager
from sqlalchemy import event, select
from sqlalchemy.orm import Session

from wardround.core.errors import InternalError, StorageError
from wardround.core.messages import NODE_STARTED_ANEW
from wardround.server.objects import Objects

UNKNOWN_ERROR = 0
"""Flower's code for an error of no kind of its own."""
CACHE = ("cache_size = -4000", "mmap_size = 0")
NOT_THERE = "no node of this site is admitted"
RESTARTED = "the site's node started anew before it answered"
UNREADABLE = "the reply cannot be read"
TOO_LARGE = "the reply is larger than this server takes"


class LinkState(SqlLinkState):
    """Flower's link state in SQLite, with rules of ours; objects in a folder beside it.

    One transaction at a time: SQLite has one writer, and one of Flower's that reads before it writes fails at
    once ("database is locked") where another has written in between. With dozens of sites that is any round.
    It also keeps one connection instead of one for each thread. And since nobody else writes to the file,
    what each request asks (whose key, is the run on, is there mail) is answered from memory where it can be.

    A run ends when we end it: Flower's ends by itself when its process has been silent for a minute, as a
    suspended machine is. And a reply is read once all of it is there: Flower hands it out when it is
    announced, and replaces it by an error where the site has been silent for a minute, whatever it may still
    send.

    Raises:
        StorageError: The folder of objects cannot be made.
    """

    def __init__(self, database: Path) -> None:
        self._turn = threading.RLock()
        self.objects = Objects(database.with_suffix(".objects"))
        super().__init__(str(database), NoOpFederationManager(), self.objects)
        self.on_activation: list[Callable[[int], None]] = []
        self._node_ids: dict[bytes, int] = {}
        self._on: dict[int, RunStatus] = {}
        """Runs whose messages are taken."""
        self._mail: set[int] = set()
        """Nodes for which there may be a message that they have not fetched."""
        self._replies: dict[str, str] = {}
        """Message → the reply that was announced for it."""

    def initialize(self, log_queries: bool = False, **engine: Any) -> list[str]:
        """As Flower's; raises what SQLite raises."""
        tables = super().initialize(log_queries, **engine)
        _modest(self)
        return tables

    @contextmanager
    def session(self) -> Iterator[Session]:
        """As Flower's, one at a time."""
        with self._turn, super().session() as session:
            yield session

    def _cleanup_expired_task_tokens(self) -> None:
        """Nothing expires."""

    def store_traffic(self, run_id: int, *, bytes_sent: int, bytes_recv: int) -> None:
        """Not kept: a write for each object, for a figure that nobody reads."""

    def add_clientapp_runtime(self, run_id: int, runtime: float) -> None:
        """Not kept either."""

    def close(self) -> None:
        """Let go of the database file, and of what was on its way."""
        if self._engine is not None:  # Flower never closes it
            self._engine.dispose()
        self.objects.clear()

    def get_node_id_by_public_key(self, public_key: bytes) -> int | None:
        """As Flower's, once a key."""
        if (known := self._node_ids.get(public_key)) is not None:  # nobody waits for a turn to ask this
            return known
        with self._turn:
            found = super().get_node_id_by_public_key(public_key)
            if found is not None:
                self._node_ids[public_key] = found
            return found

    def delete_node(self, owner_aid: str, node_id: int) -> None:
        """As Flower's."""
        with self._turn:
            self._node_ids.clear()
            super().delete_node(owner_aid, node_id)

    def get_run_status(self, run_ids: set[int]) -> dict[int, RunStatus]:
        """As Flower's, once for a run that is on."""
        on = self._on
        if run_ids <= on.keys():
            return {run_id: on[run_id] for run_id in run_ids}
        with self._turn:
            found = super().get_run_status(run_ids)
            on = {run: status for run, status in found.items() if status.status == Status.RUNNING}
            self._on = self._on | on  # a new one: readers hold the old one
            return found

    def finish_task(self, task_id: int, sub_status: str, details: str) -> bool:
        """As Flower's; it may end a run."""
        with self._turn:
            self._on = {}
            return super().finish_task(task_id, sub_status, details)

    def store_message_ins(self, message: Message) -> str | None:
        """As Flower's."""
        with self._turn:
            self._mail.add(message.metadata.dst_node_id)
            return super().store_message_ins(message)

    def get_message_ins(self, node_id: int, limit: int | None, *, run_id: int | None = None) -> list[Message]:
        """As Flower's; most looks find nothing, and cost nothing."""
        if node_id not in self._mail:
            return []
        with self._turn:
            found = super().get_message_ins(node_id, limit, run_id=run_id)
            if not found and run_id is None:
                self._mail.discard(node_id)
            return found

    def store_message_and_object_tree(
        self, message: Message, object_tree: ObjectTree, session_id: str
    ) -> tuple[bool, list[str]]:
        """As Flower's; of a reply it is noted that it comes."""
        with self._turn:
            stored, missing = super().store_message_and_object_tree(message, object_tree, session_id)
            if stored and message.metadata.reply_to_message_id:
                self._replies[message.metadata.reply_to_message_id] = message.metadata.message_id
            return stored, missing

    def activate_node(self, node_id: int, heartbeat_interval: float) -> bool:
        """As Flower's; whoever waits for the node is told that it has started anew."""
        active = super().activate_node(node_id, heartbeat_interval)
        if active:
            for tell in list(self.on_activation):
                tell(node_id)
        return active

    def delete_messages(self, message_ins_ids: set[str]) -> None:
        """As Flower's."""
        with self._turn:
            for message_id in message_ins_ids:
                self._replies.pop(message_id, None)
            super().delete_messages(message_ins_ids)

    def complete_replies(self, message_ids: Iterable[str]) -> dict[str, str]:
        """Message → its reply, of those whose reply has wholly arrived."""
        with self._turn:
            found = {message: self._replies[message] for message in message_ids if message in self._replies}
        return {message: reply for message, reply in found.items() if self.objects.is_whole(reply)}

    def contents(self, reply_id: str, largest: int) -> dict[str, bytes] | None:
        """The objects of a complete reply; None where they are together larger than this many bytes."""
        parts = self.objects.parts(reply_id)
        if sum(map(self.objects.size, parts)) > largest:
            return None
        return {part: self.objects.get(part) or b"" for part in parts}

    def forget(self, message_id: str, reply_id: str | None) -> None:
        """Delete a message that is settled and its reply, with what they hold."""
        with self._turn:
            self.delete_messages({message_id})
            for object_id in (message_id, reply_id):
                if object_id is not None:
                    self.objects.delete(object_id)

    def fetched(self, message_ids: Iterable[str]) -> set[str]:
        """Those messages that their nodes have fetched."""
        with self.session() as session:
            found = session.scalars(
                select(MessageIns.message_id).where(
                    MessageIns.message_id.in_(list(message_ids)), MessageIns.delivered_at != ""
                )
            ).all()
        return {str(message_id) for message_id in found}


def _modest(part: SqlMixin) -> None:
    """Connections with a small cache: Flower's take 64 MB each, and map the file as well."""
    engine = part._engine  # noqa: SLF001 - Flower gives no way to it
    if engine is None:
        raise InternalError("Flower's database has no engine")

    def shrink(connection: Any, _: Any) -> None:
        for pragma in CACHE:
            connection.execute(f"PRAGMA {pragma}")

    event.listen(engine, "connect", shrink)
    engine.dispose()  # what it has opened so far


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
        """Whole, or not at all; False where the node is not there. It is seen when all of it is here."""
        objects, state = self._state.objects, self._state
        missing = objects.preregister(self._run.run_id, get_object_tree(message))
        try:
            parts = get_all_nested_objects(message)
            for object_id in missing:
                objects.put(object_id, parts[object_id].deflate())
            stored = state.store_message_ins(remove_content_from_message(message)) is not None
        except OSError as error:
            objects.delete(message.object_id)
            raise StorageError(
                "the server did not take a message",
                remedy="look at the disk of the server's folder, and at the server's log",
            ) from error
        if not stored:
            objects.delete(message.object_id)
        return stored

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Replies that have arrived; each is given once."""
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

    def close(self) -> None:
        """No more news of nodes."""
        if self._restarted in self._state.on_activation:
            self._state.on_activation.remove(self._restarted)
