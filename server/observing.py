"""Who looks on at the desk: told of each event once it counts, and of what could not be kept on disk.

An onlooker never holds a run up, and what goes wrong in it is its own affair.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Protocol, TypeAlias

Unkept: TypeAlias = Literal["run", "record", "log"]
"""What the disk refused: a file of the run itself, which ends it (its journal above all); its record in the
registry; a line of its log."""


class Observer(Protocol):
    """Looks on; for any number of threads."""

    def event(self, record: Mapping[str, Any]) -> None:
        """Take an event as `runtime/events.py:as_record` writes it."""

    def unkept(self, what: Unkept) -> None:
        """Take note that the disk refused something."""


class Nobody:
    """Looks at nothing."""

    def event(self, record: Mapping[str, Any]) -> None:
        """Take no note."""

    def unkept(self, what: Unkept) -> None:
        """Take no note."""
