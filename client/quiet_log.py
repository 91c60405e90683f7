"""A site's log, in words of our own: the text of somebody else's exception may quote a row, and stays out.

What is left of one is where it happened and what kind it is.
"""

from __future__ import annotations

import logging
import sys
import threading
import traceback
from collections.abc import Iterator
from types import TracebackType
from typing import Final

from wardround.core.errors import WardroundError

LOG = logging.getLogger(__name__)
CAUSED: Final = "\nThe above exception was the direct cause of the following exception:\n\n"
DURING: Final = "\nDuring handling of the above exception, another exception occurred:\n\n"
MOST: Final = 20
"""Exceptions of a chain that are told."""


class QuietFormatter(logging.Formatter):
    """Tells of an exception where and what kind, and in words only where it is one of ours."""

    def formatException(self, ei: object) -> str:  # noqa: N802 - logging's name
        """As logging asks for it."""
        error = ei[1] if isinstance(ei, tuple) else None
        return story(error) if isinstance(error, BaseException) else ""


def story(error: BaseException) -> str:
    """Tracebacks of an exception and of what led to it, first things first."""
    return "".join(_told(error, MOST)).rstrip("\n")


def _told(error: BaseException, most: int) -> Iterator[str]:
    before = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    if before is not None and most > 1:
        yield from _told(before, most - 1)
        yield CAUSED if error.__cause__ is not None else DURING
    yield "Traceback (most recent call last):\n"
    yield from traceback.format_tb(error.__traceback__)
    kind = type(error)
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    yield f"{name}: {error}\n" if isinstance(error, WardroundError) else f"{name}\n"


def log_quietly(process: str) -> None:
    """From here on this process says what happens on its error stream, and nothing of foreign words.

    Args:
        process: Its name, in each line.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(QuietFormatter(f"%(asctime)s {process} %(levelname)s %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    for name in ("httpx", "uvicorn"):
        logging.getLogger(name).setLevel(logging.WARNING)
    end_quietly()


def end_quietly() -> None:
    """What nobody caught ends the process, or its thread, with the same words as what somebody did."""

    def uncaught(_: type[BaseException], error: BaseException, __: TracebackType | None) -> None:
        LOG.critical("this process ends:\n%s", story(error))

    def in_thread(ended: threading.ExceptHookArgs) -> None:
        if ended.exc_value is not None and not isinstance(ended.exc_value, SystemExit):
            LOG.error("a thread ends:\n%s", story(ended.exc_value))

    sys.excepthook, threading.excepthook = uncaught, in_thread
