"""Simulations in virtual time, through the real loop, real sites and real sums."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from virtual_runs import (
    ROUNDS,
    Settings,
    Undisturbed,
    digest,
    masked,
    of,
    timed_settings,
    times,
    trace,
    within,
)

from wardround.core.errors import ConfigError
from wardround.runtime.events import (
    BytesMoved,
    Evaluated,
    RoundFolded,
    SiteReplied,
    SumOpened,
)
from wardround.simulations.simulate import run_simulation
from wardround.simulations.study import read_run


@pytest.fixture
def settings(notes: Callable[..., Any]) -> Settings:
    """Six wards, three rounds of two steps; keyword arguments are the realism's."""
    return timed_settings(notes)


def test_without_realism_there_is_no_virtual_time_and_with_it_the_same_adapter(
    settings: Settings, undisturbed: Undisturbed
) -> None:
    """Nothing of it in events, summary and folder; where nobody is late, a clock changes no bit."""
    plain, slow = undisturbed(settings("plain")), undisturbed(settings("slow", latency_s=1.0, slowness=3.0))
    assert times(plain) == []
    assert "virtual" not in plain.summary
    assert not (plain.folder / "rounds.csv").exists()
    assert not (plain.folder / "arms" / "federated" / "clock.jsonl").exists()
    assert "virtual" not in (plain.folder / "sites.csv").read_text()
    assert digest(plain) == digest(slow)
    assert of(plain, BytesMoved) == of(slow, BytesMoved)


def test_a_round_takes_what_its_slowest_site_takes(settings: Settings, undisturbed: Undisturbed) -> None:
    """One exchange a round: down, two steps and its scoring, up; to the figures of a calculation by hand."""
    table = {"kind": "sites", "sites": {"w1": 5.0, "w3": 4.0}, "other": 1.0}
    result = undisturbed(
        settings(
            "hand",
            down_mbit_s=8.0,
            up_mbit_s=4.0,
            latency_s=0.25,
            compute_s=10.0,
            slowness=table,
            scoring=0.5,
        )
    )
    found, moved = times(result), {event.round: event for event in of(result, BytesMoved)}
    clock = 0.0
    for event in found:
        took = {}
        for site in moved[event.round].down:
            trains = 2 if event.round <= ROUNDS else 0
            validation = 4 / 4  # rows that a site holds back, of 12, over its batch
            work = 10.0 * table["sites"].get(site, 1.0) * (trains + 0.5 * validation)  # type: ignore[attr-defined]  # a dict
            down, up = moved[event.round].down[site] / 1e6, moved[event.round].up[site] / 5e5
            took[site] = 0.25 + down + work + up + 0.25
        assert event.sites == pytest.approx(took, abs=1e-9)
        assert event.virtual_s == pytest.approx(took["w1"], abs=1e-9)
        assert (event.waited_s, event.late) == (0.0, ())
        clock += event.virtual_s
        assert event.since_start_s == pytest.approx(clock)
    assert [event.round for event in found] == [1, 2, 3, 4]


@pytest.mark.parametrize("mode", ["accounted", "real"])
def test_under_secure_aggregation_every_exchange_is_paid_for(
    settings: Settings, undisturbed: Undisturbed, mode: str
) -> None:
    """Five of them, each at least a round trip; by latency alone exactly so."""
    result = undisturbed(settings(f"masked_{mode}", {"secure": masked(mode)}, latency_s=2.0))
    exchanges = {event.exchanges for event in of(result, SumOpened)}
    assert exchanges == {5}
    assert [event.virtual_s for event in times(result)] == [2 * 2.0 * 5] * (ROUNDS + 1)


def test_who_is_slower_than_the_deadline_is_not_in_the_sum(
    settings: Settings, undisturbed: Undisturbed, tmp_path: Path
) -> None:
    """The round ends at the deadline, and its fold is that of the others, as if they alone had been asked."""
    rounds = {"rounds": within(60.0), "encoding": {"bits": 32}}
    slow = {"kind": "sites", "sites": {"w2": 100.0}, "other": 1.0}
    result = undisturbed(settings("late", rounds, compute_s=1.0, slowness=slow))
    folded = of(result, RoundFolded)
    assert {event.missing for event in folded} == {("w2",)}
    assert {event.late for event in times(result)[:-1]} == {("w2",)}
    assert [event.virtual_s for event in times(result)[:-1]] == [60.0] * ROUNDS
    late = [event for event in of(result, SiteReplied) if event.status != "ok"]
    assert {(event.site, event.status, event.code) for event in late} == {("w2", "late", "deadline")}
    path = trace(tmp_path, "site,from,to\n" + "".join(f"w{n},1,\n" for n in (0, 1, 3, 4, 5)) + "w2,9,\n")
    away = undisturbed(
        settings("away", rounds, availability={"kind": "trace", "path": path, "unit": "round"})
    )
    without = of(away, RoundFolded)
    assert [event.survivors for event in without] == [event.survivors for event in folded]
    assert {event.missing for event in without} == {()}
    assert without[0].train_loss == folded[0].train_loss
    one, other = (run.federated.outcome.last.adapter.vector for run in (result, away))
    np.testing.assert_allclose(one, other, atol=1e-6)


def test_a_deadline_that_never_comes_loses_nobody_and_changes_no_bit(
    settings: Settings, undisturbed: Undisturbed
) -> None:
    """However slow somebody is; a huge factor and an unbounded distribution."""
    tail = {"kind": "pareto", "scale": 1.0, "shape": 0.3, "each": "round"}
    result = undisturbed(settings("patient", {"rounds": within(1e15)}, compute_s=10.0, slowness=tail))
    assert {event.missing for event in of(result, RoundFolded)} == {()}
    assert {event.late for event in times(result)} == {()}
    assert max(event.virtual_s for event in times(result)) > 10 * 20
    assert digest(result) == digest(undisturbed(settings("plain")))


@pytest.mark.parametrize(("slowest", "missing", "ends"), [(32.5, (), 65.0), (37.5, ("w4",), 67.0)])
def test_stragglers_under_masks_are_asked_again_by_the_loop(
    settings: Settings, undisturbed: Undisturbed, slowest: float, missing: tuple[str, ...], ends: float
) -> None:
    """Two of six are late for the offer: one too many. In a second attempt one joins, and the other may."""
    table = {"kind": "sites", "sites": {"w4": slowest, "w5": 31.0}, "other": 1.0}
    sections = {"secure": masked(), "rounds": within(60.0, rounds=1)}
    result = undisturbed(settings(f"again_{ends}", sections, compute_s=1.0, slowness=table, scoring=0.0))
    assert {event.attempt for event in of(result, SumOpened) if event.round == 1} == {1}
    late = [(e.site, e.attempt) for e in of(result, SiteReplied) if e.status == "late" and e.round == 1]
    assert late == [("w4", 0), ("w5", 0), *((site, 1) for site in missing)]
    first = times(result)[0]
    assert (first.virtual_s, first.late) == (
        ends,
        ("w4", "w5"),
    )  # whoever was late once has five seconds more
    assert of(result, RoundFolded)[0].missing == missing


def test_a_vector_that_is_late_is_recovered_from(settings: Settings, undisturbed: Undisturbed) -> None:
    """Its site had dealt its shares by then: the others take its masks out of the sum."""
    table = {"kind": "sites", "sites": {"w5": 0.0004}, "other": 1.0}
    result = undisturbed(
        settings("thin", {"secure": masked(), "rounds": within(60.0, rounds=1)}, up_mbit_s=table)
    )
    late = [(e.site, e.attempt, e.exchange) for e in of(result, SiteReplied) if e.status == "late"]
    assert late[0] == ("w5", 0, 2)
    assert of(result, RoundFolded)[0].missing == ("w5",)
    opened = [event for event in of(result, SumOpened) if event.round == 1]
    assert {(event.attempt, event.survivors) for event in opened} == {(0, 5)}


@pytest.mark.parametrize("mode", ["off", "real"])
def test_once_enough_have_answered_the_others_have_so_long(
    settings: Settings, undisturbed: Undisturbed, mode: str
) -> None:
    """The grace cuts a round short of its deadline."""
    table = {"kind": "sites", "sites": {"w4": 8.0, "w5": 3.0}, "other": 1.0}
    secure = masked() if mode == "real" else {"mode": "off"}
    rounds = within(1000.0, quorum=0.6)
    result = undisturbed(
        settings(
            f"grace_{mode}",
            {"secure": secure, "rounds": rounds},
            compute_s=10.0,
            slowness=table,
            grace_s=50.0,
        )
    )
    first = times(result)[0]
    assert first.late == ("w4",)
    enough = 1.0 if mode == "off" else 3.0  # four of six by the quorum; five by the masks' threshold
    assert first.virtual_s == pytest.approx(enough * 10.0 * 2.33 + 50.0)
    assert of(result, RoundFolded)[0].missing == ("w4",)


def test_outages_are_waited_for_until_the_deadline(settings: Settings, undisturbed: Undisturbed) -> None:
    """Nobody tells the server that a site is gone."""
    sections = {"simulation": {"outage": 0.15}, "rounds": within(30.0, quorum=0.1, rounds=5)}
    result = undisturbed(settings("gone", sections, latency_s=1.0))
    folded = {event.round: event for event in of(result, RoundFolded)}
    durations = {event.round: event.virtual_s for event in times(result) if event.round in folded}
    assert {bool(event.missing) for event in folded.values()} == {True, False}
    for round, event in folded.items():
        assert durations[round] == (30.0 if event.missing else 2.0)
    assert {code for event in of(result, SiteReplied) if (code := event.code)} == {"deadline"}


@pytest.mark.parametrize(("per", "amount"), [("step", 2), ("row", 8), ("token", None)])
def test_work_is_counted_in_steps_rows_or_tokens(
    settings: Settings, undisturbed: Undisturbed, per: str, amount: int | None
) -> None:
    """Two steps of four rows, at two seconds each; tokens are more than rows, and differ by site."""
    result = undisturbed(settings(f"per_{per}", compute_s=2.0, compute_per=per, scoring=0.0))
    found = times(result)[0].sites
    if amount is None:
        assert all(2.0 * 8 * 2 < seconds < 2.0 * 8 * 32 for seconds in found.values())
    else:
        assert set(found.values()) == {2.0 * amount}


def test_the_folder_says_both_times(settings: Settings, undisturbed: Undisturbed) -> None:
    """By round in a table, by site in another, in all in the summary."""
    table = {"kind": "sites", "sites": {"w2": 100.0}, "other": 1.0}
    sections = {"rounds": within(60.0)}
    result = undisturbed(settings("told", sections, compute_s=1.0, slowness=table))
    with (result.folder / "rounds.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["round"] for row in rows] == ["1", "2", "3"]
    assert [float(row["virtual_clock_s"]) for row in rows] == [60.0, 120.0, 180.0]
    folded = of(result, RoundFolded)
    assert [float(row["wall_s"]) for row in rows] == [event.wall_s for event in folded]
    assert [float(row["train_loss"]) for row in rows] == [event.train_loss for event in folded]
    assert {(row["survivors"], row["missing"], row["late"]) for row in rows} == {("5", "1", "1")}
    scores = {event.round: event.values for event in of(result, Evaluated) if event.part == "validation"}
    assert [float(row["validation.loss"]) for row in rows] == [scores[round]["loss"] for round in (1, 2, 3)]
    record = result.summary["virtual"]
    assert (record["seconds_a_round"], record["longest_round_s"], record["late"]) == (60.0, 60.0, 4)
    assert record["seconds"] == times(result)[-1].since_start_s
    assert record["sites"]["w2"]["late_rounds"] == 4
    with (result.folder / "sites.csv").open(newline="") as file:
        sites = {row["site"]: row for row in csv.DictReader(file)}
    assert sites["w2"]["virtual_late_rounds"] == "4"
    assert float(sites["w1"]["virtual_work_s"]) == pytest.approx(record["sites"]["w1"]["work_s"])
    assert read_run(result.folder).virtual_s == record["seconds"]


def test_what_does_not_fit_the_sites_is_refused_before_anything_is_trained(
    settings: Settings, tmp_path: Path
) -> None:
    """Tables and traces of other sites, and lines that are none."""
    with pytest.raises(ConfigError, match="did you mean 'w1'"):
        run_simulation(settings("a", slowness={"kind": "sites", "sites": {"w11": 2.0}, "other": 1.0}))
    for text, match in (("w0,0,\n", "no line of w1"), ("w0,8,7\n", "line 2"), ("x0,0,\n", "unknown site")):
        path = trace(tmp_path, "site,from,to\n" + text)
        with pytest.raises(ConfigError, match=match):
            run_simulation(settings("b", availability={"kind": "trace", "path": path}))
    assert not (tmp_path / "a").exists()
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize("strategy", ["two_pass", "tangent"])
def test_every_stage_of_a_round_is_paid_for(
    settings: Settings, undisturbed: Undisturbed, strategy: str
) -> None:
    """A method of two passes takes a round trip more; it computes in the first one alone."""
    sections = {"strategy": {"name": strategy}}
    result = undisturbed(settings(strategy, sections, latency_s=3.0, compute_s=5.0, scoring=0.0))
    stages = 2 if strategy == "two_pass" else 1
    assert [event.virtual_s for event in times(result)] == [stages * 6.0 + 10.0] * ROUNDS + [6.0]
