"""What the server has on disk: its TLS key, its identity, the operator's token, what the consortium signed.

Neither the consortium's key nor the authority's may lie there: whoever takes the server over can then admit
nobody.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey

from wardround.core.checked import Frozen
from wardround.core.errors import StorageError
from wardround.privacy.secagg.identity import KeySigner
from wardround.privacy.secagg.secret import Secret
from wardround.runtime.certificates import (
    LARGEST_BUNDLE,
    ends,
    issued_by,
    read_authorities,
    read_server_certificate,
)
from wardround.runtime.membership import fingerprint
from wardround.runtime.roster import (
    LARGEST_CERTIFICATE,
    LARGEST_ROSTER,
    Address,
    ConsortiumName,
    Expiring,
    RosterDocument,
    ServerCertificate,
    check_times,
    read_certificate,
    read_roster,
)
from wardround.runtime.signed import Hex32
from wardround.runtime.small_files import (
    read_bounded,
    read_curve_key,
    read_exchange,
    read_identity,
    read_private,
    read_value,
    require_folder,
)
from wardround.server.consortium.operator_folder import (
    CA,
    CA_KEY,
    CERTIFICATE,
    CONSORTIUM_KEY,
    ROSTER_FILE,
    TLS,
)

SERVER_FILE: Final = "server.json"
TLS_KEY: Final = "server.key"
IDENTITY_KEY: Final = "identity.key"
AGGREGATOR_KEY: Final = "aggregator.key"
"""There where the consortium has chosen its server as the trusted aggregator (`aggregator.py`)."""
TOKEN: Final = "operator.token"  # noqa: S105 - a file name
CERTIFICATE_ENDS: Final = "the server's certificate from the consortium key"
TLS_ENDS: Final = "the server's TLS certificate"
AUTHORITY_ENDS: Final = "the consortium's authority"
_REMEDY: Final = "carry the server's folder over again from the operator's computer"


class AboutServer(Frozen):
    """Whose server this is.

    Attributes:
        consortium: Its name.
        key: Its public key, under which roster, plans and certificate count here.
        fingerprint: Of that key.
        address: HOST:PORT by which sites reach the server.
    """

    consortium: ConsortiumName
    key: Hex32
    fingerprint: Hex32
    address: Address


@dataclass(frozen=True)
class ServerFolder:
    """A server's folder whose own description was read; see `open_server_folder`.

    Attributes:
        path: Of the folder.
        about: Whose server it is.
    """

    path: Path
    about: AboutServer

    @property
    def consortium(self) -> str:
        """Its name."""
        return self.about.consortium

    @property
    def consortium_key(self) -> bytes:
        """The consortium's public key, 32 bytes."""
        return bytes.fromhex(self.about.key)

    @property
    def fingerprint(self) -> str:
        """Of the consortium key, 32 bytes in hexadecimal."""
        return self.about.fingerprint

    @property
    def address(self) -> str:
        """HOST:PORT by which sites reach the server."""
        return self.about.address

    @property
    def ca(self) -> Path:
        """The authorities, in PEM."""
        return self.path / CA

    @property
    def tls_certificate(self) -> Path:
        """The TLS certificate, in PEM."""
        return self.path / TLS

    @property
    def tls_key(self) -> Path:
        """The TLS certificate's private key, in PEM."""
        return self.path / TLS_KEY

    def signer(self) -> KeySigner:
        """The server's identity.

        Raises:
            StorageError: The key is not there, is open to others, or is not the certificate's.
        """
        signer = KeySigner(read_identity(self.path / IDENTITY_KEY))
        if signer.public.hex() != self.certificate().identity:
            raise StorageError(
                f"{self.path / IDENTITY_KEY} is not the identity of {CERTIFICATE}", remedy=_REMEDY
            )
        return signer

    def aggregator(self) -> Secret | None:
        """The X25519 key to which sites seal contributions under `secure.mode=trusted`; None without one.

        Raises:
            StorageError: The key is open to others, or is none.
        """
        path = self.path / AGGREGATOR_KEY
        if not path.is_symlink() and not path.exists():
            return None
        return Secret(read_exchange(path).private_bytes_raw())

    def signed_certificate(self) -> bytes:
        """The file of the certificate; raises StorageError."""
        return read_bounded(self.path / CERTIFICATE, LARGEST_CERTIFICATE)

    def certificate(self) -> ServerCertificate:
        """What the consortium signed for this server; raises StorageError or PeerError."""
        return read_certificate(self.signed_certificate(), self.consortium_key)

    def signed_roster(self) -> bytes:
        """The roster's file, as sites get it; raises StorageError."""
        return read_bounded(self.path / ROSTER_FILE, LARGEST_ROSTER)

    def roster(self) -> RosterDocument:
        """The roster that lies here; raises StorageError or PeerError."""
        return read_roster(self.signed_roster(), self.consortium_key)

    def token(self) -> Secret:
        """What the operator's commands show to the server, as text in UTF-8.

        Raises:
            StorageError: It is not there, or is open to others.
        """
        return read_private(self.path / TOKEN)

    def check(self, now: datetime) -> tuple[Expiring, ...]:
        """Refuse a folder from which no server can run; say when its certificates end.

        Raises:
            StorageError: A file is missing, open to others, or does not belong to another one; or a key that
                has to stay with the operator lies here.
            PeerError: A certificate has expired, or the consortium did not sign it.
        """
        for name in (CONSORTIUM_KEY, CA_KEY):
            if (self.path / name).exists():
                raise StorageError(
                    f"{self.path / name} must not lie on a server", expected="on the operator's computer",
                    remedy="remove it; if others may have read it, see docs/consortium.md on lost keys",
                )  # fmt: skip
        certificate, roster = self.certificate(), self.roster()
        certificate.check(now)
        if {certificate.consortium, roster.consortium} != {self.consortium}:
            raise StorageError(f"{self.path} mixes files of two consortia", remedy=_REMEDY)
        self.signer()
        self.token()
        self.aggregator()
        tls = read_server_certificate(read_bounded(self.tls_certificate, LARGEST_BUNDLE))
        authorities = read_authorities(read_bounded(self.ca, LARGEST_BUNDLE))
        public = tls.public_key()
        own = read_curve_key(self.tls_key).public_key()
        if not (isinstance(public, EllipticCurvePublicKey) and own == public and issued_by(tls, authorities)):
            raise StorageError(
                f"{TLS_KEY}, {TLS} and {CA} do not belong together", found=str(self.path), remedy=_REMEDY
            )
        check_times(TLS_ENDS, now, tls.not_valid_after_utc, now)
        return self.ends()

    def ends(self) -> tuple[Expiring, ...]:
        """When certificates expire, those that have included; raises StorageError or PeerError."""
        return (
            Expiring(CERTIFICATE_ENDS, self.certificate().expires),
            *ends(TLS_ENDS, [read_server_certificate(read_bounded(self.tls_certificate, LARGEST_BUNDLE))]),
            *ends(AUTHORITY_ENDS, read_authorities(read_bounded(self.ca, LARGEST_BUNDLE))),
        )


def open_server_folder(path: Path) -> ServerFolder:
    """The server's folder at a path.

    Raises:
        StorageError: There is none, others may enter it, or its description cannot be read or contradicts
            itself.
    """
    path = Path(path)
    remedy = "carry the folder over that wardround consortium init made"
    require_folder(path, SERVER_FILE, "no server's folder", remedy)
    about = read_value(path / SERVER_FILE, AboutServer, remedy=_REMEDY)
    if about.fingerprint != fingerprint(bytes.fromhex(about.key)):
        raise StorageError(f"{path / SERVER_FILE} contradicts itself", remedy=_REMEDY)
    return ServerFolder(path, about)
