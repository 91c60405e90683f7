"""Enrolment: the plan is offered to every member, and the run begins when enough of them have accepted.

    offer to all → answers (accepted, refused, waiting: asked again) → least number, a grace period → sites

A person at a site may take days. What was answered is durable, so that a killed server goes on from it; time
in which no server ran does not count against the offer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final, Protocol

from pydantic import Field, ValidationError

from wardround.core.checked import Frozen
from wardround.core.enrolment import EnrolmentRules
from wardround.core.errors import QuorumError, StorageError
from wardround.core.plan_offers import Enough, PlanAnswer, PlanOffer, Reason, Verdict
from wardround.runtime.events import EventStream, PlanAnswered
from wardround.runtime.files import storing, write_atomic

ARM: Final = "federated"
AGAIN_S: Final = 5.0
"""Pause before a site that waits for a person, or whose process failed, is asked again; it doubles."""
LONGEST_PAUSE_S: Final = 900.0
LOOK_S: Final = 0.5
MOST_TOLD: Final = 10
"""Undecided sites whose reasons `why` tells."""
KEEP_S: Final = 60.0
"""So often the time that has passed is kept: as much of it a killed server forgets at most."""


class OfferTransport(Protocol):
    """Carries offers to sites and answers back."""

    def send(self, offers: Sequence[PlanOffer]) -> None:
        """Hand the offers over."""

    def receive(self, timeout_s: float) -> Sequence[PlanAnswer]:
        """Answers that have arrived; empty after `timeout_s` without one.

        For a site that is not there, or whose process failed, the transport answers `waiting`, code `away`.
        """


class _Answer(Frozen):
    verdict: Verdict
    reasons: tuple[tuple[str, str], ...] = ()
    rows: Enough = "unsaid"
    seconds_a_round: float | None = None
    version: str = ""


class _Record(Frozen):
    """What is kept of an enrolment."""

    members: tuple[str, ...]
    answers: dict[str, _Answer] = Field(default_factory=dict)
    elapsed_s: float = Field(default=0.0, ge=0)
    closed: bool = False


@dataclass(frozen=True)
class Enrolment:
    """Who was asked, and who has said what; a value.

    Attributes:
        members: Everybody who is offered the plan, sorted.
        answers: Member → its last answer.
        elapsed_s: Seconds that the offer has stood while a server ran.
        closed: Whether the run has begun, with those who had accepted by then.
    """

    members: tuple[str, ...]
    answers: Mapping[str, PlanAnswer] = field(default_factory=dict)
    elapsed_s: float = 0.0
    closed: bool = False

    def with_answer(self, answer: PlanAnswer) -> Enrolment:
        """With one more answer; of a stranger, or after a verdict that stands, it changes nothing."""
        if answer.site not in self.members or answer.site in self.settled:
            return self
        return replace(self, answers={**self.answers, answer.site: answer})

    @property
    def accepted(self) -> tuple[str, ...]:
        """Sorted."""
        return tuple(site for site in self.members if self._verdict(site) == "accepted")

    @property
    def settled(self) -> frozenset[str]:
        """Members whose verdict stands."""
        return frozenset(site for site in self.members if self._verdict(site) in ("accepted", "refused"))

    @property
    def open(self) -> tuple[str, ...]:
        """Members that have not said yes or no, sorted."""
        return tuple(site for site in self.members if site not in self.settled)

    def _verdict(self, site: str) -> str:
        answer = self.answers.get(site)
        return "" if answer is None else answer.verdict

    def told(self) -> str:
        """Who has not accepted, and why, for people."""
        return "; ".join(_why(site, self.answers.get(site)) for site in self.members if not self._yes(site))

    def _yes(self, site: str) -> bool:
        return self._verdict(site) == "accepted"


def _why(site: str, answer: PlanAnswer | None) -> str:
    if answer is None:
        return f"{site}: no answer"
    reasons = ", ".join(f"{reason.code} ({reason.text})" for reason in answer.reasons)
    version = f" (Wardround {answer.version})" if answer.version else ""
    return f"{site}{version}: {answer.verdict}" + (f", {reasons}" if reasons else "")


@dataclass(frozen=True)
class EnrolmentBook:
    """The durable record of one run's enrolment.

    Attributes:
        path: Its file.
        run_id: Of the run.
    """

    path: Path
    run_id: str

    def load(self, members: Sequence[str]) -> Enrolment:
        """What was answered so far; a fresh enrolment of `members` where there is no file.

        Raises:
            StorageError: The file cannot be read, or does not hold what was written.
        """
        if not self.path.exists():
            return Enrolment(tuple(sorted(members)))
        with storing(self.path):
            data = self.path.read_bytes()
        try:
            record = _Record.model_validate_json(data)
        except ValidationError as error:
            raise StorageError(
                f"{self.path} holds no enrolment", found=f"{error.error_count()} faults",
                expected="what this version wrote", remedy="stop this run, and start it anew",
            ) from error  # fmt: skip
        answers = {
            site: PlanAnswer(
                self.run_id, site, kept.verdict, tuple(Reason(*pair) for pair in kept.reasons), kept.rows,
                kept.seconds_a_round, kept.version,
            )
            for site, kept in record.answers.items()
        }  # fmt: skip
        return Enrolment(record.members, answers, record.elapsed_s, record.closed)

    def save(self, enrolment: Enrolment) -> None:
        """Keep it; durable when this returns.

        Raises:
            StorageError: It cannot be written.
        """
        answers = {
            site: _Answer(
                verdict=answer.verdict,
                reasons=tuple((reason.code, reason.text) for reason in answer.reasons),
                rows=answer.rows,
                seconds_a_round=answer.seconds_a_round,
                version=answer.version,
            )
            for site, answer in enrolment.answers.items()
        }
        record = _Record(
            members=enrolment.members,
            answers=answers,
            elapsed_s=enrolment.elapsed_s,
            closed=enrolment.closed,
        )
        write_atomic(self.path, record.model_dump_json().encode())


@dataclass(frozen=True)
class Enrolling:
    """Everything that offering one plan needs.

    Attributes:
        offer: Member → what it is offered.
        rules: When the run begins.
        transport: Reaches the members.
        book: Makes answers durable.
        events: Where the run tells what happens.
        clock: Seconds, monotonic.
        waiting_for: Told, for people, what the run waits for, and the sites.
        check: Raises where a person has stopped the run.
    """

    offer: Mapping[str, PlanOffer]
    rules: EnrolmentRules
    transport: OfferTransport
    book: EnrolmentBook
    events: EventStream
    clock: Callable[[], float]
    waiting_for: Callable[[str, Sequence[str]], None] = field(default=lambda *_: None)
    check: Callable[[], None] = field(default=lambda: None)


def enrol(asking: Enrolling) -> tuple[str, ...]:
    """Offer the plan until the run may begin.

    Returns:
        The sites that have accepted, sorted: at least as many as the rules demand. Whoever is late joins with
        the next plan.

    Raises:
        QuorumError: The offer expired, or too few are left who could accept; each with its reasons.
        StorageError: An answer cannot be kept.
    """
    enrolment = asking.book.load(sorted(asking.offer))
    if enrolment.closed:
        return enrolment.accepted
    asking.book.save(enrolment)
    started = asking.clock() - enrolment.elapsed_s
    pause = dict.fromkeys(enrolment.open, AGAIN_S)
    due = dict.fromkeys(enrolment.open, asking.clock())
    enough_at: float | None = None
    kept_s = enrolment.elapsed_s
    least, grace = asking.rules.least_sites, asking.rules.grace_s
    while True:
        asking.check()
        now = asking.clock()
        enrolment = replace(enrolment, elapsed_s=now - started)
        if len(enrolment.accepted) >= least:
            enough_at = now if enough_at is None else enough_at
            if not enrolment.open or now - enough_at >= grace:
                asking.book.save(replace(enrolment, closed=True))
                return enrolment.accepted
        _require_hope(enrolment, asking.rules)
        asking.waiting_for(_waited(enrolment, least), enrolment.open)
        asked = [site for site in enrolment.open if due[site] <= now]
        if asked:
            asking.transport.send([asking.offer[site] for site in asked])
            due.update(dict.fromkeys(asked, now + LONGEST_PAUSE_S))  # it may have died with the offer
        before = enrolment
        for answer in asking.transport.receive(LOOK_S):
            enrolment = enrolment.with_answer(answer)
            if answer.verdict == "waiting" and answer.site in due:
                due[answer.site] = asking.clock() + pause[answer.site]
                pause[answer.site] = min(2 * pause[answer.site], LONGEST_PAUSE_S)
        if enrolment.answers != before.answers or enrolment.elapsed_s - kept_s >= KEEP_S:
            asking.book.save(enrolment)
            kept_s = enrolment.elapsed_s
        _tell(asking.events, before, enrolment)


def _require_hope(enrolment: Enrolment, rules: EnrolmentRules) -> None:
    left = len(enrolment.accepted) + len(enrolment.open)
    expired = enrolment.elapsed_s >= rules.offer_expires_s
    if left >= rules.least_sites and not expired:
        return
    what = "the offer of the plan expired" if expired else "too many sites refused the plan"
    raise QuorumError(
        what, found=f"{len(enrolment.accepted)} accepted; {enrolment.told()}",
        expected=f"at least {rules.least_sites} sites",
        remedy="settle the reasons with the sites, and start the run again",
    )  # fmt: skip


def _waited(enrolment: Enrolment, least: int) -> str:
    """What the run waits for, and what undecided sites have said: people have to do something there."""
    said = [_why(site, enrolment.answers[site]) for site in enrolment.open if site in enrolment.answers]
    more = [f"and {len(said) - MOST_TOLD} others wait"] if len(said) > MOST_TOLD else []
    count = f"{len(enrolment.accepted)} of at least {least} sites have accepted the plan"
    return "; ".join((count, f"{len(enrolment.open)} have not decided", *said[:MOST_TOLD], *more))


def _tell(events: EventStream, before: Enrolment, after: Enrolment) -> None:
    """One event for each answer that says something new: a site that goes on waiting is not told of again."""
    for site, answer in after.answers.items():
        if before.answers.get(site) != answer:
            reasons = tuple(f"{reason.code}: {reason.text}" for reason in answer.reasons)
            events.emit(
                PlanAnswered(
                    ARM, site, answer.verdict, reasons, answer.rows, answer.seconds_a_round, answer.version
                )
            )
