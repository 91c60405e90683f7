"""The event stream as a file: a resumed run tells one story, and nothing twice."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from wardround.core.errors import StorageError
from wardround.runtime.event_log import read_events, truncate_after_round
from wardround.runtime.events import (
    BytesMoved,
    Evaluated,
    Event,
    Notice,
    PrivacyReported,
    RoundBurnt,
    RoundFolded,
    RoundStarted,
    RoundTimed,
    RunFinished,
    RunStarted,
    SiteReplied,
    SumOpened,
)
from wardround.runtime.sinks import JsonlSink

EVENTS, BURNT_EVENTS = 29, 20
"""Of the whole story, and of that with a burnt round."""


def test_the_file_gives_the_events_back(story: Any, tmp_path: Path) -> None:
    """What was told is read again as the same typed events, one JSON object a line."""
    events = [*story.run_events(), Notice("federated", "warning", "two rows\u2028quarantined")]
    story.emit(JsonlSink(tmp_path / "m.jsonl"), events)
    assert read_events(tmp_path / "m.jsonl") == events
    lines = (tmp_path / "m.jsonl").read_text(encoding="utf-8").rstrip("\n").split("\n")
    assert [json.loads(line)["event"] for line in lines] == [type(event).__name__ for event in events]


@pytest.mark.parametrize("killed_after", range(1, EVENTS))
def test_a_resumed_run_tells_one_story(story: Any, tmp_path: Path, killed_after: int) -> None:
    """Killed after any event and resumed from the last folded round: the file reads as if nothing happened.

    A torn half line is part of the kill. Other arms stay as they were.
    """
    assert len(story.run_events()) == EVENTS
    path = tmp_path / "m.jsonl"
    whole = story.run_events()
    told = whole[:killed_after]
    story.emit(JsonlSink(path), [*story.run_events("centralised"), *told])
    with path.open("a", encoding="utf-8") as file:
        file.write('{"event": "RoundFol')
    folded = max((event.round for event in told if isinstance(event, RoundFolded)), default=0)
    story.emit(JsonlSink(path), story.run_events(first=folded + 1))
    read = read_events(path)
    assert [event for event in read if event.arm == "centralised"] == story.run_events("centralised")
    ours = [event for event in read if event.arm == "federated" and not isinstance(event, RunStarted)]
    expected = [event for event in whole if not isinstance(event, RunStarted)]
    assert sorted(map(repr, ours)) == sorted(map(repr, expected))


@pytest.mark.parametrize("killed_after", range(1, EVENTS))
def test_no_line_of_a_resumed_file_is_torn_or_told_twice(
    story: Any, tmp_path: Path, killed_after: int
) -> None:
    """Raw lines: each is JSON, and none but the start of the run says the same thing again."""
    assert len(story.run_events()) == EVENTS
    path = tmp_path / "m.jsonl"
    notice = Notice("federated", "warning", "two rows quarantined")
    told = story.run_events()[:killed_after]
    story.emit(JsonlSink(path), [notice, *told])
    with path.open("a", encoding="utf-8") as file:
        file.write('{"event": "RoundFol')
    folded = max((event.round for event in told if isinstance(event, RoundFolded)), default=0)
    story.emit(JsonlSink(path), [notice, *story.run_events(first=folded + 1)])
    records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    said = [json.dumps({**record, "time_s": 0}) for record in records if record["event"] != "RunStarted"]
    assert len(said) == len(set(said))


def test_a_finished_arm_that_is_asked_again_keeps_its_last_evaluation(story: Any, tmp_path: Path) -> None:
    """It rides in the name of the round after the last, and a resumed run does not repeat it."""
    path = tmp_path / "m.jsonl"
    last = SiteReplied("federated", 4, "budapest", "ok", "", "", 9, {"validation.loss": 0.5})
    *events, end, test = story.run_events()
    story.emit(JsonlSink(path), [*events, last, end, test])
    started = RunStarted("run", "federated", "heart", "p", 3, story.SITES, 3)
    story.emit(JsonlSink(path), [started, end, test])
    assert sorted(map(repr, read_events(path))) == sorted(map(repr, [*events, last, started, end, test]))


def test_what_a_run_cost_is_told_once_by_its_last_telling(story: Any, tmp_path: Path) -> None:
    """A run that stopped early and goes on after a kill says it again, of its own last round."""
    path = tmp_path / "m.jsonl"
    first, last = (
        PrivacyReported("federated", round, 9, "patient", 1e-5, {"a": {"reserved": 2.0, "spent": 1.5}})
        for round in (2, 3)
    )
    story.emit(JsonlSink(path), [first])
    story.emit(JsonlSink(path), [last])
    assert read_events(path) == [last]
    assert len(path.read_text(encoding="utf-8").splitlines()) == 1


def test_the_released_round_is_not_told_twice(story: Any, tmp_path: Path) -> None:
    """Scored on the way and again at the end: one line, the last telling."""
    path = tmp_path / "m.jsonl"
    scored = Evaluated("federated", 2, "test", {"loss": 0.5}, {"loss": 9})
    story.emit(JsonlSink(path), [scored, Notice("federated", "info", "n"), scored])
    assert len(path.read_text(encoding="utf-8").splitlines()) == 2


def test_truncating_counts_and_keeps(story: Any, tmp_path: Path) -> None:
    """Later rounds, the end and torn lines of the arm go; rounds before, notices and other arms stay."""
    path = tmp_path / "m.jsonl"
    assert truncate_after_round(path, "federated", 0) == 0
    story.emit(
        JsonlSink(path), [*story.run_events(), Notice("federated", "info", "n"), *story.run_events("local/x")]
    )
    dropped = truncate_after_round(path, "federated", 1)
    events = read_events(path)
    assert dropped == len(story.run_events()) + 1 + len(story.run_events("local/x")) - len(events)
    ours = [event for event in events if event.arm == "federated"]
    assert all(getattr(event, "round", 0) <= 1 for event in ours)
    assert Notice("federated", "info", "n") in ours
    assert not any(isinstance(event, RunFinished) for event in ours)
    assert [event for event in events if event.arm == "local/x"] == story.run_events("local/x")
    assert truncate_after_round(path, "federated", 1) == 0


def test_the_stages_of_a_round_are_told_apart(story: Any, tmp_path: Path) -> None:
    """Each site's answer in each stage, and each stage's broadcast, stands in the log once."""
    events: list[Event] = []
    for stage in (0, 1):
        events.append(RoundStarted("federated", 1, story.SITES, 100 + stage, stage))
        events += [SiteReplied("federated", 1, site, "ok", bytes_up=9, stage=stage) for site in story.SITES]
    story.emit(JsonlSink(tmp_path / "m"), events)
    story.emit(JsonlSink(tmp_path / "m"), events)
    assert read_events(tmp_path / "m") == events
    assert len((tmp_path / "m").read_text(encoding="utf-8").splitlines()) == len(events)


def test_the_exchanges_and_attempts_of_a_stage_are_told_apart(story: Any, tmp_path: Path) -> None:
    """What a site said in each of them stands in the log once, and each sum of a stage once."""
    events: list[Event] = [
        SiteReplied("federated", 1, "budapest", status, attempt=attempt, exchange=exchange)
        for attempt in (0, 1)
        for exchange, status in ((0, "ok"), (2, "late"), (4, "quarantined"))
    ]
    events += [
        *story.sums_opened("federated", 1),
        SumOpened("federated", 1, "training", "real", 2, 2, 5, 1, 1, 0.0, 0.0, 1),
        *(BytesMoved("federated", 1, {"budapest": 3}, {"budapest": 4}, stage) for stage in (0, 1)),
        RoundTimed("federated", 1, 5.5, 7.25, 1.0, ("budapest",), {"budapest": 2.5}),
    ]
    story.emit(JsonlSink(tmp_path / "m"), events)
    story.emit(JsonlSink(tmp_path / "m"), events)
    assert read_events(tmp_path / "m") == events
    assert len((tmp_path / "m").read_text(encoding="utf-8").splitlines()) == len(events)


@pytest.mark.parametrize("killed_after", range(1, BURNT_EVENTS))
def test_a_burnt_round_is_told_once_however_often_the_run_was_killed(
    story: Any, tmp_path: Path, killed_after: int
) -> None:
    """A resumed run goes on after it, as after a folded one: the file reads as if nothing had happened."""
    assert len(story.with_a_burnt_round()) == BURNT_EVENTS
    path = tmp_path / "m.jsonl"
    whole = story.with_a_burnt_round()
    told = whole[:killed_after]
    story.emit(JsonlSink(path), told)
    spent = max((e.round for e in told if isinstance(e, RoundFolded | RoundBurnt)), default=0)
    story.emit(JsonlSink(path), story.with_a_burnt_round(first=spent + 1))
    ours = [event for event in read_events(path) if not isinstance(event, RunStarted)]
    assert sorted(map(repr, ours)) == sorted(repr(e) for e in whole if not isinstance(e, RunStarted))
    assert ours.count(story.BURNT) == 1


def test_a_log_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    """What it does not say has its default."""
    lines = [
        {"event": "SiteReplied", "arm": "federated", "round": 1, "site": "a", "status": "ok"},
        {"event": "RoundStarted", "arm": "federated", "round": 1, "cohort": ["a"], "bytes_down": 7},
        {"event": "SiteReplied", "arm": "federated", "round": 1, "site": "b"},
    ]
    (tmp_path / "m").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    assert read_events(tmp_path / "m") == [
        SiteReplied("federated", 1, "a", "ok"), RoundStarted("federated", 1, ("a",), 7),
    ]  # fmt: skip


def test_figures_that_are_not_finite_are_null(story: Any, tmp_path: Path) -> None:
    """A NaN neither ends the run nor makes the file invalid JSON."""
    story.emit(
        JsonlSink(tmp_path / "m"), [SiteReplied("federated", 1, "a", "ok", local={"loss": float("nan")})]
    )
    (event,) = read_events(tmp_path / "m")
    assert isinstance(event, SiteReplied)
    assert event.local == {"loss": None}


def test_reading_what_is_not_there(tmp_path: Path) -> None:
    """A missing file is a StorageError; unknown events and half events of a newer version are skipped."""
    with pytest.raises(StorageError, match="gone"):
        read_events(tmp_path / "gone")
    (tmp_path / "m").write_text('{"event": "Later", "arm": "x"}\n[1]\n{"event": "Notice", "arm": "x"}\n\n')
    assert read_events(tmp_path / "m") == []
