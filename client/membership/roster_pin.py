"""Take a newer roster, have people confirm it, take the server's new certificate: never an older one."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from wardround.client.membership.rotation import settle_keys
from wardround.client.membership.site_folder import (
    ABOUT,
    CA,
    CERTIFICATE,
    CONFIRMED,
    ROSTER_FILE,
    AboutSite,
    Confirmed,
    ConfirmedMember,
    SiteFolder,
)
from wardround.core.errors import PeerError
from wardround.runtime.files import write_atomic
from wardround.runtime.membership import read_notice, same_spoken, spoken
from wardround.runtime.roster import RosterDocument, ServerCertificate, check_times, newer, read_roster
from wardround.runtime.small_files import value_bytes


@dataclass(frozen=True)
class RosterChanges:
    """What a roster has that the site's people have not confirmed, by name.

    Attributes:
        added: Members that were not confirmed.
        removed: Confirmed ones that are members no longer.
        other_keys: Members that have another key than the one that was confirmed.
    """

    added: tuple[str, ...]
    removed: tuple[str, ...]
    other_keys: tuple[str, ...]

    def __bool__(self) -> bool:
        return bool(self.added or self.removed or self.other_keys)


def update_roster(site: SiteFolder, data: bytes, now: datetime) -> bool:
    """Pin a newer roster; members that it adds count only once they are confirmed.

    Args:
        site: The site's folder.
        data: The signed roster.
        now: The present moment.

    Returns:
        Whether it is another one than before.

    Raises:
        PeerError: It is not signed by the pinned key, altered, older, contradicts the pinned one, comes
            from the future, or gives this site's name to keys that the site does not hold.
        StorageError: It cannot be written; the old one stays.
    """
    offered = read_roster(data, site.consortium_key)
    is_newer = newer(site.roster(), offered)
    if is_newer:
        check_times("the roster", offered.issued, None, now)
        own = offered.member(site.name)
        if own is not None and not site.holds(own.identity, own.transport):
            raise PeerError(
                "the roster gives this site's name to keys that are not its own",
                found=f"identity {own.identity[:16]}…",
                remedy="somebody else may have answered the invitation: have the operator revoke that member",
            )  # fmt: skip
        write_atomic(site.path / ROSTER_FILE, data, private=True)
    settle_keys(site)
    return is_newer


def changes_since(confirmed: Confirmed | None, roster: RosterDocument) -> RosterChanges:
    """What people have to look at before they confirm a roster."""
    before = {} if confirmed is None else {m.site: (m.identity, m.transport) for m in confirmed.members}
    after = {m.site: (m.identity, m.transport) for m in roster.members}
    return RosterChanges(
        added=tuple(sorted(after.keys() - before.keys())),
        removed=tuple(sorted(before.keys() - after.keys())),
        other_keys=tuple(sorted(s for s in after.keys() & before.keys() if after[s] != before[s])),
    )


def confirm_roster(site: SiteFolder, said: str, now: datetime) -> Confirmed:
    """Record that the site's people compared the pinned roster's digest with others.

    Args:
        site: The site's folder.
        said: The digest as they heard it.
        now: The present moment.

    Raises:
        PeerError: It is another roster's digest.
        StorageError: It cannot be written.
    """
    roster = site.roster()
    if not same_spoken(said, roster.digest):
        raise PeerError(
            "the digest is not that of the roster which this site has pinned",
            found="other digits", expected=spoken(roster.digest),
            remedy="take the present roster first (wardround site roster update); if it is the same version "
            "elsewhere, sites are shown different members: train nothing, and speak with the others",
        )  # fmt: skip
    members = tuple(
        ConfirmedMember(site=m.site, identity=m.identity, transport=m.transport) for m in roster.members
    )
    confirmed = Confirmed(
        key=site.consortium_key.hex(), version=roster.version, digest=roster.digest,
        at=now.replace(microsecond=0), members=members,
    )  # fmt: skip
    write_atomic(site.path / CONFIRMED, value_bytes(confirmed), private=True)
    return confirmed


def update_server(site: SiteFolder, data: bytes, now: datetime) -> ServerCertificate:
    """Take the server's new certificate and the authorities that count from now on.

    A kill in between leaves authorities that are newer than the certificate; the same notice once more
    completes it.

    Args:
        site: The site's folder.
        data: The notice that the consortium key signed.
        now: The present moment.

    Returns:
        The certificate that is in force.

    Raises:
        PeerError: The notice is not signed by the pinned key, altered, older than what the site has, of the
            same moment with other content, expired or from the future.
        StorageError: It cannot be written.
    """
    notice, offered = read_notice(data, site.consortium_key)
    pinned = site.certificate()
    if offered.consortium != site.consortium:
        raise PeerError(
            "a server notice is of another consortium", found=offered.consortium, expected=site.consortium
        )
    if offered.issued < pinned.issued or (offered.issued == pinned.issued and offered != pinned):
        raise PeerError(
            "a server notice is not newer than what this site has",
            found=f"of {offered.issued:%Y-%m-%d %H:%M} UTC",
            expected=f"later than {pinned.issued:%Y-%m-%d %H:%M} UTC",
            remedy="ask the operator for the present one",
        )  # fmt: skip
    offered.check(now)
    about = AboutSite(
        site=site.name, consortium=site.consortium, key=site.consortium_key.hex(), address=offered.address
    )
    write_atomic(site.path / CA, notice.ca.encode(), private=True)
    write_atomic(site.path / ABOUT, value_bytes(about), private=True)
    write_atomic(site.path / CERTIFICATE, notice.certificate.encode(), private=True)
    return offered
