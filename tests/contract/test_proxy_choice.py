"""Which proxy a connection takes is httpx's choice, since Flower's clients are httpx's: we say the same."""

from __future__ import annotations

import inspect

import httpx
import pytest
from flwr.supercore.protobuf import client as flowers

from wardround.client.doctor.probes_network import _proxy_of, find_way

NAMES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")
ENVIRONMENTS: tuple[dict[str, str], ...] = (
    {},
    {"HTTPS_PROXY": "http://proxy.test:3128"},
    {"HTTP_PROXY": "http://proxy.test:3128"},
    {"ALL_PROXY": "http://all.test:1", "HTTPS_PROXY": "http://proxy.test:3128"},
    {"HTTPS_PROXY": "http://proxy.test:3128", "NO_PROXY": "server.test"},
    {"HTTPS_PROXY": "http://proxy.test:3128", "NO_PROXY": ".test"},
    {"HTTPS_PROXY": "http://proxy.test:3128", "NO_PROXY": "other.test,127.0.0.1"},
    {"HTTPS_PROXY": "http://proxy.test:3128", "NO_PROXY": "*"},
)
URLS = ("https://server.test:9443/x", "http://127.0.0.1:99", "https://127.0.0.1:9443", "https://[::1]:9443")


@pytest.mark.parametrize("environment", ENVIRONMENTS)
@pytest.mark.parametrize("url", URLS)
def test_the_choice_is_the_clients(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], url: str
) -> None:
    """A client's own transport for the address is the straight one where we say none, and only there."""
    for name in NAMES:
        for spelled in (name, name.lower()):
            monkeypatch.delenv(spelled, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with httpx.Client() as client:
        transport = client._transport_for_url(httpx.URL(url))
        assert (transport is client._transport) == (_proxy_of(url) is None)
        if (proxy := _proxy_of(url)) is not None:
            said = transport._pool._proxy_url  # type: ignore[attr-defined]  # httpcore's own
            assert f"http://{said.host.decode()}:{said.port}" == proxy
    assert find_way("server.test:9443").loopback is None


def test_flowers_client_trusts_the_environment() -> None:
    """It gives httpx no proxy of its own, and does not forbid it the environment's."""
    source = inspect.getsource(flowers)
    assert source.count("httpx.Client(") == 1
    assert "trust_env" not in source
    assert "proxy" not in source
