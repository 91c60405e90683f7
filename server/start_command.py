"""`wardround server start`: the consortium's server, until it is told to end."""

from __future__ import annotations

import logging
import signal
import threading
from pathlib import Path

from rich.console import Console

from wardround.server.daemon import MetricsAt, running_server
from wardround.server.metrics_listener import metrics_port


def start_server(folder: Path, listen: str | None, metrics: str | None = None) -> None:
    """Run the server until SIGTERM or SIGINT; a run that trains goes on at the next start.

    Args:
        folder: Of the server.
        listen: HOST:PORT to listen on, where it is not the one that sites know.
        metrics: Port for Prometheus on the loopback, or `off`; None takes the usual one where it is free.

    Raises:
        WardroundError: As `running_server`.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    for name in ("alembic", "httpx", "uvicorn.access"):
        logging.getLogger(name).setLevel(logging.WARNING)
    done = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: done.set())
    at = MetricsAt(metrics_port(metrics), required=metrics is not None)
    with running_server(folder, listen, at) as server:
        console = Console()
        console.print(
            f"the server of {server.folder.consortium!r} listens on {server.link.address}; "
            f"{len(server.folder.roster().members)} members"
            + (f"; metrics at {server.metrics}" if server.metrics else ""),
            markup=False, highlight=False, soft_wrap=True,
        )  # fmt: skip
        done.wait()
