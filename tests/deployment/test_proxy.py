"""A site whose only way out is an HTTP proxy: its server's name means nothing on this machine."""

from __future__ import annotations

import socket
from contextlib import ExitStack
from pathlib import Path

import pytest
from federation import Deployed, Federation
from tls_faults import ConnectProxy

from wardround.client.accepted import RunFolders
from wardround.client.fetching import fetch_result, fetch_roster
from wardround.client.supervisor import running_site
from wardround.server.daemon import running_server
from wardround.server.run_states import RunStatus
from wardround.simulations.practice.making import free_port

COUNTS = {"aachen": 24, "basel": 17, "cork": 30}


def test_a_federation_goes_through_a_proxy_and_no_other_way(
    tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The node and the commands ask it for the server; what goes between worker and node never passes it."""
    name, port = "consortium.invalid", free_port()
    with pytest.raises(OSError, match=r"."):
        socket.getaddrinfo(name, port)
    folder = tmp_path_factory.mktemp("proxied")
    federation = Federation.make(folder, tiny_bert, COUNTS, address=f"{name}:{port}")
    proxy = ConnectProxy({f"{name}:{port}": f"127.0.0.1:{port}"})
    with ExitStack() as stack:
        monkeypatch.setenv("HTTPS_PROXY", f"http://{stack.enter_context(proxy.running())}")
        for variable in ("HTTP_PROXY", "ALL_PROXY"):  # were loopback traffic to go by it, it would be refused
            monkeypatch.setenv(variable, f"http://127.0.0.1:{free_port()}")
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
