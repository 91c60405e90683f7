"""A site's part in the draw of the groups, and its place in them afterwards."""

from __future__ import annotations

from dataclasses import dataclass, field

from wardround.core.errors import PeerError
from wardround.core.messages import Request
from wardround.privacy.secagg.draw import Commitments, Drawn, DrawSite, Groups, SignedDraw
from wardround.privacy.secagg.messages import decode, encode
from wardround.privacy.secagg.offer import Offer
from wardround.privacy.sums.contract import GROUPS


@dataclass
class Grouped:
    """One site's groups.

    Attributes:
        name: Of the site.
        draw: Its side of the draw.
        groups: Once they are drawn.
    """

    name: str
    draw: DrawSite
    groups: Groups = field(default=())

    def answer(self, request: Request) -> bytes:
        """The answer in one phase of the draw.

        Raises:
            PolicyError: The site's own rules refuse.
            PeerError: There is no such phase, or a message is malformed or contradicts an earlier one.
        """
        message = request.sums.get(GROUPS)
        if message is None or len(request.sums) > 1:
            raise PeerError("before the first round there is the draw of the groups, and nothing else")
        match request.exchange:
            case 0:
                return encode(self.draw.commit(decode(message, SignedDraw)))
            case 1:
                return encode(self.draw.show(decode(message, Commitments)))
            case 2:
                self.groups, agreed = self.draw.agree(decode(message, Drawn))
                return encode(agreed)
        raise PeerError("the draw of the groups has no such phase", found=request.exchange, expected="0 to 2")

    def check(self, offer: Offer) -> None:
        """Refuse to contribute to another group than this site's own.

        Raises:
            PeerError: It is another, or none was drawn.
        """
        own = next((group for group in self.groups if self.name in group), None)
        if own is None:
            raise PeerError("the groups of this run were not drawn with this site")
        if offer.cohort != own:
            raise PeerError(
                "the sum is not over this site's group", found=f"{len(offer.cohort)} sites",
                expected=f"the {len(own)} that were drawn",
            )  # fmt: skip
