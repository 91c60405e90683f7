"""What Flower's node at a site remembers: messages, replies, tasks; with rules of ours.

With supernode.py and worker.py the site's only imports of Flower's internals;
tests/contract/test_supernode_internals.py holds them.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from flwr.app import ConfigRecord, Error, Message
from flwr.common.constant import Status, SubStatus
from flwr.supercore.constant import TaskType
from flwr.supercore.inflatable.inflatable_object import (
    get_object_type_from_object_content,
    iterate_object_tree,
)
from flwr.supercore.object_store import NoObjectInStoreError
from flwr.supernode.nodestate.in_memory_nodestate import InMemoryNodeState

from wardround.client.history.gate import Asked
from wardround.core.messages import WORKER_ENDED

LOG = logging.getLogger(__name__)


class SiteNodeState(InMemoryNodeState):
    """What Flower's node remembers, with three rules of ours.

    The worker gets a task once all of its message is here: Flower hands it out before it has fetched the
    message, and its worker gives up after minutes of a slow line. A worker that has ended is answered for at
    once. And a reply is sent once all of it is here: what leaves is recorded first, as a whole.
    """

    def __init__(self, *args: Any, **named: Any) -> None:
        super().__init__(*args, **named)
        self.asked: dict[str, Asked] = {}
        """Id of a message of the server that the worker was given → what it asks."""

    def claim_task(self, task_id: int) -> str | None:
        """As Flower's, where the task's message is whole."""
        run_ids = {task.run_id for task in self.get_tasks(task_ids=[task_id])}
        with self.lock_msg_store:
            waiting = [
                message_id
                for message_id, entry in self.msg_store.items()
                if entry.message.metadata.run_id in run_ids
                and not entry.is_retrieved
                and not entry.message.metadata.reply_to_message_id
            ]
        whole = [message_id for message_id in waiting if self._is_whole(message_id)]
        for message_id in whole:
            kind = self.msg_store[message_id].message.metadata.message_type
            self.asked[message_id] = Asked(kind, self.manifest(message_id))
        return super().claim_task(task_id) if whole else None

    def get_messages_legacy(
        self,
        *,
        run_ids: Sequence[int] | None = None,
        is_reply: bool | None = None,
        limit: int | None = None,
    ) -> Sequence[Message]:
        """As Flower's; of replies those that are whole."""
        if not is_reply:
            return super().get_messages_legacy(run_ids=run_ids, is_reply=is_reply, limit=limit)
        super().get_messages_legacy(run_ids=[], is_reply=True)  # what it does beside looking
        found: list[Message] = []
        with self.lock_msg_store:
            for message_id, entry in self.msg_store.items():
                metadata = entry.message.metadata
                wanted = metadata.reply_to_message_id and (run_ids is None or metadata.run_id in run_ids)
                if wanted and not entry.is_retrieved and len(found) != limit and self._is_whole(message_id):
                    entry.is_retrieved = True
                    found.append(entry.message)
        return found

    def delete_messages(self, *, message_ids: Sequence[str] | None = None) -> None:
        """As Flower's."""
        super().delete_messages(message_ids=message_ids)
        for message_id in message_ids if message_ids is not None else list(self.asked):
            self.asked.pop(message_id, None)

    def size(self, object_id: str) -> int:
        """Bytes of a piece of a message."""
        return len(self.object_store.get(object_id) or b"")

    def manifest(self, message_id: str) -> Mapping[str, Any]:
        """What the content of a message says of itself; empty where it says nothing that can be read."""
        try:
            for tree in iterate_object_tree(self.object_store.get_object_tree(message_id)):
                content = self.object_store.get(tree.object_id) or b""
                if content and get_object_type_from_object_content(content) == ConfigRecord.__qualname__:
                    found = json.loads(str(ConfigRecord.inflate(content)["json"]))
                    return found if isinstance(found, dict) else {}
        except Exception as error:  # noqa: BLE001 - whatever is wrong with it, it is not the node that ends
            LOG.warning("a message does not say what it is (%s)", type(error).__name__)
        return {}

    def _is_whole(self, message_id: str) -> bool:
        try:
            trees = list(iterate_object_tree(self.object_store.get_object_tree(message_id)))
        except NoObjectInStoreError:
            return False
        return all(self.object_store.get(tree.object_id) for tree in trees)

    def fail_unanswered(self, why: str, code: int = WORKER_ENDED) -> int:
        """Answer what a worker that has ended had in hand, so that nobody waits for it; gives how many.

        Flower does so by itself a minute later; and not where the worker ended between taking a task and
        fetching its message, or within its answer: then its node waits for ever.
        """
        taken = [
            task
            for task in self.get_tasks(statuses=[Status.STARTING, Status.RUNNING])
            if task.type == TaskType.CLIENT_APP
        ]
        for task in taken:
            with self.lock_msg_store:
                for message_id, entry in list(self.msg_store.items()):
                    metadata = entry.message.metadata
                    if metadata.run_id != task.run_id:
                        continue
                    if not metadata.reply_to_message_id:
                        entry.is_retrieved = True
                        self.record_message_processing_start(message_id)
                    elif not self._is_whole(message_id):  # it will never be
                        self.object_store.delete(message_id)
                        del self.msg_store[message_id]
            self.finish_task(task.task_id, SubStatus.FAILED, why)
            self._store_error_replies({task.run_id}, Error(code, why))
        return len(taken)
