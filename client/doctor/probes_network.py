"""Looks at the way to the server, one a function: names, sockets, TLS, signed questions. None decides."""

from __future__ import annotations

import email.utils
import os
import socket
import ssl
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC
from pathlib import Path
from typing import Final

import httpx
from cryptography import x509
from cryptography.x509.oid import NameOID
from httpx._utils import URLPattern, get_environment_proxies

from wardround.client.child import keep_loopback_off_proxies
from wardround.client.doctor.judge_network import Presented, Rates, Way
from wardround.client.fetching import ask_server, fetch_roster, record_question
from wardround.client.membership.site_folder import SiteFolder
from wardround.core.errors import ConfigError, PeerError, UnreachableError
from wardround.runtime.certificates import issued_by
from wardround.runtime.roster import host_and_port
from wardround.runtime.server_about import LARGEST_ABOUT, LARGEST_PROBE, ServerAbout
from wardround.runtime.signed_requests import ABOUT, HEADER, PROBE, ROUTES, sign_request

CONNECT_S: Final = 10.0
ANSWER_S: Final = 30.0
TRIPS: Final = 5
SIZES: Final = (2**16, LARGEST_PROBE)
"""Bytes of the probes, one after the other: a slow line is not given the large one."""
QUICK_S: Final = 2.0
"""So long the small probe may take for the large one to follow."""
TIMEOUT: Final = httpx.Timeout(ANSWER_S, connect=CONNECT_S)


@dataclass(frozen=True)
class Health:
    """What the server's `/health` came to.

    Attributes:
        skew_s: This machine's clock less the server's; None where it names no time.
        seconds: Of each round trip on one connection, the first one without the handshake.
    """

    skew_s: float | None
    seconds: tuple[float, ...]


def find_way(address: str) -> Way:
    """How Flower's clients, and ours, would go to the server in this environment."""
    host, port = host_and_port(address)
    proxy, unusable = _named(_proxy_of(f"https://{_bracketed(host)}:{port}"))
    with _as_the_worker():
        loopback = next(
            filter(None, (_proxy_of(f"{scheme}://127.0.0.1:1") for scheme in ("http", "https"))), None
        )
    return Way(host, port, proxy, _named(loopback)[0], unusable)


def resolve(way: Way) -> tuple[str, ...] | str:
    """Addresses of the first name on the way; a text says why there are none."""
    host, port = _first_hop(way)
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        return error.strerror or type(error).__name__
    return tuple(dict.fromkeys(str(entry[4][0]) for entry in found))


def reach(way: Way) -> str:
    """Connect to the first hop; why it was not reached, or nothing."""
    try:
        socket.create_connection(_first_hop(way), timeout=CONNECT_S).close()
    except OSError as error:
        return _why(error)
    return ""


def shown_by(way: Way, ca: Path, authorities: Sequence[x509.Certificate]) -> Presented | str:
    """Whose certificate the other end shows, by the way that Flower's clients take; a text: no handshake."""
    with _client(_pinned(ca)) as client:
        try:
            with client.stream("GET", f"https://{way.server}/health") as reply:
                return _presented(reply, authorities, verified=True)
        except httpx.HTTPError as error:
            refused = _verification(error)
            if refused is None:
                return _why(error)
    with _client(_unpinned()) as client:  # only to read the certificate: no secret goes over this one
        try:
            with client.stream("GET", f"https://{way.server}/health") as reply:
                return _presented(reply, authorities, verified=False, why=refused)
        except httpx.HTTPError as error:
            return _why(error)


def health_of(way: Way, ca: Path, clock: Callable[[], float] = time.monotonic) -> Health:
    """Ask `/health` several times on one connection.

    Raises:
        UnreachableError: It does not answer.
    """
    seconds = []
    try:
        with _client(_pinned(ca)) as client:
            client.get(f"https://{way.server}/health")  # the handshake is not counted
            for _ in range(TRIPS):
                before = clock()
                reply = client.get(f"https://{way.server}/health")
                seconds.append(clock() - before)
    except httpx.HTTPError as error:
        raise UnreachableError("the server does not answer", found=_why(error)) from error
    date = email.utils.parsedate_tz(reply.headers.get("date", ""))
    skew = None if date is None else time.time() - email.utils.mktime_tz(date)
    return Health(skew, tuple(seconds))


def ask_about(site: SiteFolder) -> tuple[ServerAbout | None, str]:
    """What the server says of itself and of this site, and why it refuses; both empty of an older server.

    Raises:
        UnreachableError: It does not answer.
    """
    try:
        return ServerAbout.model_validate_json(ask_server(site, ABOUT, LARGEST_ABOUT)), ""
    except ValueError:
        return None, "its answer is none"
    except PeerError as error:
        return None, error.found or error.what
    except ConfigError:  # 404: it was not made to say
        pass
    try:
        fetch_roster(site)
    except (PeerError, ConfigError) as error:
        return None, error.found or error.what
    return None, ""


def measure(
    site: SiteFolder, way: Way, round_trip_s: float, clock: Callable[[], float] = time.monotonic
) -> Rates | str:
    """Send bytes that mean nothing up and down, on one connection; a text: the server's answer forbids it.

    Raises:
        UnreachableError: The connection did not hold.
    """
    up = down = 0.0
    signer = site.signer()
    with _client(_pinned(site.ca)) as client:

        def timed(method: str, path: str, content: bytes | None, size: int) -> float:
            headers = {HEADER: sign_request(signer, site.name, path, time.time(), method)}
            record_question(site, method, path, headers, content or b"")
            before = clock()
            client.request(
                method, f"https://{way.server}{path}", headers=headers, content=content
            ).raise_for_status()
            took = clock() - before
            return size / max(took - round_trip_s, took / 2, 1e-6)  # a round trip may be faster by chance

        try:
            for size in SIZES:
                before = clock()
                up = timed("POST", ROUTES + PROBE, os.urandom(size), size)
                down = timed("GET", f"{ROUTES}{PROBE}/{size}", None, size)
                if clock() - before > QUICK_S:
                    break
        except httpx.HTTPStatusError as error:
            return f"the server answers {error.response.status_code}"
        except httpx.HTTPError as error:
            raise UnreachableError("the connection did not hold", found=_why(error)) from error
    return Rates(up, down)


def _proxy_of(url: str) -> str | None:
    """The proxy that an `httpx.Client` takes for this address; a test in tests/contract/ compares."""
    proxies = {URLPattern(pattern): proxy for pattern, proxy in get_environment_proxies().items()}
    return next((proxies[pattern] for pattern in sorted(proxies) if pattern.matches(httpx.URL(url))), None)


def _named(proxy: str | None) -> tuple[str | None, str]:
    """Host and port of a proxy, and why it cannot be used; never its name and password."""
    if proxy is None:
        return None, ""
    try:
        url = httpx.URL(proxy)
    except httpx.InvalidURL:
        return "(unreadable)", "the proxy in the environment is no address"
    if url.scheme not in ("http", "https") or not url.host:
        return f"{url.host}:{url.port}", f"a proxy of the kind {url.scheme!r} is not used"
    return f"{_bracketed(url.host)}:{url.port or {'http': 80, 'https': 443}[url.scheme]}", ""


def _first_hop(way: Way) -> tuple[str, int]:
    return (way.host, way.port) if way.proxy is None else host_and_port(way.proxy)


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


@contextmanager
def _as_the_worker() -> Iterator[None]:
    """The environment as the worker's process has it; put back afterwards."""
    before = {name: os.environ.get(name) for name in ("NO_PROXY", "no_proxy")}
    try:
        keep_loopback_off_proxies()
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _client(context: ssl.SSLContext) -> httpx.Client:
    return httpx.Client(verify=context, timeout=TIMEOUT)  # trusts the environment's proxy, as Flower's does


def _pinned(ca: Path) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(ca))


def _unpinned() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def _presented(
    reply: httpx.Response, authorities: Sequence[x509.Certificate], *, verified: bool, why: str = ""
) -> Presented:
    data = reply.extensions["network_stream"].get_extra_info("ssl_object").getpeercert(True)
    leaf = x509.load_der_x509_certificate(data)
    organisation = _part(leaf.issuer, NameOID.ORGANIZATION_NAME)
    issuer = _part(leaf.issuer, NameOID.COMMON_NAME) or organisation or "nobody by name"
    return Presented(
        verified, why, issuer, organisation,
        issued_by(leaf, authorities), leaf.not_valid_after_utc.astimezone(UTC),
    )  # fmt: skip


def _part(name: x509.Name, oid: x509.ObjectIdentifier) -> str:
    return next((str(part.value) for part in name.get_attributes_for_oid(oid)), "")


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _verification(error: BaseException) -> str | None:
    """OpenSSL's word for a certificate that does not hold; None of any other error."""
    for one in _chain(error):
        if isinstance(one, ssl.SSLCertVerificationError):
            return str(one.verify_message)
    return None


def _why(error: BaseException) -> str:
    """Why there was no connection, in few words and without a path."""
    for one in _chain(error):
        if isinstance(one, httpx.ProxyError):
            return f"it answers {one}"
        if isinstance(one, TimeoutError | httpx.TimeoutException):
            return f"no answer within {CONNECT_S:.0f} s"
        if isinstance(one, ssl.SSLError):
            return f"TLS: {one.reason or 'cut'}"
        if isinstance(one, OSError) and one.strerror:
            return one.strerror
    with suppress(IndexError):
        return str(error).splitlines()[0][:200] or type(error).__name__
    return type(error).__name__
