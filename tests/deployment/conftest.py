"""A server and a site as they are deployed, for all tests of a module or for one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from deployed import Pair, Running, for_children, make_pair, wait_for

from wardround.client.processes import SiteProcesses


@pytest.fixture
def pair(tmp_path: Path) -> Pair:
    """A consortium's files."""
    return make_pair(tmp_path)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """Both, for all tests of a module."""
    pair = make_pair(tmp_path_factory.mktemp("deployment"))
    with for_children(), pair.server() as link:
        link.admit("north", pair.key("north"))
        with SiteProcesses(pair.settings(link.address, deadline_s=4.0)) as site:
            wait_for(lambda: link.online()["north"] is not None)
            yield Running(pair, link, site, link.open_run("test"))
