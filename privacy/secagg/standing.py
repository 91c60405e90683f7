"""Where a site stands in an attempt: what each phase leaves for the next one, in memory alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from wardround.privacy.secagg.graph import Graph
from wardround.privacy.secagg.messages import Advertisement
from wardround.privacy.secagg.offer import Offer
from wardround.privacy.secagg.secret import Secret


@dataclass(frozen=True, repr=False)
class Keyed:
    """Keys are shown."""

    offer: Offer
    channel: X25519PrivateKey
    mask: X25519PrivateKey
    seed: Secret
    graph_value: Secret
    own: Advertisement


@dataclass(frozen=True, repr=False)
class Drawn:
    """What decides the graph is shown."""

    keyed: Keyed
    advertisements: Mapping[str, Advertisement]


@dataclass(frozen=True, repr=False)
class Dealt:
    """Shares are dealt."""

    keyed: Keyed
    advertisements: Mapping[str, Advertisement]
    graph: Graph
    agreed: bytes
    own_shares: tuple[Secret, Secret]


@dataclass(frozen=True, repr=False)
class Masked:
    """The vector is sent; `heads` is what all that dealt have shown of their ledgers."""

    offer: Offer
    graph: Graph
    dealers: tuple[str, ...]
    dealt: bytes
    held: Mapping[str, tuple[Secret, Secret]]
    heads: Mapping[str, bytes]


@dataclass(frozen=True, repr=False)
class Confirmed:
    """The survivors are signed."""

    masked: Masked
    survivors: tuple[str, ...]
    survived: bytes


def name_of(kind: type) -> str:
    """In words."""
    return {
        Keyed: "after the keys", Drawn: "after the draw", Dealt: "after the shares",
        Masked: "after the masked vector", Confirmed: "after the confirmation",
    }.get(kind, "no attempt under way")  # fmt: skip
