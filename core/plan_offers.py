"""Enrolment: what server and site say to each other before round 1, as values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

Verdict: TypeAlias = Literal["accepted", "refused", "waiting"]
Enough: TypeAlias = Literal["enough", "not_enough", "unsaid"]
VERDICTS: Final[tuple[Verdict, ...]] = ("accepted", "refused", "waiting")
ENOUGH: Final[tuple[Enough, ...]] = ("enough", "not_enough", "unsaid")
MOST_REASONS: Final = 20


@dataclass(frozen=True)
class PlanOffer:
    """A run that a site is asked to take part in.

    Attributes:
        run_id: Of the run.
        site: Name of the site.
        plan: The signed plan, as the consortium wrote it.
        certificate: The server's, signed by the consortium: whose offers of sums the site will take.
        roster: Digest of the members' keys that the run goes by.
        version: Of Wardround at the server.
    """

    run_id: str
    site: str
    plan: bytes
    certificate: bytes
    roster: bytes
    version: str = ""


@dataclass(frozen=True)
class Reason:
    """Why a site does not accept: a stable code, and a sentence without a data value."""

    code: str
    text: str


@dataclass(frozen=True)
class PlanAnswer:
    """What a site says to an offer.

    Attributes:
        run_id: As in the offer.
        site: As in the offer.
        verdict: `accepted`; `refused` for good; `waiting` for a person at the site.
        reasons: Of a verdict that is not `accepted`.
        rows: Whether the site has rows for the plan's batches, where its policy lets it say so.
        seconds_a_round: How long it expects to train in a round, rounded up; None where it does not say.
        version: Of Wardround at the site.
    """

    run_id: str
    site: str
    verdict: Verdict
    reasons: tuple[Reason, ...] = ()
    rows: Enough = "unsaid"
    seconds_a_round: float | None = None
    version: str = ""
