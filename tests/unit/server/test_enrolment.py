"""Offering a plan: who accepts, who is asked again, when the run begins, what a killed server keeps."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from wardround.core.enrolment import EnrolmentRules
from wardround.core.errors import QuorumError, StorageError
from wardround.core.plan_offers import PlanAnswer, PlanOffer, Reason
from wardround.runtime.events import EventStream, PlanAnswered
from wardround.server.enrolment import AGAIN_S, Enrolling, EnrolmentBook, enrol

SITES = ("aachen", "basel", "cork")
WAITS = Reason("approval", "a person has to approve the plan")


@dataclass
class Clock:
    """Time that moves when somebody waits."""

    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Sites:
    """Sites that answer by a script: verdicts, one after another; none left: silence."""

    clock: Clock
    script: dict[str, list[PlanAnswer]]
    asked: list[tuple[float, str]] = field(default_factory=list)
    held: list[PlanAnswer] = field(default_factory=list)

    def send(self, offers: Sequence[PlanOffer]) -> None:
        for offer in offers:
            self.asked.append((self.clock.now, offer.site))
            if self.script.get(offer.site):
                self.held.append(self.script[offer.site].pop(0))

    def receive(self, timeout_s: float) -> Sequence[PlanAnswer]:
        answers, self.held = self.held, []
        if not answers:
            self.clock.now += timeout_s
        return answers


@dataclass
class Recorder:
    """Keeps events."""

    events: list[Any] = field(default_factory=list)

    def emit(self, event: Any) -> None:
        self.events.append(event)

    def close(self) -> None:
        """Nothing."""


def says(site: str, verdict: Any, *reasons: Reason) -> PlanAnswer:
    """An answer."""
    return PlanAnswer("run1", site, verdict, reasons)


def asking(
    tmp_path: Path, script: dict[str, list[PlanAnswer]], *, least: int = 2, grace: float = 60.0, **kept: Any
) -> tuple[Enrolling, Sites, Recorder]:
    """An enrolment of three sites."""
    clock = kept.pop("clock", None) or Clock()
    sites, recorder = Sites(clock, script), Recorder()
    offers = {site: PlanOffer("run1", site, b"plan", b"certificate", b"r" * 32) for site in SITES}
    rules = EnrolmentRules(least_sites=least, offer_expires_s=7200, grace_s=grace)
    book = EnrolmentBook(tmp_path / "enrolment.json", "run1")
    return Enrolling(offers, rules, sites, book, EventStream([recorder]), clock, **kept), sites, recorder


def test_the_run_begins_at_once_when_everybody_has_decided(tmp_path: Path) -> None:
    """Nobody waits for a grace period that can bring nothing."""
    script = {site: [says(site, "accepted")] for site in SITES}
    enrolling, sites, recorder = asking(tmp_path, script)
    assert enrol(enrolling) == SITES
    assert sites.clock.now == 1000.0
    assert [event.site for event in recorder.events] == list(SITES)


def test_the_least_number_opens_a_grace_period_and_the_late_are_left_out(tmp_path: Path) -> None:
    """Two accept; the third never says anything: the run begins without it, 60 seconds later."""
    script = {site: [says(site, "accepted")] for site in SITES[:2]}
    enrolling, sites, _ = asking(tmp_path, script)
    assert enrol(enrolling) == SITES[:2]
    assert 1060.0 <= sites.clock.now <= 1062.0


def test_a_site_that_waits_for_a_person_is_asked_again_ever_less_often(tmp_path: Path) -> None:
    """After 30, 60, 120 … seconds; its reason is told once, and its acceptance when it comes."""
    script = {
        "aachen": [says("aachen", "accepted")],
        "basel": [*[says("basel", "waiting", WAITS)] * 3, says("basel", "accepted")],
        "cork": [says("cork", "refused", Reason("policy", "no"))],
    }
    enrolling, sites, recorder = asking(tmp_path, script)
    assert enrol(enrolling) == ("aachen", "basel")
    times = [when for when, site in sites.asked if site == "basel"]
    assert [round(b - a) for a, b in itertools.pairwise(times)] == pytest.approx(
        [AGAIN_S, 2 * AGAIN_S, 4 * AGAIN_S], abs=2
    )
    told = [(event.verdict, event.reasons) for event in recorder.events if event.site == "basel"]
    assert told == [("waiting", ("approval: a person has to approve the plan",)), ("accepted", ())]
    assert all(isinstance(event, PlanAnswered) for event in recorder.events)


def test_a_site_that_died_with_the_offer_is_offered_it_again(tmp_path: Path) -> None:
    """Silence is asked into again; a site may have taken the message and lost it."""
    script: dict[str, list[PlanAnswer]] = {site: [says(site, "accepted")] for site in SITES[:1]}
    enrolling, sites, _ = asking(tmp_path, script)
    with pytest.raises(QuorumError, match="expired"):
        enrol(enrolling)
    assert len([site for _, site in sites.asked if site == "cork"]) >= 7


def test_an_offer_that_expires_names_every_reason(tmp_path: Path) -> None:
    """Who accepted, who waits for what, who never answered."""
    script = {"aachen": [says("aachen", "accepted")], "basel": [says("basel", "waiting", WAITS)] * 99}
    enrolling, _, _ = asking(tmp_path, script)
    with pytest.raises(QuorumError) as caught:
        enrol(enrolling)
    text = str(caught.value)
    assert "1 accepted" in text
    assert "basel: waiting, approval" in text
    assert "cork: no answer" in text


def test_too_many_refusals_end_it_at_once(tmp_path: Path) -> None:
    """Nobody waits a week for a plan that cannot have its sites."""
    script = {site: [says(site, "refused", Reason("model_absent", "no such base"))] for site in SITES[:2]}
    enrolling, sites, _ = asking(tmp_path, script)
    with pytest.raises(QuorumError, match="too many sites refused"):
        enrol(enrolling)
    assert sites.clock.now == 1000.0


def test_a_verdict_stands_and_strangers_say_nothing(tmp_path: Path) -> None:
    """A site that accepted does not refuse afterwards, and a site that was not asked changes nothing."""
    script = {site: [says(site, "accepted")] for site in SITES}
    script["aachen"] = [says("stranger", "accepted")]
    enrolling, _, recorder = asking(tmp_path, script, grace=10)
    assert enrol(enrolling) == SITES[1:]
    assert "stranger" not in {event.site for event in recorder.events}


class KilledError(Exception):
    """The server dies here."""


def test_a_killed_server_goes_on_from_what_was_answered(tmp_path: Path) -> None:
    """Whoever accepted is not asked again; the time without a server does not count."""
    clock = Clock()
    die: list[Callable[[], None]] = []

    def check() -> None:
        if die and clock.now > 3000:
            die[0]()

    def kill() -> None:
        raise KilledError

    die.append(kill)
    first, _, _ = asking(tmp_path, {"aachen": [says("aachen", "accepted")]}, clock=clock, check=check)
    with pytest.raises(KilledError):
        enrol(first)
    clock.now += 1e6
    script = {"basel": [says("basel", "accepted")], "cork": [says("cork", "accepted")]}
    second, sites, _ = asking(tmp_path, script, clock=clock)
    assert enrol(second) == SITES
    assert {site for _, site in sites.asked} == {"basel", "cork"}
    assert 1900 <= EnrolmentBook(tmp_path / "enrolment.json", "run1").load(()).elapsed_s <= 2100


def test_what_the_run_waits_for_is_said(tmp_path: Path) -> None:
    """Who has not decided, by name."""
    said: list[tuple[str, tuple[str, ...]]] = []
    script = {site: [says(site, "accepted")] for site in SITES}
    enrolling, _, _ = asking(
        tmp_path, script, least=3, waiting_for=lambda text, sites: said.append((text, tuple(sites)))
    )
    enrol(enrolling)
    assert said[0] == ("0 of at least 3 sites have accepted the plan; 3 have not decided", SITES)


def test_a_damaged_record_is_refused(tmp_path: Path) -> None:
    """A file that is not ours is named, and left alone."""
    (tmp_path / "enrolment.json").write_text('{"members": 3}')
    enrolling, _, _ = asking(tmp_path, {})
    with pytest.raises(StorageError, match="holds no enrolment"):
        enrol(enrolling)
    assert (tmp_path / "enrolment.json").read_text() == '{"members": 3}'


def test_a_run_that_has_begun_keeps_its_sites(tmp_path: Path) -> None:
    """A server that is started again asks nobody anew, whoever could accept by now."""
    script = {site: [says(site, "accepted")] for site in SITES[:2]}
    first, _, _ = asking(tmp_path, script)
    assert enrol(first) == SITES[:2]
    again, sites, recorder = asking(tmp_path, {"cork": [says("cork", "accepted")]})
    assert enrol(again) == SITES[:2]
    assert (sites.asked, recorder.events) == ([], [])
