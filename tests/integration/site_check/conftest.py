"""A consortium whose server runs in the test's process, and a copy of one of its sites to spoil."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from checked_site import SITES, World
from federation import Federation

from wardround.client.membership.site_folder import SiteFolder, open_site_folder
from wardround.server.daemon import running_server
from wardround.simulations.practice import making


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the machine that runs the tests is behind."""
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, tiny_bert: Path) -> Iterator[World]:
    """Three sites and their server."""
    made = Federation.make(tmp_path_factory.mktemp("f"), tiny_bert, SITES)
    with running_server(made.practice.server) as server:
        yield World(made, server, made.plan("plan"))


@pytest.fixture
def site(world: World, tmp_path: Path) -> SiteFolder:
    """A copy of a site to spoil."""
    path = tmp_path / "aachen"
    shutil.copytree(world.federation.practice.sites["aachen"].path, path)
    path.chmod(0o700)
    return open_site_folder(path)


@pytest.fixture
def named(tmp_path_factory: pytest.TempPathFactory, tiny_bert: Path) -> Any:
    """A consortium whose server is reached by a name that only the proxy knows."""
    folder = tmp_path_factory.mktemp("n")
    rows = {"aachen": folder / "rows.jsonl"}
    rows["aachen"].write_text('{"note": "a", "grade": "mild", "patient": "p"}\n')
    settings = {"models": [{"path": str(tiny_bert)}], "source": {"path": str(rows["aachen"])}}
    return making.make_practice(folder / "p", "server.test:9443", {"aachen": settings}, datetime.now(UTC))
