"""Between node and supervisor: what the node would send is recorded, or the node is told why not."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest

from wardround.client.history.line import Asking, Recording
from wardround.core.errors import StorageError, UnreachableError


@pytest.fixture
def recorded() -> list[Mapping[str, Any]]:
    """What was recorded."""
    return []


@pytest.fixture
def recording(recorded: list[Mapping[str, Any]]) -> Iterator[Recording]:
    """The supervisor's end: it refuses what is called bad."""

    def record(left: Mapping[str, Any]) -> None:
        if left["kind"] == "bad":
            raise StorageError("the disk is full", found="0 bytes free")
        recorded.append(left)

    made = Recording(record)
    yield made
    made.close()
    made.close()  # a second time does nothing


@contextmanager
def asking(recording: Recording, wait_s: float = 10.0) -> Iterator[Asking]:
    """The end of a node, which inherits the socket."""
    node = Asking(os.dup(recording.theirs.fileno()), wait_s)
    try:
        yield node
    finally:
        node.close()


def test_a_row_is_written_before_the_node_goes_on(
    recording: Recording, recorded: list[Mapping[str, Any]]
) -> None:
    """By one node, and by the one that is started after it."""
    for number in range(3):
        with asking(recording) as node:
            node({"kind": "reply", "bytes": number})
        assert recorded[-1] == {"kind": "reply", "bytes": number}


def test_the_node_is_told_why_nothing_may_leave(recording: Recording) -> None:
    """In the words of whoever keeps the record; the next message is asked for all the same."""
    with asking(recording) as node:
        with pytest.raises(StorageError, match=r"the disk is full(.|\n)*0 bytes free"):
            node({"kind": "bad"})
        node({"kind": "reply"})


def test_an_answer_to_a_node_that_was_killed_is_passed_over(
    recording: Recording, recorded: list[Mapping[str, Any]]
) -> None:
    """And what it sent half of, or what is no question, harms nobody."""
    recording.theirs.send(b'{"nonce": "of a node that was killed", "left": {"kind": "bad"}}')
    recording.theirs.send(b'{"nonce": "half of')
    recording.theirs.send(b"[]")
    with asking(recording) as node:
        node({"kind": "reply"})
    assert recorded == [{"kind": "reply"}]


def test_without_an_answer_nothing_leaves() -> None:
    """The supervisor hangs."""
    held = threading.Event()
    recording = Recording(lambda _: held.wait(30) and None)
    try:
        with asking(recording, 0.2) as node, pytest.raises(UnreachableError, match="does not record"):
            node({"kind": "reply"})
    finally:
        held.set()
        recording.close()
