"""A clock that is wrong, at a site or at the server: a little is no matter, and ten minutes are named."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from deployed import SUPPORT, Pair, answer, ask, for_children, wait_for

from wardround.client.child import CLOCK
from wardround.client.kept_process import Restarts
from wardround.client.processes import SiteProcesses

TEN_MINUTES = 600


@contextmanager
def shifted(shift_s: float) -> Iterator[None]:
    """Processes that are started have a clock that is so many seconds off."""
    with for_children(), pytest.MonkeyPatch.context() as patch:
        folder = str(SUPPORT / "shifted")
        patch.setenv("PYTHONPATH", os.pathsep.join([folder, os.environ["PYTHONPATH"]]))
        patch.setenv("SHIFT_S", str(shift_s))
        yield


@contextmanager
def site_of(pair: Pair, address: str, shift_s: float) -> Iterator[SiteProcesses]:
    """A site with such a clock."""
    quick = Restarts(refused_s=1.0, not_yet_s=0.5)
    with shifted(shift_s), SiteProcesses(pair.settings(address), restarts=quick) as site:
        yield site


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("shift_s", [TEN_MINUTES, -TEN_MINUTES])
def test_a_sites_clock_that_is_off_by_ten_minutes_is_named(pair: Pair, shift_s: int) -> None:
    """Not as a key that is not admitted: the site's people would ask the operator for nothing."""
    with pair.server() as link:
        link.admit("north", pair.key("north"))
        with site_of(pair, link.address, shift_s) as site:
            wait_for(lambda: site.states()[0].code is not None, 100)
            assert site.states()[0].code == CLOCK
            assert "clock" in site.states()[0].reason


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("shift_s", [200, -200])
def test_a_clock_that_is_off_by_three_minutes_is_no_matter(pair: Pair, shift_s: int) -> None:
    """Early or late."""
    with pair.server() as link:
        link.admit("north", pair.key("north"))
        with site_of(pair, link.address, shift_s) as site:
            wait_for(lambda: link.online()["north"] is not None, 100)
            assert answer(ask(link.open_run("clock"), "north", do="echo"))["do"] == "echo"
            assert site.states()[0].code is None


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_sites_of_a_server_whose_clock_is_wrong_name_the_clock(pair: Pair) -> None:
    """They cannot know which of both is wrong, and say so."""
    with shifted(TEN_MINUTES):
        server = subprocess.Popen(
            [
                sys.executable, str(SUPPORT / "server_process.py"), str(pair.folder), "127.0.0.1:0",
                json.dumps({"north": pair.key("north").hex()}),
            ],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
    assert server.stdin is not None
    assert server.stdout is not None
    address = server.stdout.readline().strip()
    try:
        with site_of(pair, address, 0) as site:
            wait_for(lambda: site.states()[0].code is not None, 100)
            assert site.states()[0].code == CLOCK
            assert "set the one that is wrong" in site.states()[0].reason
    finally:
        server.stdin.close()
        server.stdout.close()
        server.wait(60)
