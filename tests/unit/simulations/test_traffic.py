"""What a run moved, from its events."""

from __future__ import annotations

from wardround.runtime.events import BytesMoved, Event, RoundBurnt, RoundFolded
from wardround.simulations.traffic import traffic_record, traffic_text

EVENTS: list[Event] = [
    BytesMoved("federated", 1, {"a": 10, "b": 20}, {"a": 100, "b": 100}),
    BytesMoved("federated", 1, {"a": 1, "b": 2}, {"a": 10, "b": 10}, stage=1),
    RoundFolded("federated", 1, ("a", "b"), (), 0.5, 0.1, 33, 1.0, "d"),
    BytesMoved("federated", 2, {"a": 30}, {"a": 100, "b": 100}),
    RoundBurnt("federated", 2, "lost"),
    BytesMoved("federated", 3, {"a": 3, "b": 3}, {"a": 50, "b": 50}),
    BytesMoved("local/a", 1, {"a": 1000}, {"a": 1000}),
]


def test_means_are_of_rounds_and_a_site_s_own_of_the_whole_run() -> None:
    """Both stages of a round together; a burnt round moves bytes as well, a silent site got some."""
    record = traffic_record(EVENTS)
    assert record["bytes_up_a_site"] == round((33 + 30) / 4)
    assert record["bytes_down_a_site"] == round((220 + 200) / 4)
    assert record["sites"] == {
        "a": {"bytes_up": 44, "bytes_down": 260}, "b": {"bytes_up": 25, "bytes_down": 260},
    }  # fmt: skip
    assert "sends 16 B in all, and gets 105 B" in traffic_text(record)


def test_of_a_run_without_events_nothing_moved() -> None:
    """Nothing is divided by nothing."""
    assert traffic_record([]) == {"bytes_up_a_site": 0, "bytes_down_a_site": 0, "sites": {}}
