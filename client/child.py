"""What the site's child processes have in common: settings come by their standard input, and so does the end.

The supervisor writes one JSON line of settings, then orders, one JSON line each; nothing secret stands on a
command line or in an environment. When the pipe closes, by whatever death of the supervisor, the child ends.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from pydantic import BaseModel, Field, ValidationError

from wardround.client.polling import Polling
from wardround.core.checked import Frozen
from wardround.core.errors import InternalError

LOG = logging.getLogger(__name__)
M = TypeVar("M", bound=BaseModel)

LARGEST_LINE = 2**20
QUIET: Mapping[str, str] = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
}
"""What Flower must not do at a site: call home, install anything."""

NOT_ADMITTED = 81
"""Exit code of the node: the server does not accept its key."""
NOT_YET = 82
"""Exit code of the node: the server takes it for online still; Flower's exit 305."""
CLOCK = 83
"""Exit code of the node: this machine's clock and the server's are too far apart for a signature to count."""
CERTIFICATE = 84
"""Exit code of the node: the server's certificate does not hold under the consortium's CA."""
DEADLINE = 85
"""Exit code of the worker: a message took longer than it may."""
CLOSED = 86
"""Exit code of the worker: the site's working hours are over."""
CLOSING = threading.Event()
"""Set in a worker that ends as soon as what it does can be left: between messages, or at a checkpoint."""


BEAT_S = 1.0
"""Seconds between two signs of life of a child."""


class NodeSettings(Frozen):
    """What the node's process is started with.

    Attributes:
        server: `host:port` of the consortium's server.
        ca: PEM file of the consortium's CA.
        transport_key: The site's P-384 key, as the content of an OpenSSH file.
        listener: File descriptor, inherited, of the loopback socket on which the worker is served.
        secret: Hexadecimal; who knows it may take tasks.
        report: File descriptor, inherited, to which it writes a line when its connection is lost, and an
            empty one when it is there again.
        history: File descriptor, inherited, of the socket on which it asks to have recorded what leaves.
        polling: Pauses between looks for messages.
        beats: File descriptor, inherited, for signs of life; None: nobody waits for them.
    """

    server: str
    ca: Path
    transport_key: str = Field(repr=False)
    listener: int
    secret: str = Field(repr=False, min_length=32)
    report: int
    history: int
    least_s: float = Polling.least_s
    most_s: float = Polling.most_s
    beats: int | None = None


class WorkerSettings(Frozen):
    """What the worker's process is started with.

    Attributes:
        node: `host:port` of the node's Runtime API, on this machine.
        secret: Hexadecimal; who knows it may take tasks.
        factory: `module:function` of the installed package that makes the app from `arguments`.
        arguments: For the factory.
        deadline_s: Seconds that one message may take.
        beats: As of the node.
    """

    node: str
    secret: str = Field(repr=False, min_length=32)
    factory: str = Field(pattern=r"^[\w.]+:\w+$")
    arguments: dict[str, Any] = Field(default_factory=dict)
    deadline_s: float = Field(gt=0)
    beats: int | None = None


def _standard_input() -> BinaryIO:
    """Unbuffered: a thread that waits in a buffered reader cannot be left behind when the process ends."""
    return open(0, "rb", buffering=0, closefd=False)


def read_settings(model: type[M], stream: BinaryIO | None = None) -> M:
    """The first line of standard input.

    Raises:
        InternalError: It is missing, too long or not what this child takes.
    """
    line = (stream or _standard_input()).readline(LARGEST_LINE)
    try:
        return model.model_validate_json(line)
    except ValidationError as error:
        places = [".".join(map(str, fault["loc"])) for fault in error.errors(include_input=False)]
        raise InternalError("a child's settings cannot be read", found=", ".join(places)) from None


def follow_orders(
    obey: Callable[[Mapping[str, object]], None], end: Callable[[], None], stream: BinaryIO | None = None
) -> threading.Thread:
    """Obey orders in a thread until the pipe closes, then `end`."""

    def follow() -> None:
        source = stream or _standard_input()
        while line := source.readline(LARGEST_LINE):
            try:
                order = json.loads(line)
                obey(order if isinstance(order, dict) else {})
            except Exception:
                LOG.exception("an order of the supervisor could not be obeyed")
        end()

    thread = threading.Thread(target=follow, name="wardround-orders", daemon=True)
    thread.start()
    return thread


def show_life(descriptor: int | None) -> None:
    """Write a byte every `BEAT_S` from a thread, until nobody reads any more.

    A process that is stopped, or whose interpreter no thread gets any more, falls silent.
    """
    if descriptor is None:
        return

    def beat() -> None:
        try:
            while os.write(descriptor, b"."):
                time.sleep(BEAT_S)
        except OSError:
            LOG.debug("nobody waits for signs of life any more")

    threading.Thread(target=beat, name="wardround-beats", daemon=True).start()


def keep_loopback_off_proxies() -> None:
    """Have the loopback go by no proxy in this process: Flower's clients trust the environment."""
    os.environ["NO_PROXY"] = ",".join(filter(None, [os.environ.get("NO_PROXY"), "127.0.0.1", "localhost"]))
    os.environ["no_proxy"] = os.environ["NO_PROXY"]


def hush_flower() -> None:
    """Flower logs each request, in colours and twice; what is a warning stays, in our own log."""
    flower = logging.getLogger("flwr")
    flower.handlers.clear()
    flower.setLevel(logging.WARNING)


def die_soon(seconds: float, code: int = 1) -> None:
    """Let this process end after so many seconds, whatever its threads are doing."""
    timer = threading.Timer(seconds, os._exit, (code,))
    timer.daemon = True
    timer.start()
