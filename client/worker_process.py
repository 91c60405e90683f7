"""The main of the worker's process: `python -m wardround.client.worker_process`, started by processes.py."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Mapping
from typing import Any

from wardround.client.child import (
    CLOSED,
    CLOSING,
    QUIET,
    WorkerSettings,
    follow_orders,
    keep_loopback_off_proxies,
    read_settings,
    show_life,
)
from wardround.client.quiet_log import log_quietly
from wardround.client.resident import Resident
from wardround.core.errors import ConfigError, WardroundError


def main() -> int:
    """Read settings from standard input, make the app, and answer messages; gives the exit code."""
    os.environ.update(QUIET)
    keep_loopback_off_proxies()
    log_quietly("worker")
    try:
        settings = read_settings(WorkerSettings)
        show_life(settings.beats)
        follow_orders(obey, lambda: os._exit(0))
        from wardround.client.worker import serve_tasks

        app = made(settings)
        resident = app if isinstance(app, Resident) else Resident(app, lambda _: None)
        secret = bytes.fromhex(settings.secret)
        serve_tasks(settings.node, secret, resident.app, settings.deadline_s, resident.idle, closing=CLOSING)
    except WardroundError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    return CLOSED


def obey(order: Mapping[str, object]) -> None:
    """What the supervisor orders a worker: to end as soon as it can."""
    if order.get("closing") is True:
        CLOSING.set()


def made(settings: WorkerSettings) -> Any:
    """The app.

    Raises:
        ConfigError: There is no such factory.
    """
    module, _, name = settings.factory.partition(":")
    try:
        factory = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ConfigError("the worker's app cannot be made", found=settings.factory) from error
    return factory(**settings.arguments)


if __name__ == "__main__":
    sys.exit(main())
