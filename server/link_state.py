"""Flower's link state with our rules: messages and replies in one SQLite file.

With link_grid.py, superlink.py and fleet.py the server's only imports of Flower's internals;
tests/contract/test_superlink_internals.py fails loudly when one of them moves.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from flwr.app import Message
from flwr.common.constant import Status
from flwr.proto.message_pb2 import ObjectTree
from flwr.server.superlink.linkstate.sql_linkstate import SqlLinkState
from flwr.supercore.run import RunStatus
from flwr.supercore.sql_mixin import SqlMixin
from flwr.supercore.state.schema.linkstate_models import MessageIns
from flwr.supercore.utils import uint64_to_int64
from flwr.superlink.federation import NoOpFederationManager
from sqlalchemy import event, select, update
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from wardround.core.errors import InternalError
from wardround.server.full_disk import DiskWatch, refusal
from wardround.server.objects import Objects

CACHE = ("cache_size = -4000", "mmap_size = 0")


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

    A line may be cut at any byte: a request whose delivery got lost is delivered again, and an upload that
    stopped half way goes on where it stopped, however much later.

    Raises:
        StorageError: The folder of objects cannot be made.
    """

    def __init__(self, database: Path) -> None:
        self._turn = threading.RLock()
        self._database = database
        self.disk = DiskWatch()
        self.objects = Objects(database.with_suffix(".objects"), self.disk)
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
        """As Flower's, one at a time.

        Raises:
            StorageError: The disk refuses what was to be written, now or at the end; nothing of it counts.
        """
        with self._turn:
            try:
                with super().session() as session:
                    yield session
            except DBAPIError as error:
                if (refused := refusal(self._database, error)) is None:
                    raise
                self.objects.unkept = refused  # where Flower's code hides it from whoever called that
                self.disk.refused("database", refused)
                raise refused from error

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
        """As Flower's; a node that asks for the next message and has not confirmed one gets that one again.

        Nodes ask for one message at a time, so that it got lost on its way, or a part of it. Whoever had
        fetched a message has confirmed it, and its content is gone from the store. Most looks find nothing,
        and cost nothing.
        """
        if node_id not in self._mail:
            return []
        with self._turn:
            self._deliver_again(node_id)
            found = super().get_message_ins(node_id, limit, run_id=run_id)
            if not found and run_id is None:
                self._mail.discard(node_id)
            return found

    def _deliver_again(self, node_id: int) -> None:
        with self.session() as session:
            delivered = session.scalars(
                select(MessageIns.message_id).where(
                    MessageIns.dst_node_id == uint64_to_int64(node_id), MessageIns.delivered_at != ""
                )
            ).all()
            lost = [message_id for message_id in delivered if self.objects.parts(str(message_id))]
            if lost:
                session.execute(
                    update(MessageIns).where(MessageIns.message_id.in_(lost)).values(delivered_at="")
                )

    def store_message_and_object_tree(
        self, message: Message, object_tree: ObjectTree, session_id: str
    ) -> tuple[bool, list[str]]:
        """As Flower's; of a reply it is noted that it comes."""
        with self._turn:
            stored, missing = super().store_message_and_object_tree(message, object_tree, session_id)
            self.disk.works("database")
            if stored and message.metadata.reply_to_message_id:
                self._replies[message.metadata.reply_to_message_id] = message.metadata.message_id
            return stored, missing

    def _claim_pending_object(self, run_id: int, session_id: str, object_id: str) -> datetime | None:
        """As Flower's; an upload may pause while its run lasts; Flower drops it after 180 s."""
        expires = super()._claim_pending_object(run_id, session_id, object_id)
        return None if expires is None else datetime.max.replace(tzinfo=UTC)

    def store_object(self, run_id: int, session_id: str, object_id: str, object_content: bytes) -> bool:
        """As Flower's; a part whose receipt got lost is sent again, and is not an error then.

        Flower says "not stored" of a full disk, and counts the part as sent: the site would drop its reply.

        Raises:
            StorageError: It cannot be kept; the same part may be sent again.
        """
        with self.session():
            self.objects.unkept = None
            stored = super().store_object(run_id, session_id, object_id, object_content)
            if not stored and self.objects.unkept is not None:
                raise self.objects.unkept
            return stored or self.object_store.get(object_id) == object_content != b""

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

    def reply_to(self, message_id: str) -> str | None:
        """The reply to a message, as far as it has arrived."""
        with self._turn:
            return self._replies.get(message_id)

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
