"""What every collector does with the cohort of its offer, whatever its phases are."""

from __future__ import annotations

from collections.abc import Mapping

from wardround.core.errors import PeerError
from wardround.privacy.secagg.messages import encode
from wardround.privacy.secagg.offer import SignedOffer


class CohortCollector:
    """Who is asked in this phase, and has not been settled. The first phase asks the whole cohort.

    Args:
        signed: What is proposed.
    """

    def __init__(self, signed: SignedOffer) -> None:
        self.offer = signed.offer
        self.liars: set[str] = set()
        self.burning = False
        self._signed, self._waiting = signed, set(signed.offer.cohort)

    @property
    def waiting(self) -> frozenset[str]:
        """As the contract says."""
        return frozenset(self._waiting)

    def begin(self) -> Mapping[str, bytes]:
        """The offer, to the whole cohort."""
        return dict.fromkeys(self.offer.cohort, encode(self._signed))

    def leave(self, site: str) -> None:
        """As the contract says."""
        self._waiting.discard(site)

    def _settle(self, site: str) -> None:
        """Raises a PeerError where the site was not asked, or has answered."""
        if site not in self._waiting:
            raise PeerError("a site answers that was not asked, or twice", found=site)
        self._waiting.discard(site)
