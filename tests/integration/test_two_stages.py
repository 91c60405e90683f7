"""A strategy with a second pass, through the real loop, the real handler and Flower's engine."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from wardround.client import work as handler
from wardround.runtime.event_log import read_events
from wardround.runtime.events import Event, RoundBurnt, RoundFolded, RoundStarted, SiteReplied, SumOpened
from wardround.runtime.sinks import RecorderSink
from wardround.simulations.config import RunConfig
from wardround.simulations.simulate import SimulationResult, run_simulation

SITES = ("w0", "w1", "w2")
ROUNDS = 3


@pytest.fixture
def settings(notes: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> Callable[..., RunConfig]:
    """Three wards, three rounds, by `halves.py` unless another strategy is named.

    Its second stage sends counts and means beside updates, so that the bound of a coordinate is given, and
    the ring is wide: what is compared is the strategy and not the rounding.
    """
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    make = notes(rows=36, wards=3, rounds=ROUNDS)

    def by_strategy(
        name: str, strategy: str = "halves:STRATEGY", state: str = "keep", **sections: Any
    ) -> RunConfig:
        sections = {"encoding": {"bits": 64, "largest": 10.0}} | sections
        made: RunConfig = make(
            name, strategy={"name": strategy}, local={"optimiser_state": state}, **sections
        )
        return made

    return by_strategy


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> Counter[tuple[str, int]]:
    """How often each site has trained in each round."""
    counted: Counter[tuple[str, int]] = Counter()
    train = handler.train_locally

    def counting(bench: Any, job: Any) -> Any:
        counted[job.site, job.round] += 1
        return train(bench, job)

    monkeypatch.setattr(handler, "train_locally", counting)
    return counted


ONCE = {(site, round): 1 for site in SITES for round in range(1, ROUNDS + 1)}


class Stop:
    """Ends the run at an event, as a kill does."""

    def __init__(self, at: Callable[[Event], bool]) -> None:
        self.at = at

    def emit(self, event: Event) -> None:
        if self.at(event):
            raise KeyboardInterrupt

    def close(self) -> None:
        """Nothing to flush."""


def last_adapter(config: RunConfig, *sinks: Any, resume: bool = False) -> np.ndarray[Any, Any]:
    """The vector that a run ends with."""
    config = config.model_copy(update={"resume": config.output}) if resume else config
    return run_simulation(config, sinks=sinks).federated.outcome.last.adapter.vector


@pytest.mark.parametrize("state", ["reset", "keep"])
def test_two_stages_train_once_and_fold_what_one_stage_folds(
    settings: Callable[..., RunConfig],
    trained: Counter[tuple[str, int]],
    undisturbed: Callable[[RunConfig], SimulationResult],
    state: str,
) -> None:
    """The second pass contributes from the first one's training: FedAvg's adapter, to float32's rounding."""
    config = settings("halves", state=state)
    result = run_simulation(config)
    last = result.federated.outcome.last.adapter
    assert trained == ONCE
    assert last.digest != result.plan.adapter.initial_digest
    events = read_events(Path(config.output) / "metrics.jsonl")
    replies = Counter((e.round, e.stage, e.site) for e in events if isinstance(e, SiteReplied))
    places = [(round, stage) for round in range(1, ROUNDS + 1) for stage in (0, 1)]
    places.append((ROUNDS + 1, 0))  # the exchange that only evaluates
    assert replies == {(*place, site): 1 for place in places for site in SITES}
    asked = [(e.round, e.stage) for e in events if isinstance(e, RoundStarted)]
    assert asked == places
    assert [len(e.survivors) for e in events if isinstance(e, RoundFolded)] == [3] * ROUNDS
    one_pass = undisturbed(settings("fedavg", "fedavg", state)).federated.outcome.last.adapter.vector
    np.testing.assert_allclose(last.vector, one_pass, rtol=0, atol=2e-6)


@pytest.mark.parametrize("stage", [0, 1])
@pytest.mark.parametrize("site", ["w0", "w2"])
def test_a_run_killed_in_either_stage_goes_on_and_trains_nothing_twice(
    settings: Callable[..., RunConfig],
    trained: Counter[tuple[str, int]],
    undisturbed: Callable[[RunConfig], SimulationResult],
    stage: int,
    site: str,
) -> None:
    """Round 2 begins anew: its broadcast is the same, so every site contributes from what it trained."""
    whole = undisturbed(settings("whole")).federated.outcome.last.adapter.vector
    trained.clear()
    config = settings("cut")

    def at(event: Event) -> bool:
        reply = isinstance(event, SiteReplied)
        return reply and (event.round, event.stage, event.site) == (2, stage, site)

    with pytest.raises(KeyboardInterrupt):
        last_adapter(config, Stop(at))
    np.testing.assert_array_equal(last_adapter(config, resume=True), whole)
    assert trained == ONCE


def test_a_site_that_lost_what_it_trained_is_named(
    settings: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch, trained: Counter[tuple[str, int]]
) -> None:
    """Stage 1 cannot be answered without stage 0: the round is lost by that site's name and code.

    Its contribution is in the first sum and not in the second: nothing is folded, and the next round begins
    anew.
    """
    from wardround.client.memory import SiteStore

    load = SiteStore.load_stage

    def lost(self: SiteStore, *, round: int, stage: int) -> Any:
        missing = (self.folder.name, round) == ("w1", 2)
        return None if missing else load(self, round=round, stage=stage)

    monkeypatch.setattr(SiteStore, "load_stage", lost)
    recorder = RecorderSink()
    cut = last_adapter(settings("cut", rounds={"rounds": 2}), recorder)
    failed = [e for e in recorder.events if isinstance(e, SiteReplied) and e.status != "ok"]
    assert [(e.site, e.round, e.stage, e.code) for e in failed] == [("w1", 2, 1, "nothing_trained")]
    (burnt,) = [e for e in recorder.events if isinstance(e, RoundBurnt)]
    assert burnt.round == 2
    assert "w1" in burnt.reason
    np.testing.assert_array_equal(cut, last_adapter(settings("one", rounds={"rounds": 1})))
    trained.clear()
    recorder = RecorderSink()
    last_adapter(settings("whole"), recorder)
    folded = [e for e in recorder.events if isinstance(e, RoundFolded)]
    assert [(e.round, len(e.survivors)) for e in folded] == [(1, 3), (3, 3)]
    assert trained == ONCE


def test_two_stages_under_secure_aggregation_fold_the_same(
    notes: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, trained: Counter[tuple[str, int]]
) -> None:
    """Five wards: both sums of every round are secure, each of the same five, and nobody trains twice."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    make = notes(rows=60, wards=5, rounds=2)

    def run(mode: str, *sinks: Any) -> np.ndarray[Any, Any]:
        trained.clear()
        found = last_adapter(
            make(
                mode, strategy={"name": "halves:STRATEGY"}, encoding={"bits": 64, "largest": 10.0},
                secure={"mode": mode},
            ),
            *sinks,
        )  # fmt: skip
        assert set(trained.values()) == {1}
        return found

    recorder, plain = RecorderSink(), run("off")
    np.testing.assert_array_equal(run("real", recorder), plain)
    np.testing.assert_array_equal(run("trusted"), plain)
    opened = [(e.round, e.stage, e.survivors) for e in recorder.events
              if isinstance(e, SumOpened) and e.name == "training"]  # fmt: skip
    assert opened == [(round, stage, 5) for round in (1, 2) for stage in (0, 1)]


def test_who_was_lost_in_the_first_stage_is_not_asked_in_the_second(
    notes: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It stays in the cohort, as one that dropped out: the threshold is still that of all six."""
    from wardround.core.errors import TrainingError

    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    make, train = notes(rows=72, wards=6, rounds=1), handler.train_locally

    def failing(bench: Any, job: Any) -> Any:
        if job.site == "w3":
            raise TrainingError("non_finite_loss", "the loss is not finite")
        return train(bench, job)

    monkeypatch.setattr(handler, "train_locally", failing)
    found = {}
    for mode in ("accounted", "off", "trusted"):
        recorder = RecorderSink()
        config = make(
            mode, strategy={"name": "halves:STRATEGY"}, encoding={"bits": 64, "largest": 10.0},
            secure={"mode": mode},
        )  # fmt: skip
        found[mode] = last_adapter(config, recorder)
        sums = [e for e in recorder.events if isinstance(e, SumOpened) and e.name == "training"]
        assert [(e.stage, e.cohort, e.survivors) for e in sums] == [(0, 6, 5), (1, 6, 5)]
        asked = [e.cohort for e in recorder.events if isinstance(e, RoundStarted) and e.stage == 1]
        assert asked == [("w0", "w1", "w2", "w4", "w5")]
        told = [
            e.site for e in recorder.events if isinstance(e, SiteReplied) and (e.round, e.stage) == (1, 1)
        ]
        assert sorted(told) == ["w0", "w1", "w2", "w4", "w5"]
    np.testing.assert_array_equal(found["accounted"], found["off"])
    np.testing.assert_array_equal(found["trusted"], found["off"])
