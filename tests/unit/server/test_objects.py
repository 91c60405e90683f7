"""The store of what is on its way: structure in memory, contents in files."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from flwr.proto.message_pb2 import ObjectTree
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
from flwr.supercore.object_store import NoObjectInStoreError
from full_disk import full_disk

from wardround.core.errors import StorageError
from wardround.server.objects import MOST_OBJECTS, SMALL, Objects

RECORDS = RecordDict(
    {
        "manifest": ConfigRecord({"json": "{}"}),
        "arrays": ArrayRecord({"a": Array(dtype="uint8", shape=(9000,), stype="s", data=bytes(9000))}),
    }
)
PARTS = {name: part.deflate() for name, part in get_all_nested_objects(RECORDS).items()}


@pytest.fixture
def objects(tmp_path: Path) -> Objects:
    """An empty one."""
    return Objects(tmp_path / "state.objects")


def filled(objects: Objects) -> str:
    """With one tree; gives its root."""
    for name in objects.preregister(7, get_object_tree(RECORDS)):
        objects.put(name, PARTS[name])
    return RECORDS.object_id


def test_it_gives_back_what_was_put_and_keeps_only_small_things_in_memory(objects: Objects) -> None:
    """A file is its owner's alone."""
    root = filled(objects)
    assert objects.parts(root) == set(PARTS)
    assert {name: objects.get(name) for name in PARTS} == PARTS
    assert {name: objects.size(name) for name in PARTS} == {name: len(part) for name, part in PARTS.items()}
    large = {name for name, part in PARTS.items() if len(part) > SMALL}
    assert {path.name for path in objects._folder.iterdir()} == large != set()
    assert sum(len(entry.content) for entry in objects.store.values()) <= SMALL * (len(PARTS) - len(large))
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in objects._folder.iterdir())
    assert stat.S_IMODE(objects._folder.stat().st_mode) == 0o700


def test_it_is_whole_when_its_last_part_has_come(objects: Objects) -> None:
    """Not before; what is still on its way reads as empty, what nobody announced as nothing."""
    missing = objects.preregister(7, get_object_tree(RECORDS))
    assert set(missing) == set(PARTS)
    for name in missing:
        assert not objects.is_whole(RECORDS.object_id)
        assert objects.get(name) == b""
        assert objects.size(name) == 0
        objects.put(name, PARTS[name])
    assert objects.is_whole(RECORDS.object_id)
    assert (objects.get("0" * 64), objects.size("0" * 64)) == (None, 0)
    assert not objects.is_whole("0" * 64)


def test_what_two_share_is_there_once_and_until_both_are_gone(objects: Objects) -> None:
    """And then its file is gone as well."""
    root = filled(objects)
    other = RecordDict({"arrays": RECORDS["arrays"]})
    assert objects.preregister(7, get_object_tree(other)) == [other.object_id]
    objects.put(other.object_id, other.deflate())
    objects.delete(root)
    assert objects.is_whole(other.object_id)
    assert len(list(objects._folder.iterdir())) == 1
    objects.delete(other.object_id)
    assert len(objects) == 0
    assert list(objects._folder.iterdir()) == []


def test_the_end_of_a_run_takes_all_of_it(objects: Objects) -> None:
    """Also what never came whole."""
    filled(objects)
    objects.delete_objects_in_run(7)
    assert (len(objects), list(objects._folder.iterdir())) == (0, [])


def test_what_an_earlier_process_left_is_deleted(objects: Objects) -> None:
    """Nothing of it is known any more."""
    filled(objects)
    assert len(Objects(objects._folder)) == 0
    assert list(objects._folder.iterdir()) == []


def test_a_content_is_what_its_name_says_or_is_refused(objects: Objects) -> None:
    """Other bytes, bytes that are no object, something that was not announced."""
    objects.preregister(7, get_object_tree(RECORDS))
    one, two = list(PARTS)[:2]
    with pytest.raises(ValueError, match="does not match"):
        objects.put(one, PARTS[two])
    with pytest.raises(NoObjectInStoreError):
        objects.put(*next((part.object_id, part.deflate()) for part in [ConfigRecord({"x": 1})]))
    assert not any(map(objects.get, PARTS))


@pytest.mark.parametrize(
    ("tree", "said"),
    [
        (ObjectTree(object_id="../../roster"), "Invalid"),
        (ObjectTree(object_id="a" * 64, children=[ObjectTree(object_id="b" * 64)] * 2), "duplicate"),
        (
            ObjectTree(object_id="a" * 64, children=[ObjectTree(object_id=f"{i:064x}") for i in range(5000)]),
            "5002 objects",
        ),
        (ObjectTree(object_id=RECORDS.object_id), "different children"),
    ],
)
def test_a_tree_that_is_not_right_changes_nothing(objects: Objects, tree: ObjectTree, said: str) -> None:
    """A name that leads elsewhere, a child twice, too many, another form of what is known."""
    filled(objects)
    with pytest.raises(ValueError, match=said):
        objects.preregister(7, ObjectTree(object_id="c" * 64, children=[tree]))
    assert set(objects.store) == set(PARTS)
    assert MOST_OBJECTS < 5000


def test_nothing_stays_of_what_the_disk_does_not_take(objects: Objects) -> None:
    """It is announced still, and may come again."""
    (large,) = (name for name, content in PARTS.items() if len(content) > SMALL)
    objects.preregister(7, get_object_tree(RECORDS))
    with full_disk(objects._folder), pytest.raises(StorageError, match="No space left"):
        objects.put(large, PARTS[large])
    assert list(objects._folder.iterdir()) == []
    assert objects.get(large) == b""
    objects.put(large, PARTS[large])
    assert objects.get(large) == PARTS[large]
