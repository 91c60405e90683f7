"""When simulated sites are there: spans, days and traces."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from wardround.core.errors import ConfigError
from wardround.simulations.virtual.availability import (
    Always,
    ByRound,
    ByTime,
    Spans,
    presence_of,
    read_trace,
)
from wardround.simulations.virtual.settings import Diurnal, Trace


def test_a_span_is_there_from_its_begin_to_before_its_end() -> None:
    """And work goes on in the next one."""
    spans = Spans.of([(10, 20), (30, 40)])
    assert [spans.next(at)[0] for at in (0, 10, 19, 20, 30, 39, 40)] == [10, 10, 19, 30, 30, 39, math.inf]
    assert spans.after(0, 5) == 15
    assert spans.after(15, 5) == 20, "to the end of a span"
    assert spans.after(15, 6) == 31
    assert spans.after(0, 20) == 40
    assert spans.after(0, 20.5) == math.inf
    assert spans.after(25, 0) == 30, "nothing is done while nobody is there"


def test_spans_may_overlap_touch_and_come_in_any_order() -> None:
    """They are one then."""
    assert Spans.of([(30, 40), (0, 10), (5, 20), (20, 25), (3, 4), (50, 50)]).spans == ((0, 25), (30, 40))


def test_a_period_wraps_around_its_end() -> None:
    """A night of 8 hours over midnight, and a site that is always there."""
    night = Spans.of([(22, 30)], 24)
    assert night.spans == ((0, 6), (22, 24))
    assert [night.next(at)[0] for at in (0, 5, 6, 21, 22, 29, 30, 47)] == [0, 5, 22, 22, 22, 29, 46, 47]
    assert night.after(6, 8) == 30
    assert night.after(6, 9) == 47
    assert night.after(6, 8 * 1000 + 1) == 6 + 24 * 1000 + 17
    assert Spans.of([(5, math.inf)], 24).spans == ((0, 24),)
    assert Spans.of([(30, 40)], 24).spans == ((6, 16),)
    assert Spans.of([], 24).next(3) == (math.inf, math.inf)


def test_a_day_is_drawn_for_each_site() -> None:
    """For its share of the period, within the spread; the same again from the same seed."""
    names = [f"s{number}" for number in range(300)]
    settings = Diurnal(kind="diurnal", period_s=1000.0, share=0.3, spread=0.5)
    found = presence_of(settings, names, 3)
    assert isinstance(found, ByTime)
    for site, spans in found.sites.items():
        assert sum(end - begin for begin, end in spans.spans) == pytest.approx(300.0)
        assert not found.there(site, 850.0, 1), "0.5 + 0.3 of the period are over"
    at_half = sum(found.there(site, 400.0, 1) for site in names) / len(names)
    assert at_half == pytest.approx(0.6, abs=0.12)  # began between 100 and 400, of 0 to 500
    assert presence_of(settings, names, 3) == found
    assert presence_of(settings, names, 4) != found
    together = presence_of(Diurnal(kind="diurnal", period_s=10.0, share=0.5, spread=0.0), names, 3)
    assert {together.there(site, at, 1) for site in names for at in (0.0, 4.9, 10.0)} == {True}
    assert {together.there(site, at, 1) for site in names for at in (5.0, 9.9)} == {False}
    assert isinstance(presence_of(None, names, 0), Always)


CSV = "site,from,to\na,0,8\n\na, 20 ,32\nb,0,\n"
JSONL = (
    '{"site": "a", "from": 0, "to": 8}\n{"site": "a", "from": 20, "to": 32}\n'
    '{"site": "b", "from": 0, "to": null}\n'
)  # fmt: skip


def trace(folder: Path, text: str, **more: Any) -> Trace:
    """Settings with a file of that text."""
    path = folder / "trace"
    path.write_bytes(text.encode())
    return Trace(kind="trace", path=str(path), **more)


@pytest.mark.parametrize("text", [CSV, JSONL, "\ufeff" + CSV, CSV.replace("\n", "\r\n")])
def test_a_trace_is_a_csv_or_json_lines(tmp_path: Path, text: str) -> None:
    """In hours here; blank lines and spaces do not count."""
    found = presence_of(trace(tmp_path, text, unit="h"), ["a", "b"], 0)
    assert isinstance(found, ByTime)
    assert found.sites["a"].spans == ((0, 8 * 3600.0), (20 * 3600.0, 32 * 3600.0))
    assert found.sites["b"].spans == ((0, math.inf),)


def test_a_trace_may_begin_again(tmp_path: Path) -> None:
    """In its own unit; without that nobody is there after its end."""
    again = presence_of(trace(tmp_path, CSV, unit="h", repeat=24), ["a", "b"], 0)
    once = presence_of(trace(tmp_path, CSV, unit="h"), ["a", "b"], 0)
    assert again.there("a", 25 * 3600.0, 1)  # 20 to 32 wraps to 0 to 8
    assert again.there("a", 50 * 3600.0, 1)
    assert not once.there("a", 50 * 3600.0, 1)
    assert once.next("a", 50 * 3600.0, 1) == math.inf


def test_a_trace_by_round_holds_for_whole_rounds(tmp_path: Path) -> None:
    """Both ends included; before round 1 everybody is there."""
    text = "site,from,to\na,2,3\na,5,\nb,1,1\n"
    found = presence_of(trace(tmp_path, text, unit="round"), ["a", "b"], 0)
    assert isinstance(found, ByRound)
    assert [found.there("a", 0.0, round) for round in range(7)] == [
        True,
        False,
        True,
        True,
        False,
        True,
        True,
    ]
    assert [found.there("b", 0.0, round) for round in (0, 1, 2)] == [True, True, False]
    assert found.after("a", 7.0, 2.0, 3) == 9.0
    assert found.after("a", 7.0, 2.0, 4) == math.inf
    assert found.next("b", 7.0, 2) == math.inf
    again = presence_of(trace(tmp_path, text, unit="round", repeat=4), ["a", "b"], 0)
    assert [again.there("b", 0.0, round) for round in range(1, 10)] == [n in (1, 5, 9) for n in range(1, 10)]


@pytest.mark.parametrize(
    ("text", "line", "found", "expected"),
    [
        ("a,0,8\n", 1, "a,0,8", "site,from,to"),
        ("site;from;to\n", 1, "site;from;to", "site,from,to"),
        ("site,from,to\na,0,8\nb,1\n", 3, "2 fields", "site,from,to"),
        ("site,from,to\n\n\na,x,8\n", 4, "from: 'x'", "a number"),
        ("site,from,to\na,,8\n", 2, "from: ''", "a number"),
        ("site,from,to\na,0,inf\n", 2, "to: 'inf'", "a number, or nothing"),
        ("site,from,to\na,nan,1\n", 2, "from: 'nan'", "a number"),
        ("site,from,to\na,9,8\n", 2, "from 9 to 8", "to later than that"),
        ("site,from,to\na,8,8\n", 2, "from 8 to 8", "to later than that"),
        ("site,from,to\na,-1,8\n", 2, "from -1 to 8", "from at least 0"),
        ("site,from,to\n,0,8\n", 2, "site: ''", "the name of a site"),
        ('{"site": "a", "from": 0, "to": 8}\n{"site": "a"\n', 2, "no JSON", "an object with site, from, to"),
        ('{"site": "a", "from": 0}\n', 1, "from, site", "an object with site, from, to"),
        ('{"site": "a", "from": 0, "to": 8, "x": 1}\n', 1, "from, site, to, x", "an object with"),
        ('{"site": "a", "from": 0, "to": 8}\n[1]\n', 2, "list", "an object with"),
        ('{"site": 3, "from": 0, "to": 8}\n', 1, "site: 3", "the name of a site"),
        ('{"site": "a", "from": true, "to": 8}\n', 1, "from: True", "a number"),
        ('{"site": "a", "from": [], "to": 8}\n', 1, "from: []", "a number"),
    ],
)
def test_a_line_that_is_none_is_refused_by_its_number(
    tmp_path: Path, text: str, line: int, found: str, expected: str
) -> None:
    """With what stands there and what should."""
    with pytest.raises(ConfigError) as error:
        read_trace(trace(tmp_path, text))
    assert f"line {line} of the availability trace" in error.value.what
    assert found in str(error.value.found)
    assert expected in str(error.value.expected)


@pytest.mark.parametrize("cells", ["0,3", "1.5,2", "1,2.5", "3,2"])
def test_rounds_are_whole_and_count_from_one(tmp_path: Path, cells: str) -> None:
    """Nor do they end before they begin; one round alone is a span."""
    with pytest.raises(ConfigError, match="line 2"):
        read_trace(trace(tmp_path, f"site,from,to\na,{cells}\n", unit="round"))
    read_trace(trace(tmp_path, "site,from,to\na,2,2\n", unit="round"))
    with pytest.raises(ConfigError, match="whole rounds"):
        read_trace(trace(tmp_path, "site,from,to\na,2,2\n", unit="round", repeat=1.5))


def test_a_trace_that_is_not_there_or_says_nothing_is_refused(tmp_path: Path) -> None:
    """Before anything is read of the run."""
    with pytest.raises(ConfigError, match="cannot be read"):
        read_trace(Trace(kind="trace", path=str(tmp_path / "none")))
    for text in ("", "\n\n", "site,from,to\n"):
        with pytest.raises(ConfigError, match="says nothing"):
            read_trace(trace(tmp_path, text))
    path = tmp_path / "latin"
    path.write_bytes("site,from,to\nzürich,0,1\n".encode("latin-1"))
    with pytest.raises(ConfigError, match="cannot be read"):
        read_trace(Trace(kind="trace", path=str(path)))


def test_a_trace_is_of_the_run_s_sites(tmp_path: Path) -> None:
    """Of no other, and of all of them."""
    settings = trace(tmp_path, "site,from,to\nbudapest,0,\n")
    with pytest.raises(ConfigError, match="did you mean 'budapst'"):
        presence_of(settings, ["budapst"], 0)
    with pytest.raises(ConfigError, match="no line of zürich"):
        presence_of(settings, ["budapest", "zürich"], 0)
