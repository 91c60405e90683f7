"""What stands between a site and its server, or in its place: for tests of `wardround site check`."""

from __future__ import annotations

import base64
import email.utils
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

REFUSED = b"HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\n\r\n"
LOGIN = b"HTTP/1.1 407 Proxy Authentication Required\r\ncontent-length: 0\r\n\r\n"


@contextmanager
def tls_server(certificate: Path, key: Path, *, shift_s: float = 0.0) -> Iterator[str]:
    """Something that answers 200 to everything, under this certificate, with a clock that is so far off."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version: ClassVar[str] = "HTTP/1.1"

        def date_time_string(self, timestamp: float | None = None) -> str:
            """The date that the answer names."""
            return email.utils.formatdate((timestamp or time.time()) + shift_s, usegmt=True)

        def do_GET(self) -> None:
            """Anything."""
            self.send_response(200)
            self.send_header("content-length", "3")
            self.end_headers()
            self.wfile.write(b"ok\n")

        def log_message(self, *_: object) -> None:
            """Nowhere."""

    class Quiet(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: object) -> None:
            """A client that refuses our certificate is what the tests are about."""

        def get_request(self) -> tuple[socket.socket, object]:
            """The handshake is the handler's thread's."""
            plain, address = self.socket.accept()
            return context.wrap_socket(plain, server_side=True, do_handshake_on_connect=False), address

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server = Quiet(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@dataclass
class ConnectProxy:
    """An HTTP proxy that knows CONNECT and nothing else.

    Attributes:
        routes: `host:port` as asked for → where that really is; anything else is refused (403).
        login: `name:password` that it wants, or None.
        asked: Every CONNECT, in order.
    """

    routes: dict[str, str]
    login: str | None = None
    asked: list[str] = field(default_factory=list)

    @contextmanager
    def running(self) -> Iterator[str]:
        """Its `host:port`, until the end of the block."""
        with socket.create_server(("127.0.0.1", 0)) as listener:
            threading.Thread(target=self._serve, args=(listener,), daemon=True).start()
            yield f"127.0.0.1:{listener.getsockname()[1]}"
            with suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)

    def _serve(self, listener: socket.socket) -> None:
        with suppress(OSError):  # closed
            while True:
                client, _ = listener.accept()
                threading.Thread(target=self._one, args=(client,), daemon=True).start()

    def _one(self, client: socket.socket) -> None:
        with client, suppress(OSError):
            head = b""
            while b"\r\n\r\n" not in head:
                more = client.recv(4096)
                if not more:
                    return
                head += more
            method, target, *_ = head.decode("latin-1").split()
            self.asked.append(f"{method} {target}")
            wanted = None if self.login is None else base64.b64encode(self.login.encode())
            if wanted is not None and b"basic " + wanted.lower() not in head.lower():
                client.sendall(LOGIN)
                return
            if method != "CONNECT" or target not in self.routes:
                client.sendall(REFUSED)
                return
            host, _, port = self.routes[target].rpartition(":")
            with socket.create_connection((host, int(port))) as server:
                client.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
                up = threading.Thread(target=_pump, args=(client, server), daemon=True)
                up.start()
                _pump(server, client)
                up.join()


def _pump(source: socket.socket, sink: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(65536):
            sink.sendall(data)
    with suppress(OSError):
        sink.shutdown(socket.SHUT_WR)
