"""Whole simulated runs that vote over groups of sites."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from wardround.core.errors import ConfigError, PolicyError
from wardround.runtime.events import Notice, SumOpened
from wardround.runtime.sinks import RecorderSink
from wardround.simulations.config import RunConfig
from wardround.simulations.simulate import SimulationResult, run_simulation

NAME = "group_median"
STRATEGY = {"name": NAME, "options": {"group_size": 4}}


@pytest.fixture
def settings(notes: Callable[..., Any]) -> Callable[..., RunConfig]:
    """Twelve wards in three groups of four, two rounds."""

    def make(output: str, **sections: Any) -> RunConfig:
        policy = {
            "group_strategies": [NAME],
            "least_cohort": 4,
            "modes": ["real", "accounted", "off", "trusted"],
        }
        secure = {"mode": "real", "policy": policy} | sections.pop("secure", {})
        ready: RunConfig = notes(rows=96, wards=12, rounds=2)(
            output, **({"strategy": STRATEGY, "secure": secure} | sections)
        )
        return ready

    return make


def run(config: RunConfig) -> tuple[SimulationResult, RecorderSink]:
    """A run and its events."""
    recorder = RecorderSink()
    return run_simulation(config, sinks=(recorder,)), recorder


def digest(result: SimulationResult) -> str:
    """Of the last adapter."""
    return result.federated.outcome.last.adapter.digest


def test_a_run_over_groups_is_one_adapter_in_every_mode(settings: Callable[..., RunConfig]) -> None:
    """A simulation draws its groups from the seed, whatever the mode; it says what the server saw."""
    policy = settings("x").secure.policy.model_dump(mode="json")
    found = {}
    for output, mode in (("off", "off"), ("real", "real"), ("trusted", "trusted")):
        result, recorder = run(settings(output, secure={"mode": mode, "policy": policy}))
        found[output] = digest(result)
        names = {(e.round, e.name) for e in recorder.events if isinstance(e, SumOpened) and e.round < 3}
        assert {name for round, name in names if round == 1} >= {"training.0", "training.1", "training.2"}
        assert len([e for e in recorder.events if isinstance(e, Notice) and "in groups" in e.text]) == 1
        card = (result.folder / "README.md").read_text(encoding="utf-8")
        summary = json.loads((result.folder / "summary.json").read_text(encoding="utf-8"))
        assert summary["secure"]["groups"] == 3
        assert ("the server saw the sums of 3 groups" in card) == (mode == "real")
    assert len(set(found.values())) == 1


def test_a_resumed_run_ends_as_the_whole_one(
    settings: Callable[..., RunConfig],
    undisturbed: Callable[[RunConfig], SimulationResult],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Over the same groups, though the sites' keys are new."""
    from wardround.server import rounds

    policy = settings("x").secure.policy.model_dump(mode="json")
    # One adapter in every mode, as the test above holds; `off` is the quickest.
    whole = digest(undisturbed(settings("whole", secure={"mode": "off", "policy": policy})))
    fold, folds = rounds.judge, []

    def killed(*args: Any) -> Any:
        folds.append(args)
        if len(folds) == 2:
            raise KeyboardInterrupt
        return fold(*args)

    monkeypatch.setattr(rounds, "judge", killed)
    with pytest.raises(KeyboardInterrupt):
        run(settings("part"))
    monkeypatch.setattr(rounds, "judge", fold)
    folder = Path(settings("part").output)
    assert list(folder.rglob("groups.bin"))
    resumed, _ = run(settings("part").model_copy(update={"resume": str(folder)}))
    assert digest(resumed) == whole


@pytest.mark.parametrize(
    ("sections", "error", "message"),
    [
        ({"secure": {"policy": {"least_cohort": 4}}}, PolicyError, "sums over groups"),
        ({"strategy": {"name": NAME, "options": {"group_size": 5}}}, ConfigError, "too few sites"),
        ({"strategy": {"name": NAME, "options": {"attackers": 2, "group_size": 4}}}, ConfigError, "too few"),
        ({"strategy": {"name": NAME, "options": {"group_size": 2}}}, ConfigError, "group_size"),
        ({"rounds": {"rounds": 2, "participation": 0.5}}, ConfigError, "fixed for the whole run"),
    ],
)
def test_what_cannot_be_run_is_said_before_a_model_is_loaded(
    settings: Callable[..., RunConfig],
    monkeypatch: pytest.MonkeyPatch,
    sections: Any,
    error: Any,
    message: str,
) -> None:
    """With the remedy."""
    from wardround.training import workbench

    def loaded(*_: Any, **__: Any) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(workbench, "open_workbench", loaded)
    with pytest.raises(error, match=message) as caught:
        run(settings("bad", **sections))
    assert "remedy" in str(caught.value) or "faults" in str(caught.value)
