"""What Prometheus reads of a server: counted from the runs' own events, read where things are kept."""

from __future__ import annotations

import ast
import errno
import math
import re
import socket
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from desk_runs import SITES, Trainer, desk_at, submitted, until
from prometheus_client import CollectorRegistry

from wardround.client.round import CODES as SAID_BY_SITES
from wardround.core.errors import ConfigError, StorageError
from wardround.runtime.events import (
    EventStream,
    PlanAnswered,
    PrivacySpent,
    RoundBurnt,
    RoundFolded,
    SiteReplied,
    as_record,
)
from wardround.server.metrics import CODES, MOST_SITES, REPLIES, Gauges, Meter
from wardround.server.metrics_listener import PORT, metrics_port, serving_metrics
from wardround.server.run_live import LiveRun
from wardround.server.run_record import RunFolder

ROOT = Path(__file__).resolve().parents[3]
ENDS = {"tls": datetime(2027, 1, 1, tzinfo=UTC)}
Make = Callable[..., Any]


class Bench:
    """A desk that is looked at."""

    def __init__(self, folder: Path, trainer: Any, online: Mapping[str, float | None] | None = None) -> None:
        self.registry = CollectorRegistry()
        self.trainer, self.online = trainer, {} if online is None else online
        self.desk = desk_at(folder, trainer, observer=Meter(self.registry))
        self.registry.register(Gauges(self.desk, self._online, lambda: True, lambda: ENDS))

    def _online(self) -> Mapping[str, float | None]:
        return self.online

    def of(self, name: str, **labels: str) -> float | None:
        return self.registry.get_sample_value(f"wardround_{name}", labels)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Make]:
    """Makes one, and closes it."""
    made: list[Bench] = []

    def make(trainer: Any, **more: Any) -> Bench:
        made.append(Bench(tmp_path, trainer, **more))
        return made[-1]

    yield make
    for each in made:
        each.trainer.go.set()
        each.desk.close(5)


class Telling(Trainer):
    """Trains, and says first what it is told to."""

    def __init__(self, *events: Any, **more: Any) -> None:
        super().__init__(**more)
        self.events = events

    def train(self, run: Any, control: Any, events: EventStream) -> None:
        for event in self.events:
            events.emit(event)
        super().train(run, control, events)


def test_a_run_is_counted_as_its_events_tell_it(bench: Make) -> None:
    """Rounds, seconds and bytes are those of the events, and the run's place in the registry is read."""
    here = bench(Trainer(rounds=3))
    run = submitted(here.desk)
    assert here.desk.wait(run, 10).status == "finished"
    assert here.of("rounds_folded_total") == 3
    assert here.of("round_duration_seconds_count") == 3
    assert here.of("round_duration_seconds_sum") == pytest.approx(0.03)
    assert here.of("sent_bytes_total") == 300
    assert here.of("received_bytes_total") == 900
    assert here.of("rounds_burnt_total") == 0
    assert here.of("runs", status="finished") == 1
    assert here.of("runs", status="training") == 0
    assert here.of("run_round") is None  # no run is at work
    assert here.of("storage_failures_total", what="run") == 0


def test_the_run_at_work_shows_round_sites_and_the_greatest_epsilon(bench: Make) -> None:
    """Of what each site did last, the numbers; of ε by site nothing but the greatest."""
    here = bench(
        Telling(
            PlanAnswered("federated", "amber", "accepted"),
            PlanAnswered("federated", "birch", "refused", ("policy: not allowed",)),
            PrivacySpent("federated", 1, "patient", 1e-5, {"amber": 1.5, "birch": 2.5}),
            hold=(2,),
        )
    )
    run = submitted(here.desk)
    until(here.trainer.holding.is_set)
    live = here.desk.run(run)
    live.see(as_record(SiteReplied("federated", 2, "amber", "late", "deadline")))
    live.see(as_record(SiteReplied("federated", 2, "birch", "ok")))
    assert (here.of("run_round"), here.of("run_planned_rounds")) == (2, 3)
    states = {state: here.of("run_sites", state=state) for state in ("late", "answered", "training")}
    assert states == {"late": 1, "answered": 1, "training": 1}
    assert here.of("run_answers", verdict="accepted") == here.of("run_answers", verdict="refused") == 1
    assert live.view.answers["birch"].reason == "policy: not allowed"
    assert here.of("run_epsilon_max") == 2.5
    since = here.of("run_waiting_since_timestamp_seconds")
    assert since is not None
    assert since > 1.7e9
    names = {sample.name for family in here.registry.collect() for sample in family.samples}
    assert not [name for name in names if "epsilon" in name and name != "wardround_run_epsilon_max"]


def test_no_site_makes_series_of_its_own(bench: Make) -> None:
    """Whatever codes a site makes up, the labels stay those of the list."""
    here = bench(Telling(*(SiteReplied("f", 1, "amber", f"s{i}", f"made_up_{i}") for i in range(200))))
    run = submitted(here.desk)
    assert here.desk.wait(run, 10).status == "finished"
    assert here.of("replies_total", status="other", code="other") == 200
    series = [s for family in here.registry.collect() for s in family.samples if "replies_total" in s.name]
    assert len(series) == len(REPLIES) + 1


def test_every_code_that_a_site_of_ours_sends_has_a_series() -> None:
    """The list is held to the code."""
    found = {code for _, _, code in SAID_BY_SITES} | {"internal"}
    for room in ("client", "training", "privacy"):
        for path in (ROOT / room).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "TrainingError":
                    found |= {str(a.value) for a in node.args[:1] if isinstance(a, ast.Constant)}
    assert found - {"no_gradient"} <= CODES  # that one is of an audit, which sends nothing


def test_sites_are_online_while_they_are_heard_of(bench: Make) -> None:
    """One that never was is infinitely long ago; names end where they are too many."""
    here = bench(Trainer(), online={"amber": 3.0, "birch": 400.0, "cedar": None})
    assert (here.of("sites_admitted"), here.of("sites_online")) == (3, 1)
    assert here.of("site_last_heard_seconds", site="birch") == 400
    assert here.of("site_last_heard_seconds", site="cedar") == math.inf
    here.online = dict.fromkeys(map(str, range(MOST_SITES + 1)), 1.0)
    assert here.of("sites_online") == MOST_SITES + 1
    assert here.of("site_last_heard_seconds", site="1") is None


def test_what_cannot_be_read_hides_nothing_else(bench: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """A certificate's file is torn, say: the page says that a part is missing, and has the rest."""
    here = bench(Trainer())
    assert here.of("certificate_expiry_timestamp_seconds", certificate="tls") == ENDS["tls"].timestamp()
    assert here.of("scrape_unread_parts") == 0

    def torn() -> Mapping[str, float | None]:
        raise StorageError("a file is torn")

    monkeypatch.setattr(here, "_online", torn)
    registry = CollectorRegistry()
    registry.register(Gauges(here.desk, torn, lambda: True, lambda: ENDS))
    assert registry.get_sample_value("wardround_scrape_unread_parts") == 1
    assert registry.get_sample_value("wardround_runs", {"status": "queued"}) == 0


def test_what_the_disk_refuses_is_counted(bench: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """A journal that cannot be written ends its run; a line of the log, and a record, end nothing."""
    here = bench(Telling(fail={b"full": StorageError("cannot write the journal")}))
    assert here.desk.wait(submitted(here.desk, b"full"), 10).status == "failed"
    assert here.of("storage_failures_total", what="run") == 1

    def refuse(*_: Any, **__: Any) -> None:
        raise StorageError("cannot write", found="No space left on device")

    monkeypatch.setattr("wardround.server.run_live.append_line", refuse)
    live: LiveRun = here.desk.run(here.desk.listed()[0].run_id)
    live.say("info", "nobody reads this")
    assert here.of("storage_failures_total", what="log") == 1
    monkeypatch.setattr(RunFolder, "save", refuse)
    live.force(live.record)
    with pytest.raises(StorageError):
        live.change(live.record)
    assert here.of("storage_failures_total", what="record") == 2


def test_an_event_that_cannot_be_counted_ends_no_run(bench: Make) -> None:
    """Counters refuse what is negative; the run goes on."""
    here = bench(
        Telling(RoundFolded("f", 1, (), (), 0.5, 0.1, -1, 0.01, "a" * 64), RoundBurnt("f", 1, "why"))
    )
    assert here.desk.wait(submitted(here.desk), 10).status == "finished"
    assert here.of("rounds_burnt_total") == 1
    assert here.of("rounds_folded_total") == 4


def test_metrics_are_read_on_the_loopback_alone(bench: Make) -> None:
    """As text that Prometheus takes; a port that is taken is an error where it was asked for."""
    here = bench(Trainer(), online=dict.fromkeys(SITES, 1.0))
    with serving_metrics(here.registry, 0, required=True) as at:
        assert at is not None
        assert at.startswith("http://127.0.0.1:")
        assert "\nwardround_sites_online 3.0\n" in httpx.get(at).text
        port = int(at.rpartition(":")[2].partition("/")[0])
        for refused in ("127.0.0.2", "::1"):
            with pytest.raises(OSError, match=r"refused|assign|supported") as caught:
                socket.create_connection((refused, port), 1).close()
            assert caught.value.errno in {errno.ECONNREFUSED, errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT}
        with (
            pytest.raises(ConfigError, match="cannot be served"),
            serving_metrics(here.registry, port, required=True),
        ):
            pass
        with serving_metrics(here.registry, port, required=False) as none:
            assert none is None
    with serving_metrics(here.registry, None, required=True) as off:
        assert off is None


def test_a_port_is_a_number_or_off() -> None:
    """No address: another machine has to come through a proxy that asks who comes."""
    assert (metrics_port(None), metrics_port("off"), metrics_port("0"), metrics_port("9999")) == (
        *(PORT, None, 0, 9999),
    )
    for wrong in ("0.0.0.0:9445", "65536", "-1", "", "on"):
        with pytest.raises(ConfigError, match="port of the metrics"):
            metrics_port(wrong)


def test_the_page_of_operations_names_every_metric(bench: Make) -> None:
    """And none that is not there: read while a run is at work and waits, with a site's ε known."""
    spent = PrivacySpent("federated", 1, "patient", 1e-5, {"amber": 1.5})
    here = bench(Telling(spent, hold=(1,)), online={"amber": 1.0})
    submitted(here.desk)
    until(here.trainer.holding.is_set)
    served = {
        family.name + ("_total" if family.type == "counter" else "_info" if family.type == "info" else "")
        for family in here.registry.collect()
    }
    page = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\| `(wardround_\w+)` \|", page, flags=re.MULTILINE)) == served
