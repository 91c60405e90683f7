"""Pauses between a site's looks for messages."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from wardround.client.polling import Polling

QUIET = st.floats(0, 1e7)
CHANCE = st.floats(0, 1, exclude_max=True)


@given(QUIET, CHANCE)
def test_a_pause_is_within_its_bounds_and_a_small_share_of_the_silence(quiet_s: float, chance: float) -> None:
    """0.2 s while a message is expected, 15 s at most, and never more than 5 % of what has been waited."""
    pause = Polling().pause_s(quiet_s, chance)
    assert 0.2 * 0.8 <= pause <= 15.0
    assert pause <= max(0.2, 0.05 * quiet_s)


@given(QUIET, QUIET, CHANCE)
def test_a_longer_silence_never_makes_a_pause_shorter(one_s: float, other_s: float, chance: float) -> None:
    """At the same chance."""
    short, long = sorted((one_s, other_s))
    assert Polling().pause_s(short, chance) <= Polling().pause_s(long, chance)


def test_an_idle_site_asks_few_times_an_hour() -> None:
    """240 to 300 looks; in its first hour of silence some hundred more."""

    def looks(begin_s: float, end_s: float, chance: float) -> int:
        now, count = begin_s, 0
        while now < end_s:
            now += Polling().pause_s(now, chance)
            count += 1
        return count

    assert looks(3600, 7200, 0.0) == 240
    assert looks(3600, 7200, 0.999) <= 301
    assert looks(0, 3600, 0.0) - 240 < 120
