"""Flower's SuperLink in this process.

Runs are made by us in Flower's link state, so that Flower's Control and Runtime routes are served on no
listener at all: the public one has the fleet routes that an admitted node needs, and ours. With
link_state.py, link_grid.py and fleet.py the server's only imports of Flower's internals;
tests/contract/test_superlink_internals.py holds them.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import ssl
import threading
import time
from asyncio import sslproto
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import anyio.to_thread
import uvicorn
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.common.constant import HEARTBEAT_PATIENCE, NOOP_ACCOUNT_NAME, NOOP_FLWR_AID
from flwr.serverapp import Grid
from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER, NOOP_FEDERATION_ID, NodeStatus, TaskType
from flwr.supercore.fab import Fab
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.supercore.task_identity import TaskIdentity

from wardround.core.errors import ConfigError, InternalError, StorageError
from wardround.runtime.files import private_folder, storing
from wardround.server.connection import Connection, abort_lines
from wardround.server.fleet import FLEET, FleetApp, empty_bundle
from wardround.server.link_grid import LinkGrid
from wardround.server.link_state import LinkState
from wardround.server.listener import ASGIApp, Door, OwnBody, Waiting

LOG = logging.getLogger(__name__)

LARGEST_REPLY = 4 * 2**30
START_S = 20.0
THREADS = 2
"""That answer requests. They take turns at the database anyway, and each keeps memory of its own."""
KEEP_ALIVE_S = 6
"""For an idle connection; Flower's client leaves its own after 5 s."""
TLS_BUFFER = 16 * 1024
"""Bytes that each connection has for reading, from its first moment: asyncio's 256 KiB, for two or three
connections a site, make memory grow with the sites. A record of TLS has 16 KiB."""
STOP_S = 10.0


@dataclass(frozen=True)
class TlsFiles:
    """The server's certificate, with its chain, and its key: PEM files."""

    certificate: Path
    key: Path


@dataclass(frozen=True)
class FlowerRun:
    """A run in Flower's sense, for as long as this process serves it; a restarted server opens another.

    Attributes:
        grid: Sends messages to nodes and collects replies.
        run_id: Flower's number.
    """

    grid: Grid
    run_id: int
    _link: SuperLink = field(repr=False)

    def node_of(self, site: str) -> int:
        """The site's node; 0, which is nobody's, where the site is not admitted."""
        return self._link.node_of(site)

    def withdraw(self, message_ids: Iterable[str]) -> None:
        """Take messages back whose answers nobody waits for any more."""
        assert isinstance(self.grid, LinkGrid)  # noqa: S101 - `open_run` makes no other
        self.grid.withdraw(message_ids)

    def close(self, reason: str = "") -> None:
        """End it; what is on its way is dropped. A second time does nothing."""
        self._link.end_run(self, reason)


class SuperLink:
    """Serves admitted sites' nodes in a background thread, from `__enter__` to `__exit__`.

    Args:
        database: Flower's state; made where it is not there, readable for its owner only.
        tls: The server's certificate and key.
        address: `host:port` to listen on; port 0 takes a free one.
        routes: Further routes of ours, by path.
        largest_reply: Most bytes of one site's reply.

    Raises:
        ConfigError: The address, the certificate or the key cannot be used.
        StorageError: The database cannot be made or opened.
    """

    def __init__(
        self,
        database: Path,
        tls: TlsFiles,
        address: str,
        *,
        routes: Mapping[str, ASGIApp | OwnBody] | None = None,
        largest_reply: int = LARGEST_REPLY,
    ) -> None:
        for name, level in (("flwr", logging.WARNING), ("alembic", logging.WARNING)):
            logging.getLogger(name).setLevel(level)  # Flower logs each request
        self._tls = tls
        self._host, self._port = _host_and_port(address)
        self._largest_reply = largest_reply
        self._state = _opened(Path(database))
        self._lock = threading.Lock()
        self._keys: dict[str, bytes] = {}
        self._heard: dict[bytes, float] = {}
        self._runs: dict[int, FlowerRun] = {}
        door = Door(
            fleet=FleetApp(self._state, THREADS),
            largest=FLEET,
            key_header=FLEET_HTTP_PUBLIC_KEY_HEADER.encode(),
            admitted=lambda key: key in self._keys.values(),
            heard=self._hear,
            routes=dict(routes or {}),
            waiting=Waiting(Path(database).parent, turns=THREADS, disk=self._state.disk),
        )
        self._config = _listener(door, tls)
        self._server = uvicorn.Server(self._config)
        self._socket: socket.socket | None = None
        self._thread: threading.Thread | None = None
        self._finish_old_runs()

    def __enter__(self) -> Self:
        """Listen.

        Raises:
            ConfigError: The address is taken, or is not this machine's.
            InternalError: The listener did not start.
        """
        self._socket = _bound(self._host, self._port)
        self._port = self._socket.getsockname()[1]
        self._thread = threading.Thread(target=self._serve, name="wardround-superlink", daemon=True)
        self._thread.start()
        end = time.monotonic() + START_S
        while not self._server.started:
            if not self._thread.is_alive() or time.monotonic() > end:
                self.__exit__()
                raise InternalError("the listener did not start", remedy="look at the server's log")
            time.sleep(0.01)
        return self

    def __exit__(self, *_: object) -> None:
        """End the runs that are open, answer what is being answered, and stop."""
        for run in list(self._runs.values()):
            run.close("the server stops")
        self._server.should_exit = True
        if self._thread is not None:
            self._thread.join(STOP_S)
            self._server.force_exit = True
            self._thread.join(STOP_S)
        if self._socket is not None:
            self._socket.close()
        self._state.close()

    def _serve(self) -> None:
        try:
            asyncio.run(self._listen())
        except Exception:
            LOG.exception("the listener has ended")

    async def _listen(self) -> None:
        sslproto.SSLProtocol.max_size = TLS_BUFFER
        anyio.to_thread.current_default_thread_limiter().total_tokens = THREADS
        await self._server.serve(sockets=[self._socket] if self._socket else None)
        abort_lines()

    @property
    def address(self) -> str:
        """`host:port` with the port that is really listened on."""
        return f"{self._host}:{self._port}"

    @property
    def serving(self) -> bool:
        """Whether the listener is alive; health of whoever embeds this."""
        return self._thread is not None and self._thread.is_alive() and self._server.started

    def renew_tls(self) -> None:
        """Read certificate and key again: new connections get the new certificate, old ones stay.

        Raises:
            ConfigError: They cannot be used; the old ones stay in use.
        """
        _tls_context(self._tls)  # a context that loads half of a pair would serve nobody
        assert isinstance(self._config.ssl, ssl.SSLContext)  # noqa: S101 - `_listener` has loaded it
        self._config.ssl.load_cert_chain(self._tls.certificate, self._tls.key)

    def admit(self, site: str, transport_key: bytes) -> None:
        """Let a site's node in; again is no change, and another key takes the place of the old one.

        Args:
            site: The site's name.
            transport_key: Its P-384 public key as a curve point (X9.62, compressed or not).

        Raises:
            ConfigError: No such key; or it is another site's; or it was revoked.
        """
        key = _flowers_key(transport_key)
        with self._lock:
            owner = next((name for name, its in self._keys.items() if its == key and name != site), None)
            if owner is not None:
                raise ConfigError(
                    f"the transport key of {site} is that of {owner} already",
                    remedy="each site makes a key of its own",
                )
            old = self._keys.get(site)
            if self._state.get_node_id_by_public_key(key) is None:
                try:
                    node_id = self._state.create_node(NOOP_FLWR_AID, NOOP_ACCOUNT_NAME, key, 0, name=site)
                except ValueError as error:
                    raise ConfigError(
                        f"the transport key of {site} was revoked",
                        remedy="the site makes a new key and asks to be admitted with it",
                    ) from error
                if not node_id:
                    raise InternalError("Flower made no node")
                # Offline from the first, so that messages wait for a site that has yet to connect.
                self._state.activate_node(node_id, 0)
                self._state.deactivate_node(node_id)
            self._keys[site] = key
            if old is not None and old != key:
                self._forget_node(old)

    def revoke(self, site: str) -> None:
        """Shut a site out, for good with this key; its requests are refused from now on."""
        with self._lock:
            key = self._keys.pop(site, None)
            for info in self._state.get_node_info():
                if info.name == site and info.status != NodeStatus.UNREGISTERED:
                    self._state.delete_node(NOOP_FLWR_AID, info.node_id)
            if key is not None:
                self._forget_node(key)

    def _forget_node(self, key: bytes) -> None:
        node_id = self._state.get_node_id_by_public_key(key)
        if node_id is not None:
            self._state.delete_node(NOOP_FLWR_AID, node_id)
        self._heard.pop(key, None)

    def node_of(self, site: str) -> int:
        """The site's Flower node; 0 where it is not admitted."""
        key = self._keys.get(site)
        return 0 if key is None else self._state.get_node_id_by_public_key(key) or 0

    def online(self) -> Mapping[str, float | None]:
        """Admitted site → seconds since its node was last heard of; None where it never was."""
        infos = {info.public_key: info for info in self._state.get_node_info()}
        result: dict[str, float | None] = {}
        for site, key in list(self._keys.items()):
            heard, info = self._heard.get(key), infos.get(key)
            if heard is not None:
                result[site] = time.monotonic() - heard
            elif info is not None and info.heartbeat_interval:  # heard before this process began
                beat = info.online_until - HEARTBEAT_PATIENCE * info.heartbeat_interval
                result[site] = max(0.0, time.time() - beat)
            else:
                result[site] = None
        return result

    def _hear(self, key: bytes) -> None:
        self._heard[key] = time.monotonic()

    def open_run(self, name: str) -> FlowerRun:
        """A new run in Flower's sense, at once in the state in which nodes take its messages.

        Args:
            name: For Flower's log.

        Raises:
            InternalError: Flower did not make it.
        """
        content = empty_bundle()
        digest = self._state.store_fab(Fab("", content, {}))
        run_id = self._state.create_run(
            "wardround/wardround-plan", "1.0.0", digest, {}, NOOP_FEDERATION_ID, None, NOOP_FLWR_AID,
            TaskType.SERVER_APP,
        )  # fmt: skip
        runs = self._state.get_run_info(run_ids=[run_id]) if run_id else []
        task_id = runs[0].primary_task_id if runs else None
        if not task_id or not self._state.claim_task(task_id) or not self._state.activate_task(task_id):
            raise InternalError("Flower did not start a run")
        # Flower's message constructor asks who sends; the grid writes the true values over it.
        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = task_id, run_id, 1
        LOG.info("Flower's run %s carries %s", run_id, name)
        run = FlowerRun(LinkGrid(self._state, runs[0], self._largest_reply), run_id, self)
        self._runs[run_id] = run
        return run

    def end_run(self, run: FlowerRun, reason: str) -> None:
        """End a run; see `FlowerRun.close`."""
        if self._runs.pop(run.run_id, None) is None:
            return
        assert isinstance(run.grid, LinkGrid)  # noqa: S101 - `open_run` makes no other
        run.grid.close()
        self._state.stop_run(run.run_id)
        LOG.info("Flower's run %s has ended%s", run.run_id, f": {reason}" if reason else "")

    def _finish_old_runs(self) -> None:
        """What a killed server left open; our own run goes on in a new one."""
        for run in self._state.get_run_info():
            if run.status.status != "finished":
                self._state.stop_run(run.run_id)
            else:
                self._state.cleanup_run(run.run_id)


def _opened(database: Path) -> LinkState:
    with storing(database):
        if not database.exists():
            private_folder(database.parent)
            os.close(os.open(database, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    try:
        state = LinkState(database)
        state.initialize()
    except Exception as error:
        raise StorageError(
            f"{database} is no database that this server can open",
            remedy="restore it from a backup, or move it away: sites and runs are in files of their own",
        ) from error
    return state


def _listener(door: ASGIApp, tls: TlsFiles) -> uvicorn.Config:
    config = uvicorn.Config(
        door,
        http=Connection,
        log_config=None,
        access_log=False,
        lifespan="off",
        ws="none",
        server_header=False,
        date_header=True,  # by it a site tells a wrong clock from a key that is not admitted
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=5,
        ssl_certfile=str(tls.certificate),
        ssl_keyfile=str(tls.key),
    )
    context = _tls_context(tls)
    config.load()
    config.ssl = context
    return config


def _tls_context(tls: TlsFiles) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(tls.certificate, tls.key)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(
            "the server's certificate or key cannot be used",
            found=f"{tls.certificate} and {tls.key}",
            expected="a PEM certificate with its chain, and the PEM key that belongs to it",
        ) from error
    return context


def _flowers_key(point: bytes) -> bytes:
    try:
        return public_key_to_bytes(ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP384R1(), point))
    except ValueError as error:
        raise ConfigError(
            "the transport key cannot be used",
            found=f"{len(point)} bytes",
            expected="a point of P-384 (X9.62)",
        ) from error


def _host_and_port(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or int(port) > 65535:  # noqa: PLR2004 - ports have 16 bits
        raise ConfigError("the server's address cannot be used", found=address, expected="host:port")
    return host.strip("[]"), int(port)


def _bound(host: str, port: int) -> socket.socket:
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise ConfigError(
            f"cannot listen on {host}:{port}", found=error.strerror or type(error).__name__,
            expected="an address of this machine with a free port",
        ) from error  # fmt: skip
