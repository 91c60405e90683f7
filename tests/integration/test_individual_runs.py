"""Whole simulated runs of strategies that see individuals."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from wardround.client import flower_app
from wardround.core.errors import ConfigError
from wardround.core.messages import Reply, Request
from wardround.runtime.events import RoundFolded, SumOpened
from wardround.runtime.sinks import RecorderSink
from wardround.simulations.config import RunConfig
from wardround.simulations.simulate import SimulationResult, run_simulation

MEDIAN = {"name": "coordinate_median"}
TRUSTED = {"mode": "trusted"}
Settings = Callable[..., RunConfig]


@pytest.fixture
def settings(notes: Callable[..., Any]) -> Settings:
    """Five wards, three rounds."""
    made: Settings = notes(rows=60, wards=5, rounds=3)
    return made


def digest(result: SimulationResult) -> str:
    """Of the last adapter."""
    return result.federated.outcome.last.adapter.digest


def test_a_median_is_one_adapter_through_an_aggregator_and_without(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sum a site; the card says who saw it; no site is sent anything opened."""
    asked, answer = list[Request](), flower_app.answer

    def watched(request: Request, site: Any) -> Reply:
        asked.append(request)
        return answer(request, site)

    monkeypatch.setattr(flower_app, "answer", watched)
    found = {}
    for mode in ("off", "trusted"):
        recorder = RecorderSink()
        result = run_simulation(settings(mode, strategy=MEDIAN, secure={"mode": mode}), sinks=(recorder,))
        found[mode] = digest(result)
        names = [e.name for e in recorder.events if isinstance(e, SumOpened) and e.round == 2]
        assert sorted(names) == ["evaluation", *(f"training.{i}" for i in range(5))]
        card = (result.folder / "README.md").read_text(encoding="utf-8")
        assert ("an aggregator that sites trust saw each contribution" in card) == (mode == "trusted")
        summary = json.loads((result.folder / "summary.json").read_text(encoding="utf-8"))
        assert summary["secure"]["later_attempts"] == 0
    assert len(set(found.values())) == 1
    assert not any(request.opened or request.follows for request in asked)


def test_a_run_that_was_killed_between_rounds_ends_as_the_whole_one(
    settings: Settings,
    undisturbed: Callable[[RunConfig], SimulationResult],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With a part of the sites in each round, and sites that know nothing when it goes on."""
    from wardround.server import rounds

    part = {"rounds": 3, "participation": 0.6}
    whole = undisturbed(settings("whole", strategy=MEDIAN, secure=TRUSTED, rounds=part))
    judge, judged = rounds.judge, []

    def killed(*args: Any) -> Any:
        judged.append(args)
        if len(judged) == 2:
            raise KeyboardInterrupt
        return judge(*args)

    config = settings("part", strategy=MEDIAN, secure=TRUSTED, rounds=part)
    monkeypatch.setattr(rounds, "judge", killed)
    with pytest.raises(KeyboardInterrupt):
        run_simulation(config)
    monkeypatch.setattr(rounds, "judge", judge)
    recorder = RecorderSink()
    resumed = run_simulation(config.model_copy(update={"resume": config.output}), sinks=(recorder,))
    assert digest(resumed) == digest(whole)
    cohorts = [e.survivors for e in recorder.events if isinstance(e, RoundFolded)]
    assert {len(cohort) for cohort in cohorts} == {3}


@pytest.mark.parametrize(
    "strategy",
    [
        {"name": "multi_krum"},
        {"name": "geometric_median", "weighting": "uniform"},
        {"name": "norm_bounded_mean", "options": {"server": {"optimiser": "momentum"}}},
        {"name": "trimmed_mean", "options": {"proximal": 0.1}},
        {"name": "flexlora"},
    ],
    ids=lambda strategy: strategy["name"],
)
def test_every_one_of_them_trains(settings: Settings, strategy: dict[str, Any]) -> None:
    """On the tiny model, in the clear; each round moves the adapter."""
    recorder = RecorderSink()
    config = settings("run", strategy=strategy, rounds={"rounds": 2})
    result = run_simulation(config, sinks=(recorder,))
    moved = [e.update_norm for e in recorder.events if isinstance(e, RoundFolded)]
    assert len(moved) == 2
    assert min(moved) > 0
    assert np.isfinite(result.federated.outcome.last.adapter.vector).all()


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"secure": {"mode": "real"}}, r"has to see each.*secure\.mode=real.*strategy=group_median"),
        ({"secure": {"mode": "accounted"}}, r"has to see each.*secure\.mode=accounted"),
        ({"rounds": {"participation": 0.4}}, "too few sites train in a round"),
        ({"secure": {"mode": "off", "threshold": 3}}, r"secure\.threshold=3"),
        (
            {"strategy": {"weighting": "uniform"}, "data": {"validation_fraction": 0.0, "labels": ["0", "1"]},
             "privacy": {"unit": "site", "noise": "central", "sigma": 1.0, "delta": 1e-3}},
            r"adds its noise to a sum",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_run_is_said_before_a_model_is_loaded(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, sections: Any, message: str
) -> None:
    """With the remedy."""
    from wardround.training import workbench

    def loaded(*_: Any, **__: Any) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(workbench, "open_workbench", loaded)
    strategy = MEDIAN | sections.pop("strategy", {})
    with pytest.raises(ConfigError, match=f"(?s){message}"):
        run_simulation(settings("bad", strategy=strategy, **sections))
    assert not (tmp_path / "bad").exists()
