"""The readers of the event stream."""

from __future__ import annotations

import csv
import errno
import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from rich.text import Text

from wardround.core.errors import ConfigError, StorageError
from wardround.runtime.event_log import read_events, truncate_after_round
from wardround.runtime.events import (
    Evaluated,
    Event,
    EventStream,
    Improved,
    Notice,
    RoundBurnt,
    RoundFolded,
    RoundStarted,
    RunFinished,
    RunStarted,
    SiteReplied,
    SumOpened,
)
from wardround.runtime.results import write_site_table, write_summary
from wardround.runtime.sinks import JsonlSink, RecorderSink, RichSink, TensorBoardSink

SITES = ("budapest", "zürich [x]")


def sums_opened(arm: str, round: int) -> list[Event]:
    """The round's two sums."""
    return [
        SumOpened(arm, round, name, "real", 2, 2, 5, 900, 1400, 0.02, 0.01, attempt=attempt)
        for name, attempt in (("evaluation", 0), ("training", 1))
    ]


def round_events(arm: str, round: int, *, bad: str = "") -> list[Event]:
    """What the round loop says in one round."""
    replies: list[Event] = [
        SiteReplied(arm, round, site, "quarantined", "malformed_reply", "not finite", 10)
        if site == bad
        else SiteReplied(arm, round, site, "ok", "", "", 1500, {"train.loss": 0.5})
        for site in SITES
    ]
    return [
        RoundStarted(arm, round, SITES, 100), *replies, *sums_opened(arm, round),
        Evaluated(arm, round - 1, "validation", {"macro_f1": round / 10, "loss": 0.5}, {"macro_f1": 80}),
        Improved(arm, round - 1, "macro_f1", round / 10),
        RoundFolded(
            arm, round, tuple(s for s in SITES if s != bad), (bad,) if bad else (), 0.25, 0.1, 3000, 1.5, "d"
        ),
    ]  # fmt: skip


def run_events(arm: str = "federated", rounds: int = 3, first: int = 1, bad: str = "") -> list[Event]:
    """A whole run, or what is left of it after round first − 1."""
    events: list[Event] = [RunStarted("run", arm, "heart", "p", rounds, SITES, first - 1)]
    for round in range(first, rounds + 1):
        events += round_events(arm, round, bad=bad if round == 2 else "")
    return [
        *events,
        Evaluated(arm, rounds, "validation", {"macro_f1": 0.9}, {"macro_f1": 80}),
        Improved(arm, rounds, "macro_f1", 0.9),
        RunFinished(arm, "completed", rounds, rounds, "d", 9.0),
        Evaluated(arm, rounds, "test/budapest", {"macro_f1": 0.8}, {"macro_f1": 40}, {"sick": {"f1": 0.7}}),
    ]  # fmt: skip


def emit(sink: Any, events: list[Event]) -> None:
    """Send all events through a stream, and close it."""
    stream = EventStream([sink])
    for event in events:
        stream.emit(event)
    stream.close()


def test_the_file_gives_the_events_back(tmp_path: Path) -> None:
    """What was told is read again as the same typed events, one JSON object a line."""
    events = [*run_events(), Notice("federated", "warning", "two rows\u2028quarantined")]
    emit(JsonlSink(tmp_path / "m.jsonl"), events)
    assert read_events(tmp_path / "m.jsonl") == events
    lines = (tmp_path / "m.jsonl").read_text(encoding="utf-8").rstrip("\n").split("\n")
    assert [json.loads(line)["event"] for line in lines] == [type(event).__name__ for event in events]


@pytest.mark.parametrize("killed_after", range(1, len(run_events())))
def test_a_resumed_run_tells_one_story(tmp_path: Path, killed_after: int) -> None:
    """Killed after any event and resumed from the last folded round: the file reads as if nothing happened.

    A torn half line is part of the kill. Other arms stay as they were.
    """
    path = tmp_path / "m.jsonl"
    whole = run_events()
    told = whole[:killed_after]
    emit(JsonlSink(path), [*run_events("centralised"), *told])
    with path.open("a", encoding="utf-8") as file:
        file.write('{"event": "RoundFol')
    folded = max((event.round for event in told if isinstance(event, RoundFolded)), default=0)
    emit(JsonlSink(path), run_events(first=folded + 1))
    read = read_events(path)
    assert [event for event in read if event.arm == "centralised"] == run_events("centralised")
    ours = [event for event in read if event.arm == "federated" and not isinstance(event, RunStarted)]
    expected = [event for event in whole if not isinstance(event, RunStarted)]
    assert sorted(map(repr, ours)) == sorted(map(repr, expected))


@pytest.mark.parametrize("killed_after", range(1, len(run_events())))
def test_no_line_of_a_resumed_file_is_torn_or_told_twice(tmp_path: Path, killed_after: int) -> None:
    """Raw lines: each is JSON, and none but the start of the run says the same thing again."""
    path = tmp_path / "m.jsonl"
    notice = Notice("federated", "warning", "two rows quarantined")
    told = run_events()[:killed_after]
    emit(JsonlSink(path), [notice, *told])
    with path.open("a", encoding="utf-8") as file:
        file.write('{"event": "RoundFol')
    folded = max((event.round for event in told if isinstance(event, RoundFolded)), default=0)
    emit(JsonlSink(path), [notice, *run_events(first=folded + 1)])
    records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    said = [json.dumps({**record, "time_s": 0}) for record in records if record["event"] != "RunStarted"]
    assert len(said) == len(set(said))


def test_a_finished_arm_that_is_asked_again_keeps_its_last_evaluation(tmp_path: Path) -> None:
    """It rides in the name of the round after the last, and a resumed run does not repeat it."""
    path = tmp_path / "m.jsonl"
    last = SiteReplied("federated", 4, "budapest", "ok", "", "", 9, {"validation.loss": 0.5})
    *events, end, test = run_events()
    emit(JsonlSink(path), [*events, last, end, test])
    started = RunStarted("run", "federated", "heart", "p", 3, SITES, 3)
    emit(JsonlSink(path), [started, end, test])
    assert sorted(map(repr, read_events(path))) == sorted(map(repr, [*events, last, started, end, test]))


def test_the_released_round_is_not_told_twice(tmp_path: Path) -> None:
    """Scored on the way and again at the end: one line, the last telling."""
    path = tmp_path / "m.jsonl"
    scored = Evaluated("federated", 2, "test", {"loss": 0.5}, {"loss": 9})
    emit(JsonlSink(path), [scored, Notice("federated", "info", "n"), scored])
    assert len(path.read_text(encoding="utf-8").splitlines()) == 2


def test_truncating_counts_and_keeps(tmp_path: Path) -> None:
    """Later rounds, the end and torn lines of the arm go; rounds before, notices and other arms stay."""
    path = tmp_path / "m.jsonl"
    assert truncate_after_round(path, "federated", 0) == 0
    emit(JsonlSink(path), [*run_events(), Notice("federated", "info", "n"), *run_events("local/x")])
    dropped = truncate_after_round(path, "federated", 1)
    events = read_events(path)
    assert dropped == len(run_events()) + 1 + len(run_events("local/x")) - len(events)
    ours = [event for event in events if event.arm == "federated"]
    assert all(getattr(event, "round", 0) <= 1 for event in ours)
    assert Notice("federated", "info", "n") in ours
    assert not any(isinstance(event, RunFinished) for event in ours)
    assert [event for event in events if event.arm == "local/x"] == run_events("local/x")
    assert truncate_after_round(path, "federated", 1) == 0


def test_the_stages_of_a_round_are_told_apart(tmp_path: Path) -> None:
    """Each site's answer in each stage, and each stage's broadcast, stands in the log once."""
    events: list[Event] = []
    for stage in (0, 1):
        events.append(RoundStarted("federated", 1, SITES, 100 + stage, stage))
        events += [SiteReplied("federated", 1, site, "ok", bytes_up=9, stage=stage) for site in SITES]
    emit(JsonlSink(tmp_path / "m"), events)
    emit(JsonlSink(tmp_path / "m"), events)
    assert read_events(tmp_path / "m") == events
    assert len((tmp_path / "m").read_text(encoding="utf-8").splitlines()) == len(events)


def test_the_exchanges_and_attempts_of_a_stage_are_told_apart(tmp_path: Path) -> None:
    """What a site said in each of them stands in the log once, and each sum of a stage once."""
    events: list[Event] = [
        SiteReplied("federated", 1, "budapest", status, attempt=attempt, exchange=exchange)
        for attempt in (0, 1)
        for exchange, status in ((0, "ok"), (2, "late"), (4, "quarantined"))
    ]
    events += [
        *sums_opened("federated", 1),
        SumOpened("federated", 1, "training", "real", 2, 2, 5, 1, 1, 0.0, 0.0, 1),
    ]
    emit(JsonlSink(tmp_path / "m"), events)
    emit(JsonlSink(tmp_path / "m"), events)
    assert read_events(tmp_path / "m") == events
    assert len((tmp_path / "m").read_text(encoding="utf-8").splitlines()) == len(events)


BURNT = RoundBurnt("federated", 2, "too few sites answered to open the sum")


def with_a_burnt_round(first: int = 1) -> list[Event]:
    """A run whose second round was spent without a fold, or what is left of it after round first − 1."""
    rounds = {
        1: round_events("federated", 1), 2: [RoundStarted("federated", 2, SITES, 100), BURNT],
        3: round_events("federated", 3),
    }  # fmt: skip
    left = [event for round in range(first, 4) for event in rounds[round]]
    end = RunFinished("federated", "completed", 3, 3, "d", 9.0)
    return [RunStarted("run", "federated", "heart", "p", 3, SITES, first - 1), *left, end]


@pytest.mark.parametrize("killed_after", range(1, len(with_a_burnt_round())))
def test_a_burnt_round_is_told_once_however_often_the_run_was_killed(
    tmp_path: Path, killed_after: int
) -> None:
    """A resumed run goes on after it, as after a folded one: the file reads as if nothing had happened."""
    path = tmp_path / "m.jsonl"
    whole = with_a_burnt_round()
    told = whole[:killed_after]
    emit(JsonlSink(path), told)
    spent = max((e.round for e in told if isinstance(e, RoundFolded | RoundBurnt)), default=0)
    emit(JsonlSink(path), with_a_burnt_round(first=spent + 1))
    ours = [event for event in read_events(path) if not isinstance(event, RunStarted)]
    assert sorted(map(repr, ours)) == sorted(repr(e) for e in whole if not isinstance(e, RunStarted))
    assert ours.count(BURNT) == 1


def test_a_burnt_round_is_named_with_its_reason() -> None:
    """In a line of its own, on a terminal and in a file, and no row is made up for it."""
    for terminal in (False, True):
        text = shown(with_a_burnt_round(), terminal=terminal)
        line = next(line for line in text.splitlines() if "is lost" in line)
        assert "round 2 is lost: too few sites answered to open the sum" in line
        rows = [line.split()[0] for line in text.splitlines() if line.strip()[:1].isdigit()]
        assert terminal or "2" not in rows


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


def test_figures_that_are_not_finite_are_null(tmp_path: Path) -> None:
    """A NaN neither ends the run nor makes the file invalid JSON."""
    emit(JsonlSink(tmp_path / "m"), [SiteReplied("federated", 1, "a", "ok", local={"loss": float("nan")})])
    (event,) = read_events(tmp_path / "m")
    assert isinstance(event, SiteReplied)
    assert event.local == {"loss": None}


def test_reading_what_is_not_there(tmp_path: Path) -> None:
    """A missing file is a StorageError; unknown events and half events of a newer version are skipped."""
    with pytest.raises(StorageError, match="gone"):
        read_events(tmp_path / "gone")
    (tmp_path / "m").write_text('{"event": "Later", "arm": "x"}\n[1]\n{"event": "Notice", "arm": "x"}\n\n')
    assert read_events(tmp_path / "m") == []


def test_the_recorder_keeps_everything() -> None:
    """In order, repetitions included."""
    recorder = RecorderSink()
    emit(recorder, run_events() * 2)
    assert recorder.events == run_events() * 2


def shown(events: list[Event], *, terminal: bool, **options: Any) -> str:
    """What a console of 140 columns shows."""
    out = io.StringIO()
    console = Console(
        file=out, force_terminal=terminal, width=140, color_system="standard" if terminal else None
    )
    emit(RichSink(console, **options), events)
    return out.getvalue()


def test_a_log_file_gets_one_plain_row_a_round() -> None:
    """Without a terminal: no escape codes, a header, rows 0 to 3 with the score of their own adapter."""
    text = shown(run_events(bad=SITES[1]), terminal=False)
    assert "\x1b" not in text
    lines = text.splitlines()
    assert lines[0].split() == ["federated", "heart,", "2", "sites,", "3", "rounds"]
    rows = [line.split() for line in lines if line.strip()[:1].isdigit()]
    assert [row[0] for row in rows] == ["0", "1", "2", "3"]
    assert [row[2] for row in rows] == ["0.1000", "0.2000", "0.3000", "0.9000"]
    assert rows[1][4:6] == ["2/2", "3.0"]
    assert rows[2][4] == "1/2"
    header = next(line for line in lines if line.split()[:1] == ["round"])
    assert header.split()[3:5] == ["macro_f1", "loss"]


def test_a_quarantined_site_is_named() -> None:
    """Site, round, code and reason in one line, in colour on a terminal; brackets in a name are no markup."""
    for terminal in (False, True):
        text = shown(run_events(bad=SITES[1]), terminal=terminal)
        line = next(line for line in text.splitlines() if "malformed_reply" in line)
        assert "zürich [x] quarantined in round 2" in line
        assert "not finite" in line
        assert ("\x1b[1;31m" in line) is terminal


def test_a_terminal_gets_a_bar_with_the_sites() -> None:
    """While a round runs, the bar names each site with its state."""
    out = io.StringIO()
    sink = RichSink(Console(file=out, force_terminal=True, width=140))
    for event in run_events(bad=SITES[1])[:11]:  # into round 2, with one site quarantined in it
        sink.emit(event)
    bar = sink._progress
    assert bar is not None
    out.truncate(0)
    bar.refresh()
    text = Text.from_ansi(out.getvalue()).plain
    sink.close()
    assert "federated round 2" in text
    assert "1/3" in text
    assert "budapest ✓" in text
    assert "zürich [x] …" in text
    assert sink._progress is None


def test_many_sites_are_counted() -> None:
    """Fifty sites become a count, not a line that wraps."""
    sites = tuple(f"s{i}" for i in range(50))
    events: list[Event] = [
        RunStarted("r", "federated", "n", "p", 1, sites), RoundStarted("federated", 1, sites, 1),
        *(SiteReplied("federated", 1, site, "ok") for site in sites),
        RoundFolded("federated", 1, sites, (), None, 0.0, 10, 0.1, "d"),
    ]  # fmt: skip
    text = shown(events, terminal=True)
    assert "s17 " not in text
    assert "50/50" in shown(events, terminal=False)


def test_local_arms_are_one_line_each() -> None:
    """Local-only arms show their end, not their rounds."""
    text = shown(run_events("local/budapest"), terminal=False)
    lines = text.splitlines()
    assert "best is round 3 with macro_f1 0.9000" in lines[0]
    assert len(lines) == 2


@pytest.mark.parametrize(
    ("values", "support", "shown_as"),
    [
        ({"macro_f1": 0.5, "loss": 0.7}, {"macro_f1": 1640, "loss": 1640}, "(1,640 rows)"),
        (
            {"bits_per_byte": 1.5, "loss": 2.0, "perplexity": 7.4},
            {"bits_per_byte": 8120, "loss": 1900, "perplexity": 1900, "token_accuracy": 1900},
            "(8,120 bytes, 1,900 tokens)",
        ),
        ({"exact_match": 0.5}, {"exact_match": 12, "loss": 1900}, "(12 answers)"),
        ({"own_metric": 0.5}, {}, "own_metric 0.5000"),
    ],
)
def test_what_stands_behind_a_test_score_is_said_with_its_unit(
    values: dict[str, float], support: dict[str, int], shown_as: str
) -> None:
    """Bytes are not rows."""
    first = next(iter(values))
    text = shown(
        [Evaluated("federated", 3, "test", values, support)],
        terminal=False,
        metrics=() if len(values) > 1 else (first,),
    )
    assert text.rstrip().endswith(shown_as)
    assert "n =" not in text


def test_chosen_columns_are_shown() -> None:
    """The caller's metrics, a dash for what a run lacks."""
    rows = shown(run_events(), terminal=False, metrics=("loss", "auroc")).splitlines()
    row = next(line for line in rows if line.split()[:1] == ["1"])
    assert row.split()[2:4] == ["0.5000", "–"]


# tensorboard 2.21 still reads NumPy aliases and pkg_resources through deprecated names
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_tensorboard_reads_the_figures(tmp_path: Path) -> None:
    """One TensorBoard run an arm; after a resumed run each round stands there once."""
    emit(TensorBoardSink(tmp_path), [*run_events()[:17], *run_events("local/x")])
    emit(TensorBoardSink(tmp_path), run_events(first=2))
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    arm = reader.EventAccumulator(str(tmp_path / "federated")).Reload()
    assert {
        "validation/macro_f1",
        "test/budapest/macro_f1",
        "round/train_loss",
        "site/budapest/train.loss",
    } <= set(arm.Tags()["scalars"])
    assert [point.step for point in arm.Scalars("round/train_loss")] == [1, 2, 3]
    assert (tmp_path / "local" / "x").is_dir()


def test_a_full_disk_under_tensorboard_is_a_storage_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On writing and on closing; both name the folder."""
    sink = TensorBoardSink(tmp_path / "tb")
    folded = RoundFolded("federated", 1, SITES, (), 0.25, 0.1, 3000, 1.5, "d")
    sink.emit(folded)
    writer = sink._writers["federated"]

    def full() -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(writer, "flush", full)
    with pytest.raises(StorageError, match=r"(?s)tb.*free space"):
        sink.emit(folded)
    close = writer.close
    monkeypatch.setattr(writer, "close", full)
    with pytest.raises(StorageError, match=r"(?s)tb.*free space"):
        sink.close()
    close()


def test_a_missing_extra_names_the_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without tensorboardX the error says what to install."""
    monkeypatch.setitem(__import__("sys").modules, "tensorboardX", None)
    with pytest.raises(ConfigError, match=r"pip install 'wardround\[training\]'"):
        TensorBoardSink(tmp_path)


def test_the_site_table(tmp_path: Path) -> None:
    """Columns in order of appearance, gaps empty, no cell that a spreadsheet would execute."""
    rows = [
        {"site": "=cmd()", "rows": 12, "f1": 0.123456789},
        {"site": 'a "b", c', "extra": float("nan"), "rows": -3, "f1": None},
    ]
    write_site_table(tmp_path / "sites.csv", rows)
    with (tmp_path / "sites.csv").open(newline="", encoding="utf-8") as file:
        read = list(csv.reader(file))
    assert read == [
        ["site", "rows", "f1", "extra"],
        ["'=cmd()", "12", "0.123457", ""],
        ['a "b", c', "-3", "", ""],
    ]


def test_the_summary_is_json(tmp_path: Path) -> None:
    """Indented strict JSON."""
    write_summary(tmp_path / "summary.json", {"a": [1, float("inf")]})
    assert json.loads((tmp_path / "summary.json").read_text()) == {"a": [1, None]}
