"""The consortium's members and its server, as the consortium key signs them; which of two rosters counts.

A roster is a chain of versions. Whoever has pinned one takes none that is older, none of the same version
that says something else, and no next version that does not name the pinned one as its former.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property, lru_cache
from itertools import pairwise
from typing import Annotated, Final, Self

from cryptography.hazmat.primitives.asymmetric.ec import SECP384R1, EllipticCurvePublicKey
from pydantic import AfterValidator, AwareDatetime, Field, StringConstraints, model_validator

from wardround.core.checked import Frozen
from wardround.core.errors import PeerError
from wardround.privacy.secagg.hashing import digest
from wardround.privacy.secagg.identity import Roster
from wardround.privacy.secagg.offer import SiteName
from wardround.runtime.signed import Hex32, canonical, read_document

ROSTER: Final = "roster"
"""Kind of a signed `RosterDocument`."""
SERVER: Final = "server"
"""Kind of a signed `ServerCertificate`."""
MOST_MEMBERS: Final = 10_000
LARGEST_ROSTER: Final = 2**24
"""Bytes of a signed roster, at the most."""
LARGEST_CERTIFICATE: Final = 2**14
"""Bytes of a signed server's certificate, at the most."""
SKEW: Final = timedelta(minutes=15)
"""By so much two clocks may differ before anything is called expired, or of the future."""
_FIRST_YEAR, _LAST_YEAR = 2000, 2199


def _in_range(moment: datetime) -> datetime:
    if not _FIRST_YEAR <= moment.year <= _LAST_YEAR:
        raise ValueError(f"a date has to lie between the years {_FIRST_YEAR} and {_LAST_YEAR}")
    return moment.astimezone(UTC)


@lru_cache(maxsize=MOST_MEMBERS)
def _on_curve(point: str) -> str:
    # Remembered: a command reads its roster several times, and each point takes a tenth of a millisecond.
    try:
        EllipticCurvePublicKey.from_encoded_point(SECP384R1(), bytes.fromhex(point))
    except ValueError:
        raise ValueError("is no point of the curve P-384") from None
    return point


def _address(address: str) -> str:
    host_and_port(address)
    return address


Moment = Annotated[AwareDatetime, AfterValidator(_in_range)]
"""A date and time with its zone, kept in UTC."""
TransportKey = Annotated[
    str, StringConstraints(pattern=r"^0[23][0-9a-f]{96}$", strict=True), AfterValidator(_on_curve)
]
"""A P-384 public key as a compressed point, 49 bytes in hexadecimal."""
ConsortiumName = Annotated[SiteName, StringConstraints(max_length=60)]
"""As a site's name, and short enough for a certificate's subject."""
Address = Annotated[str, StringConstraints(max_length=300, strict=True), AfterValidator(_address)]
"""`host:port`; an IPv6 address in brackets."""


@dataclass(frozen=True)
class Expiring:
    """What ends soon, or has ended: for people to read.

    Attributes:
        what: Such as "the TLS certificate of the server".
        when: Its last moment, in UTC.
    """

    what: str
    when: datetime

    def text(self, now: datetime) -> str:
        """One line: what, when, and in how many days."""
        if self.when < now:
            return f"{self.what} expired on {self.when:%Y-%m-%d %H:%M} UTC"
        days = (self.when - now).days
        return f"{self.what} expires on {self.when:%Y-%m-%d %H:%M} UTC, in {days} day{'s' * (days != 1)}"


def expiring(ends: Iterable[Expiring], now: datetime, days: int) -> tuple[Expiring, ...]:
    """Those that end within so many days from now, the first one first."""
    last = now + timedelta(days=days)
    return tuple(sorted((end for end in ends if end.when <= last), key=lambda end: (end.when, end.what)))


def check_times(what: str, issued: datetime, expires: datetime | None, now: datetime) -> None:
    """Refuse what is not valid at `now`; clocks may differ by `SKEW`.

    Raises:
        PeerError: It has expired, or was issued in the future.
    """
    remedy = "compare this machine's clock with the time; if it is right, ask the operator for a new one"
    if expires is not None and now - SKEW > expires:
        raise PeerError(f"{what} has expired", found=f"{expires:%Y-%m-%d %H:%M} UTC", remedy=remedy)
    if now + SKEW < issued:
        raise PeerError(
            f"{what} is from the future", found=f"issued {issued:%Y-%m-%d %H:%M} UTC",
            expected=f"at most {now:%Y-%m-%d %H:%M} UTC, by this machine's clock", remedy=remedy,
        )  # fmt: skip


def host_and_port(address: str) -> tuple[str, int]:
    """`hospital.example:9443` → its host and port; `[::1]:9443` → `::1` and 9443.

    Raises:
        ValueError: It is no address.
    """
    host, _, port = address.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise ValueError("an IPv6 address stands in brackets, as in [::1]:9443")
    well_formed = host and all(c.isascii() and (c.isalnum() or c in "-._:") for c in host)
    if not (well_formed and port.isascii() and port.isdigit() and len(port) <= 5 and 0 < int(port) < 2**16):  # noqa: PLR2004 - digits of 65535
        raise ValueError("an address is HOST:PORT, as in hospital.example:9443")
    return host, int(port)


class RosterMember(Frozen):
    """One site and its public keys.

    Attributes:
        site: Its name.
        identity: Ed25519: signs the site's messages.
        transport: P-384: the node's key for Flower's authentication.
        admitted: When the operator admitted it, or took its present keys.
        expires: When it ceases to be a member; None: only by being revoked.
    """

    site: SiteName
    identity: Hex32
    transport: TransportKey
    admitted: Moment
    expires: Moment | None = None


class RosterDocument(Frozen):
    """One version of the consortium's list of members.

    Attributes:
        consortium: Its name.
        version: From 1 on; every change makes the next.
        issued: When this version was signed.
        members: By name. No name (also in other case), identity or transport key stands there twice.
        previous: Digest of the former version; None in the first.
    """

    consortium: ConsortiumName
    version: int = Field(ge=1, lt=2**31)
    issued: Moment
    members: tuple[RosterMember, ...] = Field(default=(), max_length=MOST_MEMBERS)
    previous: Hex32 | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.version == 1) != (self.previous is None):
            raise ValueError("the first version, and no other, has no former one")
        names = [member.site for member in self.members]
        if any(a >= b for a, b in pairwise(names)):
            raise ValueError("members are sorted by name, and none stands there twice")
        for values in (
            [name.casefold() for name in names],
            [member.identity for member in self.members],
            [member.transport for member in self.members],
        ):
            if len(set(values)) != len(values):
                raise ValueError("two members share a name or a key")
        return self

    @cached_property
    def digest(self) -> str:
        """Of everything in it, 32 bytes in hexadecimal: what people compare on the phone."""
        return digest("roster document", canonical(self)).hex()

    def member(self, site: str) -> RosterMember | None:
        """The member of this name; None where there is none."""
        return next((member for member in self.members if member.site == site), None)

    def roster(self, at: datetime | None = None) -> Roster:
        """Names and identity keys, as secure aggregation reads them; with `at`, without who has expired."""
        return Roster({m.site: bytes.fromhex(m.identity) for m in self.members if not has_ended(m, at)})


def has_ended(member: RosterMember, at: datetime | None) -> bool:
    """Whether a membership is over at that moment, clocks that differ by `SKEW` allowed for."""
    return at is not None and member.expires is not None and at - SKEW > member.expires


class ServerCertificate(Frozen):
    """The consortium key's word that a server speaks for it.

    Attributes:
        consortium: Its name.
        identity: Ed25519 public key of the server: it signs secure aggregation's offers.
        address: Where the server is reached.
        issued: From when on.
        expires: Until when.
    """

    consortium: ConsortiumName
    identity: Hex32
    address: Address
    issued: Moment
    expires: Moment

    def check(self, now: datetime) -> None:
        """Refuse a certificate that is not valid at `now`; raises PeerError."""
        check_times("the server's certificate", self.issued, self.expires, now)


def read_roster(data: bytes, signer: bytes) -> RosterDocument:
    """A signed roster under the pinned consortium key, 32 bytes.

    Raises:
        PeerError: It is not one; see `read_document`.
    """
    return read_document(data, ROSTER, RosterDocument, signer=signer, largest=LARGEST_ROSTER)


def read_certificate(data: bytes, signer: bytes) -> ServerCertificate:
    """A signed server's certificate under the pinned consortium key; whether it has expired is not judged.

    Raises:
        PeerError: It is not one; see `read_document`.
    """
    return read_document(data, SERVER, ServerCertificate, signer=signer, largest=LARGEST_CERTIFICATE)


def newer(pinned: RosterDocument, offered: RosterDocument) -> bool:
    """Whether an offered roster takes the place of the pinned one.

    Between versions that are not neighbours nothing proves the chain but the consortium key's signature.

    Returns:
        True where it is a later version, False where it is the pinned one itself.

    Raises:
        PeerError: It is another consortium's, older, of the same version with other content, or the next
            version of another former one.
    """
    if offered.consortium != pinned.consortium:
        raise PeerError(
            "a roster is of another consortium", found=offered.consortium, expected=pinned.consortium
        )
    if offered.version < pinned.version:
        raise PeerError(
            "a roster is older than the pinned one", found=f"version {offered.version}",
            expected=f"version {pinned.version} or later", remedy="ask the operator for the present roster",
        )  # fmt: skip
    same, following = offered.version == pinned.version, offered.version == pinned.version + 1
    if (same and offered.digest != pinned.digest) or (following and offered.previous != pinned.digest):
        claimed = offered.digest if same else offered.previous or ""
        raise PeerError(
            "two rosters contradict each other: the consortium's key signed both",
            found=f"version {offered.version}, {'' if same else 'after '}digest {claimed[:16]}…",
            expected=f"{'' if same else 'after '}digest {pinned.digest[:16]}…",
            remedy="keep both files, train nothing, and speak with the other sites: somebody shows sites "
            "different members, or the operator went back to an old copy of the folder",
        )  # fmt: skip
    return not same
