"""New keys for a site. They lie beside the old ones until the roster names them; then the old ones step back.

The former keys are kept until the next rotation: a run that began with them ends with them.
"""

from __future__ import annotations

from datetime import datetime

from cryptography.hazmat.primitives.asymmetric.ec import SECP384R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from wardround.client.membership.site_folder import (
    FORMER,
    IDENTITY_KEY,
    KEYS,
    NEXT,
    ROTATION_FILE,
    TRANSPORT_KEY,
    SiteFolder,
)
from wardround.core.errors import ConfigError
from wardround.runtime.files import atomic_folder, private_folder, storing, sync_folder, write_atomic
from wardround.runtime.membership import RotationRequest, sign_rotation
from wardround.runtime.passphrases import locked
from wardround.runtime.small_files import (
    identity_pem,
    read_identity,
    read_transport,
    transport_file,
    transport_point,
)


def rotate(site: SiteFolder, now: datetime) -> RotationRequest:
    """Make new keys, and the request for the operator, `rotation.json`.

    Called again before the roster names the new keys, it asks for the same ones.

    Raises:
        ConfigError: The site is no member yet: then it joins, with new keys, by a new invitation.
        StorageError: Something cannot be read or written.
    """
    settle_keys(site)
    if site.member() is None:
        raise ConfigError(
            f"{site.name!r} is no member of the pinned roster", expected="a member's folder",
            remedy="take the present roster first: wardround site roster update FILE",
        )  # fmt: skip
    former = site.signer()
    if not (site.path / NEXT).exists():
        with atomic_folder(site.path / NEXT) as place:
            place.chmod(0o700)
            new_identity, new_transport = Ed25519PrivateKey.generate(), generate_private_key(SECP384R1())
            write_atomic(place / IDENTITY_KEY, locked(identity_pem(new_identity)), private=True)
            write_atomic(place / TRANSPORT_KEY, locked(transport_file(new_transport)), private=True)
    identity = read_identity(site.path / NEXT / IDENTITY_KEY)
    transport = read_transport(site.path / NEXT / TRANSPORT_KEY)
    request = RotationRequest(
        consortium=site.consortium_key.hex(), site=site.name, former=former.public.hex(),
        identity=identity.public_key().public_bytes_raw().hex(),
        transport=transport_point(transport.public_key()), issued=now.replace(microsecond=0),
    )  # fmt: skip
    signed = sign_rotation(request, former.key, identity, transport)
    write_atomic(site.path / ROTATION_FILE, signed, private=True)
    return request


def settle_keys(site: SiteFolder) -> bool:
    """Let the new keys take the place of the old ones, once the pinned roster names them.

    A kill in between loses no key: whoever looks for one finds it in its old place or its new one, and the
    next call goes on.

    Returns:
        Whether they are in place now, and were not before.

    Raises:
        StorageError: A key cannot be moved.
    """
    own, place = site.member(), site.path / NEXT
    if own is None or not place.exists():
        return False
    identity = place / IDENTITY_KEY
    if identity.exists() and read_identity(identity).public_key().public_bytes_raw().hex() != own.identity:
        return False
    private_folder(site.path / FORMER)
    with storing(place):
        for name in (TRANSPORT_KEY, IDENTITY_KEY):
            present = site.path / KEYS / name
            if (place / name).exists():
                if present.exists():
                    present.replace(site.path / FORMER / name)
                    sync_folder(site.path / FORMER)
                (place / name).replace(present)
                sync_folder(present.parent)
        place.rmdir()
        sync_folder(place.parent)
        (site.path / ROTATION_FILE).unlink(missing_ok=True)
    return True
