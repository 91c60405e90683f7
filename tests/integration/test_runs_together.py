"""Simulations whose sites train together, through the real loop, the real handler and Flower's engine."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from wardround.core.errors import ConfigError, TrainingError
from wardround.runtime.event_log import read_events
from wardround.runtime.events import Event, RoundFolded, SiteReplied
from wardround.simulations import together
from wardround.simulations.config import RunConfig
from wardround.simulations.simulate import SimulationResult, run_simulation
from wardround.training import local_round

GROUP = 3
"""Of seven sites: two whole groups, and a site by itself."""
WARDS = tuple(f"w{index}" for index in range(7))


@pytest.fixture
def settings(notes: Callable[..., Any]) -> Callable[..., RunConfig]:
    """Seven wards, three rounds; `group` of them train together."""
    make = notes(rows=84, wards=len(WARDS), rounds=3)

    def by_group(name: str, group: Any, **sections: Any) -> RunConfig:
        simulation = {"together": group} | sections.pop("simulation", {})
        made: RunConfig = make(name, simulation=simulation, **({"model": {"dropout": "off"}} | sections))
        return made

    return by_group


@pytest.fixture
def groups(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """Who trained together, in order."""
    seen, train = list[tuple[str, ...]](), together.train_together

    def recording(bench: Any, jobs: Any) -> Any:
        seen.append(tuple(job.site for job in jobs))
        return train(bench, jobs)

    monkeypatch.setattr(together, "train_together", recording)
    return seen


def replies(result: SimulationResult) -> list[SiteReplied]:
    """All of a run."""
    return [e for e in read_events(result.folder / "metrics.jsonl") if isinstance(e, SiteReplied)]


@pytest.mark.parametrize("strategy", ["fedavg", "tangent_scaffold"])
def test_sites_that_train_together_make_the_adapter_of_sites_that_do_not(
    settings: Callable[..., RunConfig], groups: list[tuple[str, ...]], strategy: str
) -> None:
    """To rounding, whatever a strategy keeps at its sites; by name, three at a time, once a round."""
    more = {"strategy": {"name": strategy}, "local": {"optimiser_state": "keep"}, "encoding": {"bits": 32}}
    alone = run_simulation(settings("alone", 1, **more))
    assert groups == []
    grouped = run_simulation(settings("grouped", GROUP, **more))
    assert groups == [WARDS[:3], WARDS[3:6]] * 3, "the last one is by itself"
    assert {reply.status for reply in replies(grouped)} == {"ok"}
    one, other = (result.federated.outcome.last.adapter.vector for result in (alone, grouped))
    np.testing.assert_allclose(other, one, atol=2e-3)
    assert np.abs(one).max() > 0.05


def test_an_interrupted_run_goes_on_to_the_same_bits(
    settings: Callable[..., RunConfig], undisturbed: Callable[[RunConfig], SimulationResult]
) -> None:
    """A group is who is asked, in order of names: not who happens to come first."""

    class Stop:
        def emit(self, event: Event) -> None:
            if isinstance(event, RoundFolded) and event.round > 1:
                raise KeyboardInterrupt

        def close(self) -> None:
            """Nothing to flush."""

    part = {"rounds": {"rounds": 3, "participation": 0.6}, "local": {"optimiser_state": "keep"}}
    whole = undisturbed(settings("whole", GROUP, **part)).federated.outcome.last.adapter
    lanes = {"simulation": {"lanes": 2}}
    config = settings("cut", GROUP, **part, **lanes)
    with pytest.raises(KeyboardInterrupt):
        run_simulation(config, sinks=(Stop(),))
    again = run_simulation(config.model_copy(update={"resume": config.output}))
    assert again.federated.outcome.last.adapter.digest == whole.digest


def test_a_site_that_fails_fails_alone(
    settings: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its group goes on without it, and it says itself why."""
    rounds = local_round._require_finite

    def poisoned(loss: Any, norm: Any, *, step: int, site: str) -> float:
        if site == "w1":
            raise TrainingError("non_finite_loss", "the loss of site 'w1' is not finite at step 1")
        return rounds(loss, norm, step=step, site=site)

    monkeypatch.setattr(local_round, "_require_finite", poisoned)
    result = run_simulation(settings("failing", GROUP))
    failed = {(reply.site, reply.code) for reply in replies(result) if reply.status != "ok"}
    assert failed == {("w1", "non_finite_loss")}
    folded = [e for e in read_events(result.folder / "metrics.jsonl") if isinstance(e, RoundFolded)]
    assert [event.missing for event in folded] == [("w1",)] * 3


@pytest.mark.parametrize("strategy", ["tangent", "flora"])
def test_sites_of_a_rank_of_their_own_train_with_the_others(
    settings: Callable[..., RunConfig], groups: list[tuple[str, ...]], strategy: str
) -> None:
    """Below the plan's rank and at it; the same adapter comes out, to rounding, moments of each rank kept."""
    options = {"options": {"site_rank": 2}} if strategy == "flora" else {}
    own = {
        "simulation": {"ranks": {"w0": 1, "w4": 1}}, "strategy": {"name": strategy, **options},
        "encoding": {"bits": 32}, "rounds": {"rounds": 2},
    }  # fmt: skip
    if strategy == "tangent":
        own["local"] = {"optimiser_state": "keep"}
    alone = run_simulation(settings("alone", 1, **own))
    assert groups == []
    grouped = run_simulation(settings("grouped", GROUP, **own))
    assert groups == [WARDS[:3], WARDS[3:6]] * 2
    assert {reply.status for reply in replies(grouped)} == {"ok"}
    one, other = (result.federated.outcome.last.adapter.vector for result in (alone, grouped))
    np.testing.assert_allclose(other, one, atol=2e-3)
    assert np.abs(one).max() > 0.05


def test_what_cannot_train_together_is_refused_by_name_or_trains_alone(
    settings: Callable[..., RunConfig], groups: list[tuple[str, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asked for outright it is an error before anything is trained; `auto` chooses one site at a time.

    Also where so few train that a round would have fewer lots than it should.
    """
    with pytest.raises(ConfigError, match="dropout draws masks"):
        run_simulation(settings("dropout", GROUP, model={"dropout": "base"}))
    run_simulation(settings("auto", "auto", model={"dropout": "base"}, rounds={"rounds": 1}))
    run_simulation(settings("few", "auto", local={"batch_size": 4}, rounds={"rounds": 1}))
    assert groups == []
    monkeypatch.setattr(together, "LOTS", 3)
    run_simulation(settings("two", "auto", local={"batch_size": 4}, rounds={"rounds": 1}))
    assert len(groups[0]) == 2
