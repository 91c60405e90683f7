"""Join a consortium: an invitation becomes a folder with fresh keys, and a request that both keys sign."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from cryptography.hazmat.primitives.asymmetric.ec import SECP384R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from wardround.client.membership.site_folder import (
    ABOUT,
    CA,
    CERTIFICATE,
    IDENTITY_KEY,
    KEYS,
    REQUEST,
    ROSTER_FILE,
    TRANSPORT_KEY,
    AboutSite,
    SiteFolder,
    open_site_folder,
)
from wardround.client.sealed_files import storage_key
from wardround.core.errors import StorageError
from wardround.runtime.files import atomic_folder, private_folder, write_atomic
from wardround.runtime.membership import JoinRequest, read_invitation, sign_join
from wardround.runtime.passphrases import locked
from wardround.runtime.small_files import identity_pem, transport_file, transport_point, value_bytes


class Joined(NamedTuple):
    """A new site's folder, and what it asks the operator for."""

    site: SiteFolder
    request: JoinRequest


def join(invitation: bytes, folder: Path, now: datetime, *, pinned: str | None = None) -> Joined:
    """Make the site's folder, with its keys, and the request for the operator in it.

    The keys are made here and stay here. A kill leaves a whole folder or none.

    Args:
        invitation: The file that the operator sent.
        folder: To make.
        now: The present moment.
        pinned: Fingerprint of the consortium's key, as the operator read it out.

    Raises:
        PeerError: The invitation is not one that can be used; see `read_invitation`.
        StorageError: The folder holds something, or cannot be written.
    """
    if folder.exists() and any(folder.iterdir() if folder.is_dir() else [folder]):
        raise StorageError(
            f"{folder} is there already", expected="a new folder for a new membership",
            remedy=f"to send the request again, take {folder / REQUEST}; to join again, name another folder",
        )  # fmt: skip
    opened = read_invitation(invitation, now, pinned=pinned)
    invited = opened.invitation
    identity, transport = Ed25519PrivateKey.generate(), generate_private_key(SECP384R1())
    request = JoinRequest(
        consortium=invited.key, site=invited.site, nonce=invited.nonce,
        identity=identity.public_key().public_bytes_raw().hex(),
        transport=transport_point(transport.public_key()), issued=now.replace(microsecond=0),
    )  # fmt: skip
    about = AboutSite(
        site=invited.site, consortium=invited.consortium, key=invited.key, address=invited.address
    )
    files = {
        ABOUT: value_bytes(about), CA: invited.ca.encode(), CERTIFICATE: invited.certificate.encode(),
        ROSTER_FILE: invited.roster.encode(), REQUEST: sign_join(request, identity, transport),
        f"{KEYS}/{IDENTITY_KEY}": locked(identity_pem(identity)),
        f"{KEYS}/{TRANSPORT_KEY}": locked(transport_file(transport)),
    }  # fmt: skip
    with atomic_folder(folder) as place:
        place.chmod(0o700)
        private_folder(place / KEYS)
        for name, content in files.items():
            write_atomic(place / name, content, private=True)
        storage_key(place / KEYS)
    return Joined(open_site_folder(folder), request)
