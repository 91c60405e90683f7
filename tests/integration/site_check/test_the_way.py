"""`wardround site check` where something is wrong between site and server: the very line fails."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import httpx
import pytest
from checked_site import World, failing, looked
from federation import reroute
from pki import make_ca, make_server
from tls_faults import ConnectProxy, tls_server

from wardround.client.doctor import probes_network
from wardround.client.fetching import fetch_roster
from wardround.client.membership.site_folder import SiteFolder
from wardround.core.errors import UnreachableError
from wardround.server.consortium.server_folder import open_server_folder
from wardround.server.daemon import running_server
from wardround.simulations.practice.making import free_port


def test_an_inspecting_proxy_is_named(site: SiteFolder, tmp_path: Path) -> None:
    """A server under another CA than the consortium's: by its issuer; nothing else is asked of it."""
    make_server(tmp_path, make_ca(tmp_path))
    with tls_server(tmp_path / "server.pem", tmp_path / "server.key") as address:
        reroute(site, address)
        found = looked(site)
    assert failing(found) == ["tls"]
    assert "something on the way opens TLS" in found["tls"].found
    assert "'test CA'" in found["tls"].found
    for check in ("clock", "versions", "admitted", "round trip", "bandwidth"):
        assert found[check].found == "not looked at: 'tls' comes first"


@pytest.mark.parametrize(
    ("shift_s", "status"), [(60, "warns"), (-60, "warns"), (900, "fails"), (-900, "fails")]
)
def test_a_clock_that_is_off_is_told(world: World, site: SiteFolder, shift_s: int, status: str) -> None:
    """By the server's own date; what else that server cannot say is told as well."""
    own = open_server_folder(world.federation.practice.server)
    with tls_server(own.tls_certificate, own.tls_key, shift_s=shift_s) as address:
        reroute(site, address)
        found = looked(site)
    assert found["tls"].status == "passes"
    assert found["clock"].status == status
    assert ("behind" if shift_s > 0 else "ahead of") in found["clock"].found


def test_a_closed_port_is_told(site: SiteFolder) -> None:
    """And no certificate is judged."""
    reroute(site, f"127.0.0.1:{free_port()}")
    found = looked(site)
    assert failing(found) == ["tcp", "tls"]
    assert "refused" in found["tcp"].found


def test_a_port_without_tls_is_told(site: SiteFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Something else listens there, and waits for what it understands."""
    monkeypatch.setattr(probes_network, "TIMEOUT", httpx.Timeout(0.5))
    proxy = ConnectProxy({})
    with proxy.running() as address:
        reroute(site, address)
        assert failing(looked(site)) == ["tls"]


@pytest.fixture
def nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """No name under `.test` is resolved: nobody is asked."""
    real = socket.getaddrinfo

    def resolved(host: Any, *rest: Any, **named: Any) -> Any:
        if str(host).endswith(".test"):
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return real(host, *rest, **named)

    monkeypatch.setattr(socket, "getaddrinfo", resolved)


@pytest.mark.usefixtures("nowhere")
def test_a_name_that_is_not_resolved_is_told(site: SiteFolder) -> None:
    """With the name."""
    reroute(site, "server.test:9443")
    found = looked(site)
    assert "dns" in failing(found)
    assert "server.test" in found["dns"].found


@pytest.mark.usefixtures("nowhere")
def test_a_connect_proxy_is_the_only_way_out(named: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of it goes there, under a login that is not printed; `site fetch` and the roster's question too."""
    site = named.sites["aachen"]
    with running_server(named.server, "127.0.0.1:0") as server:
        proxy = ConnectProxy({"server.test:9443": server.link.address}, login="ward:hush-hush")
        with proxy.running() as address:
            with pytest.raises(UnreachableError):
                fetch_roster(site)
            monkeypatch.setenv("HTTPS_PROXY", f"http://ward:hush-hush@{address}")
            assert fetch_roster(site) == (named.operator / "roster.json").read_bytes()
            found = looked(site)
    assert failing(found) == []
    assert address in found["proxy"].found
    assert "is for the proxy to resolve" in found["dns"].found
    assert set(proxy.asked) == {"CONNECT server.test:9443"}
    assert "hush" not in str(found)


@pytest.mark.usefixtures("nowhere")
@pytest.mark.parametrize(("login", "word"), [(None, "403"), ("ward:hush-hush", "407")])
def test_a_proxy_that_refuses_is_told(
    named: Any, monkeypatch: pytest.MonkeyPatch, login: str | None, word: str
) -> None:
    """Its answer stands in the line."""
    with ConnectProxy({}, login).running() as address:
        monkeypatch.setenv("HTTPS_PROXY", f"http://{address}")
        found = looked(named.sites["aachen"])
    assert failing(found) == ["tls"]
    assert word in found["tls"].found


def test_a_site_that_is_not_admitted_is_told(site: SiteFolder) -> None:
    """Its name is nobody's in the server's roster."""
    about = site.path / "site.json"
    about.write_text(json.dumps(json.loads(about.read_text()) | {"site": "nobody"}))
    found = looked(site)
    assert "admitted" in failing(found)
    assert "401" in found["admitted"].found
    assert found["clock"].status == "passes"
