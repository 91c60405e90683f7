"""A strategy with a second pass, through the real loop, the real handler and Flower's engine."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from wardround.client import round as handler
from wardround.runtime.event_log import read_events
from wardround.runtime.events import Event, RoundFolded, RoundStarted, SiteReplied
from wardround.simulations.config import RunConfig
from wardround.simulations.simulate import run_simulation

SITES = ("w0", "w1", "w2")
ROUNDS = 3


@pytest.fixture
def settings(notes: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> Callable[..., RunConfig]:
    """Three wards, three rounds, by `halves.py` unless another strategy is named."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    make = notes(rows=36, wards=3, rounds=ROUNDS)

    def by_strategy(name: str, strategy: str = "halves:STRATEGY", state: str = "keep") -> RunConfig:
        made: RunConfig = make(name, strategy={"name": strategy}, local={"optimiser_state": state})
        return made

    return by_strategy


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> Counter[tuple[str, int]]:
    """How often each site has trained in each round."""
    counted: Counter[tuple[str, int]] = Counter()
    train = handler.train_locally

    def counting(*args: Any, **keywords: Any) -> Any:
        counted[keywords["site"], keywords["round"]] += 1
        return train(*args, **keywords)

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
    settings: Callable[..., RunConfig], trained: Counter[tuple[str, int]], state: str
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
    one_pass = last_adapter(settings("fedavg", "fedavg", state))
    np.testing.assert_allclose(last.vector, one_pass, rtol=0, atol=2e-6)


@pytest.mark.parametrize("stage", [0, 1])
@pytest.mark.parametrize("site", ["w0", "w2"])
def test_a_run_killed_in_either_stage_goes_on_and_trains_nothing_twice(
    settings: Callable[..., RunConfig], trained: Counter[tuple[str, int]], stage: int, site: str
) -> None:
    """Round 2 begins anew: its broadcast is the same, so every site contributes from what it trained."""
    undisturbed = last_adapter(settings("whole"))
    trained.clear()
    config = settings("cut")

    def at(event: Event) -> bool:
        reply = isinstance(event, SiteReplied)
        return reply and (event.round, event.stage, event.site) == (2, stage, site)

    with pytest.raises(KeyboardInterrupt):
        last_adapter(config, Stop(at))
    np.testing.assert_array_equal(last_adapter(config, resume=True), undisturbed)
    assert trained == ONCE


def test_a_site_that_lost_what_it_trained_is_named(
    settings: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stage 1 cannot be answered without stage 0: the round fails by that site's name and code."""
    from wardround.client.memory import SiteStore
    from wardround.core.errors import QuorumError
    from wardround.runtime.sinks import RecorderSink

    load = SiteStore.load_stage

    def lost(self: SiteStore, *, round: int, stage: int) -> Any:
        return None if self.folder.name == "w1" else load(self, round=round, stage=stage)

    monkeypatch.setattr(SiteStore, "load_stage", lost)
    recorder = RecorderSink()
    with pytest.raises(QuorumError, match="w1"):
        last_adapter(settings("lost"), recorder)
    failed = [e for e in recorder.events if isinstance(e, SiteReplied) and e.status != "ok"]
    assert [(e.site, e.stage, e.code) for e in failed] == [("w1", 1, "nothing_trained")]
