"""Flower's state in SQLite, under many requests at once."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import text

from wardround.server.link_state import LinkState, Objects


@pytest.fixture
def state(tmp_path: Path) -> Iterator[LinkState]:
    """One with a table of ours."""
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
        assert isinstance(state.object_store, Objects)
        with state.object_store.session() as session:
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
    """Also of the store of objects; nobody waits for itself, and both fail together."""

    def write_and_fail() -> None:
        assert isinstance(state.object_store, Objects)
        with state.session():
            with state.object_store.session() as inner:
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
