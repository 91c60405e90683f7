"""Laws of virtual time: more bandwidth is never slower, presence is counted, nothing takes no time."""

from __future__ import annotations

import math
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from virtual_sites import Instant, asking, virtual_clock

from wardround.simulations.virtual.availability import Spans

SITES = ("a", "b", "c")
POSITIVE = st.floats(1e-3, 1e3)
FIGURES = st.fixed_dictionaries(
    {
        "down_mbit_s": st.none() | POSITIVE,
        "up_mbit_s": st.none() | POSITIVE,
        "latency_s": st.floats(0, 10),
        "compute_s": st.floats(0, 10),
        "slowness": st.builds(
            lambda sigma, each: {"kind": "lognormal", "median": 1.0, "sigma": sigma, "each": each},
            st.floats(0, 2), st.sampled_from(["site", "round"]),
        ),
    }
)  # fmt: skip
SIZES = st.fixed_dictionaries({site: st.integers(0, 10**6) for site in SITES})


def arrivals(realism: dict[str, Any], up: dict[str, int], down: int, round: int) -> dict[str, float]:
    """Site → when it is heard."""
    clock = virtual_clock(Instant(up, down), SITES, **realism)
    clock.send([asking(site, round=round) for site in SITES])
    found = {}
    for _ in SITES:
        ((reply, _),) = clock.receive(math.inf)
        found[reply.site] = clock.clock()
    return found


@given(FIGURES, SIZES, st.integers(0, 10**6), st.integers(1, 3), st.floats(1.0, 100.0))
def test_more_bandwidth_less_latency_and_less_work_are_never_slower(
    realism: dict[str, Any], up: dict[str, int], down: int, round: int, factor: float
) -> None:
    """Each by itself, for every site."""
    before = arrivals(realism, up, down, round)
    for name, direction in (*(("down_mbit_s", 1), ("up_mbit_s", 1), ("latency_s", -1), ("compute_s", -1)),):
        if realism[name] is None:
            continue
        after = arrivals(realism | {name: realism[name] * factor**direction}, up, down, round)
        assert all(after[site] <= before[site] * (1 + 1e-12) for site in SITES)
    unlimited = arrivals(realism | {"down_mbit_s": None, "up_mbit_s": None}, up, down, round)
    assert all(unlimited[site] <= before[site] * (1 + 1e-12) for site in SITES)
    smaller = arrivals(realism, {site: size // 2 for site, size in up.items()}, down // 2, round)
    assert all(smaller[site] <= before[site] * (1 + 1e-12) for site in SITES)


@given(SIZES, st.integers(0, 10**6))
def test_where_nothing_takes_time_everything_is_heard_at_once(up: dict[str, int], down: int) -> None:
    """Whatever its size; and messages of no bytes take their latency alone."""
    assert set(arrivals({"grace_s": 1.0}, up, down, 1).values()) == {0.0}
    empty = {"latency_s": 2.0, "down_mbit_s": 1e-3, "up_mbit_s": 1e-3}
    assert set(arrivals(empty, dict.fromkeys(SITES, 0), 0, 1).values()) == {4.0}


SPANS = st.lists(
    st.tuples(st.integers(0, 500), st.integers(1, 100)).map(lambda pair: (pair[0], sum(pair))), min_size=1,
    max_size=6,
)  # fmt: skip


@given(SPANS, st.none() | st.integers(50, 200), st.integers(0, 1000), st.integers(0, 300))
@settings(deadline=None)
def test_as_much_presence_passes_as_work_takes(
    pairs: list[tuple[int, int]], period: int | None, at: int, seconds: int
) -> None:
    """Counted second by second: an independent reckoning over whole numbers."""
    spans = Spans.of([(float(a), float(b)) for a, b in pairs], math.inf if period is None else float(period))

    def there(second: int) -> bool:
        """Whether the site is there in the second that begins then."""
        if period is None:
            return any(a <= second < b for a, b in pairs)
        turns = range(max(b for _, b in pairs) // period + 1)
        return any(a <= second % period + turn * period < b for a, b in pairs for turn in turns)

    left, second, end = seconds, at, 2000 if period is None else 10**9
    while (left or not there(second)) and second < end:
        if left and there(second):
            left -= 1
            if not left:
                second += 1
                break
        second += 1
    expected = math.inf if second >= end else float(second)
    assert spans.after(float(at), float(seconds)) == expected
    assert (spans.next(float(at))[0] <= at) == there(at)
