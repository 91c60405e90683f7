"""A site's working hours: outside them it has no worker, and a round that it trains waits at a checkpoint.

Wall-clock time of this machine, as people there read it; where clocks are put forward or back a window is an
hour shorter or longer.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Annotated, Final

from pydantic import AfterValidator

from wardround.core.errors import WardroundError

LOG = logging.getLogger(__name__)
DAYS: Final = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
DAY_MINUTES: Final = 24 * 60
_WINDOW: Final = re.compile(
    r"(?P<first>[a-z]{3})(?:-(?P<last>[a-z]{3}))? "
    r"(?P<begin>\d{2}:\d{2})-(?P<end>\d{2}:\d{2})"
)


@dataclass(frozen=True)
class Window:
    """Some days a week, from a minute of the day to another, on the next day where that is not later.

    Attributes:
        days: 0 (Monday) to 6, on which it opens.
        begin: Minutes after midnight.
        end: Likewise.
    """

    days: frozenset[int]
    begin: int
    end: int

    def holds(self, now: datetime) -> bool:
        """Whether a moment of local time lies in it."""
        minute, day = now.hour * 60 + now.minute, now.weekday()
        if self.begin < self.end:
            return day in self.days and self.begin <= minute < self.end
        if minute >= self.begin:
            return day in self.days
        return minute < self.end and (day - 1) % 7 in self.days


def read_window(text: str) -> Window:
    """Read `mon-fri 19:00-06:00` or `sat 00:00-24:00`.

    Raises:
        ValueError: It is none.
    """
    found = _WINDOW.fullmatch(text)
    days = None if found is None else _days(found["first"], found["last"])
    if found is None or days is None:
        raise ValueError("expected days and times such as 'mon-fri 19:00-06:00' or 'sun 00:00-24:00'")
    begin, end = _minutes(found["begin"]), _minutes(found["end"])
    if begin in (end, DAY_MINUTES):
        raise ValueError("a window begins before midnight, and is neither empty nor without an end")
    return Window(days, begin, end)


def _days(first: str, last: str | None) -> frozenset[int] | None:
    if first not in DAYS or (last or first) not in DAYS:
        return None
    start, stop = DAYS.index(first), DAYS.index(last or first)
    return frozenset((start + step) % 7 for step in range((stop - start) % 7 + 1))


def _minutes(text: str) -> int:
    hours, minutes = int(text[:2]), int(text[3:])
    if minutes >= 60 or hours * 60 + minutes > DAY_MINUTES:  # noqa: PLR2004 - of an hour
        raise ValueError(f"{text} is no time of a day")
    return hours * 60 + minutes


def _sound(text: str) -> str:
    read_window(text)
    return text


WindowText = Annotated[str, AfterValidator(_sound)]


def open_at(windows: Sequence[str], now: datetime) -> bool:
    """Whether a moment of local time lies in one of the windows; always, where there are none."""
    return not windows or any(read_window(text).holds(now) for text in windows)


@dataclass
class Opening:
    """Whether a site works now, by settings that people may change while it runs.

    Attributes:
        windows: Reads them.
        now: Local time.
        clock: Monotonic seconds; the settings are read anew every `every_s`.
    """

    windows: Callable[[], Sequence[str]]
    now: Callable[[], datetime]
    clock: Callable[[], float]
    every_s: float = 5.0
    _known: tuple[str, ...] = ()
    _next: float = field(default=float("-inf"))

    def __call__(self) -> bool:
        """Open or closed, by what could last be read."""
        if self.clock() >= self._next:
            self._next = self.clock() + self.every_s
            try:
                self._known = tuple(self.windows())
            except WardroundError as error:  # while somebody edits the file the old ones hold
                LOG.warning("the site's hours cannot be read: %s", error)
        return open_at(self._known, self.now())
