"""A wire between sites and a server that a test can cut: a TCP proxy on loopback."""

from __future__ import annotations

import selectors
import socket
import struct
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Self

PIECE = 16 * 1024
LOOK_S = 0.05
OPEN, RESET, CLOSED, HOLE = "open", "reset", "closed", "hole"
"""Bytes pass; connections are reset, or taken and closed; bytes vanish and nobody says so."""


@dataclass
class Wire:
    """Carries connections to `target` until it is cut.

    Attributes:
        target: `host:port` of the server.
        up: Bytes that went to the server, of all connections.
        connections: How many were made.
        bytes_per_s: Of each connection to the server; None for as fast as it goes.
    """

    target: str
    up: int = 0
    connections: int = 0
    bytes_per_s: float | None = None
    _state: str = OPEN
    _trigger: tuple[int, str] | None = None
    _tripped: threading.Event = field(default_factory=threading.Event)
    _done: threading.Event = field(default_factory=threading.Event)
    _threads: list[threading.Thread] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __enter__(self) -> Self:
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self._start(self._accept)
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._listener.close()
        for thread in list(self._threads):
            thread.join(10)

    @property
    def address(self) -> str:
        """Where sites connect to."""
        return f"127.0.0.1:{self._listener.getsockname()[1]}"

    def cut(self, how: str) -> None:
        """Cut it, by one of `RESET`, `CLOSED`, `HOLE`; connections that stand are cut as well."""
        with self._lock:
            self._state = how

    def cut_after(self, count: int, how: str) -> threading.Event:
        """Cut it when so many more bytes have gone to the server; the event says that it was."""
        with self._lock:
            self._tripped.clear()
            self._trigger = (self.up + count, how)
        return self._tripped

    def mend(self) -> None:
        """Let new connections through; those that were swallowed are gone."""
        with self._lock:
            self._state, self._trigger = OPEN, None

    def _start(self, target: Callable[..., None], *args: object) -> None:
        thread = threading.Thread(target=target, args=args, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        self._listener.settimeout(LOOK_S)
        while not self._done.is_set():
            try:
                site, _ = self._listener.accept()
            except TimeoutError:
                continue
            except OSError:
                return
            self.connections += 1
            self._start(self._carry, site)

    def _carry(self, site: socket.socket) -> None:
        server: socket.socket | None = None
        dead = self._state == HOLE
        try:
            if self._state == OPEN:
                server = socket.create_connection(self.target.rsplit(":", 1))  # type: ignore[arg-type]  # of two
            elif self._state == RESET:
                _reset(site)
                return
            while not self._done.is_set():
                if self._state in (RESET, CLOSED):
                    for end in filter(None, (site, server)):
                        _reset(end) if self._state == RESET else end.close()
                    return
                dead = dead or self._state == HOLE
                if not self._piece(site, None if dead else server, dead=dead):
                    return
        except OSError:
            pass
        finally:
            for end in filter(None, (site, server)):
                with suppress(OSError):
                    end.close()

    def _piece(self, site: socket.socket, server: socket.socket | None, *, dead: bool) -> bool:
        """Pass on what is there; gives whether the connection still stands."""
        if dead:  # the site's bytes stay where they are, and what the server sends is lost
            time.sleep(LOOK_S)
            return True
        assert server is not None
        with selectors.DefaultSelector() as ready:
            ready.register(site, selectors.EVENT_READ, server)
            ready.register(server, selectors.EVENT_READ, site)
            for key, _ in ready.select(LOOK_S):
                source: socket.socket = key.fileobj  # type: ignore[assignment]  # a socket was registered
                data = source.recv(PIECE)
                if not data:
                    return False
                if source is site:
                    data = self._counted(data)
                key.data.sendall(data)
        return True

    def _counted(self, data: bytes) -> bytes:
        if self.bytes_per_s is not None:
            time.sleep(len(data) / self.bytes_per_s)
        with self._lock:
            if self._trigger is not None and self.up + len(data) >= self._trigger[0]:
                data = data[: max(0, self._trigger[0] - self.up)]
                self._state, self._trigger = self._trigger[1], None
                self._tripped.set()
            self.up += len(data)
        return data


def _reset(end: socket.socket) -> None:
    """Close with RST in place of FIN."""
    with suppress(OSError):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        end.close()
