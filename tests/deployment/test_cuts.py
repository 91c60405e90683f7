"""The wire between a site's real processes and its server is cut and mended: nothing is lost or hangs."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from deployed import Pair, answer, ask, for_children, wait_for
from wire import CLOSED, HOLE, RESET, Wire

from wardround.client.processes import SiteProcesses
from wardround.server.superlink import FlowerRun, SuperLink

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
LARGE = 3_000_000


@dataclass
class Wired:
    """A server and a site with a wire between them."""

    link: SuperLink
    site: SiteProcesses
    wire: Wire
    run: FlowerRun
    pair: Pair

    def asking(self, **asked: Any) -> tuple[threading.Thread, list[Any]]:
        """Ask the site in a thread; the list gets its answer."""
        replies: list[Any] = []
        thread = threading.Thread(
            target=lambda: replies.append(ask(self.run, "north", 200, **asked)), daemon=True
        )
        thread.start()
        return thread, replies

    def undisturbed(self) -> bool:
        """Whether neither of the site's processes has ended."""
        return [state.restarts for state in self.site.states()] == [0, 0]


@pytest.fixture
def wired(pair: Pair) -> Iterator[Wired]:
    """Both; the site is online, and its worker has answered once."""
    with for_children(), pair.server() as link, Wire(link.address) as wire:
        link.admit("north", pair.key("north"))
        with SiteProcesses(pair.settings(wire.address, deadline_s=100.0)) as site:
            wait_for(lambda: link.online()["north"] is not None)
            run = link.open_run("cut")
            answer(ask(run, "north", do="echo"))
            yield Wired(link, site, wire, run, pair)


@pytest.mark.parametrize("how", [RESET, CLOSED, HOLE])
def test_an_answer_is_given_after_a_cut(wired: Wired, how: str) -> None:
    """The wire is cut while the worker is at it, for 5 s; nothing is done twice, nothing starts anew."""
    asking, replies = wired.asking(do="slow", for_s=2.0, size=LARGE)
    wait_for((wired.pair.folder / "busy").exists)
    wired.wire.cut(how)
    time.sleep(5)
    wait_for(lambda: "cannot be reached since" in wired.site.states()[0].note)
    wired.wire.mend()
    asking.join(150)
    assert len(answer(replies[0])["data"]) == LARGE
    assert wired.undisturbed()
    wait_for(lambda: not wired.site.states()[0].note)


@pytest.mark.parametrize("how", [RESET, CLOSED, HOLE])
@pytest.mark.parametrize("after", [500, 20_000, LARGE // 2])
def test_an_upload_that_stops_half_way_is_taken_up(wired: Wired, how: str, after: int) -> None:
    """In the announcement of the reply, early in its bytes, in their middle; 5 s later the wire is mended."""
    asking, replies = wired.asking(do="slow", for_s=2.0, size=LARGE)
    wait_for((wired.pair.folder / "busy").exists)
    time.sleep(0.5)  # the request is wholly here
    tripped = wired.wire.cut_after(after, how)
    assert tripped.wait(60)
    time.sleep(5)
    wired.wire.mend()
    asking.join(150)
    assert len(answer(replies[0])["data"]) == LARGE
    assert wired.undisturbed()
