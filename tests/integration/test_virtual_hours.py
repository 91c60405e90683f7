"""Sites that come and go in virtual time, and what a run goes on with after a kill."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from virtual_runs import (
    WARDS,
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

from wardround.core.errors import ConfigError, StorageError
from wardround.runtime.events import (
    Evaluated,
    Event,
    RoundFolded,
    RoundStarted,
)
from wardround.simulations.simulate import run_simulation


@pytest.fixture
def settings(notes: Callable[..., Any]) -> Settings:
    """Six wards, three rounds of two steps; keyword arguments are the realism's."""
    return timed_settings(notes)


class Stop:
    """Ends the run in the middle of its third round."""

    def emit(self, event: Event) -> None:
        """As a kill does."""
        if isinstance(event, RoundStarted) and event.round == 3:
            raise KeyboardInterrupt

    def close(self) -> None:
        """Nothing to flush."""


EVERYTHING: dict[str, Any] = {
    "down_mbit_s": {"kind": "lognormal", "median": 1.0, "sigma": 1.0},
    "up_mbit_s": {"kind": "uniform", "low": 0.1, "high": 1.0, "each": "round"},
    "latency_s": 0.5, "compute_s": {"kind": "uniform", "low": 5.0, "high": 15.0}, "compute_per": "token",
    "slowness": {"kind": "pareto", "scale": 1.0, "shape": 1.5, "each": "round"},
    "availability": {"kind": "diurnal", "period_s": 40_000.0, "share": 0.7, "least": 5}, "grace_s": 4000.0,
}  # fmt: skip


@pytest.mark.parametrize("mode", ["off", "real"])
def test_a_resumed_run_takes_the_same_time_and_asks_the_same_sites(
    settings: Settings, undisturbed: Undisturbed, mode: str
) -> None:
    """Everything at once: stopped in a round and gone on with, in other processes' terms with new sites."""
    secure = masked() if mode == "real" else {"mode": "off"}
    sections: dict[str, Any] = {
        "secure": secure, "simulation": {"outage": 0.1, "lanes": 8},
        "rounds": {"rounds": 4, "quorum": 0.2, "deadline_s": 20_000.0},
    }  # fmt: skip
    whole = undisturbed(settings(f"whole_{mode}", sections, **EVERYTHING))
    sections["simulation"]["lanes"] = 2
    config = settings(f"cut_{mode}", sections, **EVERYTHING)
    with pytest.raises(KeyboardInterrupt):
        run_simulation(config, sinks=(Stop(),))
    again = run_simulation(config.model_copy(update={"resume": config.output}))
    assert times(again) == times(whole)
    asked = [[event.cohort for event in of(run, RoundStarted)] for run in (whole, again)]
    assert asked[0] == asked[1]
    assert len(set(asked[0])) > 1, "not always the same sites"
    assert any(event.late for event in times(whole))
    assert digest(again) == digest(whole)
    assert again.summary["virtual"] == whole.summary["virtual"]


def test_rounds_wait_for_sites_of_a_day(settings: Settings, undisturbed: Undisturbed) -> None:
    """Rounds of hours over days: other sites in other rounds, and time that passes before a round begins."""
    there = {"kind": "diurnal", "period_s": 24 * 3600.0, "share": 0.3, "spread": 1.0, "least": 3}
    result = undisturbed(
        settings(
            "days", {"rounds": within(4 * 3600.0, rounds=6, quorum=0.1)}, compute_s=900.0, availability=there
        )
    )
    asked = {event.round: set(event.cohort) for event in of(result, RoundStarted) if event.cohort}
    assert all(len(cohort) >= 3 for cohort in asked.values())
    assert len({frozenset(cohort) for cohort in asked.values()}) > 1
    waited = [event.waited_s for event in times(result)]
    assert max(waited) > 0.0
    assert result.summary["virtual"]["waited_s"] == pytest.approx(sum(waited))
    for event in times(result):
        assert event.virtual_s <= event.waited_s + 4 * 3600.0
        assert set(event.sites) <= asked.get(event.round, set(event.sites))
    scored = [event for event in of(result, Evaluated) if event.part == "validation"]
    assert any(event.missing for event in scored), "who is away is missing from the score"


def test_a_trace_in_hours_says_who_is_asked(
    settings: Settings, undisturbed: Undisturbed, tmp_path: Path
) -> None:
    """Rounds of an hour: w0 leaves before the second, w5 comes for the third."""
    always = "".join(f"w{number},0,\n" for number in (1, 2, 3, 4))
    path = trace(tmp_path, "site,from,to\nw0,0,1\nw5,2,9\n" + always)
    given = {"kind": "trace", "path": path, "unit": "h"}
    result = undisturbed(settings("hours", {"rounds": within(4000.0)}, latency_s=1800.0, availability=given))
    asked = [event.cohort for event in of(result, RoundStarted)]
    assert [set(cohort) ^ {"w1", "w2", "w3", "w4"} for cohort in asked[:3]] == [{"w0"}, set(), {"w5"}]
    assert [event.since_start_s for event in times(result)] == [3600.0, 7200.0, 10_800.0, 14_400.0]


def test_a_run_goes_on_with_the_clock_and_the_trace_that_it_began_with(
    settings: Settings, tmp_path: Path
) -> None:
    """Another trace is refused, and so is a folder without the moment of its last round."""
    path = trace(tmp_path, "site,from,to\n" + "".join(f"w{number},0,\n" for number in range(WARDS)))
    config = settings("trace", latency_s=1.0, availability={"kind": "trace", "path": path})
    with pytest.raises(KeyboardInterrupt):
        run_simulation(config, sinks=(Stop(),))
    again = config.model_copy(update={"resume": config.output})
    former = Path(path).read_text()
    Path(path).write_text(former + "w0,0,9\n")
    with pytest.raises(ConfigError, match="not the one that the run began with"):
        run_simulation(again)
    Path(path).write_text(former)
    kept = Path(config.output) / "arms" / "federated" / "clock.jsonl"
    lines = kept.read_text()
    kept.unlink()
    with pytest.raises(StorageError, match="does not say when round 2 ended"):
        run_simulation(again)
    kept.write_text(lines + '{"round": 2, "no')
    assert [event.since_start_s for event in times(run_simulation(again))] == [2.0, 4.0, 6.0, 8.0]


def test_groups_keep_their_places_while_some_are_away(notes: Callable[..., Any], tmp_path: Path) -> None:
    """Drawn before the first round, when everybody is there, in no time; the same in a resumed run."""
    make = notes(rows=96, wards=12, rounds=3)
    path = trace(tmp_path, "site,from,to\nw0,1,1\nw1,2,3\n" + "".join(f"w{n},1,\n" for n in range(2, 12)))
    policy = {"group_strategies": ["group_median"], "least_cohort": 4, "modes": ["off"]}
    given = {
        "strategy": {"name": "group_median", "options": {"group_size": 4}},
        "secure": {"mode": "off", "policy": policy}, "rounds": within(50.0),
        "simulation": {
            "realism": {
                "latency_s": {"kind": "uniform", "low": 1.0, "high": 2.0, "each": "round"},
                "availability": {"kind": "trace", "path": path, "unit": "round"},
            }
        },
    }  # fmt: skip
    whole = run_simulation(make("whole", **given))
    assert [event.missing for event in of(whole, RoundFolded)] == [("w1",), ("w0",), ("w0",)]
    assert all(event.late == () and 2.0 < event.virtual_s < 4.0 for event in times(whole))
    config = make("cut", **given)
    with pytest.raises(KeyboardInterrupt):
        run_simulation(config, sinks=(Stop(),))
    again = run_simulation(config.model_copy(update={"resume": config.output}))
    assert times(again) == times(whole)
    assert digest(again) == digest(whole)
