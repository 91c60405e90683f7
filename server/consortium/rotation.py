"""New certificates before the old ones expire, a new authority, a new token; and the notice for the sites."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pydantic import ValidationError

from wardround.core.checked import invalid
from wardround.core.errors import ConfigError
from wardround.privacy.secagg.secret import Secret
from wardround.runtime.certificates import (
    MOST_AUTHORITIES,
    SERVER_DAYS,
    certificate_pem,
    issued_by,
    new_authority,
    new_server_certificate,
)
from wardround.runtime.files import private_folder
from wardround.runtime.membership import NOTICE, ServerNotice
from wardround.runtime.roster import SERVER, ServerCertificate, host_and_port
from wardround.runtime.signed import sign_document
from wardround.runtime.small_files import curve_pem, identity_pem, value_bytes
from wardround.server.consortium.changes import changing, commit
from wardround.server.consortium.creation import TOKEN_BYTES
from wardround.server.consortium.operator_folder import (
    ABOUT,
    CA,
    CA_KEY,
    CERTIFICATE,
    NOTICE_FILE,
    ROSTER_FILE,
    SERVER_FOLDER,
    TLS,
    OperatorFolder,
)
from wardround.server.consortium.server_folder import IDENTITY_KEY, SERVER_FILE, TLS_KEY, TOKEN, AboutServer

_SECOND: Final = timedelta(seconds=1)


def rotate_server(
    path: Path,
    now: datetime,
    *,
    address: str | None = None,
    hosts: Sequence[str] | None = None,
    new_identity: bool = False,
    days: int = SERVER_DAYS,
    passphrase: Secret | None = None,
) -> ServerCertificate:
    """Give the server a new TLS key and certificate, and a new certificate of its identity.

    Args:
        path: The operator's folder; what the server needs is written into the server's folder in it, which is
            made where it was carried away.
        now: The present moment.
        address: A new HOST:PORT; None: it stays.
        hosts: All further names and IP addresses of the server; None: they stay.
        new_identity: Make a new identity key as well: after the old one may have been stolen.
        days: For which the certificates are valid.
        passphrase: Of the consortium's and the authority's key.

    Raises:
        ConfigError: Address, a host or the days cannot be used, or the passphrase is wrong.
        StorageError: Something cannot be read or written.
    """
    with changing(path) as folder:
        files = _new_tls(folder, now, address, hosts, days, passphrase)
        identity = Ed25519PrivateKey.generate() if new_identity else None
        if identity is not None:
            files[f"{SERVER_FOLDER}/{IDENTITY_KEY}"] = identity_pem(identity)
        ca = certificate_pem(*folder.authorities())
        certificate = _certify(folder, files, ca, now, days, passphrase, address, identity)
        files[f"{SERVER_FOLDER}/{ROSTER_FILE}"] = folder.signed_roster()
        private_folder(folder.server)
        commit(folder, files, _line(now, "rotated server", certificate))
    return certificate


def rotate_ca(
    path: Path,
    now: datetime,
    *,
    compromised: bool = False,
    days: int = SERVER_DAYS,
    passphrase: Secret | None = None,
) -> ServerCertificate:
    """Make a new authority, when the key of the old one is lost or about to expire, or was stolen.

    Sites go on trusting the old one beside the new one, so that the server's present certificate holds until
    it is rotated. Not so where the old one is compromised: then the server gets a new certificate at once.

    Args:
        path: The operator's folder.
        now: The present moment.
        compromised: Somebody may have the old authority's key: trust it no longer.
        days: For which the server's certificates are valid.
        passphrase: Of the consortium's key; the new authority's key is encrypted with it as well.

    Raises:
        ConfigError: Too many authorities are trusted already, or the passphrase is wrong.
        StorageError: Something cannot be read or written.
    """
    with changing(path) as folder:
        key, authority = new_authority(folder.about.consortium, now)
        former = [one for one in folder.authorities() if one.not_valid_after_utc > now and not compromised]
        trusted = [authority, *former][:MOST_AUTHORITIES]
        files = {CA_KEY: curve_pem(key, passphrase)}
        if compromised or not issued_by(folder.tls(), trusted):
            tls_key, tls = new_server_certificate(key, authority, folder.about.hosts, now, days)
            files |= {
                TLS: certificate_pem(tls), f"{SERVER_FOLDER}/{TLS}": certificate_pem(tls),
                f"{SERVER_FOLDER}/{TLS_KEY}": curve_pem(tls_key),
            }  # fmt: skip
        certificate = _certify(folder, files, certificate_pem(*trusted), now, days, passphrase)
        private_folder(folder.server)
        commit(folder, files, _line(now, "rotated ca", certificate) | {"compromised": int(compromised)})
    return certificate


def rotate_token(path: Path, now: datetime) -> Path:
    """Make a new operator's token in the server's folder; the old one counts until the server reads this one.

    Raises:
        StorageError: It cannot be written.
    """
    with changing(path) as folder:
        private_folder(folder.server)
        files = {f"{SERVER_FOLDER}/{TOKEN}": secrets.token_urlsafe(TOKEN_BYTES).encode()}
        commit(folder, files, {"at": now.replace(microsecond=0).isoformat(), "event": "rotated token"})
        return folder.server / TOKEN


def _new_tls(
    folder: OperatorFolder,
    now: datetime,
    address: str | None,
    hosts: Sequence[str] | None,
    days: int,
    passphrase: Secret | None,
) -> dict[str, bytes]:
    """The files of a new TLS certificate."""
    first = folder.about.hosts[0]
    if address is not None:
        try:
            first = host_and_port(address)[0]
        except ValueError as error:
            raise ConfigError(
                "the server's address cannot be used", found=address, expected=str(error)
            ) from error
    others = folder.about.hosts[1:] if hosts is None else hosts
    try:
        about = folder.about.model_validate(
            folder.about.model_dump() | {"hosts": tuple(dict.fromkeys((first, *others)))}
        )
    except ValidationError as error:
        raise invalid("server's hosts", error) from error
    authority = folder.authorities()[0]
    key, tls = new_server_certificate(folder.ca_key(passphrase), authority, about.hosts, now, days)
    return {
        ABOUT: value_bytes(about), TLS: certificate_pem(tls), f"{SERVER_FOLDER}/{TLS}": certificate_pem(tls),
        f"{SERVER_FOLDER}/{TLS_KEY}": curve_pem(key),
    }  # fmt: skip


def _certify(
    folder: OperatorFolder,
    files: dict[str, bytes],
    ca: bytes,
    now: datetime,
    days: int,
    passphrase: Secret | None,
    address: str | None = None,
    identity: Ed25519PrivateKey | None = None,
) -> ServerCertificate:
    """Add a later certificate of the server to the files, and the notice that tells the sites."""
    former = folder.certificate()
    issued = max(now.replace(microsecond=0), former.issued + _SECOND)
    certificate = ServerCertificate(
        consortium=former.consortium,
        identity=former.identity if identity is None else identity.public_key().public_bytes_raw().hex(),
        address=address or former.address, issued=issued, expires=issued + timedelta(days=days),
    )  # fmt: skip
    key = folder.consortium_key(passphrase)
    signed = sign_document(SERVER, certificate, key)
    notice = ServerNotice(consortium=former.consortium, ca=ca.decode(), certificate=signed.decode())
    about = AboutServer(
        consortium=former.consortium, key=folder.about.key, fingerprint=folder.fingerprint,
        address=certificate.address,
    )  # fmt: skip
    here = {CA: ca, CERTIFICATE: signed, NOTICE_FILE: sign_document(NOTICE, notice, key)}
    files |= here | {f"{SERVER_FOLDER}/{name}": data for name, data in here.items()}
    files[f"{SERVER_FOLDER}/{SERVER_FILE}"] = value_bytes(about)
    return certificate


def _line(now: datetime, event: str, certificate: ServerCertificate) -> dict[str, str | int]:
    return {
        "at": now.replace(microsecond=0).isoformat(), "event": event, "identity": certificate.identity,
        "address": certificate.address, "expires": certificate.expires.isoformat(),
    }  # fmt: skip
