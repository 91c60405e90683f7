"""Flower's state in SQLite, under many requests at once."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.supercore.constant import NOOP_FEDERATION_ID, TaskType
from flwr.supercore.fab import Fab
from flwr.supercore.inflatable.inflatable_object import get_object_tree
from flwr.supercore.task_identity import TaskIdentity
from full_disk import full_disk
from sqlalchemy import event, text
from sqlalchemy.exc import OperationalError

from wardround.core.errors import StorageError
from wardround.server import link_grid
from wardround.server.fleet import empty_bundle
from wardround.server.link_grid import LinkGrid
from wardround.server.link_state import LinkState


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a database that has all of Flower's migrations behind it, which take a second."""
    folder = tmp_path_factory.mktemp("made")
    state = LinkState(folder / "state.db")
    state.initialize()
    state.close()
    return folder


@pytest.fixture
def state(made: Path, tmp_path: Path) -> Iterator[LinkState]:
    """One with a table of ours."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    state = LinkState(tmp_path / "state.db")
    state.initialize()
    with state.session() as session:
        session.execute(text("CREATE TABLE ours (number INTEGER)"))
    yield state
    state.close()


def test_a_transaction_that_reads_before_it_writes_is_not_overtaken(state: LinkState) -> None:
    """Flower's own fails at once ("database is locked") where another one has written in between."""
    written, reading = threading.Event(), threading.Event()

    def other() -> None:
        reading.wait(10)
        with state.session() as session:
            session.execute(text("INSERT INTO ours VALUES (2)"))
        written.set()

    thread = threading.Thread(target=other)
    thread.start()
    with state.session() as session:
        assert session.scalar(text("SELECT count(*) FROM ours")) == 0
        reading.set()
        assert not written.wait(0.5)
        session.execute(text("INSERT INTO ours VALUES (1)"))
    thread.join(10)
    with state.session() as session:
        assert session.scalars(text("SELECT number FROM ours ORDER BY rowid")).all() == [1, 2]


def test_a_transaction_within_another_is_part_of_it(state: LinkState) -> None:
    """Nobody waits for itself, and both fail together."""

    def write_and_fail() -> None:
        with state.session():
            with state.session() as inner:
                inner.execute(text("INSERT INTO ours VALUES (1)"))
            raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError, match="in the middle"):
        write_and_fail()
    with state.session() as session:
        assert session.scalar(text("SELECT count(*) FROM ours")) == 0


def test_dozens_of_threads_share_one_connection(state: LinkState) -> None:
    """Each connection would have a cache of its own, and memory would grow with the number of sites."""
    wrong: list[BaseException] = []

    def write(number: int) -> None:
        try:
            for _ in range(5):
                with state.session() as session:
                    session.execute(text("SELECT count(*) FROM ours"))
                    session.execute(text("INSERT INTO ours VALUES (:number)"), {"number": number})
        except Exception as error:  # noqa: BLE001 - whatever it is
            wrong.append(error)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(30)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not wrong
    with state.session() as session:
        assert session.scalar(text("SELECT count(*) FROM ours")) == 150
    assert state._engine is not None
    assert state._engine.pool.checkedin() == 1  # type: ignore[attr-defined]  # of SQLAlchemy's QueuePool


def running(state: LinkState) -> int:
    """A run that is on; its number."""
    digest = state.store_fab(Fab("", empty_bundle(), {}))
    run_id = state.create_run("a/b", "1.0.0", digest, {}, NOOP_FEDERATION_ID, None, "", TaskType.SERVER_APP)
    (run,) = state.get_run_info(run_ids=[run_id])
    assert run.primary_task_id
    assert state.claim_task(run.primary_task_id)
    assert state.activate_task(run.primary_task_id)
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, run_id, 1
    return run_id


@contextmanager
def counted(state: LinkState) -> Iterator[list[str]]:
    """The statements that SQLite gets in the block."""
    seen: list[str] = []

    def note(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        seen.append(statement)

    event.listen(state._engine, "before_cursor_execute", note)
    yield seen
    event.remove(state._engine, "before_cursor_execute", note)


def test_what_every_request_asks_costs_no_look_into_the_database(state: LinkState) -> None:
    """Whose key, is the run on, is there mail: with fifty sites hundreds a second ask that."""
    run_id = running(state)
    node = state.create_node("", "", b"key", 0)
    assert state.activate_node(node, 30)

    def ask() -> Any:
        mail = state.get_message_ins(node, 1)
        return state.get_node_id_by_public_key(b"key"), state.get_run_status({run_id})[run_id].status, mail

    assert ask() == (node, "running", [])
    with counted(state) as seen:
        assert ask() == (node, "running", [])
    assert seen == []


def test_what_is_remembered_of_nodes_and_runs_is_forgotten_with_them(state: LinkState) -> None:
    """A key that is revoked is nobody's; a run that has ended is not on."""
    run_id, node = running(state), state.create_node("", "", b"key", 0)
    assert state.get_node_id_by_public_key(b"key") == node
    assert state.get_run_status({run_id})[run_id].status == "running"
    state.delete_node("", node)
    assert state.stop_run(run_id)
    assert state.get_node_id_by_public_key(b"key") is None
    assert state.get_run_status({run_id})[run_id].status == "finished"


def test_mail_is_found_until_it_is_confirmed(state: LinkState) -> None:
    """Also after a look that found nothing, and of two messages the older one first; then never again."""
    run_id, node = running(state), state.create_node("", "", b"key", 0)
    assert state.activate_node(node, 30)
    (run,) = state.get_run_info(run_ids=[run_id])
    grid = LinkGrid(state, run, largest_reply=10**6)
    assert state.get_message_ins(node, 1) == []
    content = RecordDict({"c": ConfigRecord({"x": 1})})
    ids = [*grid.push_messages([Message(content, node, "train")])]
    ids += grid.push_messages([Message(content, node, "train")])
    for message_id in ids:
        for _ in range(2):
            assert [found.metadata.message_id for found in state.get_message_ins(node, 1)] == [message_id]
        state.objects.delete(message_id)  # what the node's receipt does
    assert state.get_message_ins(node, 1) == []
    assert state.fetched(ids) == set(ids)


def test_a_message_for_nobody_leaves_nothing_behind(state: LinkState) -> None:
    """It is answered for."""
    (run,) = state.get_run_info(run_ids=[running(state)])
    grid = LinkGrid(state, run, largest_reply=10**6)
    (message_id,) = grid.push_messages([Message(RecordDict(), 12345, "train")])
    (failed,) = grid.pull_messages([message_id])
    assert failed.has_error()
    assert len(state.objects) == 0


def test_a_full_disk_is_said(state: LinkState, tmp_path: Path) -> None:
    """What, where and what to do; the message is not there, and nothing of it."""
    run_id, node = running(state), state.create_node("", "", b"key", 0)
    assert state.activate_node(node, 30)
    (run,) = state.get_run_info(run_ids=[run_id])
    grid = LinkGrid(state, run, largest_reply=10**6)
    message = Message(RecordDict({"c": ConfigRecord({"x": bytes(5000)})}), node, "train")
    with full_disk(tmp_path), pytest.raises(StorageError, match="free space") as raised:
        grid.push_messages([message])
    assert "state.objects" in raised.value.what
    assert "No space left" in str(raised.value.found)
    assert (len(state.objects), state.num_message_ins()) == (0, 0)
    assert not list((tmp_path / "state.objects").iterdir())
    (message_id,) = grid.push_messages([message])
    assert state.get_message_ins(node, 1)[0].metadata.message_id == message_id


@contextmanager
def full_database(state: LinkState) -> Iterator[None]:
    """SQLite's own limit on the file, which it tells of as of a full disk."""
    with state.session() as session:
        pages = session.scalar(text("PRAGMA page_count"))
        session.execute(text(f"PRAGMA max_page_count = {pages}"))
    yield
    with state.session() as session:
        session.execute(text("PRAGMA max_page_count = 1000000"))


def write_much(state: LinkState) -> None:
    """A small thing and a large one, or neither."""
    with state.session() as session:
        session.execute(text("INSERT INTO ours VALUES (1)"))
        session.execute(text("CREATE TABLE other AS SELECT zeroblob(100000) AS x"))


def test_a_full_database_is_said(state: LinkState, caplog: pytest.LogCaptureFixture) -> None:
    """By name, and once; what was to be written does not count, and later it is."""
    told = []
    with full_database(state):
        for _ in range(2):
            with pytest.raises(StorageError, match="free space") as raised:
                write_much(state)
            assert "state.db" in raised.value.what
            told.append(f"what sites send cannot be kept, they try again: {raised.value}")
    assert [line for line in caplog.messages if "cannot be kept" in line] == told[:1]
    with state.session() as session:
        assert session.scalar(text("SELECT count(*) FROM ours")) == 0
        session.execute(text("INSERT INTO ours VALUES (1)"))


def test_an_error_of_sql_is_no_full_disk(state: LinkState) -> None:
    """It goes on as it is."""
    with pytest.raises(OperationalError), state.session() as session:
        session.execute(text("SELECT * FROM nowhere"))


def test_a_run_waits_for_space_and_then_stops_by_name(
    state: LinkState, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was refused before the run began, or is taken by now, stops nothing."""
    run_id, node = running(state), state.create_node("", "", b"key", 0)
    assert state.activate_node(node, 30)
    (run,) = state.get_run_info(run_ids=[run_id])
    record = ConfigRecord({"x": bytes(5000)})
    state.objects.preregister(run_id, get_object_tree(record))
    with full_disk(tmp_path), pytest.raises(StorageError):
        state.objects.put(record.object_id, record.deflate())
    monkeypatch.setattr(link_grid, "PATIENCE_S", 0.0)
    grid = LinkGrid(state, run, largest_reply=10**6)
    asked = grid.push_messages([Message(RecordDict(), node, "train")])
    assert list(grid.pull_messages(asked)) == []
    with full_disk(tmp_path), pytest.raises(StorageError):
        state.objects.put(record.object_id, record.deflate())
    with pytest.raises(StorageError, match="free space"):
        grid.pull_messages(asked)
    monkeypatch.setattr(link_grid, "PATIENCE_S", 60.0)
    assert list(grid.pull_messages(asked)) == []
    monkeypatch.setattr(link_grid, "PATIENCE_S", 0.0)
    state.objects.put(record.object_id, record.deflate())
    assert list(grid.pull_messages(asked)) == []
