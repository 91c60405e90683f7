"""What the desk knows, as the messages of `RunControl`; pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from wardround.runtime.control.faults import clipped
from wardround.runtime.control.protos import run_control_pb2 as pb
from wardround.runtime.files import json_text
from wardround.server.run_record import NO_SPACE, RunRecord
from wardround.server.run_states import RunStatus
from wardround.server.run_view import RunView, sentence

RECORD_VERSION = 1
"""Of `record_json`: an event as `runtime/events.py:as_record` writes it. New fields leave it as it is."""
MOST_BYTES = 2**63
LARGEST_FIGURE = 1e300
LARGEST_RECORD_BYTES = 256 << 10
"""Of one event's JSON; a larger one travels without it."""


def run_message(record: RunRecord, place: int | None = None) -> Any:
    """A run's record.

    Args:
        record: Of the run.
        place: How many are before it; None of a run that has ended.
    """
    message = pb.Run(
        run_id=record.run_id, name=record.name, status=str(record.status), wish=str(record.wish),
        reason=record.reason, excluded=record.excluded, submitted=record.submitted, changed=record.changed,
        worked_s=record.worked_s, down_s=record.down_s,
    )  # fmt: skip
    if place is not None:
        message.place = place
    return message


def status_message(run: Any, view: RunView) -> Any:
    """A run at a glance."""
    sites = {
        clipped(name, 64): pb.SiteState(
            state=clipped(str(site.state), 64), round=_count(site.round), code=clipped(str(site.code), 64),
            reason=clipped(str(site.reason), 500),
        )
        for name, site in view.sites.items()
    }  # fmt: skip
    return pb.StatusReply(
        run=run, round=_count(view.round), rounds=_count(view.rounds), phase=view.phase, sites=sites,
        metrics=_figures(view.metrics), epsilon=_figures(view.epsilon),
        bytes_down=_count(view.bytes_down, MOST_BYTES), bytes_up=_count(view.bytes_up, MOST_BYTES),
        released_round=_count(view.released_round),
    )  # fmt: skip


def why_text(record: RunRecord, waits_for: str, ahead: int) -> str:
    """Why a run is where it is, in a sentence."""
    asked = {"stop": "; it was told to stop", "drain": "; it stops after this round"}.get(record.wish, "")
    if record.reason.startswith(NO_SPACE):
        return f"{record.reason}{asked}"
    match record.status:
        case RunStatus.QUEUED:
            runs = "1 run is" if ahead == 1 else f"{ahead} runs are"
            return f"waits for its turn: {runs} before it" if ahead else "is about to begin"
        case RunStatus.OFFERING:
            return f"offers its plan to the sites{_with(waits_for)}{asked}"
        case RunStatus.TRAINING | RunStatus.DRAINING:
            return f"trains{_with(waits_for)}{asked}"
    return f"{record.status}{_with(record.reason)}"


def event_message(record: Mapping[str, Any]) -> Any:
    """An event with its typed part and its whole JSON; what an old file lacks is left out."""
    kind = str(record.get("event", ""))
    said = _sentence(record)
    data = json_text(record).encode("utf-8", "replace")
    message = pb.RunEvent(
        time_s=_figure(record.get("time_s")), kind=clipped(kind, 64), round=_count(record.get("round")),
        stage=_count(record.get("stage")), bytes_down=_count(record.get("bytes_down"), MOST_BYTES),
        bytes_up=_count(record.get("bytes_up"), MOST_BYTES), text=clipped(said[1], 2000) if said else "",
        record_json=data.decode() if len(data) <= LARGEST_RECORD_BYTES else "",
        record_version=RECORD_VERSION,
    )  # fmt: skip
    names: list[Any] = []
    match kind:
        case "StatusChanged":
            message.status, message.text = (
                clipped(str(record.get("status")), 16),
                clipped(str(record.get("reason")), 2000),
            )
        case "SiteReplied":
            message.site = clipped(str(record.get("site")), 64)
            status = str(record.get("status"))
            message.site_state = "answered" if status == "ok" else clipped(status, 64)
            message.metrics.update(_figures(record.get("local")))
        case "Evaluated":
            part = record.get("part")
            figures = _figures(record.get("values"))
            message.metrics.update({clipped(f"{part}/{name}", 200): v for name, v in figures.items()})
        case "PrivacySpent":
            message.epsilon.update(_figures(record.get("sites")))
        case "RunStarted":
            names = _names(record.get("sites"))
        case "RoundStarted":
            names = _names(record.get("cohort"))
        case "RoundFolded":
            names = _names(record.get("survivors"))
            shown = ("train_loss", "update_norm", "discarded_energy")
            message.metrics.update(_figures({name: record.get(name) for name in shown}))
    message.sites.extend(names)
    return message


def log_message(record: Mapping[str, Any]) -> Any:
    """A line of the log."""
    return pb.LogLine(
        time_s=_figure(record.get("time_s")), level=clipped(str(record.get("level", "info")), 16),
        text=clipped(str(record.get("text", "")), 4000),
    )  # fmt: skip


def _with(text: str) -> str:
    return f": {text}" if text else ""


def _sentence(record: Mapping[str, Any]) -> tuple[str, str] | None:
    try:
        return sentence(record)
    except (KeyError, TypeError, ValueError):
        return None  # of an old or edited file


def _count(value: Any, most: int = 2**32 - 1) -> int:
    return min(int(value), most) if _number(value) and value > 0 else 0


def _figure(value: Any) -> float:
    return float(value) if _number(value) else 0.0


def _figures(values: Any) -> dict[str, float]:
    found = values if isinstance(values, Mapping) else {}
    return {clipped(str(name), 120): float(value) for name, value in found.items() if _number(value)}


def _names(values: Any) -> list[str]:
    return [clipped(str(value), 64) for value in values] if isinstance(values, list | tuple) else []


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < LARGEST_FIGURE
