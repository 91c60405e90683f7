"""A server that is killed in a round, and started again over sites that live on: nothing is trained twice."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from wardround.core.errors import StorageError
from wardround.core.plan import RoundRules
from wardround.privacy.sums.contract import EVALUATION, TRAINING
from wardround.runtime.events import EventStream, RoundBurnt, RoundFolded, SumOpened
from wardround.server.attempts import Attempts
from wardround.server.relay_journals import RelayJournals
from wardround.server.rounds import run_rounds

PHASES = {"off": 1, "accounted": 5, "real": 5}
UNMASK = 4
SITES = tuple("abcd")
"""As few as secure aggregation allows: none is lost here, and each one more asks for more of every other."""


class KilledError(Exception):
    """The server dies here."""


def killed_at(round: int, exchange: int, *, after: int) -> tuple[Any, dict[str, int]]:
    """A fault that kills the server when so many sites have answered in an exchange; once."""
    seen = {"answers": 0, "kills": 0}

    def fault(request: Any, reply: Any) -> Any:
        if (request.round, request.exchange) == (round, exchange) and not seen["kills"]:
            seen["answers"] += 1
            if seen["answers"] > after:
                seen["kills"] += 1
                raise KilledError
        return [reply]

    return fault, seen


def started_twice(
    bench: Any, mode: str, exchange: int, after: int, folder: Path, *, journalled: bool = False
) -> tuple[Any, Any, Any]:
    """The outcome of a run whose server was killed in round 2, the transport, and the trainings by round."""
    plan = bench.plan_of(mode, rounds=RoundRules(rounds=3, deadline_s=0.3))
    fault, seen = killed_at(2, exchange, after=after)
    trained: list[tuple[int, str]] = []

    def tamper(name: str, request: Any, lanes: Any) -> Any:
        if name == TRAINING:
            trained.append((request.round, request.site))
        return lanes

    transport = bench.transport(plan, fault, tamper=tamper)
    run = bench.run(transport, SITES, attempts=Attempts(folder / "attempts.json"))
    if journalled:
        journals = RelayJournals(folder / "relays", "run", plan, run.aggregation.roster)
        run = replace(run, journals=journals)
    with pytest.raises(KilledError):
        run_rounds(run, bench.initial)
    assert seen["kills"] == 1
    transport.arrived.clear()  # what was on its way to the old process is lost
    return run_rounds(run, bench.initial), transport, trained


_UNDISTURBED: dict[str, Any] = {}


def undisturbed(bench: Any, plan: Any, folder: Path) -> Any:
    """The outcome of the same run without a kill: made once for equal plans, to be read only."""
    if plan.digest not in _UNDISTURBED:
        other = type(bench)(folder / "undisturbed")
        _UNDISTURBED[plan.digest] = run_rounds(other.run(other.transport(plan), SITES), other.initial)
    return _UNDISTURBED[plan.digest]


@pytest.mark.parametrize(
    ("mode", "exchange"),
    [(mode, exchange) for mode, phases in PHASES.items() for exchange in range(min(phases, UNMASK))],
)
@pytest.mark.parametrize("after", [0, 3])
def test_the_round_goes_on_as_another_attempt_with_what_sites_kept(
    bench: Any, tmp_path: Path, mode: str, exchange: int, after: int
) -> None:
    """The adapter is the undisturbed run's, bit for bit; no site trained a round twice."""
    outcome, transport, trained = started_twice(bench, mode, exchange, after, tmp_path)
    assert outcome.last.adapter.digest == undisturbed(bench, transport.plan, tmp_path).last.adapter.digest
    assert len(trained) == len(set(trained)), "a site trained a round twice"
    asked = {(request.round, request.attempt) for request in transport.asked if request.exchange == 0}
    assert {(2, 0), (2, 1)} <= asked
    assert (3, 1) not in asked
    assert [event.round for event in bench.recorder.of(RoundFolded)] == [1, 2, 3]


@pytest.mark.parametrize("exchange", range(UNMASK + 1))
@pytest.mark.parametrize("after", [0, 1, 2, 3])
def test_with_journals_of_its_relays_no_round_is_lost_wherever_the_server_is_killed(
    bench: Any, tmp_path: Path, exchange: int, after: int
) -> None:
    """Also while sites unmask: it asks those whom it has not heard, and they say the same once more."""
    outcome, transport, trained = started_twice(bench, "real", exchange, after, tmp_path, journalled=True)
    expected = undisturbed(bench, transport.plan, tmp_path)
    assert outcome.last.adapter.digest == expected.last.adapter.digest
    assert outcome.selection.scores == expected.selection.scores
    assert len(trained) == len(set(trained)), "a site trained a round twice"
    assert [event.round for event in bench.recorder.of(RoundFolded)] == [1, 2, 3]
    assert not bench.recorder.of(RoundBurnt)
    assert not list((tmp_path / "relays").glob("*")), "a journal outlives its round"


def test_a_server_killed_between_the_openings_of_two_sums_goes_on_with_both(
    bench: Any, tmp_path: Path
) -> None:
    """One sum is opened, and the server dies before the round is journalled: it is opened again, no other."""
    plan = bench.plan_of("real", rounds=RoundRules(rounds=2, deadline_s=0.3))
    transport = bench.transport(plan)
    run = bench.run(transport, SITES, attempts=Attempts(tmp_path / "attempts.json"))
    run = replace(run, journals=RelayJournals(tmp_path / "relays", "run", plan, run.aggregation.roster))

    class Dying:
        """A sink that dies when a sum has been opened."""

        def emit(self, event: Any) -> None:
            if isinstance(event, SumOpened) and event.round == 2:
                raise KilledError

        def close(self) -> None:
            """Nothing."""

    with pytest.raises(KilledError):
        run_rounds(replace(run, events=EventStream([Dying()])), bench.initial)
    transport.arrived.clear()
    outcome = run_rounds(run, bench.initial)
    assert outcome.last.adapter.digest == undisturbed(bench, plan, tmp_path).last.adapter.digest
    assert not bench.recorder.of(RoundBurnt)


def test_a_damaged_journal_of_a_relay_stops_the_run_by_name(bench: Any, tmp_path: Path) -> None:
    """Nobody is asked anything on its account."""
    fault, _ = killed_at(2, UNMASK, after=2)
    plan = bench.plan_of("real", rounds=RoundRules(rounds=2, deadline_s=0.3))
    transport = bench.transport(plan, fault)
    run = bench.run(transport, SITES, attempts=Attempts(tmp_path / "attempts.json"))
    run = replace(run, journals=RelayJournals(tmp_path / "relays", "run", plan, run.aggregation.roster))
    with pytest.raises(KilledError):
        run_rounds(run, bench.initial)
    path = tmp_path / "relays" / "training.relay"
    data = bytearray(path.read_bytes())
    data[200] ^= 1
    path.write_bytes(data)
    asked = len(transport.asked)
    with pytest.raises(StorageError, match="damaged"):
        run_rounds(run, bench.initial)
    assert len(transport.asked) == asked


@pytest.mark.parametrize("mode", ["accounted", "real"])
@pytest.mark.parametrize("after", [0, 3])
def test_without_journals_a_server_killed_while_sites_unmask_burns_the_round(
    bench: Any, tmp_path: Path, mode: str, after: int
) -> None:
    """Another sum of the same contributions could show a difference: the next round trains afresh."""
    outcome, transport, _ = started_twice(bench, mode, UNMASK, after, tmp_path)
    expected = bench.expected_adapter(transport, 3, burnt=(2,))
    np.testing.assert_array_equal(outcome.last.adapter.vector, expected)
    assert [(event.round, "ended" in event.reason) for event in bench.recorder.of(RoundBurnt)] == [(2, True)]
    assert [event.round for event in bench.recorder.of(RoundFolded)] == [1, 3]


def test_the_record_of_attempts_counts_within_a_round(tmp_path: Path) -> None:
    """Another round or stage begins at 0; that sites may have opened a sum stays said for the round."""
    attempts = Attempts(tmp_path / "attempts.json")
    assert (attempts.first(1, 0), attempts.burnt(1)) == (0, False)
    attempts.begin(4, 0, 0)
    attempts.begin(4, 0, 1)
    assert (attempts.first(4, 0), attempts.first(4, 1), attempts.first(5, 0)) == (2, 0, 0)
    attempts.opening()
    attempts.begin(4, 0, 2)
    assert Attempts(tmp_path / "attempts.json").burnt(4)
    attempts.begin(5, 0, 0)
    assert not attempts.burnt(5)
    assert not attempts.burnt(4)


def test_scores_are_kept_as_well(bench: Any, tmp_path: Path) -> None:
    """The evaluation of a round that is asked again is the one that sites had counted."""
    outcome, transport, _ = started_twice(bench, "real", 2, 3, tmp_path)
    plain = undisturbed(bench, transport.plan, tmp_path)
    assert outcome.selection.scores == plain.selection.scores
    assert EVALUATION in {name for request in transport.asked for name in request.sums}
