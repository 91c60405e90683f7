"""Flower's store of objects, for one process: what belongs to what in memory, contents in files.

What it holds are the messages on their way. They end with the process: a restarted server opens new runs in
Flower's sense, so nothing here has to outlive it.
"""

from __future__ import annotations

import os
from pathlib import Path

from flwr.proto.message_pb2 import ObjectTree
from flwr.supercore.inflatable.inflatable_object import (
    get_object_id,
    is_valid_sha256_hash,
    iterate_object_tree,
)
from flwr.supercore.inflatable.inflatable_utils import validate_object_content
from flwr.supercore.object_store import NoObjectInStoreError
from flwr.supercore.object_store.in_memory_object_store import InMemoryObjectStore

from wardround.core.errors import StorageError
from wardround.runtime.files import private_folder, storing
from wardround.server.full_disk import DiskWatch

SMALL = 2048
"""Bytes up to which a content stays in memory: what holds others together, and manifests."""
MOST_OBJECTS = 4096
"""Of one message: what is announced costs memory before any of it is here. 20 GB are as many pieces."""


class Objects(InMemoryObjectStore):
    """Flower's store in memory, with large contents in files of a private folder.

    Memory does not grow with what sites send, and a content that several messages share is there once.

    Args:
        folder: Made where it is not there; what an earlier process left in it is deleted.
        disk: Is told what the disk refuses.

    Raises:
        StorageError: The folder cannot be made.
    """

    def __init__(self, folder: Path, disk: DiskWatch | None = None) -> None:
        super().__init__()
        self._folder, self._disk = folder, disk or DiskWatch()
        self.unkept: StorageError | None = None
        """What the disk refused last; Flower's code hides it from whoever calls `put` through it."""
        private_folder(folder)
        for left in folder.iterdir():
            left.unlink()

    def preregister(self, run_id: int, object_tree: ObjectTree) -> list[str]:
        """As Flower's, after a look at the whole tree: one that is not right changes nothing.

        Raises:
            ValueError: No digests, too many objects, or other children than were announced before.
        """
        nodes = list(iterate_object_tree(object_tree))
        if len(nodes) > MOST_OBJECTS:
            raise ValueError(f"A message of {len(nodes)} objects; at most {MOST_OBJECTS} are taken.")
        with self.lock_store:
            for node in nodes:
                children = [child.object_id for child in node.children]
                known = self.store.get(node.object_id)
                if not is_valid_sha256_hash(node.object_id):
                    raise ValueError(f"Invalid object ID format: {node.object_id[:80]}")
                if len(children) != len(set(children)):
                    raise ValueError(f"Object {node.object_id} has duplicate children.")
                if known is not None and set(known.child_object_ids) != set(children):
                    raise ValueError(f"Object {node.object_id} was preregistered with different children.")
            return super().preregister(run_id, object_tree)

    def put(self, object_id: str, object_content: bytes) -> None:
        """As Flower's; a content that is not what its id says is refused.

        Raises:
            ValueError: The id is not the content's digest, or the content is no object.
            NoObjectInStoreError: Nobody announced it.
            StorageError: It cannot be written; nothing of it stays.
        """
        if object_id != get_object_id(object_content):
            raise ValueError(f"Object ID {object_id} does not match content hash")
        validate_object_content(content=object_content)
        with self.lock_store:
            entry = self.store.get(object_id)
            if entry is None:
                raise NoObjectInStoreError(f"Object with ID '{object_id}' was not pre-registered.")
            if entry.is_available:
                return
            if len(object_content) > SMALL:
                self._write(self._path(object_id), object_content)
            else:
                entry.content = object_content
            entry.is_available = True

    def get(self, object_id: str) -> bytes | None:
        """The content; empty where it is still on its way, None where nobody announced it."""
        with self.lock_store:
            entry = self.store.get(object_id)
            if entry is None or not entry.is_available or entry.content:
                return None if entry is None else entry.content
            return self._path(object_id).read_bytes()

    def size(self, object_id: str) -> int:
        """Bytes of the content; 0 where it is not here."""
        with self.lock_store:
            entry = self.store.get(object_id)
            if entry is None or not entry.is_available or entry.content:
                return 0 if entry is None else len(entry.content)
            return self._path(object_id).stat().st_size

    def parts(self, object_id: str) -> set[str]:
        """The object and all that belongs to it; nothing where nobody announced it."""
        with self.lock_store:
            found, next_ones = set[str](), [object_id]
            while next_ones:
                part = next_ones.pop()
                if part in self.store and part not in found:
                    found.add(part)
                    next_ones += self.store[part].child_object_ids
            return found

    def is_whole(self, object_id: str) -> bool:
        """Whether the object and all that belongs to it are here."""
        with self.lock_store:
            parts = self.parts(object_id)
            return bool(parts) and all(self.store[part].is_available for part in parts)

    def delete(self, object_id: str) -> None:
        """As Flower's, with the file."""
        with self.lock_store:
            super().delete(object_id)
            if object_id not in self.store and is_valid_sha256_hash(object_id):
                self._path(object_id).unlink(missing_ok=True)

    def clear(self) -> None:
        """Forget all."""
        with self.lock_store:
            for left in self._folder.iterdir():
                left.unlink()
            super().clear()

    def _write(self, path: Path, content: bytes) -> None:
        try:
            with storing(path, len(content)), open(path, "wb", opener=_private) as file:
                file.write(content)
        except StorageError as error:
            path.unlink(missing_ok=True)  # half of it takes the space that somebody else's whole one may need
            self.unkept = error
            self._disk.refused("objects", error)
            raise
        self._disk.works("objects")

    def _path(self, object_id: str) -> Path:
        return self._folder / object_id


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
