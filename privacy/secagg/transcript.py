"""Hashes that bind each phase to all before it, and the keys and masks that follow: both sides need them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeVar

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from wardround.core.errors import PeerError
from wardround.privacy.secagg.graph import Graph, complete, regular
from wardround.privacy.secagg.hashing import derive, digest
from wardround.privacy.secagg.identity import Roster
from wardround.privacy.secagg.masks import Mask
from wardround.privacy.secagg.messages import Advertisement, Message, Opening
from wardround.privacy.secagg.offer import Offer
from wardround.privacy.secagg.secret import Secret

M = TypeVar("M", bound=Message)
LANES = ("coordinates", "counters")


def commitment(context: bytes, site: str, secret: Secret) -> bytes:
    """To 32 random bytes: hiding, since they are, and binding."""
    return digest("commitment", context, site, secret.reveal())


def advertised(context: bytes, advertisements: Mapping[str, Advertisement]) -> bytes:
    """Transcript of all keys of this attempt."""
    return digest(
        "advertised", context,
        *(part for site in sorted(advertisements) for part in (site, *advertisements[site].content())),
    )  # fmt: skip


def agreed(after: bytes, openings: Mapping[str, Opening]) -> bytes:
    """Transcript of the keys and of what the graph was drawn from."""
    return digest(
        "agreed", after, *(part for site in sorted(openings) for part in (site, openings[site].value))
    )


def dealt(agreed: bytes, dealers: Sequence[str]) -> bytes:
    """Transcript up to who dealt shares: these and no others mask with each other."""
    return digest("dealt", agreed, *dealers)


def survived(dealt: bytes, survivors: Sequence[str]) -> bytes:
    """Transcript up to the one set of survivors."""
    return digest("survived", dealt, *survivors)


def check_advertisements(
    offer: Offer, roster: Roster, messages: Sequence[Advertisement]
) -> dict[str, Advertisement]:
    """The advertisements by site.

    Raises:
        PeerError: One is no member's, comes twice, is not signed, repeats a key; or there are too few.
    """
    found = _by_site(messages, "advertisement")
    if not set(found) <= set(offer.cohort):
        raise PeerError(
            "an advertisement comes from outside the cohort", found=min(set(found) - set(offer.cohort))
        )
    for site, message in found.items():
        roster.check(site, message.signature, message.statement(offer.context))
    keys = [key for message in messages for key in (message.channel_key, message.mask_key)]
    if len(set(keys)) != len(keys):
        raise PeerError("a key is advertised twice", expected="two fresh keys a site")
    if len(found) < offer.threshold:
        raise PeerError(
            "too few sites advertised keys", found=len(found), expected=f"at least {offer.threshold}"
        )
    return found


def check_openings(
    offer: Offer, roster: Roster, advertisements: Mapping[str, Advertisement], messages: Sequence[Opening]
) -> dict[str, Opening]:
    """The openings by site: of all that advertised, or whoever leaves some out could choose the graph.

    Raises:
        PeerError: One is missing, not signed, of another transcript, or not what was committed to.
    """
    found = _by_site(messages, "opening")
    if set(found) != set(advertisements):
        raise PeerError(
            "the draw of the graph needs the opening of every site that advertised",
            found=f"{len(found)} of {len(advertisements)}", remedy="a new attempt",
        )  # fmt: skip
    transcript = advertised(offer.context, advertisements)
    for site, message in found.items():
        roster.check(site, message.signature, message.statement(offer.context))
        value = commitment(offer.context, site, Secret(message.value))
        if message.advertised != transcript or value != advertisements[site].graph_commitment:
            raise PeerError("an opening is not what the site committed to", found=site)
    return found


def graph_of(
    offer: Offer, advertisements: Mapping[str, Advertisement], openings: Mapping[str, Opening]
) -> Graph:
    """Who masks with whom among the sites that advertised.

    Raises:
        PeerError: Too few are left for the degree.
    """
    sites = sorted(advertisements)
    if not offer.degree:
        return complete(sites)
    if offer.degree >= len(sites):
        raise PeerError(
            "too few sites are left for the graph", found=len(sites), expected=f"above {offer.degree}"
        )
    return regular(sites, offer.degree, {site: opening.value for site, opening in openings.items()})


def shared_secret(secret: X25519PrivateKey, public: bytes) -> Secret:
    """X25519 (RFC 7748).

    Raises:
        PeerError: The public key is of small order, or no key.
    """
    try:
        return Secret(secret.exchange(X25519PublicKey.from_public_bytes(public)))
    except ValueError as error:
        raise PeerError(
            "a public key is not usable", expected="an X25519 key that is not of small order"
        ) from error


def box_key(channel: Secret, agreed: bytes, dealer: str, recipient: str) -> Secret:
    """Seals the one box of a dealer for a recipient."""
    return derive(channel, agreed, "box", dealer, recipient)


def self_masks(seed: Secret, dealt: bytes, site: str, *, remove: bool = False) -> dict[str, Mask]:
    """A site's own mask, by lane."""
    return {lane: Mask(derive(seed, dealt, "self", site, lane), -1 if remove else 1) for lane in LANES}


def pair_masks(
    shared: Secret, dealt: bytes, site: str, peer: str, *, remove: bool = False
) -> dict[str, Mask]:
    """The mask that `site` shares with `peer`, by lane: the first adds it, the other takes it away."""
    first, second = sorted((site, peer))
    return {
        lane: Mask(
            derive(shared, dealt, "pair", first, second, lane), 1 if (site == first) is not remove else -1
        )
        for lane in LANES
    }


def _by_site(messages: Sequence[M], what: str) -> dict[str, M]:
    found = {message.site: message for message in messages}
    if len(found) != len(messages):
        raise PeerError(f"a site sent its {what} twice")
    return found
