"""What a site has on disk of its consortium: the pinned key and roster, its own keys, whom it confirmed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Annotated, Final

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from pydantic import Field

from wardround.client.sealed_files import storage_key
from wardround.core.checked import Frozen
from wardround.core.errors import ConfigError, StorageError
from wardround.privacy.secagg.identity import KeySigner, Roster
from wardround.privacy.secagg.offer import SiteName
from wardround.privacy.secagg.secret import Secret
from wardround.runtime.certificates import LARGEST_BUNDLE, ends, read_authorities
from wardround.runtime.membership import fingerprint
from wardround.runtime.roster import (
    LARGEST_CERTIFICATE,
    LARGEST_ROSTER,
    MOST_MEMBERS,
    Address,
    ConsortiumName,
    Expiring,
    Moment,
    RosterDocument,
    RosterMember,
    ServerCertificate,
    TransportKey,
    has_ended,
    read_certificate,
    read_roster,
)
from wardround.runtime.signed import Hex32
from wardround.runtime.small_files import (
    read_bounded,
    read_identity,
    read_transport,
    read_value,
    require_folder,
    transport_point,
)

ABOUT: Final = "site.json"
CA: Final = "ca.pem"
CERTIFICATE: Final = "server-certificate.json"
ROSTER_FILE: Final = "roster.json"
CONFIRMED: Final = "confirmed.json"
REQUEST: Final = "request.json"
ROTATION_FILE: Final = "rotation.json"
LEAVING_FILE: Final = "leaving.json"
LEFT: Final = "left.json"
"""The mark of a site that has left: once it is there, the site starts no more."""
KEEPER: Final = "keeper"
"""Folder of the socket on which the worker asks; who runs the site holds it from before it takes a key."""
KEYS: Final = "keys"
IDENTITY_KEY: Final = "identity.key"
TRANSPORT_KEY: Final = "transport.key"
NEXT: Final = f"{KEYS}/next"
FORMER: Final = f"{KEYS}/former"
_REMEDY: Final = "put the folder back from its last copy, or join again with a new invitation"


class AboutSite(Frozen):
    """Which site this is, of which consortium.

    Attributes:
        site: Its name.
        consortium: The consortium's name.
        key: The consortium's public key, pinned when the site joined.
        address: HOST:PORT of the server.
    """

    site: SiteName
    consortium: ConsortiumName
    key: Hex32
    address: Address


class ConfirmedMember(Frozen):
    """A member as the site's people confirmed it: name and both keys."""

    site: SiteName
    identity: Hex32
    transport: TransportKey


class Confirmed(Frozen):
    """What the site's people confirmed last.

    Attributes:
        key: The consortium's public key.
        version: Of the roster.
        digest: Of the roster.
        at: When.
        members: All of its members.
    """

    key: Hex32
    version: int = Field(ge=1)
    digest: Hex32
    at: Moment
    members: Annotated[tuple[ConfirmedMember, ...], Field(max_length=MOST_MEMBERS)]


class Left(Frozen):
    """That, and when, the site left its consortium."""

    at: Moment


@dataclass(frozen=True)
class SiteFolder:
    """A site's folder whose own description was read; see `open_site_folder`.

    Attributes:
        path: Of the folder.
        name: Of the site.
        consortium: Its name.
        consortium_key: The pinned public key, 32 bytes.
        server_address: HOST:PORT.
    """

    path: Path
    name: str
    consortium: str
    consortium_key: bytes
    server_address: str

    @property
    def fingerprint(self) -> str:
        """Of the consortium key, 32 bytes in hexadecimal."""
        return fingerprint(self.consortium_key)

    @property
    def ca(self) -> Path:
        """The authorities that the server's TLS certificate has to come from, in PEM."""
        return self.path / CA

    def authorities(self) -> tuple[x509.Certificate, ...]:
        """The same, read; raises StorageError or PeerError."""
        return read_authorities(read_bounded(self.ca, LARGEST_BUNDLE))

    def certificate(self) -> ServerCertificate:
        """What the consortium signed for the server; raises StorageError or PeerError.

        Whether it has expired is for the caller to ask (`ServerCertificate.check`).
        """
        data = read_bounded(self.path / CERTIFICATE, LARGEST_CERTIFICATE)
        return read_certificate(data, self.consortium_key)

    def signed_roster(self) -> bytes:
        """The file of the pinned roster; raises StorageError."""
        return read_bounded(self.path / ROSTER_FILE, LARGEST_ROSTER)

    def roster(self) -> RosterDocument:
        """The pinned roster, all of it; raises StorageError or PeerError. Who counts: `confirmed_roster`."""
        return read_roster(self.signed_roster(), self.consortium_key)

    def member(self) -> RosterMember | None:
        """This site in the pinned roster; None where it is not in it. Raises as `roster`."""
        return self.roster().member(self.name)

    def confirmed(self) -> Confirmed | None:
        """What the site's people confirmed last; None where nothing was.

        Raises:
            StorageError: The file cannot be read, or is of another consortium.
        """
        file = self.path / CONFIRMED
        if not file.exists():
            return None
        found = read_value(file, Confirmed, remedy="confirm the roster again", largest=LARGEST_ROSTER)
        if bytes.fromhex(found.key) != self.consortium_key:
            raise StorageError(f"{file} is of another consortium", remedy="confirm the roster again")
        return found

    def left(self) -> Left | None:
        """When the site left; None of one that has not. Raises StorageError."""
        file = self.path / LEFT
        if not os.path.lexists(file):
            return None
        return read_value(file, Left, remedy="leave again: wardround site leave")

    def require_present(self) -> None:
        """Refuse what only a site can do that has not left.

        Raises:
            ConfigError: It has left.
            StorageError: The mark cannot be read.
        """
        left = self.left()
        if left is not None:
            raise ConfigError(
                f"{self.name} has left {self.consortium!r}", found=f"it left on {left.at:%Y-%m-%d %H:%M} UTC",
                expected="a site that has not left", remedy="to come back, join with a new invitation into a "
                "new folder, and move ledger/ there: a new membership is no new budget",
            )  # fmt: skip

    def signer(self, identity: str | None = None) -> KeySigner:
        """The site's identity.

        Args:
            identity: The public key that is asked for, such as that of a run which began before a rotation;
                None: the one that the pinned roster names, and before the site is a member its present one.

        Raises:
            StorageError: The key is not there, or its file is open to others.
        """
        member = self.member()
        wanted = identity or (member.identity if member else None)
        for folder in self._key_folders():
            if (folder / IDENTITY_KEY).exists():
                signer = KeySigner(read_identity(folder / IDENTITY_KEY))
                if wanted in (None, signer.public.hex()):
                    return signer
        raise self._no_key(IDENTITY_KEY, wanted)

    def transport_key(self, transport: str | None = None) -> EllipticCurvePrivateKey:
        """The transport key, for Flower's SuperNode; argument and errors as `signer` has them."""
        member = self.member()
        wanted = transport or (member.transport if member else None)
        for folder in self._key_folders():
            if (folder / TRANSPORT_KEY).exists():
                key = read_transport(folder / TRANSPORT_KEY)
                if wanted in (None, transport_point(key.public_key())):
                    return key
        raise self._no_key(TRANSPORT_KEY, wanted)

    def holds(self, identity: str, transport: str) -> bool:
        """Whether both keys are this site's, whether present, next or former; raises as `roster`."""
        try:
            self.signer(identity)
            self.transport_key(transport)
        except StorageError:
            return False
        return True

    def storage_key(self) -> Secret:
        """Under which the site's records are sealed; raises StorageError."""
        return storage_key(self.path / KEYS)

    def ends(self) -> tuple[Expiring, ...]:
        """When certificates and the membership expire, the first one first; raises as `roster`."""
        member = self.member()
        found = [
            Expiring("the server's certificate from the consortium key", self.certificate().expires),
            *ends("the consortium's authority", self.authorities()),
        ]
        if member is not None and member.expires is not None:
            found.append(Expiring("this site's membership", member.expires))
        return tuple(sorted(found, key=lambda end: (end.when, end.what)))

    def _key_folders(self) -> Iterator[Path]:
        yield from (self.path / KEYS, self.path / NEXT, self.path / FORMER)

    def _no_key(self, file: str, wanted: str | None) -> StorageError:
        return StorageError(
            f"{self.path / KEYS} does not hold the {file} of this site", found=str(self.path / KEYS),
            expected="its key" if wanted is None else f"the key {wanted[:16]}… that the roster names",
            remedy="put the keys back from their last copy; where they are lost: have the site revoked, and "
            "join again with a new invitation",
        )  # fmt: skip


def open_site_folder(path: Path) -> SiteFolder:
    """The site's folder at a path.

    Raises:
        StorageError: There is none, others may enter it, or its description cannot be read.
    """
    path = Path(path)
    remedy = "name the folder with --folder, or make one: wardround site join INVITATION"
    require_folder(path, ABOUT, "no site's folder", remedy)
    about = read_value(path / ABOUT, AboutSite, remedy=_REMEDY)
    return SiteFolder(path, about.site, about.consortium, bytes.fromhex(about.key), about.address)


def confirmed_roster(site: SiteFolder, now: datetime | None = None) -> Roster:
    """The members that count for this site: in the pinned roster, and confirmed with the very same keys.

    Args:
        site: The site's folder.
        now: Leaves out whose membership has ended by then; None leaves nobody out for that.

    Raises:
        StorageError: Something cannot be read.
        PeerError: The pinned roster is not what the consortium key signed.
    """
    confirmed = site.confirmed()
    known = set() if confirmed is None else {(m.site, m.identity, m.transport) for m in confirmed.members}
    return Roster(
        {
            m.site: bytes.fromhex(m.identity)
            for m in site.roster().members
            if (m.site, m.identity, m.transport) in known and not has_ended(m, now)
        }
    )
