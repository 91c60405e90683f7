"""A process's own log as a file: one JSON line a record, bounded in size.

    {"time": "2026-11-01T12:00:00.000+00:00", "level": "INFO", "logger": "wardround.desk", "text": "…"}

A disk that refuses a line is told of once, on the terminal; who logs goes on. When lines can be written
again, the first one says how many were lost.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Any, Final

from wardround.core.errors import StorageError
from wardround.runtime.files import append_line, private_folder

LARGEST_BYTES: Final = 10 * 2**20
"""Of one file; `.1` to `.5` are the ones before it."""
FORMER: Final = 5
LONGEST_TEXT: Final = 100_000
"""Characters of one record's text, and of its traceback."""
TERMINAL: Final = "%(asctime)s %(levelname)s %(message)s"
LOGS: Final = "logs"


class LogFile(RotatingFileHandler):
    """Appends each record to a file, and begins a new one when it is full.

    Args:
        path: The file; its folder is made for this user alone.
        largest_bytes: Of the file, before a new one begins.
        former: So many full ones are kept.

    Attributes:
        lost: Records that could not be written since the process began.
    """

    def __init__(self, path: Path, largest_bytes: int = LARGEST_BYTES, former: int = FORMER) -> None:
        # Never opened by the base class, whose buffer would tear lines where the disk is full.
        super().__init__(path, maxBytes=largest_bytes, backupCount=former, encoding="utf-8", delay=True)
        self.lost = 0
        self._path, self._unsaid = Path(path), 0

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record; raises nothing."""
        try:
            private_folder(self._path.parent)
            line = as_line(record, self.formatter)
            if self._path.exists() and self._path.stat().st_size >= self.maxBytes:
                self.doRollover()
            if self._unsaid:
                lost = {**line, "level": "WARNING", "text": f"{self._unsaid} records could not be written"}
                append_line(self._path, lost, durable=False)
                self._unsaid = 0
            append_line(self._path, line, durable=False)
        except (OSError, StorageError, ValueError, TypeError) as error:
            self._lose(error)

    def _lose(self, error: Exception) -> None:
        if self._unsaid == 0:
            why = error.found if isinstance(error, StorageError) else type(error).__name__
            sys.stderr.write(f"the log {self._path} cannot be written, nothing else stops: {why}\n")
        self.lost, self._unsaid = self.lost + 1, self._unsaid + 1


def as_line(record: logging.LogRecord, formatter: logging.Formatter | None = None) -> Mapping[str, Any]:
    """A record as the file has it; `formatter` tells exceptions in its own way."""
    when = datetime.fromtimestamp(record.created, UTC)
    line = {
        "time": when.isoformat(timespec="milliseconds"), "level": record.levelname, "logger": record.name,
        "text": record.getMessage()[:LONGEST_TEXT],
    }  # fmt: skip
    if record.exc_info:
        line["traceback"] = (formatter or logging.Formatter()).formatException(record.exc_info)[
            -LONGEST_TEXT:
        ]
    return line


def log_to(path: Path, formatter: type[logging.Formatter] = logging.Formatter) -> LogFile:
    """Log from here on: human lines on the terminal's error stream, and every record into this file.

    Args:
        path: The file.
        formatter: Tells exceptions, in both.
    """
    terminal, file = logging.StreamHandler(), LogFile(path)
    terminal.setFormatter(formatter(TERMINAL))
    file.setFormatter(formatter())
    logging.basicConfig(level=logging.INFO, handlers=[terminal])
    logging.getLogger().addHandler(file)
    return file
