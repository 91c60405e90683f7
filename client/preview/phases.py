"""What a site says in each phase of a sum, as bytes of the right length: every secret in them is zeros.

Encoded by the classes that encode the real messages. As if all went well: everybody answers, nobody
complains, one attempt is enough.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Final

from wardround.core.plan import TrainingPlan
from wardround.privacy.sealed import public_key, seal
from wardround.privacy.secagg.draw import Agreed, Committed, Shown
from wardround.privacy.secagg.identity import KeySigner
from wardround.privacy.secagg.messages import (
    NO_HEAD,
    SEALED_BYTES,
    Advertisement,
    Box,
    Confirmation,
    Dealing,
    MaskedInput,
    Opening,
    Unmasking,
    encode,
)
from wardround.privacy.secagg.offer import Offer
from wardround.privacy.secagg.phases import ADVERTISE, CONFIRM, DEAL, MASK, OPEN, UNMASK
from wardround.privacy.secagg.secret import Secret
from wardround.privacy.secagg.shamir import SHARE_BYTES
from wardround.privacy.sums.form import Form
from wardround.privacy.sums.trusted import header_of

_ZEROS: Final = bytes(32)
_SHARE: Final = bytes(SHARE_BYTES)
PLAIN: Final = "contribution"
SEALED: Final = "sealed contribution"
DRAW: Final = ("draw commit", "draw show", "draw agree")


def phases_of(plan: TrainingPlan, offer: Offer, site: str) -> list[tuple[str, bytes]]:
    """Name of each phase, and what the site sends in it; random bytes stand for both lanes.

    Args:
        plan: Says what protects the sum.
        offer: Of the sum: cohort, lengths, graph.
        site: One of the cohort.
    """
    form = Form.of(plan)
    first, counters = form.lane_bytes(offer)
    lanes = os.urandom(first), os.urandom(counters)
    match plan.secure.mode:
        case "off":
            return [(PLAIN, _masked(site, *lanes))]
        case "trusted":
            header = header_of(offer, site, public_key(Secret(_ZEROS)), form)
            return [(SEALED, seal(header, *lanes, KeySigner.fresh()))]
    peers = _others(site, offer.cohort)
    peers = peers[: offer.degree] if offer.degree else peers
    opening = [(OPEN, encode(Opening(site=site, advertised=_ZEROS, value=_ZEROS)))] if offer.degree else []
    return [
        (
            ADVERTISE,
            encode(
                Advertisement(
                    site=site,
                    channel_key=_ZEROS,
                    mask_key=_ZEROS,
                    commitment=_ZEROS,
                    graph_commitment=_ZEROS,
                    ledger_head=NO_HEAD,
                )
            ),
        ),
        *opening,
        (DEAL, encode(Dealing(site=site, agreed=_ZEROS, boxes=tuple(map(_box, peers))))),
        (MASK, _masked(site, *lanes)),
        (CONFIRM, encode(Confirmation(site=site, survived=_ZEROS))),
        (
            UNMASK,
            encode(
                Unmasking(
                    site=site,
                    survived=_ZEROS,
                    self_shares=dict.fromkeys(sorted([site, *peers]), _SHARE),
                    key_shares={},
                )
            ),
        ),
    ]


def draw_of(site: str) -> list[tuple[str, bytes]]:
    """The same of the draw of the groups, before round 1."""
    messages = (
        Committed(site=site, commitment=_ZEROS),
        Shown(site=site, committed=_ZEROS, value=_ZEROS),
        Agreed(site=site, groups=_ZEROS),
    )
    return [(name, encode(message)) for name, message in zip(DRAW, messages, strict=True)]


def cohort_of(site: str, members: Sequence[str], size: int) -> tuple[str, ...]:
    """So many members, this site among them, those with the longest names first: no cohort says more."""
    return tuple(sorted([site, *_others(site, members)[: size - 1]]))


def _others(site: str, members: Sequence[str]) -> list[str]:
    return sorted((name for name in members if name != site), key=lambda name: (-len(name.encode()), name))


def _box(recipient: str) -> Box:
    return Box(recipient=recipient, sealed=bytes(SEALED_BYTES), head=NO_HEAD)


def _masked(site: str, coordinates: bytes, counters: bytes) -> bytes:
    return encode(MaskedInput(site=site, dealt=_ZEROS, coordinates=coordinates, counters=counters))
