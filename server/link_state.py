"""Flower's link state with our rules: messages and replies in one SQLite file.

With link_grid.py, superlink.py and fleet.py the server's only imports of Flower's internals;
tests/contract/test_superlink_internals.py fails loudly when one of them moves.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from flwr.app import Message
from flwr.proto.message_pb2 import ObjectTree
from flwr.server.superlink.linkstate.sql_linkstate import SqlLinkState
from flwr.supercore.inflatable.inflatable_object import (
    iterate_object_tree,
)
from flwr.supercore.object_store import NoObjectInStoreError, ObjectStoreFactory
from flwr.supercore.object_store.sql_object_store import SqlObjectStore
from flwr.supercore.sql_mixin import SqlMixin
from flwr.supercore.state.schema.linkstate_models import MessageIns, MessageRes
from flwr.supercore.state.schema.objectstore_models import StoredObject
from flwr.supercore.utils import uint64_to_int64
from flwr.superlink.federation import NoOpFederationManager
from sqlalchemy import event, func, select, update
from sqlalchemy.orm import Session

from wardround.core.errors import InternalError

CACHE = ("cache_size = -4000", "mmap_size = 0")


class Objects(SqlObjectStore):
    """Flower's store of objects, whose transactions take turns with those of the link state.

    Args:
        database: The file that both are in.
        turn: A lock that a thread may take again.
    """

    def __init__(self, database: str, turn: AbstractContextManager[Any]) -> None:
        super().__init__(database)
        self._turn = turn

    @contextmanager
    def session(self) -> Iterator[Session]:
        """As Flower's, one at a time."""
        with self._turn, super().session() as session:
            yield session


class LinkState(SqlLinkState):
    """Flower's link state in SQLite, with rules of ours.

    One transaction at a time: SQLite has one writer, and one of Flower's that reads before it writes fails at
    once ("database is locked") where another has written in between. With dozens of sites that is any round.
    It also keeps one connection instead of one for each of 40 threads.

    A run ends when we end it: Flower's ends by itself when its process has been silent for a minute, as a
    suspended machine is. And a reply is read once all of it is there: Flower hands it out when it is
    announced, and replaces it by an error where the site has been silent for a minute, whatever it may still
    send.

    A line may be cut at any byte: a request whose delivery got lost is delivered again, and an upload that
    stopped half way goes on where it stopped, however much later.
    """

    def __init__(self, database: Path) -> None:
        self._turn = threading.RLock()
        self.objects = ObjectStoreFactory(str(database))
        self.objects.store_instance = objects = Objects(str(database), self._turn)
        objects.initialize()
        _modest(objects)
        super().__init__(str(database), NoOpFederationManager(), objects)
        self.on_activation: list[Callable[[int], None]] = []

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
        """Let go of the database file."""
        for part in (self, self.object_store):
            if isinstance(part, SqlMixin) and part._engine is not None:  # noqa: SLF001 - Flower never closes it
                part._engine.dispose()  # noqa: SLF001 - as above

    def get_message_ins(self, node_id: int, limit: int | None, *, run_id: int | None = None) -> list[Message]:
        """As Flower's; a node that asks for the next message and has not confirmed one gets that one again.

        Nodes ask for one message at a time, so that it got lost on its way, or a part of it. Whoever had
        fetched a message has confirmed it, and its content is gone from the store.
        """
        with self.session() as session:
            unconfirmed = select(StoredObject.object_id)
            session.execute(
                update(MessageIns)
                .where(
                    MessageIns.dst_node_id == uint64_to_int64(node_id),
                    MessageIns.delivered_at != "",
                    MessageIns.message_id.in_(unconfirmed),
                )
                .values(delivered_at="")
            )
            return super().get_message_ins(node_id, limit, run_id=run_id)

    def _claim_pending_object(self, run_id: int, session_id: str, object_id: str) -> datetime | None:
        """As Flower's; an upload may pause while its run lasts; Flower drops it after 180 s."""
        expires = super()._claim_pending_object(run_id, session_id, object_id)
        return None if expires is None else datetime.max.replace(tzinfo=UTC)

    def store_object(self, run_id: int, session_id: str, object_id: str, object_content: bytes) -> bool:
        """As Flower's; a part whose receipt got lost is sent again, and is not an error then."""
        with self.session():
            stored = super().store_object(run_id, session_id, object_id, object_content)
            return stored or self.object_store.get(object_id) == object_content != b""

    def activate_node(self, node_id: int, heartbeat_interval: float) -> bool:
        """As Flower's; whoever waits for the node is told that it has started anew."""
        active = super().activate_node(node_id, heartbeat_interval)
        if active:
            for tell in list(self.on_activation):
                tell(node_id)
        return active

    def reply_to(self, message_id: str) -> str | None:
        """The reply to a message, as far as it has arrived."""
        with self.session() as session:
            return session.scalar(
                select(MessageRes.message_id).where(MessageRes.reply_to_message_id == message_id)
            )

    def complete_replies(self, message_ids: Iterable[str]) -> dict[str, str]:
        """Message → its reply, of those whose reply has wholly arrived."""
        with self.session() as session:
            rows = session.execute(
                select(MessageRes.reply_to_message_id, MessageRes.message_id).where(
                    MessageRes.reply_to_message_id.in_(list(message_ids))
                )
            ).all()
            found = {str(message): str(reply) for message, reply in rows}
            return {message: reply for message, reply in found.items() if self._is_complete(reply)}

    def _is_complete(self, reply_id: str) -> bool:
        ids = {tree.object_id for tree in self._trees(reply_id)}
        with self.session() as session:
            there = session.scalar(
                select(func.count())
                .select_from(StoredObject)
                .where(StoredObject.object_id.in_(ids), StoredObject.is_available == 1)
            )
        return bool(ids) and there == len(ids)

    def _trees(self, object_id: str) -> list[ObjectTree]:
        try:
            return list(iterate_object_tree(self.object_store.get_object_tree(object_id)))
        except NoObjectInStoreError:
            return []

    def contents(self, reply_id: str, largest: int) -> dict[str, bytes] | None:
        """The objects of a complete reply; None where they are together larger than this many bytes."""
        contents: dict[str, bytes] = {}
        total = 0
        for tree in self._trees(reply_id):
            if tree.object_id not in contents:
                content = self.object_store.get(tree.object_id) or b""
                total += len(content)
                if total > largest:
                    return None
                contents[tree.object_id] = content
        return contents

    def forget(self, message_id: str, reply_id: str | None) -> None:
        """Delete a message that is settled and its reply, with what they hold."""
        with self.session():
            self.delete_messages({message_id})
            for object_id in (message_id, reply_id):
                if object_id is not None:
                    self.object_store.delete(object_id)

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
    """Connections with a small cache: Flower's take 64 MB each, and map the file as well.

    What lies in the database between two exchanges is as large as there are sites.
    """
    engine = part._engine  # noqa: SLF001 - Flower gives no way to it
    if engine is None:
        raise InternalError("Flower's database has no engine")

    def shrink(connection: Any, _: Any) -> None:
        for pragma in CACHE:
            connection.execute(f"PRAGMA {pragma}")

    event.listen(engine, "connect", shrink)
    engine.dispose()  # what it has opened so far
