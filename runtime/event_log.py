"""The event stream as a JSONL file: written, cut back when a run is resumed, read again."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, get_args, get_type_hints

from wardround.core.errors import StorageError
from wardround.runtime.events import (
    BytesMoved,
    Evaluated,
    Event,
    Notice,
    PlanAnswered,
    PrivacyReported,
    RoundBurnt,
    RoundFolded,
    RoundStarted,
    RunFinished,
    RunStarted,
    SiteReplied,
    SumOpened,
    as_record,
)
from wardround.runtime.files import append_line, write_atomic

_TYPES: dict[str, Any] = {kind.__name__: kind for kind in get_args(Event)}
_HINTS = {kind: get_type_hints(kind) for kind in _TYPES.values()}
_REQUIRED = {
    kind: {
        field.name
        for field in dataclasses.fields(kind)
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    }
    for kind in _TYPES.values()
}
"""Fields without a default, by type."""


class JsonlSink:
    """Appends each event to a file.

    When an arm starts or goes on, what the file holds of its later rounds is dropped first: those rounds
    are run again. What an earlier process has told already is replaced by the new telling. Round and run
    ends are synced; what lies between survives the process, not the machine.
    """

    def __init__(self, path: Path) -> None:
        self._path = Path(path)
        self._told: set[tuple[Any, ...]] | None = None

    def emit(self, event: Event) -> None:
        """Append the event."""
        if self._told is None:
            before = _text(self._path) if self._path.exists() else ""
            self._told = {_key(told) for told in _events(before)}
        if isinstance(event, RunStarted):
            truncate_after_round(self._path, event.arm, event.resumed_from)
        if _key(event) in self._told:
            self._told.discard(_key(event))
            drop_told(self._path, event)
        durable = isinstance(event, RunStarted | RoundFolded | RoundBurnt | RunFinished)
        append_line(self._path, as_record(event), durable=durable)
        if isinstance(event, Evaluated):
            self._told.add(_key(event))  # the released round may be scored on the way and at the end

    def close(self) -> None:
        """Nothing is held."""


def truncate_after_round(path: Path, arm: str, round: int) -> int:
    """Drop what an arm wrote about rounds after `round`, its end, and torn lines; returns how many lines.

    Other arms, notices and what is known of rounds up to `round` stay. The file is replaced as a whole.

    Raises:
        StorageError: The file could not be read or written.
    """
    whole = path.exists() and any(
        isinstance(event, RunFinished) and event.arm == arm and event.last_round == round
        for event in _events(_text(path))
    )
    # A finished arm scores its last adapter in the name of the round after it, and never does so again.
    last = round + 1 if whole else round
    return _keep_lines(path, lambda line: _stays(_record(line), arm, last))


def drop_told(path: Path, event: Event) -> int:
    """Drop what the file says of the same thing (see `without_repetitions`); returns how many lines.

    Raises:
        StorageError: The file could not be read or written.
    """
    return _keep_lines(path, lambda line: _key(event) not in map(_key, _events(line)))


def _keep_lines(path: Path, stays: Callable[[str], bool]) -> int:
    if not path.exists():
        return 0
    lines = _text(path).rstrip("\n").split("\n")
    kept = [line for line in lines if stays(line)]
    if len(kept) < len(lines):
        write_atomic(path, "".join(line + "\n" for line in kept).encode())
    return len(lines) - len(kept)


def read_events(path: Path) -> list[Event]:
    """The events of a file, without repetitions (see `without_repetitions`), torn or unknown lines.

    Raises:
        StorageError: The file could not be read.
    """
    return without_repetitions(_events(_text(path)))


def missing_of(path: Path, arm: str) -> tuple[tuple[int, tuple[str, ...]], ...]:
    """Round of an arm, and the sites that were asked in it and are not in its sum; of a burnt one, all.

    Raises:
        StorageError: The file could not be read.
    """
    told = read_events(path) if path.exists() else []
    return tuple(
        (event.round, event.missing)
        for event in told
        if isinstance(event, RoundFolded | RoundBurnt) and event.arm == arm and event.missing
    )


def without_repetitions(events: Iterable[Event]) -> list[Event]:
    """Each thing said once, by its last telling: a resumed run repeats what its journal does not hold."""
    last: dict[tuple[Any, ...], Event] = {}
    for event in events:
        key = _key(event)
        last.pop(key, None)  # so that it moves to the end
        last[key] = event
    return list(last.values())


def _key(event: Event) -> tuple[Any, ...]:
    kind, arm = type(event), event.arm
    match event:
        case PlanAnswered():
            return kind, arm, event.site
        case RunStarted():
            return kind, arm, event.resumed_from
        case RoundStarted() | BytesMoved():
            return kind, arm, event.round, event.stage
        case SiteReplied():
            return kind, arm, event.round, event.site, event.stage, event.attempt, event.exchange
        case SumOpened():
            return kind, arm, event.round, event.stage, event.name
        case Evaluated():
            return kind, arm, event.round, event.part
        case Notice():
            return kind, arm, event.level, event.text
        case RunFinished() | PrivacyReported():
            return kind, arm
    return kind, arm, event.round


def _stays(record: dict[str, Any] | None, arm: str, round: int) -> bool:
    if record is None:
        return False
    if record.get("arm") != arm:
        return True
    told = record.get("round", 0)
    return record.get("event") != RunFinished.__name__ and isinstance(told, int) and told <= round


def _record(line: str) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None  # torn by a kill, or no event of ours
    return record if isinstance(record, dict) else None


def _events(text: str) -> Iterator[Event]:
    for line in text.split("\n"):
        record = _record(line)
        kind = _TYPES.get(str((record or {}).get("event")))
        if record is None or kind is None:
            continue
        if _REQUIRED[kind] <= set(record):  # a file of an earlier version lacks what came later
            known = [name for name in _HINTS[kind] if name in record]
            event = kind(**{name: _restored(record[name], _HINTS[kind][name]) for name in known})
            if _is_ours(event):
                yield event


def _is_ours(event: Event) -> bool:
    """Whether what tells it from others is plain: not so in a file that somebody else has written to."""
    try:
        hash(_key(event))
    except TypeError:
        return False
    return True


def _restored(value: Any, hint: Any) -> Any:
    """JSON's list as the tuple that it was."""
    return tuple(value) if isinstance(value, list) and getattr(hint, "__origin__", None) is tuple else value


def _text(path: Path) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise StorageError(
            f"cannot read {path}", found=error.strerror, remedy="check the path and its rights"
        ) from error
