"""A site whose only way out is an HTTP proxy: its server's name means nothing on this machine."""

from __future__ import annotations

import socket
from contextlib import ExitStack
from pathlib import Path

import pytest
from deployed import Pair, answer, ask, for_children, wait_for
from federation import Deployed, Federation
from pki import make_ca, make_server
from tls_faults import ConnectProxy

from wardround.client.accepted import RunFolders
from wardround.client.fetching import fetch_result, fetch_roster
from wardround.client.processes import SiteProcesses
from wardround.client.supervisor import running_site
from wardround.server.daemon import running_server
from wardround.server.run_states import RunStatus
from wardround.simulations.practice.making import free_port

COUNTS = {"aachen": 24, "basel": 17, "cork": 30}
NAME = "consortium.invalid"


def proxied(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    """The proxy is the only way out; loopback traffic that went by a proxy would be refused."""
    monkeypatch.setenv("HTTPS_PROXY", f"http://{address}")
    for variable in ("HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(variable, f"http://127.0.0.1:{free_port()}")


def test_a_node_goes_through_a_proxy_and_no_other_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A message and its answer; what goes between worker and node never passes it."""
    make_server(tmp_path, make_ca(tmp_path), names=[NAME])
    pair, there = Pair(tmp_path), f"{NAME}:9443"
    with for_children(), pair.server() as link:
        link.admit("north", pair.key("north"))
        proxy = ConnectProxy({there: link.address})
        with proxy.running() as address:
            proxied(monkeypatch, address)
            with SiteProcesses(pair.settings(there)):
                wait_for(lambda: link.online()["north"] is not None)
                assert answer(ask(link.open_run("test"), "north", do="echo"))["do"] == "echo"
    assert set(proxy.asked) == {f"CONNECT {there}"}


@pytest.mark.slow
def test_a_federation_goes_through_a_proxy_and_no_other_way(
    tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The node and the commands ask it for the server; what goes between worker and node never passes it."""
    name, port = NAME, free_port()
    with pytest.raises(OSError, match=r"."):
        socket.getaddrinfo(name, port)
    folder = tmp_path_factory.mktemp("proxied")
    federation = Federation.make(folder, tiny_bert, COUNTS, address=f"{name}:{port}")
    proxy = ConnectProxy({f"{name}:{port}": f"127.0.0.1:{port}"})
    with ExitStack() as stack:
        proxied(monkeypatch, stack.enter_context(proxy.running()))
        server = stack.enter_context(running_server(federation.practice.server, f"127.0.0.1:{port}"))
        sites = {
            site: stack.enter_context(running_site(each.path))
            for site, each in federation.practice.sites.items()
        }
        deployed = Deployed(server, sites, stack)
        run = deployed.submit(federation.plan("plan"))
        record = deployed.ended(run)
        assert record.status is RunStatus.FINISHED, record.reason
        site = federation.practice.sites["basel"]
        fetched = fetch_result(site, RunFolders(site.path / "runs"), run)
        assert fetched.record.sites == tuple(sorted(COUNTS))
        assert fetch_roster(site)
    assert set(proxy.asked) == {f"CONNECT {name}:{port}"}
