"""What the operator has on disk: the consortium key and the authority's, roster, records of invitations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final, Literal

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pydantic import Field, StringConstraints

from wardround.core.checked import Frozen
from wardround.core.errors import StorageError
from wardround.privacy.secagg.hashing import digest
from wardround.privacy.secagg.offer import SiteName
from wardround.privacy.secagg.secret import Secret
from wardround.runtime.certificates import LARGEST_BUNDLE, read_authorities, read_server_certificate
from wardround.runtime.membership import fingerprint
from wardround.runtime.roster import (
    LARGEST_CERTIFICATE,
    LARGEST_ROSTER,
    ConsortiumName,
    Moment,
    RosterDocument,
    ServerCertificate,
    read_certificate,
    read_roster,
)
from wardround.runtime.signed import Hex32
from wardround.runtime.small_files import read_bounded, read_curve_key, read_identity, read_value

ABOUT: Final = "consortium.json"
CONSORTIUM_KEY: Final = "consortium.key"
CA_KEY: Final = "ca.key"
CA: Final = "ca.pem"
TLS: Final = "server.pem"
CERTIFICATE: Final = "certificate.json"
ROSTER_FILE: Final = "roster.json"
NOTICE_FILE: Final = "server-notice.json"
INVITATIONS: Final = "invitations"
SERVER_FOLDER: Final = "server"
LOG: Final = "log.jsonl"
_BACKUP: Final = "put the folder back from its last copy"
_Host = Annotated[str, StringConstraints(min_length=1, max_length=253)]


class About(Frozen):
    """Which consortium this is.

    Attributes:
        consortium: Its name.
        key: Its public key.
        hosts: What the server's TLS certificate is for.
    """

    consortium: ConsortiumName
    key: Hex32
    hosts: Annotated[tuple[_Host, ...], Field(min_length=1, max_length=32)]


class InvitationRecord(Frozen):
    """What is kept of an invitation; the nonce itself is not.

    Attributes:
        id: Digest of the nonce.
        site: Whom it is for.
        issued: When.
        expires: Until when a request is admitted.
        state: An open one may be answered once.
        request: Digest of the request that used it.
    """

    id: Hex32
    site: SiteName
    issued: Moment
    expires: Moment
    state: Literal["open", "used", "withdrawn"] = "open"
    request: Hex32 | None = None

    @property
    def file(self) -> str:
        """Where it lies in the operator's folder."""
        return f"{INVITATIONS}/{self.id[:32]}.json"


def invitation_id(nonce: str) -> str:
    """What an invitation's record is found by, from its nonce."""
    return digest("wardround invitation", bytes.fromhex(nonce)).hex()


@dataclass(frozen=True)
class OperatorFolder:
    """An operator's folder whose own description was read; see `open_operator_folder`.

    Attributes:
        path: Of the folder.
        about: Which consortium it is.
    """

    path: Path
    about: About

    @property
    def key(self) -> bytes:
        """The consortium's public key, 32 bytes."""
        return bytes.fromhex(self.about.key)

    @property
    def fingerprint(self) -> str:
        """Of the consortium key, 32 bytes in hexadecimal."""
        return fingerprint(self.key)

    @property
    def server(self) -> Path:
        """The server's folder, as long as it lies here."""
        return self.path / SERVER_FOLDER

    def signed_roster(self) -> bytes:
        """The roster's file; raises StorageError."""
        return read_bounded(self.path / ROSTER_FILE, LARGEST_ROSTER)

    def roster(self) -> RosterDocument:
        """The present roster; raises StorageError or PeerError."""
        return read_roster(self.signed_roster(), self.key)

    def signed_certificate(self) -> bytes:
        """The file of the server's certificate; raises StorageError."""
        return read_bounded(self.path / CERTIFICATE, LARGEST_CERTIFICATE)

    def certificate(self) -> ServerCertificate:
        """The server's present certificate; raises StorageError or PeerError."""
        return read_certificate(self.signed_certificate(), self.key)

    def authorities(self) -> tuple[x509.Certificate, ...]:
        """The authorities that sites trust, the present one first; raises StorageError or PeerError."""
        return read_authorities(read_bounded(self.path / CA, LARGEST_BUNDLE))

    def tls(self) -> x509.Certificate:
        """The server's TLS certificate; raises StorageError or PeerError."""
        return read_server_certificate(read_bounded(self.path / TLS, LARGEST_BUNDLE))

    def consortium_key(self, passphrase: Secret | None) -> Ed25519PrivateKey:
        """The consortium's private key.

        Raises:
            StorageError: The file is not there, is open to others, or holds another key.
            ConfigError: The passphrase is missing or wrong.
        """
        key = read_identity(self.path / CONSORTIUM_KEY, passphrase)
        if key.public_key().public_bytes_raw() != self.key:
            raise StorageError(
                f"{self.path / CONSORTIUM_KEY} is another consortium's", expected=f"the key of {ABOUT}",
                remedy=_BACKUP,
            )  # fmt: skip
        return key

    def ca_key(self, passphrase: Secret | None) -> EllipticCurvePrivateKey:
        """The authority's private key; raises as `consortium_key`."""
        try:
            key = read_curve_key(self.path / CA_KEY, passphrase)
        except StorageError as error:
            raise StorageError(
                error.what, found=error.found, expected=error.expected,
                remedy=f"{_BACKUP}, or make a new authority: wardround consortium rotate ca",
            ) from error  # fmt: skip
        if key.public_key() != self.authorities()[0].public_key():
            raise StorageError(
                f"{self.path / CA_KEY} is not the key of {CA}", remedy="wardround consortium rotate ca"
            )
        return key

    def invitations(self) -> tuple[InvitationRecord, ...]:
        """Every record, by site and date; raises StorageError."""
        files = sorted((self.path / INVITATIONS).glob("*.json"))
        found = [read_value(file, InvitationRecord, remedy=_BACKUP) for file in files]
        return tuple(sorted(found, key=lambda record: (record.site, record.issued, record.id)))

    def at_server(self, files: Mapping[str, bytes]) -> dict[str, bytes]:
        """The same files within the server's folder; none where that was carried away."""
        return (
            {f"{SERVER_FOLDER}/{name}": data for name, data in files.items()} if self.server.is_dir() else {}
        )


def open_operator_folder(path: Path) -> OperatorFolder:
    """The operator's folder at a path.

    Raises:
        StorageError: There is none, or its description cannot be read.
    """
    if not (path / ABOUT).is_file():
        raise StorageError(
            f"{path} is no operator's folder", found=f"no {ABOUT} in it",
            remedy="name the folder with --folder, or make one: wardround consortium init",
        )  # fmt: skip
    return OperatorFolder(path, read_value(path / ABOUT, About, remedy=_BACKUP))
