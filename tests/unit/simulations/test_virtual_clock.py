"""The virtual clock: when answers come, in which order, and what becomes of those that come too late."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from toy_plans import toy_plan
from virtual_sites import Instant, asking, heard, virtual_clock

from wardround.core.errors import ConfigError
from wardround.core.messages import BEHIND, reply_to
from wardround.core.plan import SecureRules
from wardround.privacy.sums.contract import EVALUATION, TRAINING
from wardround.simulations.outages import CODE
from wardround.simulations.virtual import clock as clock_file
from wardround.simulations.virtual.clock import VirtualClock
from wardround.simulations.virtual.settings import Diurnal, Realism
from wardround.simulations.virtual.sites import VirtualSites, Work

ABC = ("a", "b", "c")
TABLE = {"kind": "sites", "sites": {"b": 3.0, "c": 2.0}, "other": 1.0}


def test_an_exchange_takes_what_a_calculation_by_hand_says() -> None:
    """1000 bytes at 8 kbit/s, 10 steps of 2 s and 4 at half of it, 500 bytes at 4 kbit/s, 0.25 s twice.

    1 + 0.25 + (20 + 4) × slowness + 1 + 0.25, in the order of the answers.
    """
    clock = virtual_clock(
        Instant(),
        ABC,
        down_mbit_s=0.008,
        up_mbit_s=0.004,
        latency_s=0.25,
        compute_s=2.0,
        slowness=TABLE,
        scoring=0.5,
    )
    clock.send([asking(site) for site in ABC])
    assert heard(clock, 100.0) == [("a", 26.5), ("c", 50.5), ("b", 74.5)]
    assert clock.clock() == 100.0, "nobody else is heard until then"
    times = clock.end_round()
    assert times.work_s == {"a": 26.5, "b": 74.5, "c": 50.5}
    assert (times.began, times.waited_s, times.late) == (0.0, 0.0, set())


@pytest.mark.parametrize(
    ("request_", "status", "seconds"),
    [
        ({}, "ok", 24.0),
        ({"sums": {TRAINING: b""}}, "ok", 20.0),
        ({"sums": {EVALUATION: b""}}, "ok", 4.0),
        ({"exchange": 1}, "ok", 0.0),
        ({"attempt": 1}, "ok", 0.0),
        ({"stage": 1}, "ok", 0.0),
        ({}, "failed", 24.0),
        ({}, "refused", 0.0),
        ({"round": 0}, "ok", 0.0),
    ],
)
def test_a_site_computes_where_it_is_asked_for_work(
    request_: dict[str, Any], status: Any, seconds: float
) -> None:
    """In the first exchange of a round's first stage and attempt, as far as it is asked."""
    inner = Instant(change=lambda request, reply: reply_to(request, status=status))
    clock = virtual_clock(inner, ABC, compute_s=2.0, scoring=0.5)
    clock.send([asking("a", **request_)])
    assert heard(clock, 100.0) == [("a", seconds)]


def test_whoever_is_late_is_not_heard_and_told() -> None:
    """An answer at the very deadline is late; what is late is gone when the next exchange begins."""
    inner = Instant()
    clock = virtual_clock(inner, ABC, compute_s=1.0, scoring=0.0, slowness=TABLE)
    clock.send([asking(site) for site in ABC])
    assert heard(clock, 30.0) == [("a", 10.0), ("c", 20.0)]
    clock.send([asking(site, exchange=1) for site in "ac"])
    assert heard(clock, 35.0) == [("a", 30.0), ("c", 30.0)]
    assert clock.end_round().late == {"b"}
    assert clock.end_round().late == set(), "of the next round"


def test_a_site_ends_what_it_has_begun_and_never_begins_what_nobody_waits_for() -> None:
    """Late by 40 s in round 1; too busy to begin round 2; it takes up round 3 when it has ended round 1."""
    clock = virtual_clock(Instant(), ["a", "b"], compute_s=1.0, scoring=0.0, slowness=6.0)
    clock.send([asking("a")])
    assert heard(clock, 20.0) == []
    assert clock.end_round().late == {"a"}
    assert clock.busy == {"a": 60.0}
    clock.send([asking("a", round=2)])
    assert heard(clock, 40.0) == []
    assert clock.end_round().late == {"a"}
    assert clock.busy == {"a": 60.0}
    clock.send([asking("a", round=3, sums={EVALUATION: b""})])
    assert heard(clock, 100.0) == [("a", 60.0)]
    clock.end_round()
    assert clock.busy == {}


def test_a_second_attempt_gets_what_a_late_site_has_made_by_then() -> None:
    """It trains on, and does not train again."""
    clock = virtual_clock(Instant(), ABC, compute_s=1.0, scoring=0.0, slowness=TABLE, latency_s=1.0)
    clock.send([asking(site) for site in ABC])
    assert heard(clock, 25.0) == [("a", 12.0), ("c", 22.0)]
    clock.send([asking(site, attempt=1) for site in ABC])
    assert heard(clock, 60.0) == [("a", 27.0), ("c", 27.0), ("b", 32.0)]  # 1 + 30 + 1, from the first request


def test_who_is_lost_is_never_heard() -> None:
    """What an outage says to the loop at once takes until the deadline here; the site is lost, not late."""
    inner = Instant(
        change=lambda request, reply: (
            reply_to(request, status="failed", code=CODE) if request.site == "b" else reply
        )
    )
    clock = virtual_clock(inner, ABC, latency_s=1.0)
    clock.send([asking(site) for site in ABC])
    assert heard(clock, 50.0) == [("a", 2.0), ("c", 2.0)]
    assert clock.clock() == 50.0
    assert clock.end_round().late == set()


def test_a_broadcast_that_has_to_be_sent_after_all_costs_what_the_first_request_did() -> None:
    """A resumed run sends it to sites that would have made it: nothing of that may be seen in its times."""
    inner = Instant(
        change=lambda request, reply: (
            reply_to(request, status="failed", code=BEHIND) if request.follows else reply
        )
    )
    clock = virtual_clock(inner, ABC, down_mbit_s=0.008)
    clock.send([asking("a", follows="x"), asking("b")])
    ((reply, _),) = clock.receive(10.0)
    assert (reply.site, reply.code, clock.clock()) == ("a", BEHIND, 0.0)
    assert clock.send_more(asking("a")) == 10_000
    assert heard(clock, 10.0) == [("a", 1.0), ("b", 1.0)]


def test_answers_wait_on_disk_where_they_are_many(monkeypatch: pytest.MonkeyPatch) -> None:
    """And come back as they were, each its own."""
    monkeypatch.setattr(clock_file, "IN_MEMORY", 1000)
    names = [f"s{'x' * number}" for number in range(40)]
    inner = Instant(up={name: 100 + len(name) for name in names})
    clock = virtual_clock(
        inner, names, slowness={"kind": "pareto", "scale": 1.0, "shape": 1.0}, compute_s=1.0
    )
    with clock:
        for round in (1, 2):
            clock.send([asking(name, round=round) for name in names])
            found = [clock.receive(1e9)[0] for _ in names]
            assert clock._held._file is not None
            assert {reply.site for reply, _ in found} == set(names)
            for reply, size in found:
                assert size == 100 + len(reply.site)
                assert reply.sums == {"training": bytes([len(reply.site)]) * size}


def trace_of(folder: Path, text: str, **more: Any) -> dict[str, Any]:
    """Settings."""
    (folder / "trace").write_text("site,from,to\n" + text)
    return {"kind": "trace", "path": str(folder / "trace"), **more}


def waits(clock: VirtualClock, round: int = 1) -> tuple[set[str], float]:
    """Who is away as a round begins, and when that is."""
    away = clock.away(round)
    return set(away), clock.clock()


def test_a_round_begins_when_enough_are_there(tmp_path: Path) -> None:
    """At the first moment at which so many are there together; what it waited is of that round."""
    text = "a,0,10\na,40,90\nb,20,30\nb,50,60\nb,80,100\nc,55,57\n"
    one, two, three, four = (
        virtual_clock(Instant(), ABC, availability=trace_of(tmp_path, text, least=least))
        for least in (1, 2, 3, 3)
    )
    assert waits(one) == ({"b", "c"}, 0.0)
    assert waits(two) == ({"c"}, 50.0)
    assert two.times.waited_s == 50.0
    assert waits(three) == (set(), 55.0)
    four.now = 70.0
    assert waits(four) == ({"b", "c"}, 70.0), "that never is so again: it goes on with whom it has"
    one.now = 200.0
    assert waits(one) == ({"a", "b", "c"}, 200.0)


def test_work_stops_while_a_site_is_away(tmp_path: Path) -> None:
    """And is lost where it does not come back."""
    text = "a,0,8\na,100,200\nb,0,8\nc,0,\n"
    clock = virtual_clock(Instant(), ABC, compute_s=1.0, scoring=0.0, availability=trace_of(tmp_path, text))
    assert waits(clock) == (set(), 0.0)
    clock.send([asking(site) for site in ABC])
    assert heard(clock, 500.0) == [("c", 10.0), ("a", 102.0)]
    assert clock.end_round().late == {"b"}


def test_by_round_a_site_is_there_or_not(tmp_path: Path) -> None:
    """For all of it; nobody waits."""
    text = "a,1,2\nb,2,\nc,3,3\n"
    clock = virtual_clock(Instant(), ABC, latency_s=1.0, availability=trace_of(tmp_path, text, unit="round"))
    assert [waits(clock, round) for round in (1, 2, 3, 4)] == [
        ({"b", "c"}, 0.0), ({"c"}, 0.0), ({"a"}, 0.0), ({"a", "c"}, 0.0),
    ]  # fmt: skip
    clock.send([asking(site, round=2) for site in ABC])  # as a group is asked
    assert heard(clock, 10.0) == [("a", 2.0), ("b", 2.0)]


def test_not_more_sites_are_waited_for_than_there_are() -> None:
    """Said before anything is trained."""
    with pytest.raises(ConfigError, match="never begin"):
        virtual_clock(Instant(), ABC, availability={"kind": "diurnal", "share": 0.5, "least": 4})


def test_a_round_waits_for_as_many_as_the_sites_policy_asks_for_where_sums_are_hidden() -> None:
    """Unless the settings say a number; never for more than there are, and for nobody where each is seen."""
    work = {site: Work(1.0, 1.0) for site in ABC}
    day = Diurnal(kind="diurnal", share=0.5)

    def least(mode: Any, cohort: int, **more: Any) -> int:
        plan = toy_plan(secure=SecureRules(mode=mode))
        settings = Realism(availability=day.model_copy(update=more))
        return VirtualSites.of(settings, plan, work, cohort).least

    assert [least(mode, 2) for mode in ("real", "accounted", "off")] == [2, 2, 1]
    assert least("real", 5) == 3
    assert [least(mode, 2, least=3) for mode in ("real", "off")] == [3, 3]


def test_few_answers_at_a_time_never_go_to_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many there are in the end."""
    monkeypatch.setattr(clock_file, "IN_MEMORY", 1000)
    held = clock_file._Held()
    for _ in range(5):
        held.put(reply_to(asking("a"), sums={"training": b"x" * 900}), 900)
        assert held.take("a")[0].sums == {"training": b"x" * 900}
    assert held._file is None
    for site in "ab":
        held.put(reply_to(asking(site), sums={"training": b"x" * 900}), 900)
    assert held._file is not None
    assert held.take("b")[0].sums == {"training": b"x" * 900}
    held.clear()
    assert held._file is None
