"""What the operator sees at a glance: members, open invitations, what expires."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from wardround.runtime.certificates import ends
from wardround.runtime.roster import Expiring, RosterDocument
from wardround.server.consortium.changes import PENDING
from wardround.server.consortium.operator_folder import InvitationRecord, OperatorFolder, open_operator_folder
from wardround.server.consortium.server_folder import AUTHORITY_ENDS, CERTIFICATE_ENDS, TLS_ENDS


@dataclass(frozen=True)
class Overview:
    """A consortium as its operator's folder says.

    Attributes:
        consortium: Its name.
        fingerprint: Of its key.
        address: Of its server.
        roster: The present one.
        invitations: Those that may still be answered.
        ends: When certificates and memberships expire, the first one first.
        unfinished: A kill left a change that the next command carries out.
    """

    consortium: str
    fingerprint: str
    address: str
    roster: RosterDocument
    invitations: tuple[InvitationRecord, ...]
    ends: tuple[Expiring, ...]
    unfinished: bool

    def plain(self) -> dict[str, Any]:
        """As JSON; holds no secret, and no invitation's nonce."""
        return {
            "consortium": self.consortium, "fingerprint": self.fingerprint, "address": self.address,
            "version": self.roster.version, "digest": self.roster.digest, "unfinished": self.unfinished,
            "members": [member.model_dump(mode="json") for member in self.roster.members],
            "invitations": [
                record.model_dump(mode="json", include={"site", "issued", "expires"})
                for record in self.invitations
            ],
            "expires": [{"what": end.what, "when": end.when.isoformat()} for end in self.ends],
        }  # fmt: skip


def overview(path: Path, now: datetime) -> Overview:
    """Look at an operator's folder; changes nothing and asks for no passphrase.

    Raises:
        StorageError: Something cannot be read.
        PeerError: A file is not what the consortium key signed.
    """
    folder = open_operator_folder(path)
    roster, certificate = folder.roster(), folder.certificate()
    open_ones = tuple(
        record for record in folder.invitations() if record.state == "open" and record.expires >= now
    )
    return Overview(
        consortium=folder.about.consortium, fingerprint=folder.fingerprint, address=certificate.address,
        roster=roster, invitations=open_ones, ends=folder_ends(folder),
        unfinished=(folder.path / PENDING).exists(),
    )  # fmt: skip


def folder_ends(folder: OperatorFolder) -> tuple[Expiring, ...]:
    """When what the operator's folder holds expires, the first one first; raises as `overview`."""
    found = [
        Expiring(CERTIFICATE_ENDS, folder.certificate().expires),
        *ends(TLS_ENDS, [folder.tls()]),
        *ends(AUTHORITY_ENDS, folder.authorities()),
        *(Expiring(f"the membership of {m.site!r}", m.expires) for m in folder.roster().members if m.expires),
    ]
    return tuple(sorted(found, key=lambda end: (end.when, end.what)))
