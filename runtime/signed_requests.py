"""Questions to the server's routes for members, signed by an identity key: a header, and its check."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final
from urllib.parse import quote, unquote

from wardround.core.errors import PeerError
from wardround.privacy.secagg.hashing import framed
from wardround.privacy.secagg.identity import Roster, Signer
from wardround.runtime.roster import SKEW

TAG: Final = "wardround request 1"
HEADER: Final = "authorization"
ROUTES: Final = "/v1/wardround"
"""Path under which the server answers members."""
ABOUT: Final = "/about"
"""Under `ROUTES`: which version the server is, and whether it admits who asks."""
PROBE: Final = "/probe"
"""Under `ROUTES`: bytes that mean nothing, to measure a line with."""
_FORM: Final = re.compile(r"Wardround site=([^,\s]{1,400}),time=([0-9]{1,12}),signature=([0-9a-f]{128})")


@dataclass(frozen=True)
class Asked:
    """Who asked.

    Attributes:
        site: The member.
        time: Seconds since 1970, as its clock says.
    """

    site: str
    time: int


def sign_request(signer: Signer, site: str, path: str, now: float, method: str = "GET") -> str:
    """The header's value for a request of `path`."""
    signature = signer.sign(_signed(method, site, path, int(now)))
    return f"Wardround site={quote(site, safe='')},time={int(now)},signature={signature.hex()}"


def check_request(value: str, path: str, roster: Roster, now: float, method: str = "GET") -> Asked:
    """Who asks, if it is a member and the question is fresh.

    A question may be asked again for as long as clocks may differ: it changes nothing, and its answer is for
    every member.

    Raises:
        PeerError: No such header, no member, another key's signature, or too old or from the future.
    """
    found = _FORM.fullmatch(value)
    if found is None:
        raise PeerError("the request is not signed")
    site, time = unquote(found[1]), int(found[2])
    roster.check(site, bytes.fromhex(found[3]), _signed(method, site, path, time))
    if abs(now - time) > SKEW.total_seconds():
        raise PeerError(
            "the request is too old, or from the future", found=f"{now - time:.0f} s",
            expected=f"at most {SKEW.total_seconds():.0f} s", remedy="compare both machines' clocks",
        )  # fmt: skip
    return Asked(site, time)


def _signed(method: str, site: str, path: str, time: int) -> bytes:
    return framed(TAG, method, path, site, time)
