"""The protocol without its cryptography: every phase, rule and byte of it, and nothing is hidden.

For simulations that only want to know what secure aggregation costs and when it fails, and for tests of what
stands around it. Keys and commitments are made as ever; shares, boxes, masks and signatures are zeros of the
right length. The sum is the very same.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from wardround.privacy.secagg.identity import Roster
from wardround.privacy.secagg.masks import Mask
from wardround.privacy.secagg.messages import SEALED_BYTES, Advertisement, Box, Delivery
from wardround.privacy.secagg.offer import Offer
from wardround.privacy.secagg.relay import Relay
from wardround.privacy.secagg.secret import Secret
from wardround.privacy.secagg.shamir import SHARE_BYTES
from wardround.privacy.secagg.site import M, SecureSite
from wardround.privacy.secagg.total import Sum, total_of

_NO_SHARE = Secret(bytes(SHARE_BYTES))


class TrustingRoster(Roster):
    """Believes everything that comes in a member's name."""

    def check(self, site: str, signature: bytes, statement: bytes) -> None:
        """Nothing is signed."""


class DummySite(SecureSite):
    """A site that hides nothing; its member's roster has to be a `TrustingRoster`."""

    @staticmethod
    def _split(secret: Secret, threshold: int, places: Sequence[int]) -> list[Secret]:  # noqa: ARG004 - the real one's
        return [_NO_SHARE] * len(places)

    def _box(self, keyed: object, peer: Advertisement, head: bytes, *rest: object) -> Box:  # noqa: ARG002 - the real one's
        return Box(recipient=peer.site, sealed=bytes(SEALED_BYTES), head=head)

    def _open_boxes(self, dealt: object, message: Delivery) -> dict[str, tuple[Secret, Secret]]:  # noqa: ARG002 - the real one's
        return dict.fromkeys(sorted(message.boxes), (_NO_SHARE, _NO_SHARE))

    def _masks(self, dealt: object, peers: Iterable[str], after: bytes) -> list[Mapping[str, Mask]]:  # noqa: ARG002 - the real one's
        return []

    def _signed(self, message: M, offer: Offer) -> M:  # noqa: ARG002 - the real one's
        return message


class DummyRelay(Relay):
    """A relay whose sums need no opening; its roster has to be a `TrustingRoster`."""

    def open(self) -> Sum:
        """The sum, where as many answered as the real one needs.

        Raises:
            QuorumError: Too few shares of a secret.
        """
        self._require_openable()
        return total_of(self.offer, self._coordinates, self._counters, self._survivors, ())
