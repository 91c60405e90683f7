"""What a run took in virtual time, from its events."""

from __future__ import annotations

import csv
import io

import pytest

from wardround.runtime.events import BytesMoved, Evaluated, Event, RoundBurnt, RoundFolded, RoundTimed
from wardround.runtime.sizes import seconds_text
from wardround.simulations.virtual.record import round_rows, round_table, virtual_record, virtual_text

EVENTS: list[Event] = [
    BytesMoved("federated", 1, {"a": 10, "b": 20}, {"a": 100, "b": 100}),
    BytesMoved("federated", 1, {"a": 1, "b": 2}, {"a": 10, "b": 10}, stage=1),
    RoundTimed("federated", 1, 1234567.25, 1234567.25, 7.0, (), {"a": 3.0, "b": 4.5}),
    RoundFolded("federated", 1, ("a", "b"), (), 0.5, 0.1, 33, 1.5, "d"),
    BytesMoved("federated", 2, {"a": 30}, {"a": 100, "b": 100}),
    Evaluated("federated", 1, "validation", {"loss": 0.7}, {"loss": 9}),
    RoundTimed("federated", 2, 20.0, 1234587.25, 0.0, ("b",), {"a": 1.0}),
    RoundBurnt("federated", 2, "lost", ("a", "b")),
    RoundTimed("federated", 3, 5.0, 1234592.25, 1.0, ("b", "c"), {"a": 1.0}),
    RoundTimed("local/a", 1, 9.0, 9.0),
]


def test_the_record_is_of_the_federation_s_whole_run() -> None:
    """The exchange that scores the last adapter counts for the run, and is no round."""
    record = virtual_record(EVENTS)
    assert record == {
        "seconds": 1234592.25, "seconds_a_round": (1234567.25 + 20.0) / 2, "longest_round_s": 1234567.25,
        "waited_s": 8.0, "late": 3,
        "sites": {
            "a": {"work_s": 5.0, "late_rounds": 0}, "b": {"work_s": 4.5, "late_rounds": 2},
            "c": {"work_s": 0.0, "late_rounds": 1},
        },
    }  # fmt: skip
    text = virtual_text(record, 90.0)
    assert text.startswith("Virtual time: 14.3 d (90.0 s on this machine), 7.1 d a round and at most 14.3 d")
    assert "8.0 s waiting for sites to come" in text
    assert "let a deadline pass 3 times" in text


def test_a_run_without_a_clock_has_no_record() -> None:
    """Nor has one whose bounds alone were timed."""
    assert virtual_record([event for event in EVENTS if not isinstance(event, RoundTimed)]) is None
    assert virtual_record(EVENTS[-1:]) is None


def test_every_round_has_a_row_with_its_figures_in_full() -> None:
    """Folded or burnt; a score stands at the round whose adapter it is of."""
    rows = list(csv.DictReader(io.StringIO(round_table(round_rows(EVENTS)).decode())))
    assert rows == [
        {
            "round": "1", "wall_s": "1.5", "virtual_s": "1234567.25", "virtual_clock_s": "1234567.25",
            "waited_s": "7.0", "survivors": "2", "missing": "0", "late": "0", "burnt": "False",
            "bytes_up": "33", "bytes_down": "220", "train_loss": "0.5", "validation.loss": "0.7",
        },
        {
            "round": "2", "wall_s": "", "virtual_s": "20.0", "virtual_clock_s": "1234587.25",
            "waited_s": "0.0", "survivors": "0", "missing": "2", "late": "1", "burnt": "True",
            "bytes_up": "30", "bytes_down": "200", "train_loss": "", "validation.loss": "",
        },
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        *((0, "0.0 s"), (0.25, "0.2 s"), (119.9, "119.9 s"), (120, "2.0 min"), (7199, "120.0 min")),
        *((7200, "2.0 h"), (172_799, "48.0 h"), (172_800, "2.0 d"), (1e9, "11574.1 d")),
    ],
)
def test_seconds_are_told_in_the_unit_that_people_read(seconds: float, text: str) -> None:
    """From two of a unit on in that unit."""
    assert seconds_text(seconds) == text
