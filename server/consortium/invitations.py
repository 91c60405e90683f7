"""Invitations: one file for one site, which admits one request until it expires."""

from __future__ import annotations

import secrets
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

from pydantic import ValidationError

from wardround.core.checked import invalid
from wardround.core.errors import ConfigError
from wardround.privacy.secagg.secret import Secret
from wardround.runtime.certificates import LARGEST_BUNDLE
from wardround.runtime.files import write_atomic
from wardround.runtime.membership import INVITATION, Invitation
from wardround.runtime.roster import RosterDocument
from wardround.runtime.signed import sign_document
from wardround.runtime.small_files import read_bounded, value_bytes
from wardround.server.consortium.changes import changing, commit
from wardround.server.consortium.operator_folder import CA, InvitationRecord, invitation_id

INVITATION_DAYS: Final = 14
MOST_DAYS: Final = 366
_NONCE_BYTES: Final = 32


def invite(
    path: Path,
    site: str,
    output: Path,
    now: datetime,
    *,
    days: int = INVITATION_DAYS,
    passphrase: Secret | None = None,
) -> InvitationRecord:
    """Write an invitation for a site; an open one for the same site is withdrawn.

    Args:
        path: The operator's folder.
        site: The name that the site will have.
        output: File to write; a new one.
        now: The present moment.
        days: Until it expires.
        passphrase: Of the consortium key.

    Raises:
        ConfigError: The name cannot be used or is a member's, the file is there, or the passphrase is wrong.
        PeerError: The server's certificate has expired.
        StorageError: Something cannot be read or written.
    """
    if output.exists():
        raise ConfigError(f"{output} is there already", remedy="name a new file with --output")
    if not 1 <= days <= MOST_DAYS:
        raise ConfigError("an invitation cannot last so long", found=days, expected=f"1 to {MOST_DAYS} days")
    now = now.replace(microsecond=0)
    with changing(path) as folder:
        roster, certificate = folder.roster(), folder.certificate()
        check_name_is_free(roster, site)
        certificate.check(now)
        nonce = secrets.token_hex(_NONCE_BYTES)
        try:
            record = InvitationRecord(
                id=invitation_id(nonce), site=site, issued=now, expires=now + timedelta(days=days)
            )
        except ValidationError as error:
            raise invalid("site's name", error) from error
        invitation = Invitation(
            consortium=folder.about.consortium, key=folder.about.key, address=certificate.address,
            ca=read_bounded(folder.path / CA, LARGEST_BUNDLE).decode(),
            certificate=folder.signed_certificate().decode(), roster=folder.signed_roster().decode(),
            site=site, nonce=nonce, issued=now, expires=record.expires,
        )  # fmt: skip
        signed = sign_document(INVITATION, invitation, folder.consortium_key(passphrase))
        records = [record]
        records += [
            former.model_copy(update={"state": "withdrawn"})
            for former in folder.invitations()
            if former.state == "open" and former.site.casefold() == site.casefold()
        ]
        line: dict[str, str | int] = {
            "at": now.isoformat(), "event": "invited", "site": site, "invitation": record.id[:16],
            "expires": record.expires.isoformat(), "withdrawn": len(records) - 1,
        }  # fmt: skip
        commit(folder, {one.file: value_bytes(one) for one in records}, line)
        write_atomic(output, signed, private=True)
    return record


def check_name_is_free(roster: RosterDocument, site: str) -> None:
    """Refuse the name of a member, in whatever case.

    Raises:
        ConfigError: A member has it.
    """
    taken = next((m.site for m in roster.members if m.site.casefold() == site.casefold()), None)
    if taken is not None:
        raise ConfigError(
            f"{taken!r} is a member already",
            remedy="for new keys: wardround site rotate there; after a loss of its keys: "
            "wardround consortium revoke, then invite it again",
        )
