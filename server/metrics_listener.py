"""Where Prometheus reads the server's metrics: a port of this machine's loopback, and nowhere else.

The public listener knows no such route. Who scrapes from elsewhere puts a proxy before it that asks who
comes; whoever has an account on this machine can read it: no secret and no data value is in it.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final
from wsgiref.simple_server import WSGIRequestHandler, make_server

from prometheus_client import CollectorRegistry, make_wsgi_app
from prometheus_client.exposition import ThreadingWSGIServer

from wardround.core.errors import ConfigError

LOG = logging.getLogger(__name__)
LOOPBACK: Final = "127.0.0.1"
PORT: Final = 9445
OFF: Final = "off"
SLOW_S: Final = 10.0
"""Seconds for which a connection may say nothing."""


class _Quiet(WSGIRequestHandler):
    timeout = SLOW_S

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing of a scrape."""


def metrics_port(said: str | None) -> int | None:
    """The port that a person named: a number, 0 for any free one; None for `off`.

    Raises:
        ConfigError: It is neither.
    """
    if said == OFF:
        return None
    if said is None:
        return PORT
    if not said.isdecimal() or int(said) > 65535:  # noqa: PLR2004 - ports have 16 bits
        raise ConfigError(
            "the port of the metrics cannot be used", found=said[:80],
            expected=f"a port of {LOOPBACK}, or off",
            remedy="to scrape from another machine, put a proxy with a login before it",
        )  # fmt: skip
    return int(said)


@contextmanager
def serving_metrics(registry: CollectorRegistry, port: int | None, *, required: bool) -> Iterator[str | None]:
    """Serve a registry, from here to the end of the block.

    Args:
        registry: What is read.
        port: Of the loopback; 0 takes a free one, None serves nothing.
        required: Whether a port that is taken is an error. Where nobody asked for the port, the server runs
            without metrics, and says so.

    Yields:
        The address to scrape; None where nothing is served.

    Raises:
        ConfigError: The port is taken.
    """
    if port is None:
        yield None
        return
    try:
        server = make_server(LOOPBACK, port, make_wsgi_app(registry), ThreadingWSGIServer, _Quiet)
    except OSError as error:
        if required:
            raise ConfigError(
                "the metrics cannot be served", found=f"{LOOPBACK}:{port}: {error.strerror}",
                expected="a free port", remedy="name another one with --metrics, or off",
            ) from error  # fmt: skip
        LOG.warning("no metrics are served: port %d is taken; name another one with --metrics, or off", port)
        yield None
        return
    thread = threading.Thread(target=server.serve_forever, name="wardround-metrics", daemon=True)
    thread.start()
    try:
        yield f"http://{LOOPBACK}:{server.server_port}/metrics"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
