"""What people ask of a run while it trains: stop, drain, exclude; and that it goes on afterwards."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import pytest

from wardround.core.errors import QuorumError
from wardround.core.plan import RoundRules, StrategySpec
from wardround.runtime.events import RoundFolded, RunFinished
from wardround.server.round_control import RunStoppedError, Unasked
from wardround.server.rounds import run_rounds
from wardround.strategies import STRATEGIES


@dataclass
class Asked:
    """What is asked of a run; a test changes it in the middle."""

    stop_requested: bool = False
    drain_requested: bool = False
    excluded: frozenset[str] = frozenset()
    said: list[tuple[str, tuple[str, ...]]] = field(default_factory=list)

    def waiting_for(self, text: str, sites: Iterable[str] = ()) -> None:
        """What `run why` shows."""
        self.said.append((text, tuple(sorted(sites))))


FEW = tuple("abcd")
MODES = pytest.mark.parametrize("mode", ["off", "real", "trusted"])


@MODES
@pytest.mark.parametrize("wish", ["stop_requested", "drain_requested"])
def test_asked_in_a_round_it_stops_and_goes_on_to_the_same_bits(
    bench: Any, tmp_path: Any, mode: str, wish: str
) -> None:
    """Stop ends the round that trains, drain finishes it; both leave a journal to resume from."""
    plan = bench.plan_of(mode)
    undisturbed = run_rounds(bench.run(bench.transport(plan), FEW), bench.initial)
    asked = Asked()

    def in_round_3(request: Any, reply: Any) -> Any:
        if (request.round, request.site) == (3, "b"):
            setattr(asked, wish, True)
            return [reply] if wish == "drain_requested" else []  # whom the loop then waits for
        return [reply]

    other = type(bench)(tmp_path / "other")
    with pytest.raises(RunStoppedError, match="stopped"):
        run_rounds(other.run(other.transport(plan, in_round_3), FEW, control=asked), other.initial)
    folded = [event.round for event in other.recorder.of(RoundFolded)]
    assert folded == ([1, 2] if wish == "stop_requested" else [1, 2, 3])
    assert not other.recorder.of(RunFinished)
    again = other.transport(plan)
    resumed = run_rounds(other.run(again, FEW, control=Unasked()), other.initial)
    assert min(request.round for request in again.asked) == len(folded) + 1
    assert resumed.last.adapter.digest == undisturbed.last.adapter.digest
    assert resumed.selection == undisturbed.selection


def test_stop_does_not_wait_for_the_deadline(bench: Any) -> None:
    """A round whose site is silent for an hour ends as soon as somebody says stop."""
    plan = bench.plan_of(rounds=RoundRules(rounds=1, deadline_s=3600.0))
    asked, polls = Asked(), 0

    class Silent(bench.transport):  # type: ignore[misc,name-defined]  # a class of the fixture
        def receive(self, timeout_s: float) -> Any:
            nonlocal polls
            polls += 1
            asked.stop_requested = polls > 3
            return super().receive(timeout_s)

    transport = Silent(plan, lambda request, reply: [] if request.site == "c" else [reply])
    with pytest.raises(RunStoppedError):
        run_rounds(bench.run(transport, control=asked), bench.initial)
    assert polls == 4


@pytest.mark.parametrize("wish", ["stop_requested", "drain_requested"])
def test_asked_before_the_first_round_nobody_is_asked_to_train(bench: Any, wish: str) -> None:
    """Not one request goes out."""
    transport = bench.transport(bench.plan_of())
    with pytest.raises(RunStoppedError):
        run_rounds(bench.run(transport, control=Asked(**{wish: True})), bench.initial)
    assert transport.asked == []


def test_a_run_asked_to_drain_in_its_last_round_is_finished(bench: Any) -> None:
    """There is nothing left to stop."""
    asked = Asked()

    def in_round_5(request: Any, reply: Any) -> Any:
        asked.drain_requested = asked.drain_requested or request.round == 5
        return [reply]

    transport = bench.transport(bench.plan_of(), in_round_5)
    outcome = run_rounds(bench.run(transport, control=asked), bench.initial)
    assert (outcome.reason, outcome.last.round) == ("completed", 5)


@MODES
def test_an_excluded_site_is_not_asked_from_the_next_round_on(bench: Any, mode: str) -> None:
    """The round that trains keeps it, the next ones do without; the fold is the mean of who was in it."""
    asked = Asked()

    def in_round_2(request: Any, reply: Any) -> Any:
        if request.round == 2:
            asked.excluded = frozenset({"b"})
        return [reply]

    transport = bench.transport(bench.plan_of(mode), in_round_2)
    outcome = run_rounds(bench.run(transport, control=asked), bench.initial)
    with_b = {request.round for request in transport.asked if request.site == "b"}
    assert with_b == {1, 2}
    survivors = [event.survivors for event in bench.recorder.of(RoundFolded)]
    assert ["b" in names for names in survivors] == [True, True, False, False, False]
    assert (outcome.last.adapter.vector == bench.expected_adapter(transport, 5)).all()


def test_a_site_is_excluded_by_name_and_no_liar(bench: Any) -> None:
    """The journal does not list it among those who were caught; taken back, it is asked again."""
    transport = bench.transport(bench.plan_of())
    asked = Asked(excluded=frozenset({"b", "nobody"}))

    def in_round_3(request: Any, reply: Any) -> Any:
        asked.excluded = frozenset() if request.round == 3 else asked.excluded
        return [reply]

    transport.fault = in_round_3
    run = bench.run(transport, control=asked)
    run_rounds(run, bench.initial)
    position = run.journal.resume()
    assert position is not None
    assert position.left_out == frozenset()
    assert {request.round for request in transport.asked if request.site == "b"} >= {4, 5}
    assert not {request.round for request in transport.asked if request.site == "b"} & {1, 2, 3}


@pytest.mark.parametrize("from_round", [1, 2])
def test_an_excluded_site_is_missing_in_its_group(bench: Any, from_round: int) -> None:
    """Before the draw it is in no group; after it its group goes on without it."""
    sites = tuple(f"s{i:02}" for i in range(13))
    made = STRATEGIES.get("group_median")
    spec = StrategySpec(name="group_median", options={"group_size": 4})
    plan = bench.plan_of("off", strategy=spec, rounds=RoundRules(rounds=3, deadline_s=0.5))
    asked = Asked(excluded=frozenset({"s05"}) if from_round == 1 else frozenset())

    def in_the_round_before(request: Any, reply: Any) -> Any:
        if request.round == from_round - 1 and request.round:
            asked.excluded = frozenset({"s05"})
        return [reply]

    transport = bench.transport(plan, in_the_round_before)
    strategy = made(made.Options(group_size=4), plan.adapter.layout)
    run_rounds(bench.run(transport, sites, strategy=strategy, control=asked), bench.initial)
    rounds = {request.round for request in transport.asked if request.site == "s05"}
    assert rounds == ({0, 1} if from_round == 2 else set())  # 0 is the draw
    folded = {event.round: event.survivors for event in bench.recorder.of(RoundFolded)}
    everybody = set(sites)
    assert {round: everybody - set(names) for round, names in folded.items()} == {
        round: {"s05"} if round >= from_round else set() for round in (1, 2, 3)
    }


def test_with_everybody_excluded_the_run_says_so(bench: Any) -> None:
    """No round of nobody; the journal stands."""
    transport = bench.transport(bench.plan_of())
    asked = Asked(excluded=frozenset("abcd"))
    with pytest.raises(QuorumError, match="no site of the run is left"):
        run_rounds(bench.run(transport, control=asked), bench.initial)
    assert transport.asked == []
    asked.excluded = frozenset("d")
    assert run_rounds(bench.run(bench.transport(bench.plan_of()), control=asked), bench.initial).reason


def test_it_says_whose_answers_it_waits_for(bench: Any) -> None:
    """All of the cohort at first, then those who have not answered yet, then nobody."""
    asked, plan = Asked(), bench.plan_of()
    run = bench.run(bench.transport(plan), control=asked)
    run_rounds(run, bench.initial)
    first = [sites for text, sites in asked.said if text == "waits for the answers of round 1"]
    assert first[0] == tuple(sorted(run.sites))
    assert all(set(after) < set(before) for before, after in itertools.pairwise(first))
    assert len(first) == len(run.sites)
    assert asked.said[-1] == ("", ())
