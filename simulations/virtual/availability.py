"""When simulated sites are there: as a trace says, or for a part of each day.

A site works and its messages travel only while it is there; what was begun goes on when it comes back.
Whoever is not there when a round begins is not asked in it.
"""

from __future__ import annotations

import csv
import hashlib
import json
import math
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol

from wardround.core.errors import ConfigError, unknown_name
from wardround.core.seeds import Purpose, generator
from wardround.runtime.locations import locate
from wardround.simulations.virtual.settings import Diurnal, Trace

HOUR_S: Final = 3600.0
KEYS: Final = ("site", "from", "to")
LONGEST: Final = 80
"""Characters of a line that a message shows."""
Span = tuple[float, float]
"""From, and to."""


class Presence(Protocol):
    """When sites are there."""

    def there(self, site: str, at: float, round: int) -> bool:
        """Whether it is, at a moment of a round."""

    def next(self, site: str, at: float, round: int) -> float:
        """The first moment from `at` on at which it is; infinity where there is none."""

    def after(self, site: str, at: float, seconds: float, round: int) -> float:
        """When something that takes a site so many seconds has ended; infinity where it never does."""


class Always:
    """Everybody, at any time."""

    def there(self, site: str, at: float, round: int) -> bool:  # noqa: ARG002 - as `Presence`
        """As `Presence`."""
        return True

    def next(self, site: str, at: float, round: int) -> float:  # noqa: ARG002 - as `Presence`
        """As `Presence`."""
        return at

    def after(self, site: str, at: float, seconds: float, round: int) -> float:  # noqa: ARG002 - as `Presence`
        """As `Presence`."""
        return at + seconds


@dataclass(frozen=True)
class Spans:
    """When one site is there.

    Attributes:
        spans: Sorted, apart from each other, each longer than nothing.
        period: After so long they begin again; infinity: never.
    """

    spans: tuple[Span, ...]
    period: float = math.inf

    @staticmethod
    def of(spans: Iterable[Span], period: float = math.inf) -> Spans:
        """Spans in any order, which may overlap, and reach beyond the period: there they wrap around."""
        cut: list[Span] = []
        for begin, end in spans:
            if end - begin >= period:
                cut.append((0.0, period))
            elif math.isinf(period):
                cut.append((begin, end))
            else:
                first = begin % period
                last = first + end - begin
                cut += [(first, min(last, period))] + ([(0.0, last - period)] if last > period else [])
        merged: list[Span] = []
        for begin, end in sorted(span for span in cut if span[1] > span[0]):
            if merged and begin <= merged[-1][1]:
                merged[-1] = (merged[-1][0], max(merged[-1][1], end))
            else:
                merged.append((begin, end))
        return Spans(tuple(merged), period)

    def next(self, at: float) -> Span:
        """The span that holds the moment, cut to it, or the one that comes; (infinity, infinity): none."""
        turn, place = (0.0, at) if math.isinf(self.period) else self._turn(at)
        index = bisect_right(self.spans, place, key=lambda span: span[0]) - 1
        if index >= 0 and place < self.spans[index][1]:
            return at, turn + self.spans[index][1]
        if index + 1 < len(self.spans):
            begin, end = self.spans[index + 1]
            return max(at, turn + begin), turn + end
        if math.isinf(self.period) or not self.spans:
            return math.inf, math.inf
        begin, end = self.spans[0]
        return max(at, turn + self.period + begin), turn + self.period + end

    def _turn(self, at: float) -> tuple[float, float]:
        """Where the period began, and how long ago that was."""
        turn = math.floor(at / self.period) * self.period
        return turn, min(max(at - turn, 0.0), self.period)

    def after(self, at: float, seconds: float) -> float:
        """When so many seconds of presence have passed since a moment."""
        whole = sum(end - begin for begin, end in self.spans)
        if not math.isinf(self.period) and seconds > 2 * whole > 0:  # whole periods at once
            turns = math.floor(seconds / whole) - 1
            at, seconds = at + turns * self.period, seconds - turns * whole
        while True:
            begin, end = self.next(at)
            if math.isinf(begin) or seconds <= end - begin:
                return begin + seconds
            seconds -= end - begin
            at = max(end, math.nextafter(begin, math.inf))


@dataclass(frozen=True)
class ByTime:
    """Presence in virtual time."""

    sites: Mapping[str, Spans]

    def there(self, site: str, at: float, round: int) -> bool:  # noqa: ARG002 - as `Presence`
        """As `Presence`."""
        return self.sites[site].next(at)[0] <= at

    def next(self, site: str, at: float, round: int) -> float:  # noqa: ARG002 - as `Presence`
        """As `Presence`."""
        return self.sites[site].next(at)[0]

    def after(self, site: str, at: float, seconds: float, round: int) -> float:  # noqa: ARG002 - as `Presence`
        """As `Presence`."""
        return self.sites[site].after(at, seconds)


@dataclass(frozen=True)
class ByRound:
    """Presence for whole rounds; before the first one everybody is there."""

    sites: Mapping[str, tuple[Span, ...]]
    repeat: int | None = None

    def there(self, site: str, at: float, round: int) -> bool:  # noqa: ARG002 - as `Presence`
        """As `Presence`."""
        place = round if self.repeat is None or round < 1 else (round - 1) % self.repeat + 1
        return round < 1 or any(begin <= place <= end for begin, end in self.sites[site])

    def next(self, site: str, at: float, round: int) -> float:
        """As `Presence`."""
        return at if self.there(site, at, round) else math.inf

    def after(self, site: str, at: float, seconds: float, round: int) -> float:
        """As `Presence`."""
        return at + seconds if self.there(site, at, round) else math.inf


def presence_of(settings: Trace | Diurnal | None, sites: Sequence[str], seed: int) -> Presence:
    """When the sites are there.

    Raises:
        ConfigError: As `read_trace` and `check_trace`.
    """
    if settings is None:
        return Always()
    if isinstance(settings, Diurnal):
        period, found = settings.period_s, {}
        for site in sites:
            draw = float(generator(seed, Purpose.AVAILABILITY, site=site).random())
            begin = draw * settings.spread * period
            found[site] = Spans.of([(begin, begin + settings.share * period)], period)
        return ByTime(found)
    trace = read_trace(settings)
    check_trace(settings, trace, sites)
    if settings.unit == "round":
        repeat = None if settings.repeat is None else int(settings.repeat)
        return ByRound({site: tuple(spans) for site, spans in trace.spans.items()}, repeat)
    scale = HOUR_S if settings.unit == "h" else 1.0
    period = math.inf if settings.repeat is None else settings.repeat * scale
    return ByTime(
        {
            site: Spans.of([(begin * scale, end * scale) for begin, end in spans], period)
            for site, spans in trace.spans.items()
        }
    )


@dataclass
class TraceFile:
    """What a trace says, as it stands there.

    Attributes:
        spans: Site → from and to.
        digest: SHA-256 of the file.
    """

    spans: dict[str, list[Span]] = field(default_factory=dict)
    digest: str = ""


def read_trace(settings: Trace) -> TraceFile:
    """The lines of a trace.

    Raises:
        ConfigError: The file cannot be read, or a line is not what it should be; names the line.
    """
    path = locate(settings.path)
    try:
        content = path.read_bytes()
        text = content.decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"the availability trace {path} cannot be read", found=type(error).__name__,
            expected="a CSV with site,from,to, or JSON lines with these keys",
            remedy="correct simulation.realism.availability.path",
        ) from error  # fmt: skip
    trace = TraceFile(digest=hashlib.sha256(content).hexdigest())
    if settings.unit == "round" and settings.repeat is not None and settings.repeat % 1:
        raise ConfigError("a trace by round repeats after whole rounds", found=settings.repeat)
    for number, line in _lines(path, text):
        site, begin, end = _span(path, number, line, settings)
        trace.spans.setdefault(site, []).append((begin, end))
    if not trace.spans:
        raise ConfigError(f"the availability trace {path} says nothing", expected="a line a site at least")
    return trace


def check_trace(settings: Trace, trace: TraceFile, sites: Sequence[str]) -> None:
    """Refuse a trace of other sites than the run's.

    Raises:
        ConfigError: It names one that there is not, or none of its lines names one that there is.
    """
    known = set(sites)
    for name in trace.spans:
        if name not in known:
            raise unknown_name(f"site in {settings.path}", name, sites)
    if left := sorted(known - trace.spans.keys()):
        raise ConfigError(
            f"the availability trace {settings.path} leaves sites out",
            found=f"no line of {', '.join(left[:5])}", expected="a line of every site of the run",
            remedy="of a site that is always there: from 0, and an empty `to`",
        )  # fmt: skip


def _lines(path: Path, text: str) -> Iterator[tuple[int, Mapping[str, object]]]:
    """Number of a line, from 1, and its fields."""
    lines = [(number, line) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    if lines and lines[0][1].lstrip().startswith("{"):
        for number, line in lines:
            try:
                found = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise _wrong(path, number, "no JSON", f"an object with {', '.join(KEYS)}") from error
            if not isinstance(found, dict) or set(found) != set(KEYS):
                keys = ", ".join(sorted(found)) if isinstance(found, dict) else type(found).__name__
                raise _wrong(path, number, keys or "no key", f"an object with {', '.join(KEYS)}")
            yield number, found
        return
    if lines and [name.strip() for name in lines[0][1].split(",")] != list(KEYS):
        raise _wrong(path, lines[0][0], lines[0][1], ",".join(KEYS))
    for number, line in lines[1:]:
        try:
            cells = next(csv.reader([line]))
        except csv.Error as error:
            raise _wrong(path, number, "no line of a CSV", ",".join(KEYS)) from error
        if len(cells) != len(KEYS):
            raise _wrong(path, number, f"{len(cells)} fields", ",".join(KEYS))
        yield number, dict(zip(KEYS, (cell.strip() for cell in cells), strict=True))


def _span(path: Path, number: int, line: Mapping[str, object], settings: Trace) -> tuple[str, float, float]:
    site = line["site"]
    if not isinstance(site, str) or not site:
        raise _wrong(path, number, f"site: {site!r}", "the name of a site")
    values = []
    for key in KEYS[1:]:
        given = line[key]
        try:
            open_ended = key == "to" and given in ("", None)
            value = math.inf if open_ended else float(given)  # type: ignore[arg-type]  # what is none raises
            if isinstance(given, bool) or math.isnan(value) or (math.isinf(value) and not open_ended):
                raise ValueError  # noqa: TRY301 - one way out for all that is no number
        except (TypeError, ValueError, OverflowError):
            expected = "a number" if key == "from" else "a number, or nothing: for good"
            raise _wrong(path, number, f"{key}: {given!r}", expected) from None
        values.append(value)
    begin, end = values
    if settings.unit == "round" and (begin < 1 or begin % 1 or (not math.isinf(end) and end % 1)):
        raise _wrong(path, number, f"rounds {begin:g} to {end:g}", "whole rounds, from 1 on")
    if begin < 0 or end < begin or (end == begin and settings.unit != "round"):
        raise _wrong(path, number, f"from {begin:g} to {end:g}", "from at least 0, and to later than that")
    return site, begin, end


def _wrong(path: Path, number: int, found: str, expected: str) -> ConfigError:
    return ConfigError(
        f"line {number} of the availability trace {path} is not one", found=found[:LONGEST],
        expected=expected, remedy="see docs/realism.md",
    )  # fmt: skip
