"""A process of a site that lives and does nothing: stopped, idle or with a message in hand; a rotated key."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from deployed import Pair, Running, answer, ask, for_children, make_pair, wait_for
from pki import make_transport_key

from wardround.client.child import NOT_ADMITTED
from wardround.client.kept_process import SILENT, Restarts
from wardround.client.processes import SiteProcesses

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
SILENT_S = 8.0


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """Server and site, whose processes are given up soon."""
    pair = make_pair(tmp_path_factory.mktemp("silent"))
    with for_children(), pair.server() as link:
        link.admit("north", pair.key("north"))
        with SiteProcesses(pair.settings(link.address, silent_s=SILENT_S)) as site:
            wait_for(lambda: link.online()["north"] is not None)
            yield Running(pair, link, site, link.open_run("silent"))


def test_an_idle_worker_that_is_stopped_is_replaced(watched: Running) -> None:
    """Before anybody asks it for something."""
    before = answer(ask(watched.run, "north", do="echo"))["pid"]
    os.kill(before, signal.SIGSTOP)
    wait_for(lambda: watched.site.states()[1].reason == SILENT, 60)
    assert answer(ask(watched.run, "north", do="echo"))["pid"] != before


def test_a_worker_that_is_stopped_with_a_message_in_hand_is_answered_for(watched: Running) -> None:
    """As failed, long before the message's deadline; the next one works."""
    before = answer(ask(watched.run, "north", do="echo"))["pid"]
    (watched.pair.folder / "busy").unlink(missing_ok=True)
    replies: list[Any] = []
    asking = threading.Thread(
        target=lambda: replies.append(ask(watched.run, "north", 60, do="slow", for_s=600.0))
    )
    asking.start()
    wait_for((watched.pair.folder / "busy").exists)
    os.kill(before, signal.SIGSTOP)
    asking.join(60)
    assert replies[0] is not None
    assert "ended before it had answered" in str(replies[0].error.reason)
    assert answer(ask(watched.run, "north", do="echo"))["pid"] != before


def test_a_node_that_is_stopped_is_replaced(watched: Running) -> None:
    """Flower lets it in again after its minute."""
    pid = watched.site.states()[0].pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    wait_for(lambda: watched.site.states()[0].restarts >= 1, 60)
    wait_for(lambda: ask(watched.run, "north", 30, do="echo") is not None, 150)


def test_a_key_that_was_rotated_is_taken_without_a_persons_help(pair: Pair, tmp_path: Path) -> None:
    """The node goes on with the old one until the server refuses that, and comes back with the new one."""
    pair.key("north")
    key = tmp_path / "next.key"
    keys = [pair.folder / "north.key"]
    with for_children(), pair.server() as link:
        link.admit("north", pair.key("north"))

        def newest() -> str:
            return keys[-1].read_text()

        settings = replace(pair.settings(link.address), transport_key=newest)
        with SiteProcesses(settings, Restarts(refused_s=1.0)) as site:
            wait_for(lambda: link.online()["north"] is not None)
            public = make_transport_key(key)
            keys.append(key)
            assert answer(ask(link.open_run("before"), "north", do="echo"))
            link.revoke("north")
            link.admit("north", public)
            wait_for(lambda: site.states()[0].code == NOT_ADMITTED)
            wait_for(lambda: link.online()["north"] is not None, 60)
            assert answer(ask(link.open_run("after"), "north", do="echo"))
