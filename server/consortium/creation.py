"""A new consortium: its key, its authority, a roster without members, and the server's folder."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pydantic import ValidationError

from wardround.core.checked import invalid
from wardround.core.errors import ConfigError, StorageError
from wardround.privacy.secagg.secret import Secret
from wardround.runtime.certificates import SERVER_DAYS, certificate_pem, new_authority, new_server_certificate
from wardround.runtime.files import append_line, atomic_folder, private_folder, write_atomic
from wardround.runtime.membership import fingerprint
from wardround.runtime.roster import ROSTER, SERVER, RosterDocument, ServerCertificate, host_and_port
from wardround.runtime.signed import sign_document
from wardround.runtime.small_files import curve_pem, identity_pem, value_bytes
from wardround.server.consortium.operator_folder import (
    ABOUT,
    CA,
    CA_KEY,
    CERTIFICATE,
    CONSORTIUM_KEY,
    INVITATIONS,
    LOG,
    ROSTER_FILE,
    SERVER_FOLDER,
    TLS,
    About,
    OperatorFolder,
    open_operator_folder,
)
from wardround.server.consortium.server_folder import (
    IDENTITY_KEY,
    SERVER_FILE,
    TLS_KEY,
    TOKEN,
    AboutServer,
)

TOKEN_BYTES: Final = 32


def create(
    path: Path,
    name: str,
    address: str,
    now: datetime,
    *,
    hosts: Sequence[str] = (),
    passphrase: Secret | None = None,
    days: int = SERVER_DAYS,
) -> OperatorFolder:
    """Make the operator's folder, with the server's folder in it.

    Args:
        path: Of the folder; nothing lies there.
        name: Of the consortium.
        address: HOST:PORT by which sites reach the server.
        now: The present moment.
        hosts: More names and IP addresses of the server.
        passphrase: Encrypts the consortium's key and the authority's.
        days: For which the server's certificates are valid.

    Raises:
        ConfigError: Name, address or a host cannot be used.
        StorageError: The folder holds something, or cannot be written; nothing is left behind.
    """
    if path.exists() and any(path.iterdir() if path.is_dir() else [path]):
        raise StorageError(
            f"{path} is there already", expected="a new folder for a new consortium",
            remedy="choose another name; an old consortium's keys are never replaced",
        )  # fmt: skip
    key, identity = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
    public = key.public_key().public_bytes_raw()
    now = now.replace(microsecond=0)
    try:
        all_hosts = tuple(dict.fromkeys((host_and_port(address)[0], *hosts)))
        about = About(consortium=name, key=public.hex(), hosts=all_hosts)
        certificate = ServerCertificate(
            consortium=name, identity=identity.public_key().public_bytes_raw().hex(), address=address,
            issued=now, expires=now + timedelta(days=days),
        )  # fmt: skip
        roster = RosterDocument(consortium=name, version=1, issued=now)
    except ValidationError as error:
        raise invalid("consortium's name, address or hosts", error) from error
    except ValueError as error:
        raise ConfigError(
            "the server's address cannot be used", found=address, expected=str(error)
        ) from error
    ca_key, ca = new_authority(name, now)
    tls_key, tls = new_server_certificate(ca_key, ca, all_hosts, now, days)
    public_files = {
        CA: certificate_pem(ca), TLS: certificate_pem(tls),
        CERTIFICATE: sign_document(SERVER, certificate, key),
        ROSTER_FILE: sign_document(ROSTER, roster, key),
    }  # fmt: skip
    server = AboutServer(consortium=name, key=public.hex(), fingerprint=fingerprint(public), address=address)
    files = public_files | {
        ABOUT: value_bytes(about),
        CONSORTIUM_KEY: identity_pem(key, passphrase),
        CA_KEY: curve_pem(ca_key, passphrase),
    }
    at_server = public_files | {
        SERVER_FILE: value_bytes(server), TLS_KEY: curve_pem(tls_key), IDENTITY_KEY: identity_pem(identity),
        TOKEN: secrets.token_urlsafe(TOKEN_BYTES).encode(),
    }  # fmt: skip
    with atomic_folder(path) as folder:
        folder.chmod(0o700)
        private_folder(folder / INVITATIONS)
        private_folder(folder / SERVER_FOLDER)
        for place, contents in ((folder, files), (folder / SERVER_FOLDER, at_server)):
            for file, content in contents.items():
                write_atomic(place / file, content, private=True)
        append_line(
            folder / LOG,
            {"at": now.isoformat(), "event": "made", "consortium": name, "fingerprint": server.fingerprint},
        )
    return open_operator_folder(path)
