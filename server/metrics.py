"""What an operator would be woken for, as Prometheus reads it.

Counters are of this process, counted from the runs' events as they come; gauges are read where they are
kept, at each scrape: the desk, the view of the run at work, Flower's link, the certificates' files.

No figure is of one site but when it was last heard of. ε by site stays behind the operator's token
(`wardround run status`): it follows from how many patients a site has, and a monitoring system keeps what it
reads for long and shows it to many. The greatest ε is enough to be warned by.
"""

from __future__ import annotations

import logging
import math
from collections import Counter as Tally
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime
from typing import Any, Final

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric

from wardround import __version__
from wardround.server.desk import Desk
from wardround.server.observing import Unkept
from wardround.server.run_live import LiveRun
from wardround.server.run_states import RunStatus

LOG = logging.getLogger(__name__)
ONLINE_S: Final = 90.0
"""A site that was heard of within so many seconds is online: an idle one asks at least every 15."""
MOST_SITES: Final = 500
"""Sites with a series of their own, by name; a consortium of more has the sums alone."""
MINUTE, HOUR = 60.0, 3600.0
ROUND_S: Final = (
    *(1.0, 5.0, 15.0, MINUTE, 5 * MINUTE, 15 * MINUTE, HOUR, 3 * HOUR, 6 * HOUR, 12 * HOUR, 24 * HOUR),
)
STATES: Final = ("expected", "training", "answered", "refused", "failed", "late", "quarantined")
VERDICTS: Final = ("accepted", "refused", "waiting")
REPLIES: Final = ("ok", "refused", "failed", "late", "quarantined")
CODES: Final = frozenset(
    {
        *("", "deadline", "malformed_reply", "crashed", "version"),  # the server's own
        *(
            "bad_request",
            "policy",
            "budget",
            "rolled_back",
            "storage",
            "configuration",
            "bad_message",
            "internal",
        ),
        *("nothing_trained", "bad_contribution", "nothing_kept", "weight_above_plan", "non_finite_loss"),
        *("nothing_moved", "no_rows", "nothing_trains", "non_finite_contribution", "out_of_memory"),
    }
)
"""Codes of replies that get a series; a site that makes up others makes one, `other`."""
OTHER: Final = "other"


class Meter:
    """Counts what the runs of this process tell.

    Args:
        registry: Where the counters are read.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        def counter(name: str, said: str, *labels: str) -> Counter:
            return Counter(f"wardround_{name}", said, labels, registry=registry)

        self._folded = counter("rounds_folded", "Rounds that were folded and journalled.")
        self._burnt = counter("rounds_burnt", "Rounds that ended without a fold.")
        self._seconds = Histogram(
            "wardround_round_duration_seconds",
            "Seconds of a folded round.",
            buckets=ROUND_S,
            registry=registry,
        )
        self._sent = counter("sent_bytes", "Bytes of what rounds were begun with, to all sites.")
        self._received = counter("received_bytes", "Bytes of the replies of folded rounds, from all sites.")
        self._replies = counter("replies", "Replies of sites, by how they were taken.", "status", "code")
        self._unkept = counter(
            "storage_failures", "What the disk refused; `run` ended the run: its journal above all.", "what"
        )
        for what in ("run", "record", "log"):
            self._unkept.labels(what)
        for status in REPLIES:
            self._replies.labels(status, "")

    def event(self, record: Mapping[str, Any]) -> None:
        """Count one event; of those that it does not know, nothing."""
        match record.get("event"):
            case "RoundStarted":
                self._sent.inc(record["bytes_down"])
            case "SiteReplied":
                status, code = str(record["status"]), str(record["code"])
                known = status if status in REPLIES else OTHER
                self._replies.labels(known, code if code in CODES else OTHER).inc()
            case "RoundFolded":
                self._folded.inc()
                self._received.inc(record["bytes_up"])
                self._seconds.observe(record["wall_s"])
            case "RoundBurnt":
                self._burnt.inc()

    def unkept(self, what: Unkept) -> None:
        """Count one refusal of the disk."""
        self._unkept.labels(what).inc()


class Gauges:
    """Reads how things stand, when it is asked. A part that cannot be read hides no other.

    Args:
        desk: The queue of runs.
        online: Admitted site → seconds since it was last heard of; None where it never was.
        serving: Whether the public listener is alive.
        ends: Short name of a certificate → when it expires.
        lost: Records of the server's own log that could not be written.
    """

    def __init__(
        self,
        desk: Desk,
        online: Callable[[], Mapping[str, float | None]],
        serving: Callable[[], bool],
        ends: Callable[[], Mapping[str, datetime]],
        lost: Callable[[], int] = lambda: 0,
    ) -> None:
        self._lost = lost
        self._desk, self._online, self._serving, self._ends = desk, online, serving, ends

    def describe(self) -> Iterable[Metric]:
        """Nothing: the registry would read everything to learn the names."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """Every gauge."""
        yield InfoMetricFamily("wardround_build", "Of this server.", {"version": __version__})
        unread = 0
        for part in (self._runs, self._run_at_work, self._sites, self._certificates):
            try:
                yield from list(part())
            except Exception:
                LOG.exception("a part of the metrics could not be read")
                unread += 1
        lost = CounterMetricFamily("wardround_log_records_lost", "Records that the server's log file lacks.")
        lost.add_metric([], self._lost())
        yield lost
        yield _gauge("scrape_unread_parts", "Parts of this page that could not be read.", unread)

    def _runs(self) -> Iterator[Metric]:
        count = Tally(record.status for record in self._desk.listed())
        runs = GaugeMetricFamily("wardround_runs", "Runs of the registry, by status.", labels=["status"])
        for status in RunStatus:
            runs.add_metric([str(status)], count[status])
        yield runs
        yield _gauge("runs_unreadable", "Runs whose record cannot be read.", len(self._desk.unreadable))

    def _run_at_work(self) -> Iterator[Metric]:
        active = [record for record in self._desk.listed() if record.status.active]
        if active:
            yield from run_gauges(self._desk.run(active[0].run_id))

    def _sites(self) -> Iterator[Metric]:
        online = self._online()
        yield _gauge("listener_up", "1 while the public listener is alive.", self._serving())
        yield _gauge("sites_admitted", "Sites that may connect.", len(online))
        here = sum(heard is not None and heard <= ONLINE_S for heard in online.values())
        yield _gauge("sites_online", f"Sites that were heard of within {ONLINE_S:.0f} s.", here)
        if len(online) <= MOST_SITES:
            said = "Seconds since the site was heard of; +Inf of one that never was."
            heard_of = GaugeMetricFamily("wardround_site_last_heard_seconds", said, labels=["site"])
            for site, heard in sorted(online.items()):
                heard_of.add_metric([site], math.inf if heard is None else heard)
            yield heard_of

    def _certificates(self) -> Iterator[Metric]:
        said = "When it expires, in seconds since 1970; the first one to, where there are several."
        found = GaugeMetricFamily(
            "wardround_certificate_expiry_timestamp_seconds", said, labels=["certificate"]
        )
        for name, when in sorted(self._ends().items()):
            found.add_metric([name], when.timestamp())
        yield found


def run_gauges(run: LiveRun) -> Iterator[Metric]:
    """How the run at work stands; there is one at most, so that none is named."""
    view, control = run.view, run.control
    yield _gauge("run_round", "Round of the run at work that trains, or was folded last.", view.round)
    yield _gauge("run_planned_rounds", "Rounds of its plan.", view.rounds)
    sites = Tally(site.state if site.state in STATES else OTHER for site in view.sites.values())
    yield _by(
        "run_sites", "Sites of the run at work, by what they did last.", "state", (*STATES, OTHER), sites
    )
    said = Tally(answer.state for answer in view.answers.values())
    yield _by("run_answers", "Members by what they last said to the offered plan.", "verdict", VERDICTS, said)
    if view.epsilon:
        greatest = max(view.epsilon.values())
        yield _gauge("run_epsilon_max", "Greatest ε that a site of the run at work has reserved.", greatest)
    if control is not None and control.waiting.since:
        since = control.waiting.since
        yield _gauge(
            "run_waiting_since_timestamp_seconds", "Since when it waits for what it waits for.", since
        )


def _gauge(name: str, said: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"wardround_{name}", said, float(value))


def _by(
    name: str, said: str, label: str, values: Iterable[str], count: Mapping[str, int]
) -> GaugeMetricFamily:
    family = GaugeMetricFamily(f"wardround_{name}", said, labels=[label])
    for value in values:
        family.add_metric([value], count.get(value, 0))
    return family
