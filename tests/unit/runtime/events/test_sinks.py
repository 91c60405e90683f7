"""The other readers of the event stream: terminal, TensorBoard, recorder, tables."""

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
from wardround.runtime.events import (
    BytesMoved,
    Evaluated,
    Event,
    PrivacyReported,
    PrivacySpent,
    RoundFolded,
    RoundStarted,
    RoundTimed,
    RunStarted,
    SiteReplied,
)
from wardround.runtime.results import write_site_table, write_summary
from wardround.runtime.sinks import RecorderSink, RichSink, TensorBoardSink


def test_the_recorder_keeps_everything(story: Any) -> None:
    """In order, repetitions included."""
    recorder = RecorderSink()
    story.emit(recorder, story.run_events() * 2)
    assert recorder.events == story.run_events() * 2


def test_virtual_time_stands_beside_wall_time(story: Any) -> None:
    """Where there is any: a column of its own, in units that people read."""
    events = story.run_events()
    for round, seconds in ((1, 90.0), (2, 600.0), (3, 3 * 86_400.0)):
        place = next(i for i, e in enumerate(events) if isinstance(e, RoundFolded) and e.round == round)
        events.insert(place, RoundTimed("federated", round, seconds, seconds))
    lines = story.shown(events, terminal=False).splitlines()
    rows = [line.split() for line in lines if line.strip()[:1] in ("1", "2", "3")]
    header = next(line for line in lines if line.split()[:1] == ["round"])
    assert header.split()[-2:] == ["time", "virtual"]
    shown = [row[row.index("s") + 1 : row.index("s") + 3] for row in rows]
    assert shown == [["90.0", "s"], ["10.0", "min"], ["3.0", "d"]]
    assert "virtual" not in story.shown(story.run_events(), terminal=False)


def test_a_log_file_gets_one_plain_row_a_round(story: Any) -> None:
    """Without a terminal: no escape codes, a header, rows 0 to 3 with the score of their own adapter."""
    text = story.shown(story.run_events(bad=story.SITES[1]), terminal=False)
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


def with_spent(events: list[Any]) -> list[Any]:
    """The story of a private run: what each round came to is told just before it folds."""
    told: list[Any] = []
    for event in events:
        if isinstance(event, RoundFolded):
            sites = {"a": float(event.round), "b": event.round + 0.5}
            told.append(PrivacySpent(event.arm, event.round, "patient", 1e-4, sites, 0.5 / event.round))
        told.append(event)
    both = {"a": {"reserved": 3.0, "spent": 2.5}, "b": {"reserved": 3.5, "spent": 2.75}}
    return [*told, PrivacyReported("federated", 3, 3, "patient", 1e-4, both)]


def test_the_row_of_a_round_shows_the_largest_epsilon_after_it(story: Any) -> None:
    """Of a private run alone; row 0 has spent nothing."""
    lines = story.shown(with_spent(story.run_events()), terminal=False).splitlines()
    assert "  ε reserved" in next(line for line in lines if line.split()[:1] == ["round"])
    rows = [line.split() for line in lines if line.strip()[:1].isdigit()]
    assert [row[4] for row in rows] == ["0.000", "1.500", "2.500", "3.500"]
    assert "ε" not in story.shown(story.run_events(), terminal=False)


def test_a_quarantined_site_is_named(story: Any) -> None:
    """Site, round, code and reason in one line, in colour on a terminal; brackets in a name are no markup."""
    for terminal in (False, True):
        text = story.shown(story.run_events(bad=story.SITES[1]), terminal=terminal)
        line = next(line for line in text.splitlines() if "malformed_reply" in line)
        assert "zürich [x] quarantined in round 2" in line
        assert "not finite" in line
        assert ("\x1b[1;31m" in line) is terminal


def test_a_terminal_gets_a_bar_with_the_sites(story: Any) -> None:
    """While a round runs, the bar names each site with its state."""
    out = io.StringIO()
    sink = RichSink(Console(file=out, force_terminal=True, width=140))
    for event in story.run_events(bad=story.SITES[1])[:11]:  # into round 2, with one site quarantined in it
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


def test_many_sites_are_counted(story: Any) -> None:
    """Fifty sites become a count, not a line that wraps."""
    sites = tuple(f"s{i}" for i in range(50))
    events: list[Event] = [
        RunStarted("r", "federated", "n", "p", 1, sites), RoundStarted("federated", 1, sites, 1),
        *(SiteReplied("federated", 1, site, "ok") for site in sites),
        RoundFolded("federated", 1, sites, (), None, 0.0, 10, 0.1, "d"),
    ]  # fmt: skip
    text = story.shown(events, terminal=True)
    assert "s17 " not in text
    assert "50/50" in story.shown(events, terminal=False)


def test_local_arms_are_one_line_each(story: Any) -> None:
    """Local-only arms show their end, not their rounds."""
    text = story.shown(story.run_events("local/budapest"), terminal=False)
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
    story: Any, values: dict[str, float], support: dict[str, int], shown_as: str
) -> None:
    """Bytes are not rows."""
    first = next(iter(values))
    text = story.shown(
        [Evaluated("federated", 3, "test", values, support)],
        terminal=False,
        metrics=() if len(values) > 1 else (first,),
    )
    assert text.rstrip().endswith(shown_as)
    assert "n =" not in text


def test_chosen_columns_are_shown(story: Any) -> None:
    """The caller's metrics, a dash for what a run lacks."""
    rows = story.shown(story.run_events(), terminal=False, metrics=("loss", "auroc")).splitlines()
    row = next(line for line in rows if line.split()[:1] == ["1"])
    assert row.split()[2:4] == ["0.5000", "–"]


# tensorboard 2.21 still reads NumPy aliases and pkg_resources through deprecated names
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_tensorboard_reads_the_figures(story: Any, tmp_path: Path) -> None:
    """One TensorBoard run an arm; after a resumed run each round stands there once."""
    story.emit(TensorBoardSink(tmp_path), [*story.run_events()[:17], *story.run_events("local/x")])
    story.emit(TensorBoardSink(tmp_path), story.run_events(first=2))
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    arm = reader.EventAccumulator(str(tmp_path / "federated")).Reload()
    assert {
        "validation/macro_f1",
        "test/budapest/macro_f1",
        "round/train_loss",
        "site/budapest/train.loss",
    } <= set(arm.Tags()["scalars"])
    assert [point.step for point in arm.Scalars("round/train_loss")] == [1, 2, 3]
    story.emit(TensorBoardSink(tmp_path / "private"), with_spent(story.run_events()))
    arm = reader.EventAccumulator(str(tmp_path / "private" / "federated")).Reload()
    assert [point.value for point in arm.Scalars("privacy/epsilon_reserved")] == [1.5, 2.5, 3.5]
    assert [(point.step, point.value) for point in arm.Scalars("privacy/b/spent")] == [(3, 2.75)]
    assert arm.Scalars("privacy/a/reserved")[0].value == 3.0
    assert [point.value for point in arm.Scalars("privacy/clip_norm")] == pytest.approx([0.5, 0.25, 1 / 6])
    assert (tmp_path / "local" / "x").is_dir()
    moved = [
        BytesMoved("federated", round, {"a": 10 * round}, {"a": 7, "b": 9}, stage)
        for round in (1, 2) for stage in (0, 1)
    ]  # fmt: skip
    story.emit(TensorBoardSink(tmp_path / "moved"), moved)
    arm = reader.EventAccumulator(str(tmp_path / "moved" / "federated")).Reload()
    assert [(point.step, point.value) for point in arm.Scalars("site/a/bytes_up")] == [(1, 10.0), (2, 20.0)]
    assert [point.value for point in arm.Scalars("site/b/stage_1/bytes_down")] == [9.0, 9.0]
    timed = [RoundTimed("federated", 1, 5.0, 5.0), RoundTimed("federated", 2, 7.0, 12.0, 3.0, ("a", "b"))]
    story.emit(TensorBoardSink(tmp_path / "timed"), timed)
    arm = reader.EventAccumulator(str(tmp_path / "timed" / "federated")).Reload()
    for name, values in (
        *(("virtual_seconds", [5.0, 7.0]), ("virtual_clock", [5.0, 12.0])),
        *(("waited_seconds", [0.0, 3.0]), ("late", [0.0, 2.0])),
    ):
        assert [point.value for point in arm.Scalars(f"round/{name}")] == values


def test_a_full_disk_under_tensorboard_is_a_storage_error(
    story: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On writing and on closing; both name the folder."""
    sink = TensorBoardSink(tmp_path / "tb")
    folded = RoundFolded("federated", 1, story.SITES, (), 0.25, 0.1, 3000, 1.5, "d")
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


def test_a_burnt_round_is_named_with_its_reason(story: Any) -> None:
    """In a line of its own, on a terminal and in a file, and no row is made up for it."""
    for terminal in (False, True):
        text = story.shown(story.with_a_burnt_round(), terminal=terminal)
        line = next(line for line in text.splitlines() if "is lost" in line)
        assert "round 2 is lost: too few sites answered to open the sum" in line
        rows = [line.split()[0] for line in text.splitlines() if line.strip()[:1].isdigit()]
        assert terminal or "2" not in rows
