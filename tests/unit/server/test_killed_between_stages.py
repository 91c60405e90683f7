"""A server that is killed in a round of two stages, and started again over sites that live on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from wardround.core.errors import StorageError
from wardround.core.packed import Layout, Packed, Statistics
from wardround.core.plan import RoundRules
from wardround.privacy.sums.contract import TRAINING
from wardround.runtime.events import RoundBurnt, RoundFolded
from wardround.server.attempts import Attempts
from wardround.server.folded import BetweenStages
from wardround.server.relay_journals import RelayJournals
from wardround.server.rounds import run_rounds
from wardround.server.run import Run
from wardround.strategies.contract import ServerState
from wardround.strategies.fedavg import STRATEGY as FEDAVG

EXCHANGES = {"off": 1, "accounted": 4, "trusted": 1, "real": 5}
"""Of a stage, in which the server is killed here: under `accounted` no journal is kept while sites unmask."""
SITES = tuple("abcd")


class KilledError(Exception):
    """The server dies here."""


class Twice(FEDAVG):  # type: ignore[misc, valid-type]  # its class, by its value
    """FedAvg over two sums of the same updates, each rounded by itself: x ← x + (m₀ + m₁) / 2.

    The second broadcast is m₀.
    """

    stages: ClassVar[int] = 2

    def broadcast_layout(self, stage: int) -> Layout:
        return self.layout

    def statistics_layout(self, stage: int) -> Layout:
        return self.layout

    def broadcast(self, state: ServerState, round: int, stage: int) -> Packed:
        if not stage:
            return super().broadcast(state, round, stage)
        return Packed(self.layout, state.slots["first"].vector.astype(np.float32))

    def fold(self, state: ServerState, total: Statistics, weight: float, stage: int) -> ServerState:
        mean = total.vector / weight
        if not stage:
            return ServerState(state.round, state.adapter, {"first": Packed(self.layout, mean)})
        moved = state.adapter.vector + (state.slots["first"].vector + mean) / 2
        return ServerState(state.round + 1, state.adapter.with_vector(moved.astype(np.float32)))


Fault = Callable[[Any, Any], list[Any]]


def honest(request: Any, reply: Any) -> list[Any]:
    """No fault."""
    return [reply]


def killing(*, stage: int, exchange: int, after: int) -> Fault:
    """Kills the server in round 2 when so many sites have answered in an exchange of a stage; once."""
    seen = {"answers": 0, "kills": 0}

    def fault(request: Any, reply: Any) -> list[Any]:
        if (request.round, request.stage, request.exchange) == (2, stage, exchange) and not seen["kills"]:
            seen["answers"] += 1
            if seen["answers"] > after:
                seen["kills"] += 1
                raise KilledError
        return [reply]

    return fault


def run_of(bench: Any, mode: str, fault: Fault, folder: Path, trained: list[Any]) -> tuple[Run, Any]:
    """A run over sites that outlive its server, with all that this one keeps; and its transport."""
    plan = bench.plan_of(mode, rounds=RoundRules(rounds=3, deadline_s=0.3))

    def tamper(name: str, request: Any, lanes: Any) -> Any:
        if name == TRAINING:
            trained.append((request.round, request.stage, request.site))
        return lanes

    transport = bench.transport(plan, fault, tamper=tamper)
    strategy = Twice(Twice.Options(), bench.initial.layout)
    run = bench.run(transport, SITES, strategy=strategy, attempts=Attempts(folder / "attempts.json"))
    between = BetweenStages(folder / "between.safetensors", plan)
    if mode == "real":
        run = replace(run, journals=RelayJournals(folder / "relays", "run", plan, run.aggregation.roster))
    return replace(run, between=between), transport


_UNDISTURBED: dict[str, Any] = {}


def undisturbed(bench: Any, mode: str, folder: Path) -> Any:
    """The outcome of the same run without a kill: made once a mode, to be read only."""
    if mode not in _UNDISTURBED:
        run, _ = run_of(type(bench)(folder / "undisturbed"), mode, honest, folder / "whole", [])
        _UNDISTURBED[mode] = run_rounds(run, bench.initial)
    return _UNDISTURBED[mode]


def killed(bench: Any, run: Run, transport: Any) -> None:
    """The first server dies; what was on its way to it is lost."""
    with pytest.raises(KilledError):
        run_rounds(run, bench.initial)
    transport.arrived.clear()


@pytest.mark.parametrize("after", [0, 3])
@pytest.mark.parametrize("stage", [0, 1])
@pytest.mark.parametrize(
    ("mode", "exchange"),
    [(mode, exchange) for mode, exchanges in EXCHANGES.items() for exchange in range(exchanges)],
)
def test_the_round_goes_on_in_the_stage_where_the_server_was(
    bench: Any, tmp_path: Path, mode: str, exchange: int, stage: int, after: int
) -> None:
    """The adapter and the scores are the undisturbed run's; nobody contributes anew to what was opened."""
    trained: list[Any] = []
    fault = killing(stage=stage, exchange=exchange, after=after)
    run, transport = run_of(bench, mode, fault, tmp_path, trained)
    killed(bench, run, transport)
    asked = len(transport.asked)
    outcome = run_rounds(run, bench.initial)
    expected = undisturbed(bench, mode, tmp_path)
    assert outcome.last.adapter.digest == expected.last.adapter.digest
    assert outcome.selection.scores == expected.selection.scores
    assert len(trained) == len(set(trained)), "a site contributed to a stage twice"
    again = {request.stage for request in transport.asked[asked:] if request.round == 2}
    assert again == ({1} if stage else {0, 1})
    assert [(e.round, e.survivors) for e in bench.recorder.of(RoundFolded)] == [(r, SITES) for r in (1, 2, 3)]
    assert not bench.recorder.of(RoundBurnt)
    assert not (tmp_path / "between.safetensors").exists(), "it outlives its round"


@pytest.mark.parametrize("mode", ["off", "real", "trusted"])
def test_a_server_killed_before_it_asks_for_the_second_stage_goes_on_with_it(
    bench: Any, tmp_path: Path, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first one is on disk, and nobody was asked for more."""
    trained: list[Any] = []
    run, transport = run_of(bench, mode, honest, tmp_path, trained)
    save, seen = BetweenStages.save, []

    def dying(self: BetweenStages, stage: int, folded: Any) -> None:
        save(self, stage, folded)
        seen.append(folded.state.round)
        if seen == [0, 1]:
            raise KilledError

    monkeypatch.setattr(BetweenStages, "save", dying)
    killed(bench, run, transport)
    outcome = run_rounds(run, bench.initial)
    assert outcome.last.adapter.digest == undisturbed(bench, mode, tmp_path).last.adapter.digest
    assert len(trained) == len(set(trained))


@pytest.mark.parametrize("mode", ["off", "real"])
def test_where_the_first_stage_is_lost_the_round_is_spent(bench: Any, tmp_path: Path, mode: str) -> None:
    """Sites would refuse to begin it again: the next one trains afresh, and the run ends."""
    run, transport = run_of(bench, mode, killing(stage=1, exchange=0, after=1), tmp_path, [])
    killed(bench, run, transport)
    (tmp_path / "between.safetensors").unlink()
    outcome = run_rounds(run, bench.initial)
    assert [event.round for event in bench.recorder.of(RoundBurnt)] == [2]
    assert [event.round for event in bench.recorder.of(RoundFolded)] == [1, 3]
    assert outcome.last.round == 3


def test_a_damaged_or_foreign_record_of_a_stage_stops_the_run_by_name(bench: Any, tmp_path: Path) -> None:
    """Nobody is asked anything on its account."""
    run, transport = run_of(bench, "off", killing(stage=1, exchange=0, after=1), tmp_path, [])
    killed(bench, run, transport)
    path, asked = tmp_path / "between.safetensors", len(transport.asked)
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(StorageError, match=r"between\.safetensors does not hold what was written"):
        run_rounds(run, bench.initial)
    path.write_bytes(whole)
    other = bench.plan_of("off", rounds=RoundRules(rounds=7))
    with pytest.raises(StorageError, match="belongs to another plan"):
        BetweenStages(path, other).load(2)
    assert len(transport.asked) == asked


def test_what_is_kept_of_a_stage_comes_back(
    bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of it; of another round it is nothing."""
    run, _ = run_of(bench, "off", honest, tmp_path, [])
    save, given = BetweenStages.save, []

    def keeping(self: BetweenStages, stage: int, folded: Any) -> None:
        save(self, stage, folded)
        found = self.load(folded.state.round + 1)
        assert found is not None
        given.append((stage, folded, *found))
        assert self.load(folded.state.round + 2) is None

    monkeypatch.setattr(BetweenStages, "save", keeping)
    run_rounds(run, bench.initial)
    assert len(given) == 3
    for stage, folded, kept_stage, kept in given:
        assert kept_stage == stage == 0
        assert kept.state.adapter.digest == folded.state.adapter.digest
        np.testing.assert_array_equal(kept.state.slots["first"].vector, folded.state.slots["first"].vector)
        np.testing.assert_array_equal(kept.counters.vector, folded.counters.vector)
        np.testing.assert_array_equal(kept.scored.counters.vector, folded.scored.counters.vector)
        for name in ("opened", "survivors", "bytes_up", "liars", "rounding", "epsilon"):
            assert getattr(kept, name) == getattr(folded, name), name
        assert kept.scored.missing == folded.scored.missing
