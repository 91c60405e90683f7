"""The disk fills in the middle of a round, at any write: the run stops by name, and goes on to the same."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from full_disk import full_disk

from wardround.core.errors import StorageError
from wardround.core.plan import RoundRules
from wardround.privacy.sums.contract import TRAINING
from wardround.runtime.event_log import JsonlSink, read_events
from wardround.runtime.events import EventStream, RoundBurnt, RoundFolded
from wardround.server.attempts import Attempts
from wardround.server.relay_journals import RelayJournals
from wardround.server.rounds import run_rounds

WRITES = [
    *(("attempts.json", number) for number in (1, 2, 3, 4)),
    *(("training.relay", number) for number in (1, 2, 6, 11, 16, 17, 21, 27)),
    *(("evaluation.relay", number) for number in (1, 6, 16)),
    ("state-00002.safetensors", 1),
    *(("rounds.jsonl", number) for number in (1, 2, 4)),
    *(("events.jsonl", number) for number in (1, 2, 7, 9, 10, 19, 22)),
]
"""File, and its write with which the disk is full: there is no more for any file, from there on.

Of a relay's journal: its head (1, 2), the last answers of the first, second and fourth exchange (6, 11, 17)
and the one before (16), one to the fifth (21), and one in the next round (27).
"""
SITES = tuple("abcd")
"""As few as secure aggregation allows: none is lost here, and each one more asks for more of every other."""


class Filling:
    """Which writes the disk refuses."""

    def __init__(self, name: str, number: int) -> None:
        self.name, self.left, self.full = name, number, False

    def __call__(self, path: Path) -> bool:
        if f".{self.name}." in path.name or path.name == self.name:  # a temporary one has a longer name
            self.left -= 1
            self.full = self.full or self.left == 0
        return self.full


def run_over(bench: Any, folder: Path, trained: list[tuple[int, str]]) -> Any:
    """A run under secure aggregation with all of its files."""
    plan = bench.plan_of("real", rounds=RoundRules(rounds=3, deadline_s=0.3))

    def tamper(name: str, request: Any, lanes: Any) -> Any:
        if name == TRAINING:
            trained.append((request.round, request.site))
        return lanes

    transport = bench.transport(plan, tamper=tamper)
    run = bench.run(transport, SITES, attempts=Attempts(folder / "attempts.json"))
    journals = RelayJournals(folder / "relays", "run", plan, run.aggregation.roster)
    return replace(run, journals=journals, events=EventStream([JsonlSink(folder / "events.jsonl")]))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Digest of the same run's adapter on a disk that does not fill, once it is known."""
    return []


@pytest.mark.parametrize(("name", "number"), WRITES)
def test_the_run_stops_by_name_and_goes_on_to_the_same_adapter(
    bench: Any, tmp_path: Path, undisturbed: list[str], name: str, number: int
) -> None:
    """No site trains a round twice, no round is lost, and no half of a file is left."""
    if not undisturbed:
        other = type(bench)(tmp_path / "undisturbed")
        whole = run_over(other, tmp_path / "undisturbed", [])
        undisturbed.append(run_rounds(whole, other.initial).last.adapter.digest)
    trained: list[tuple[int, str]] = []
    run = run_over(bench, tmp_path, trained)
    filling = Filling(name, number)
    with full_disk(tmp_path, filling), pytest.raises(StorageError, match="free space") as raised:
        run_rounds(run, bench.initial)
    assert filling.full
    assert "No space left" in str(raised.value.found)
    assert str(tmp_path) in raised.value.what
    assert not list(tmp_path.rglob("*.part"))
    run.transport.arrived.clear()  # what was on its way to the old process is lost
    again = replace(run, events=EventStream([JsonlSink(tmp_path / "events.jsonl")]))
    outcome = run_rounds(again, bench.initial)
    assert outcome.last.adapter.digest == undisturbed[0]
    assert len(trained) == len(set(trained)), "a site trained a round twice"
    events = read_events(tmp_path / "events.jsonl")
    assert [event.round for event in events if isinstance(event, RoundFolded)] == [1, 2, 3]
    assert not [event for event in events if isinstance(event, RoundBurnt)]
