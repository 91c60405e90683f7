"""Figures of simulated sites: what is drawn, when it is drawn anew, and what is refused."""

from __future__ import annotations

import statistics
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from wardround.core.errors import ConfigError
from wardround.core.seeds import Purpose
from wardround.simulations.config import RunConfig
from wardround.simulations.virtual.figures import Figure, check_names, smallest, value_of
from wardround.simulations.virtual.settings import Realism

FIGURE: TypeAdapter[Figure] = TypeAdapter(Figure)
MANY = [f"s{number}" for number in range(2000)]


def drawn(given: Any, *, round: int = 1, seed: int = 0, purpose: Purpose = Purpose.LATENCY) -> list[float]:
    """A figure's values at many sites."""
    figure = FIGURE.validate_python(given)
    return [value_of(figure, seed, purpose, site=site, round=round) for site in MANY]


def test_distributions_are_what_they_are_called() -> None:
    """Median and spread, tail and bounds, within some standard errors of two thousand draws."""
    logs = drawn({"kind": "lognormal", "median": 20.0, "sigma": 0.5})
    assert statistics.median(logs) == pytest.approx(20.0, rel=0.06)
    within = sum(20.0 * 0.60653 <= value <= 20.0 * 1.64872 for value in logs) / len(logs)  # e^±0.5
    assert within == pytest.approx(0.6827, abs=0.04)
    tail = drawn({"kind": "pareto", "scale": 2.0, "shape": 1.5})
    assert min(tail) >= 2.0
    assert sum(value >= 8.0 for value in tail) / len(tail) == pytest.approx(4**-1.5, abs=0.03)
    even = drawn({"kind": "uniform", "low": 1.0, "high": 3.0})
    assert 1.0 <= min(even) < 1.02
    assert 2.98 < max(even) <= 3.0
    assert statistics.mean(even) == pytest.approx(2.0, abs=0.05)
    bounded = drawn({"kind": "pareto", "scale": 1.0, "shape": 0.5, "least": 2.0, "most": 9.0})
    assert (min(bounded), max(bounded)) == (2.0, 9.0)
    assert set(drawn(0.25)) == {0.25}
    assert set(drawn({"kind": "sites", "sites": {"s1": 4.0}, "other": 2.0})) == {2.0, 4.0}


def test_a_figure_is_drawn_once_for_a_site_or_anew_in_every_round() -> None:
    """From the seed, for one purpose: two figures of one distribution are not the same."""
    site = {"kind": "lognormal", "median": 1.0, "sigma": 1.0}
    each = site | {"each": "round"}
    assert drawn(site, round=1) == drawn(site, round=2)
    assert drawn(each, round=1) == drawn(each, round=1)
    assert drawn(each, round=1) != drawn(each, round=2)
    assert drawn(site, seed=0) != drawn(site, seed=1)
    assert drawn(site) != drawn(site, purpose=Purpose.SLOWNESS)
    assert len(set(drawn(site))) == len(MANY)


@pytest.mark.parametrize(
    "given",
    [
        *(-1.0, float("nan"), float("inf"), {"kind": "normal"}, {"median": 1.0, "sigma": 1.0}, "fast"),
        {"kind": "lognormal", "median": 0.0, "sigma": 1.0},
        {"kind": "lognormal", "median": 1.0, "sigma": -1.0},
        {"kind": "lognormal", "median": 1.0, "sigma": 1.0, "least": 3.0, "most": 2.0},
        {"kind": "lognormal", "median": 1.0, "sigma": 1.0, "each": "step"},
        {"kind": "pareto", "scale": 1.0, "shape": 0.0},
        {"kind": "uniform", "low": 2.0, "high": 1.0},
        {"kind": "sites", "sites": {}, "other": 1.0},
        {"kind": "sites", "sites": {"a": -1.0}},
    ],
)
def test_what_is_no_figure_is_refused(given: Any) -> None:
    """Negative, unknown, out of order, empty."""
    with pytest.raises(ValidationError):
        Realism(latency_s=given)


@pytest.mark.parametrize("name", ["down_mbit_s", "up_mbit_s", "slowness"])
@pytest.mark.parametrize(
    "given",
    [
        *(0.0, {"kind": "uniform", "low": 0.0, "high": 1.0}),
        {"kind": "sites", "sites": {"a": 1.0}, "other": 0.0},
        {"kind": "lognormal", "median": 1.0, "sigma": 1.0, "most": 0.0},
    ],
)
def test_nothing_that_is_divided_by_may_be_zero(name: str, given: Any) -> None:
    """Said with the setting's name; a latency may."""
    with pytest.raises(ValidationError, match=f"{name} may be zero"):
        Realism(**{name: given})
    assert Realism(latency_s=given).on is (given != 0.0)


def test_the_smallest_value_is_a_bound() -> None:
    """Of every kind."""
    for given in (
        *(3.0, {"kind": "uniform", "low": 1.0, "high": 2.0}, {"kind": "pareto", "scale": 2.0, "shape": 1.0}),
        {"kind": "lognormal", "median": 1.0, "sigma": 3.0, "least": 0.1},
        {"kind": "sites", "sites": {"s0": 5.0}, "other": 4.0},
    ):
        least = smallest(FIGURE.validate_python(given))
        assert 0 < least <= min(drawn(given))


def test_a_table_names_sites_that_there_are_and_all_of_them() -> None:
    """Or says what the others have."""
    table = FIGURE.validate_python({"kind": "sites", "sites": {"budapest": 1.0}})
    with pytest.raises(ConfigError, match=r"leaves sites out(.|\n)*zürich"):
        check_names("simulation.realism.slowness", table, ["budapest", "zürich"])
    with pytest.raises(ConfigError, match=r"did you mean 'budapst'"):
        check_names("simulation.realism.slowness", table, ["budapst", "zürich"])
    check_names("x", FIGURE.validate_python({"kind": "sites", "sites": {"a": 1}, "other": 2}), ["a", "b"])
    with pytest.raises(ConfigError):
        value_of(table, 0, Purpose.SLOWNESS, site="zürich", round=1)


def test_realism_is_off_until_something_of_it_is_set() -> None:
    """The settings of a run have all of it, with nothing on; an unknown one is refused with the nearest."""
    assert not Realism().on
    assert Realism(latency_s=0.1).on
    assert Realism(grace_s=5.0).on
    values = {
        "name": "x", "model": {"path": "."}, "task": {"name": "t"}, "data": {}, "local": {"steps": 1},
        "rounds": {"rounds": 1},
    }  # fmt: skip
    assert not RunConfig.parse(values).simulation.realism.on
    with pytest.raises(ConfigError, match="did you mean 'latency_s'"):
        RunConfig.parse(values | {"simulation": {"realism": {"latency": 1.0}}})
