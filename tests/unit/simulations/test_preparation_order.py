"""A configuration is checked as a whole before a row is read or a model is loaded."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from wardround.core.errors import ConfigError, PolicyError
from wardround.simulations import preparation
from wardround.simulations.config import RunConfig
from wardround.training import workbench

SOUND: dict[str, Any] = {
    "name": "p",
    "model": {"path": "nowhere"},
    "task": {"name": "causal_lm"},
    "data": {"source": {"path": "nowhere.jsonl"}, "columns": {"prompt": "q", "completion": "a"}},
    "local": {"steps": 1},
    "rounds": {"rounds": 1},
    "partition": {"kind": "natural"},
}


@pytest.fixture(autouse=True)
def nothing_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading rows or opening a model fails the test."""

    def read(*_: Any, **__: Any) -> None:
        raise AssertionError("something was read before the configuration was checked")

    monkeypatch.setattr(preparation, "gather", read)
    monkeypatch.setattr(workbench, "open_workbench", read)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"strategy": {"name": "fedavgg"}}, "did you mean 'fedavg"),
        ({"strategy": {"name": "fedprox", "options": {"muu": 1}}}, "muu"),
        ({"release": {"metric": "perplexityy"}}, "did you mean 'perplexity'"),
        ({"release": {"metric": "rouge_l", "direction": "max"}}, "never computed"),
        ({"release": {"metric": "loss", "direction": "max"}}, "worst round"),
        ({"local": {"steps": 1, "momentum": 0.5}}, "no effect"),
        ({"adapter": {"method": "loraa"}}, "did you mean 'lora'"),
        ({"adapter": {"options": {"rank": 4}}}, "rank"),
        ({"partition": {"kind": "dirichlet", "options": {"alfa": 1}}}, "did you mean 'alpha'"),
        ({"task": {"name": "causal_lm", "options": {"fromat": "text"}}}, "did you mean 'format'"),
    ],
)
def test_it_is_refused_before_anything_is_read(changed: dict[str, Any], message: str) -> None:
    """Whatever only its own file can check is asked there first."""
    with pytest.raises(ConfigError, match=message):
        preparation.prepare(RunConfig.parse(SOUND | changed))


def test_a_sound_one_goes_on_to_the_rows() -> None:
    """The twin of the test above: nothing else stands in the way."""
    with pytest.raises(AssertionError, match="was read"):
        preparation.prepare(RunConfig.parse(SOUND))


@pytest.mark.parametrize("mode", ["real", "accounted"])
@pytest.mark.parametrize(("sites", "participation"), [(4, 1.0), (8, 0.5)])
def test_a_cohort_that_no_site_would_join_is_refused_before_a_model_is_loaded(
    mode: str, sites: int, participation: float
) -> None:
    """Four a round under the default policy: its own words, with what it found and what it asks for."""
    rows: Any = SimpleNamespace(contract=None, sites={f"site_{number}": [None] for number in range(sites)})
    changed = {
        "secure": {"mode": mode},
        "rounds": {"rounds": 1, "participation": participation},
    }
    with pytest.raises(
        PolicyError, match=r"(?s)smaller than this site's policy.*4 sites.*at least 5.*mode=off"
    ):
        preparation.prepare(RunConfig.parse(SOUND | changed), rows)
    with pytest.raises(AssertionError, match="was read"):
        preparation.prepare(RunConfig.parse(SOUND | changed | {"secure": {"mode": "off"}}), rows)
