"""Offers of plans and their answers as Flower records: a manifest, and arrays of bytes for what is signed."""

from __future__ import annotations

from typing import Annotated, Final

from flwr.app import RecordDict
from pydantic import BaseModel, ConfigDict, Field

from wardround.core.plan_offers import MOST_REASONS, Enough, PlanAnswer, PlanOffer, Reason, Verdict
from wardround.runtime.flower_records import Version, as_array, make_records, read_bytes, read_manifest

PROTOCOL: Final = 2
"""Of offers and answers; 2 names the version of Wardround on either side."""
OFFER_ACTION: Final = "plan_offer"
OFFER_TYPE: Final = f"query.{OFFER_ACTION}"
"""Flower's name for the kind of message."""
PLAN, CERTIFICATE = "plan", "certificate"
RunId = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")]
"""It names a folder at the site."""


class _Manifest(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    protocol: int = Field(ge=PROTOCOL, le=PROTOCOL)
    version: Version
    run_id: RunId
    site: str = Field(min_length=1, max_length=200)


class _Offer(_Manifest):
    roster: str = Field(pattern="^[0-9a-f]{64}$")


class _Reason(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    code: str = Field(pattern="^[a-z_]{1,50}$")
    text: str = Field(max_length=2000)


class _Answer(_Manifest):
    verdict: Verdict
    reasons: tuple[_Reason, ...] = Field(max_length=MOST_REASONS)
    rows: Enough
    seconds_a_round: float | None = Field(ge=0)


def encode_offer(offer: PlanOffer) -> tuple[RecordDict, int]:
    """Records of an offer, and the bytes of their contents."""
    manifest = _Offer(
        protocol=PROTOCOL,
        version=offer.version,
        run_id=offer.run_id,
        site=offer.site,
        roster=offer.roster.hex(),
    )
    return make_records(manifest, {PLAN: as_array(offer.plan), CERTIFICATE: as_array(offer.certificate)})


def decode_offer(records: RecordDict) -> PlanOffer:
    """Read an offer; what is signed in it is for the site to check.

    Raises:
        PeerError: Anything missing, unknown or too large.
    """
    manifest = read_manifest(records, _Offer, PROTOCOL)
    return PlanOffer(
        manifest.run_id,
        manifest.site,
        read_bytes(records, PLAN),
        read_bytes(records, CERTIFICATE),
        bytes.fromhex(manifest.roster),
        manifest.version,
    )


def encode_answer(answer: PlanAnswer) -> tuple[RecordDict, int]:
    """Records of an answer, and the bytes of their contents."""
    reasons = tuple(_Reason(code=reason.code, text=reason.text[:2000]) for reason in answer.reasons)
    manifest = _Answer(
        protocol=PROTOCOL,
        version=answer.version,
        run_id=answer.run_id,
        site=answer.site,
        verdict=answer.verdict,
        reasons=reasons[:MOST_REASONS],
        rows=answer.rows,
        seconds_a_round=answer.seconds_a_round,
    )
    return make_records(manifest, {})


def decode_answer(records: RecordDict) -> PlanAnswer:
    """Read an answer.

    Raises:
        PeerError: Anything missing, unknown or too large.
    """
    manifest = read_manifest(records, _Answer, PROTOCOL)
    reasons = tuple(Reason(reason.code, reason.text) for reason in manifest.reasons)
    return PlanAnswer(
        manifest.run_id,
        manifest.site,
        manifest.verdict,
        reasons,
        manifest.rows,
        manifest.seconds_a_round,
        manifest.version,
    )
