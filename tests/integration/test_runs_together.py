"""Simulations whose sites train together, through the real loop, the real handler and Flower's engine."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from wardround.client.ledger.ledger import Ledger
from wardround.client.ledger.summary import summarise
from wardround.core.errors import ConfigError, TrainingError
from wardround.runtime.event_log import read_events
from wardround.runtime.events import Event, PrivacySpent, RoundFolded, SiteReplied
from wardround.runtime.sinks import RecorderSink
from wardround.simulations import together
from wardround.simulations.config import RunConfig
from wardround.simulations.simulate import SimulationResult, run_simulation
from wardround.training import local_round
from wardround.training import together as shared

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


PRIVATE: dict[str, Any] = {"unit": "patient", "sigma": 1.0, "delta": 1e-2}
DISTRIBUTED = PRIVATE | {"noise": "distributed", "sample_rate": 0.5}


@pytest.fixture
def private(notes: Callable[..., Any]) -> Callable[..., RunConfig]:
    """Three wards of 20 patients with two rows each, two rounds; `group` of them train together."""
    make = notes(120, 3, 2, unit_column="patient", labels=["0", "1"])

    def by_group(name: str, group: Any, privacy: dict[str, Any], **sections: Any) -> RunConfig:
        local = {"max_grad_norm": None, **sections.pop("local", {})}
        simulation = {"together": group} | sections.pop("simulation", {})
        given = {"strategy": {"weighting": "uniform"}, "local": local, "model": {"dropout": "off"}}
        made: RunConfig = make(name, privacy=privacy, simulation=simulation, **(given | sections))
        return made.model_copy(update={"seed": 134})  # 14 patients to train on at each

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


@pytest.mark.parametrize("kind", ["plain", "private"])
def test_an_interrupted_run_goes_on_to_the_same_bits(
    request: pytest.FixtureRequest, undisturbed: Callable[[RunConfig], SimulationResult], kind: str
) -> None:
    """A group is who is asked, in order of names: not who happens to come first."""

    class Stop:
        def emit(self, event: Event) -> None:
            if isinstance(event, RoundFolded) and event.round > 1:
                raise KeyboardInterrupt

        def close(self) -> None:
            """Nothing to flush."""

    make = request.getfixturevalue("private" if kind == "private" else "settings")
    part: dict[str, Any] = {"rounds": {"rounds": 3}, "local": {"optimiser_state": "keep"}}
    if kind == "private":
        part |= {"privacy": PRIVATE}
    else:
        part["rounds"]["participation"] = 0.6

    def made(name: str, **more: Any) -> RunConfig:
        config: RunConfig = make(name, 2 if kind == "private" else GROUP, **part, **more)
        return config

    whole = undisturbed(made("whole")).federated.outcome.last.adapter
    config = made("cut", simulation={"lanes": 2})
    with pytest.raises(KeyboardInterrupt):
        run_simulation(config, sinks=(Stop(),))
    again = run_simulation(config.model_copy(update={"resume": config.output}))
    assert again.federated.outcome.last.adapter.digest == whole.digest


@pytest.mark.parametrize("kind", ["local", "distributed"])
def test_private_sites_that_train_together_spend_and_make_what_they_do_alone(
    private: Callable[..., RunConfig], groups: list[tuple[str, ...]], kind: str
) -> None:
    """The same ε in ledgers, events and summary, the same batches, an adapter that differs by rounding."""
    privacy, more = PRIVATE, dict[str, Any]()
    if kind == "distributed":
        policy = {"least_cohort": 3, "least_honest": 2, "modes": ["accounted"]}
        privacy = DISTRIBUTED
        more = {"secure": {"mode": "accounted", "policy": policy}, "local": {"steps": 1, "optimiser": "sgd"}}
    found = []
    for name, group in (("alone", 1), ("grouped", 2)):
        recorder = RecorderSink()
        result = run_simulation(private(name, group, privacy, **more), sinks=(recorder,))
        assert {reply.status for reply in replies(result)} == {"ok"}
        spent = [event.sites for event in recorder.events if isinstance(event, PrivacySpent)]
        lines = []
        for site in WARDS[:3]:
            with Ledger.open(result.folder / "arms" / "federated" / "sites" / site / "ledger") as ledger:
                lines += [replace(line, run="", plan="") for line in summarise(ledger.book).runs]
        record = json.loads((result.folder / "summary.json").read_text())["privacy"]
        found.append((result, spent, lines, record))
    assert groups == [WARDS[:2]] * 2, "by name; the last one is by itself"
    (alone, *told), (grouped, *also) = found
    assert told == also
    assert len(told[0]) == 2
    assert {(line.stages, line.reservations, line.sealed) for line in told[1]} == {(2, 2, 2)}
    shown = [
        [reply.local for reply in replies(result) if "private.loss" in reply.local]
        for result in (alone, grouped)
    ]
    assert [len(each) for each in shown] == [6, 6]
    for one, other in zip(*shown, strict=True):
        assert one["private.units_a_step"] > 0
        for name in ("units_a_step", "clipped_share", "dropped", "median_norm"):
            assert other[f"private.{name}"] == pytest.approx(one[f"private.{name}"], rel=1e-4)
    vectors = [result.federated.outcome.last.adapter.vector for result in (alone, grouped)]
    np.testing.assert_allclose(vectors[1], vectors[0], atol=1e-3)
    assert np.abs(vectors[0]).max() > 0.05


def test_a_private_site_of_its_own_rank_trains_by_itself(
    private: Callable[..., RunConfig], groups: list[tuple[str, ...]]
) -> None:
    """Gradients of single rows are recorded at one rank; who would have gone with it has its bits alone."""
    found = [
        run_simulation(private(name, group, PRIVATE, simulation={"ranks": {WARDS[1]: 2}}))
        for name, group in (("alone", 1), ("grouped", 2))
    ]
    assert groups == []
    for result in found:
        assert {reply.status for reply in replies(result)} == {"ok"}
    assert len({result.federated.outcome.last.adapter.digest for result in found}) == 1


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


def test_how_many_private_sites_train_together(
    private: Callable[..., RunConfig], groups: list[tuple[str, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many as bring 16 patients a step, whatever memory holds at once; under correlated noise none."""
    banded = PRIVATE | {"sigma": 2.0, "mechanism": "banded"}
    with pytest.raises(ConfigError, match="correlated noise goes on from"):
        run_simulation(private("banded", 2, banded))
    monkeypatch.setattr(together, "LOTS", 1)
    one = {"rounds": {"rounds": 1}}
    run_simulation(private("rising", "auto", banded, **one))
    run_simulation(private("many", "auto", PRIVATE, **one, local={"batch_size": 9}))
    assert groups == []
    run_simulation(private("small", "auto", PRIVATE, **one, local={"batch_size": 8}))
    run_simulation(private("cuts", 2, PRIVATE, **one, machine={"microbatch_size": 4}))
    assert groups == [WARDS[:2]] * 2


@pytest.mark.parametrize("kind", ["plain", "private"])
def test_where_memory_fills_sites_train_by_themselves_to_the_bits_of_those_that_always_did(
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    kind: str,
) -> None:
    """In the middle of a lot's round: what that attempt drew and moved counts for nothing."""
    make = request.getfixturevalue("private" if kind == "private" else "settings")
    privacy: dict[str, Any] = {"privacy": PRIVATE} if kind == "private" else {}
    alone: SimulationResult = run_simulation(make("alone", 1, **privacy))
    name = "sums_together" if kind == "private" else "gradients_together"
    pass_of, calls = getattr(shared, name), list[int]()

    def filling(*given: Any) -> Any:
        calls.append(len(given[1]))
        if len(calls) == 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return pass_of(*given)

    monkeypatch.setattr(shared, name, filling)
    found: SimulationResult = run_simulation(make("full", 2, **privacy))
    assert calls == [2, 2]
    assert "does not hold 2 sites at once" in caplog.text
    one, other = (result.federated.outcome.last.adapter for result in (alone, found))
    assert other.digest == one.digest
