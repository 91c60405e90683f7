"""`wardround server start`: the consortium's server, until it is told to end."""

from __future__ import annotations

import logging
import signal
import threading
from pathlib import Path

from rich.console import Console

from wardround.server.allocator import keep_little
from wardround.server.daemon import running_server


def start_server(folder: Path, listen: str | None) -> None:
    """Run the server until SIGTERM or SIGINT; a run that trains goes on at the next start.

    Raises:
        WardroundError: As `running_server`.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    for name in ("alembic", "httpx", "uvicorn.access"):
        logging.getLogger(name).setLevel(logging.WARNING)
    keep_little()
    done = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: done.set())
    with running_server(folder, listen) as server:
        console = Console()
        console.print(
            f"the server of {server.folder.consortium!r} listens on {server.link.address}; "
            f"{len(server.folder.roster().members)} members",
            markup=False, highlight=False, soft_wrap=True,
        )  # fmt: skip
        done.wait()
