"""Followers: each sees what it can take, nobody waits for the slow one, and who missed something is told."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

from desk_runs import Trainer, desk_at, submitted
from hypothesis import given
from hypothesis import strategies as st

from wardround.server.feed import Feed


def test_a_thousand_events_wait_for_no_slow_follower() -> None:
    """The writer is done at once; the slow one is told what it missed, the quick one misses nothing."""
    feed: Feed[int] = Feed(kept=50)
    quick: list[int] = []
    slow: list[int] = []
    missed: list[int] = []

    def follow(into: list[int], pause_s: float) -> None:
        number, ended = 0, False
        while not ended:
            batch = feed.after(number, 1.0, most=20)
            missed.append(batch.missed)
            into += [record for _, record in batch.records]
            number, ended = (batch.records[-1][0] if batch.records else number), batch.ended
            time.sleep(pause_s)

    readers = [threading.Thread(target=follow, args=args) for args in ((quick, 0.0), (slow, 0.1))]
    for reader in readers:
        reader.start()
    started = time.monotonic()
    for number in range(1000):
        feed.put(number)
        if number % 10 == 0:
            time.sleep(0.001)
    took_s = time.monotonic() - started
    feed.end()
    for reader in readers:
        reader.join(10)
    assert took_s < 5
    assert slow == sorted(set(slow))
    assert slow[-1] == 999
    assert len(quick) + len(slow) + sum(missed) == 2000
    assert len(slow) < 1000


@given(st.lists(st.integers(0, 30), max_size=30), st.integers(1, 7), st.integers(1, 9))
def test_what_is_read_and_what_is_missed_come_to_what_was_written(
    reads: list[int], kept: int, most: int
) -> None:
    """Whenever somebody reads: numbers go up by one, but for as many as were missed, which are counted."""
    feed: Feed[int] = Feed(kept=kept)
    written = number = counted = 0
    for more in reads:
        for _ in range(more):
            written += 1
            feed.put(written)
        batch = feed.after(number, 0.0, most=most)
        counted += batch.missed + len(batch.records)
        assert [n for n, _ in batch.records] == [record for _, record in batch.records]
        if batch.records:
            assert batch.records[0][0] == number + batch.missed + 1
            number = batch.records[-1][0]
            assert counted == number


def test_the_feed_of_a_run_is_that_of_its_file(tmp_path: Path) -> None:
    """An ended run's events and log are read again, in another process too; then the feed has ended."""
    desk = desk_at(tmp_path, Trainer())
    run = submitted(desk)
    desk.wait(run, 10)
    told = [record["event"] for _, record in desk.run(run).events.after(0, 0).records]
    desk.close()
    again = desk_at(tmp_path, Trainer())
    batch: Any = again.run(run).events.after(0, 0)
    assert [record["event"] for _, record in batch.records] == [
        name for name in told if name != "StatusChanged"
    ]
    assert batch.ended
    assert told.count("StatusChanged") == 3
    said = [record["text"] for _, record in again.run(run).lines.after(0, 0).records]
    assert said[0].startswith("submitted")
    assert "round 1 folded: 3 contributions, 0.0 s" in said
    assert said[-1].startswith("finished")
    assert again.run(run).view.round == 3
    again.close()
