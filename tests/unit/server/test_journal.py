"""The journal of one arm."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from wardround.core.errors import StorageError
from wardround.core.packed import Packed
from wardround.core.selection import Selection
from wardround.runtime.event_log import missing_of
from wardround.runtime.events import RoundBurnt, RoundFolded, as_record
from wardround.runtime.files import append_line
from wardround.server.journal import Journal, Position
from wardround.strategies.contract import ServerState


def test_a_state_that_a_killed_server_left_without_its_line_is_replaced(bench: Any, tmp_path: Path) -> None:
    """The round is run again and may end elsewhere (another site is late): the new state counts."""
    plan = bench.plan_of()
    journal = Journal(tmp_path, plan)
    none = Selection(plan.release)

    def state(round: int, value: float) -> ServerState:
        vector = np.full(bench.initial.layout.size, value, dtype=np.float32)
        return ServerState(round, Packed(bench.initial.layout, vector), {})

    journal.commit(Position(state(1, 0.5), none))
    journal._write(state(2, 0.25), ())  # killed before the line
    resumed = journal.resume()
    assert resumed is not None
    assert resumed.state.round == 1
    journal.commit(Position(state(2, 0.75), none))
    again = journal.resume()
    assert again is not None
    assert again.state.adapter.digest == state(2, 0.75).adapter.digest


def test_states_that_may_still_be_released_are_kept(bench: Any, tmp_path: Path) -> None:
    """The last one and the best of each group of comparable scores; the rest goes. All of it comes back."""
    plan = bench.plan_of()
    journal = Journal(tmp_path, plan)
    selection = Selection(plan.release)
    seen = [(1, 0.5, ()), (2, 0.9, ("d",)), (3, 0.4, ()), (4, 0.8, ("d",))]
    for round, value, missing in seen:
        selection = selection.add(round, value, missing)
        journal.commit(Position(ServerState(round + 1, bench.initial, {}), selection, 1.5 * round))
        journal._write(ServerState(round, bench.initial, {}), ())  # as the round before has left it
    journal.commit(Position(ServerState(5, bench.initial, {}), selection, 6.0, (), frozenset({"d", "b"})))
    assert sorted(path.name for path in tmp_path.glob("state-*")) == [
        f"state-0000{round}.safetensors" for round in (1, 2, 5)
    ]
    position = journal.resume()
    assert position is not None
    assert (position.selection, position.wall_s, position.left_out) == (selection, 6.0, {"b", "d"})


def test_the_last_rounds_sums_come_back_as_they_were(bench: Any, tmp_path: Path) -> None:
    """A resumed server sends them along, and sites check the broadcast by them; none after a burnt round."""
    plan = bench.plan_of()
    journal = Journal(tmp_path, plan)
    none = Selection(plan.release)
    sums = (bytes(range(256)), b"", b"\0")
    journal.commit(Position(ServerState(1, bench.initial, {}), none, opened=sums))
    position = journal.resume()
    assert position is not None
    assert position.opened == sums
    journal.commit(Position(ServerState(2, bench.initial, {}), none))
    position = journal.resume()
    assert position is not None
    assert position.opened == ()


def test_a_torn_line_is_never_written_and_a_damaged_one_is_refused(bench: Any, tmp_path: Path) -> None:
    """A round that was folded is not trained again because a byte of its line is wrong."""
    plan = bench.plan_of()
    journal, lines = Journal(tmp_path, plan), tmp_path / "rounds.jsonl"
    none = Selection(plan.release)
    for round in (1, 2):
        journal.commit(Position(ServerState(round, bench.initial, {}), none))
        journal._write(ServerState(1, bench.initial, {}), ())
    whole = lines.read_bytes()
    first = whole.index(b"\n") + 1

    def resumed(data: bytes) -> int:
        lines.write_bytes(data)
        position = journal.resume()
        return 0 if position is None else position.state.round

    assert [resumed(whole[:size]) for size in (0, first // 2, first, len(whole) - 9)] == [0, 0, 1, 1]
    assert resumed(whole[: first + 5] + b"\n" + whole[:9]) == 1
    assert resumed(whole[: first + 5] + b"\n" + whole[first:]) == 2
    for damaged in (
        whole[:-3] + b"]}\n",
        whole[:first] + b"\xff" + whole[first + 1 :],
        b"{}\n",
        b"[" * 9999 + b"\n",
    ):
        with pytest.raises(StorageError, match="is damaged"):
            resumed(damaged)


def test_the_result_names_who_was_missing_by_round(tmp_path: Path) -> None:
    """From the run's events; rounds with everybody are left out, and a run without events has none."""
    assert missing_of(tmp_path / "events.jsonl", "federated") == ()
    for round, missing in ((1, ()), (2, ("cork", "delft")), (3, ("delft",))):
        folded = RoundFolded("federated", round, ("aachen",), missing, 0.5, 0.1, 9, 1.0, "d" * 64, 0.0)
        append_line(tmp_path / "events.jsonl", as_record(folded))
    burnt = RoundBurnt("federated", 4, "nobody answered", ("aachen", "cork"))
    other = RoundBurnt("centralised", 5, "another arm", ("aachen",))
    for event in (burnt, other):
        append_line(tmp_path / "events.jsonl", as_record(event))
    assert missing_of(tmp_path / "events.jsonl", "federated") == (
        (2, ("cork", "delft")), (3, ("delft",)), (4, ("aachen", "cork")),
    )  # fmt: skip
