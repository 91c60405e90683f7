"""Flower's SuperNode at a site, in a process of its own: the site's connection to the consortium's server.

With worker.py and node_state.py the site's only imports of Flower's internals, beside those that measure
(preview/sizes.py); tests/contract/test_supernode_internals.py holds them. The node holds no data and runs no
code that it is sent: tasks wait at its Runtime API, on the loopback interface, for the worker. What it sends
is recorded by the supervisor first (history/gate.py).
"""

from __future__ import annotations

import email.utils
import logging
import os
import random
import signal
import socket
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import uvicorn
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_private_key
from flwr.common.constant import ISOLATION_MODE_PROCESS, ErrorCode
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.supernode import fleet_http_connection, start_client_internal
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.main import create_app
from flwr.supernode.nodestate import NodeStateFactory

from wardround.client.child import (
    CERTIFICATE,
    CLOCK,
    NOT_ADMITTED,
    NOT_YET,
    NodeSettings,
    die_soon,
    follow_orders,
    hush_flower,
)
from wardround.client.history.gate import Gate
from wardround.client.history.line import Asking
from wardround.client.node_state import SiteNodeState
from wardround.client.polling import Polling
from wardround.core.errors import ConfigError, StorageError, UnreachableError
from wardround.core.messages import WORKER_ENDED

LOG = logging.getLogger(__name__)

LOCAL_PAUSE_S = 0.05
"""Between two looks whether the worker has answered; nobody but this machine notices."""
FLOWERS_IDLE_S = 3
"""Flower's own pause between two looks for a message; any shorter one waits for the worker."""
CLOCK_LEEWAY_S = 295.0
PATIENCE_S = 900.0
"""So long a server's own fault (500) at one route is taken for a lost line; where it goes on, what is sent
may be the cause, and Flower drops it. A server that says that it cannot just now (503) is waited for."""
HEARTBEAT = "/send-node-heartbeat"
PIECE = "/push-object"
SLOW = httpx.Timeout(30.0, read=60.0, write=60.0)
"""Of a piece of a reply: the system takes megabytes at once, and is silent while a slow line carries them."""
UNABLE = frozenset({502, 503, 504, 507})
"""Answers of a server, or of what stands before it, that cannot just now: a full disk is one of them."""
LARGEST_REPORT = 2000
"""Bytes of a line to the supervisor: a pipe passes so many as one."""
GRACE_S = 8.0
"""For taking leave of the server: a node that did may come back at once, one that did not after a minute."""


@dataclass
class _Line:
    """Whether the server answers, told once when that changes; for any thread."""

    report: int
    lost_at: float | None = None
    only: str = ""
    """The one route that the server cannot answer, where it answers others."""

    def __post_init__(self) -> None:
        self._tell("")  # whatever the node before this one has said

    def lost(self, how: str, only: str = "") -> None:
        """A request had no answer, or one of a server that cannot answer at this route."""
        self._fails("the server cannot be reached", how, only)

    def held(self, why: str, path: str) -> None:
        """What is about to leave could not be recorded, so it does not."""
        self._fails("nothing is sent", why.replace("\n", " "), path)

    def _fails(self, what: str, why: str, only: str) -> None:
        if self.lost_at is None:
            self.only = only
            self.lost_at = time.monotonic()
            said = f"{what} since {time.strftime('%H:%M:%S')} ({why}); tried again"
            LOG.warning("%s", said)
            self._tell(said)

    def works(self, path: str) -> None:
        """A request had one."""
        if self.lost_at is not None and self.only in {"", path}:
            LOG.warning("it works again after %.0f s", time.monotonic() - self.lost_at)
            self.lost_at = None
            self._tell("")

    def _tell(self, said: str) -> None:
        with suppress(OSError):  # nobody reads: the supervisor is gone, and this process is about to end
            os.write(self.report, said.encode()[:LARGEST_REPORT] + b"\n")


@dataclass
class _Watch:
    """What Flower's client saw and does not tell: why it was refused, and when a message came."""

    polling: Polling
    line: _Line
    last_message: float = field(default_factory=time.monotonic)
    refusal: int | None = None
    requests: int = 0
    broken: dict[str, float] = field(default_factory=dict)
    """Path → since when the server answers it with a fault of its own."""

    def sleep(self, seconds: float) -> None:
        """In place of `time.sleep` in Flower's loop."""
        if seconds < FLOWERS_IDLE_S:
            time.sleep(min(seconds, LOCAL_PAUSE_S))
        else:
            quiet = time.monotonic() - self.last_message
            time.sleep(self.polling.pause_s(quiet, random.random()))  # noqa: S311 - spreads sites in time

    def unable(self, path: str, response: httpx.Response) -> str:
        """What a server says that cannot answer for now, where that is to be waited for; else nothing."""
        code = response.status_code
        if code != httpx.codes.INTERNAL_SERVER_ERROR:
            waited = code in UNABLE
        else:  # a heartbeat carries nothing that could be the cause
            since = self.broken.setdefault(path, time.monotonic())
            waited = path.endswith(HEARTBEAT) or time.monotonic() - since < PATIENCE_S
        return f"it answers {code}" if waited else ""

    def saw(self, path: str, response: httpx.Response) -> None:
        """Remember what a refusal means for whoever restarts this process."""
        if response.status_code == httpx.codes.UNAUTHORIZED:
            skew = _clock_skew_s(response)
            self.refusal = NOT_ADMITTED if skew is None or abs(skew) < CLOCK_LEEWAY_S else CLOCK
        elif path.endswith("/activate-node") and response.status_code == httpx.codes.PRECONDITION_FAILED:
            self.refusal = NOT_YET


def _clock_skew_s(response: httpx.Response) -> float | None:
    date = email.utils.parsedate_tz(response.headers.get("date", ""))
    return None if date is None else time.time() - email.utils.mktime_tz(date)


def serve_node(settings: NodeSettings) -> int:
    """Be the site's node until told to end; gives the exit code, see child.py.

    Raises:
        ConfigError: A key or certificate file cannot be used.
    """
    hush_flower()
    keys, ca = _transport_keys(settings.transport_key), _pem(settings.ca)
    factory = NodeStateFactory(objectstore_factory=ObjectStoreFactory())
    factory.state_instance = state = SiteNodeState(factory.objectstore_factory.store())
    secret = bytes.fromhex(settings.secret)
    server = _runtime_api(create_app(factory, secret), settings.listener)
    follow_orders(lambda order: _obey(order, state), _leave)
    watch = _Watch(Polling(settings.least_s, settings.most_s), _Line(settings.report))
    gate = Gate(Asking(settings.history), state.asked.get, state.manifest, state.size)
    try:
        with _watched(watch, gate):
            start_client_internal.start_client_internal(
                state_factory=factory,
                server_address=settings.server,
                node_config={},
                root_certificates=ca,
                insecure=False,
                authentication_keys=keys,
                isolation=ISOLATION_MODE_PROCESS,
                superexec_auth_secret=secret,
                runtime_dependency_install=False,
            )
        code = 1  # Flower's loop ends on an error only, which it has logged
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0
    finally:
        server.should_exit = True
    return watch.refusal or code


def _watched(watch: _Watch, gate: Gate) -> _Patched:
    """Flower's loop with our pauses, and a client that records what leaves and tells us of refusals."""

    class Client(FleetHttpClient):
        def __init__(self, *args: Any, **named: Any) -> None:
            super().__init__(*args, **named)
            self._client.follow_redirects = False  # what leaves goes to the server, wherever it points

        def _unary_unary(self, *, path: str, **rest: Any) -> Any:
            watch.requests += 1
            try:
                gate.check(path, rest["request"])
            except (StorageError, UnreachableError) as error:
                watch.line.held(str(error), path)
                raise httpx.RemoteProtocolError("nothing leaves before it is recorded") from error
            if path.endswith(PIECE):
                rest.setdefault("timeout", SLOW)
            try:
                answer = super()._unary_unary(path=path, **rest)
            except httpx.HTTPStatusError as error:
                watch.saw(path, error.response)
                if not (said := watch.unable(path, error.response)):
                    watch.line.works(path)
                    raise
                watch.line.lost(said, path)
                # Over a 500 Flower drops the reply, or ends the node; its heartbeats end over a 507 as well.
                raise httpx.RemoteProtocolError("the server cannot answer for now") from error
            except httpx.TransportError as error:
                if "CERTIFICATE_VERIFY_FAILED" in str(error):
                    watch.refusal = CERTIFICATE
                    raise
                watch.line.lost(type(error).__name__)
                # Flower tries again, but for words like "ssl": so a connection that is cut during its
                # handshake would end the node, and with it what it has in hand.
                raise type(error)("the connection to the server was cut") from error
            watch.line.works(path)
            watch.broken.pop(path, None)
            return answer

    pull = start_client_internal._pull_and_store_message  # noqa: SLF001 - Flower has no public way in

    def pull_and_note(*args: Any, **named: Any) -> int | None:
        run_id = pull(*args, **named)
        if run_id is not None:
            watch.last_message = time.monotonic()
            LOG.info("a message has come")
        return run_id

    return _Patched(
        (start_client_internal, "time", SimpleNamespace(sleep=watch.sleep)),
        (start_client_internal, "_pull_and_store_message", pull_and_note),
        (fleet_http_connection, "FleetHttpClient", Client),
    )


class _Patched:
    """Names in Flower's modules that stand for something of ours while the block runs."""

    def __init__(self, *changes: tuple[Any, str, Any]) -> None:
        self._changes = changes
        self._before: list[tuple[Any, str, Any]] = []

    def __enter__(self) -> None:
        for place, name, value in self._changes:
            self._before.append((place, name, getattr(place, name)))
            setattr(place, name, value)

    def __exit__(self, *_: object) -> None:
        for place, name, value in self._before:
            setattr(place, name, value)


def _runtime_api(app: Any, listener: int) -> uvicorn.Server:
    config = uvicorn.Config(app, log_config=None, access_log=False, lifespan="off", ws="none")
    server = uvicorn.Server(config)
    there = socket.socket(fileno=listener)
    thread = threading.Thread(
        target=lambda: server.run(sockets=[there]), name="wardround-runtime-api", daemon=True
    )
    thread.start()
    return server


def _obey(order: Mapping[str, object], state: SiteNodeState) -> None:
    if "worker_ended" in order:
        code = ErrorCode.CLIENT_APP_CRASHED if order.get("too_late") else WORKER_ENDED
        state.fail_unanswered(str(order["worker_ended"])[:200], code)


def _leave() -> None:
    """The supervisor is gone: take leave of the server, and end."""
    die_soon(GRACE_S)
    os.kill(os.getpid(), signal.SIGTERM)


def _transport_keys(content: str) -> tuple[ec.EllipticCurvePrivateKey, ec.EllipticCurvePublicKey]:
    try:
        key = load_ssh_private_key(content.encode(), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm, NotImplementedError):
        # Without its cause: what cannot be read may be a key.
        raise ConfigError(
            "what was given cannot be used as the site's transport key",
            expected="the content of an OpenSSH private key without a password",
        ) from None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP384R1):
        raise ConfigError("the site's transport key is of another kind", expected="one of P-384")
    return key, key.public_key()


def _pem(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path} cannot be read", expected="the consortium's CA certificate") from error
