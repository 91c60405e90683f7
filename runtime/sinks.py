"""Readers of the event stream: a JSONL file, the terminal, TensorBoard, and a list in memory."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from wardround.core.errors import ConfigError
from wardround.runtime._terminal import RichSink
from wardround.runtime.event_log import JsonlSink, truncate_after_round
from wardround.runtime.events import (
    BytesMoved,
    Evaluated,
    Event,
    PrivacyReported,
    PrivacySpent,
    RoundFolded,
    RoundTimed,
    RunStarted,
    SiteReplied,
)
from wardround.runtime.files import storing

__all__ = ["JsonlSink", "RecorderSink", "RichSink", "TensorBoardSink", "truncate_after_round"]


class RecorderSink:
    """Keeps every event in `events`, in order."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def emit(self, event: Event) -> None:
        """Keep the event."""
        self.events.append(event)

    def close(self) -> None:
        """Nothing is held open."""


class TensorBoardSink:
    """Writes scalars for TensorBoard, one of its runs an arm, so that the arms lie in one chart.

    Raises:
        ConfigError: tensorboardX is not installed.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = Path(folder)
        self._writers: dict[str, Any] = {}
        self._module = _tensorboardx()

    def emit(self, event: Event) -> None:
        """Write the event's figures at its round; events without figures are left out.

        Raises:
            StorageError: The disk is full, or may not be written.
        """
        with storing(self._folder):
            self._write(event)

    def _write(self, event: Event) -> None:
        match event:
            case RunStarted():
                # what an interrupted run wrote of later rounds is hidden from here on
                self._open(event.arm, event.resumed_from)
            case Evaluated():
                self._scalars(event.arm, event.round, event.part, event.values)
            case SiteReplied():
                later = f"/stage_{event.stage}" if event.stage else ""
                self._scalars(event.arm, event.round, f"site/{event.site}{later}", event.local)
            case BytesMoved():
                later = f"/stage_{event.stage}" if event.stage else ""
                for name, moved in (("bytes_up", event.up), ("bytes_down", event.down)):
                    for site, size in moved.items():
                        self._scalars(event.arm, event.round, f"site/{site}{later}", {name: size})
            case PrivacySpent():
                largest = max(event.sites.values(), default=None)
                spent = {"epsilon_reserved": largest, "clip_norm": event.clip_norm}
                self._scalars(event.arm, event.round, "privacy", spent)
            case PrivacyReported():
                for site, both in event.sites.items():
                    self._scalars(event.arm, event.round, f"privacy/{site}", both)
                self._writer(event.arm).flush()
            case RoundFolded():
                figures = {
                    "train_loss": event.train_loss, "update_norm": event.update_norm,
                    "bytes_up": event.bytes_up, "seconds": event.wall_s, "survivors": len(event.survivors),
                    "discarded_energy": event.discarded_energy,
                }  # fmt: skip
                self._scalars(event.arm, event.round, "round", figures)
                self._writer(event.arm).flush()
            case RoundTimed():
                figures = {
                    "virtual_seconds": event.virtual_s, "virtual_clock": event.since_start_s,
                    "waited_seconds": event.waited_s, "late": len(event.late),
                }  # fmt: skip
                self._scalars(event.arm, event.round, "round", figures)
            case _:
                pass

    def close(self) -> None:
        """Close every file.

        Raises:
            StorageError: What was held back could not be written.
        """
        with storing(self._folder):
            while self._writers:
                self._writers.popitem()[1].close()

    def _open(self, arm: str, resumed_from: int) -> None:
        if arm in self._writers:
            self._writers[arm].close()
        self._writers[arm] = self._module.SummaryWriter(
            str(self._folder / arm),
            purge_step=resumed_from + 1 if resumed_from else None,
            filename_suffix=f".{resumed_from:05d}",  # a file's name has its second only, and would be reused
        )

    def _writer(self, arm: str) -> Any:
        if arm not in self._writers:
            self._open(arm, 0)
        return self._writers[arm]

    def _scalars(self, arm: str, round: int, tag: str, figures: Mapping[str, float | None]) -> None:
        for name, value in figures.items():
            if value is not None:
                self._writer(arm).add_scalar(f"{tag}/{name}", value, round)


def _tensorboardx() -> Any:
    try:
        return importlib.import_module("tensorboardX")
    except ModuleNotFoundError as error:
        raise ConfigError(
            "tensorboardX is not installed", remedy="pip install 'wardround[training]'"
        ) from error
