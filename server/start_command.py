"""`wardround server start`: the consortium's server, until it is told to end."""

from __future__ import annotations

import logging
import signal
import threading
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from wardround.runtime.log_file import LOGS, log_to
from wardround.server.allocator import keep_little
from wardround.server.consortium.server_folder import open_server_folder
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
    at = MetricsAt(metrics_port(metrics), required=metrics is not None)
    open_server_folder(folder)  # nothing is written into what is no server's folder
    log = log_to(Path(folder) / LOGS / "server.jsonl")
    for name in ("alembic", "httpx", "uvicorn.access"):
        logging.getLogger(name).setLevel(logging.WARNING)
    keep_little()
    done = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: done.set())
    with running_server(folder, listen, replace(at, lost=lambda: log.lost)) as server:
        console = Console()
        console.print(
            f"the server of {server.folder.consortium!r} listens on {server.link.address}; "
            f"{len(server.folder.roster().members)} members"
            + (f"; metrics at {server.metrics}" if server.metrics else ""),
            markup=False, highlight=False, soft_wrap=True,
        )  # fmt: skip
        done.wait()
