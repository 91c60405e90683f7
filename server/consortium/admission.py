"""Who is a member: admit a site that was invited, revoke one, take a member's new keys."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from pydantic import ValidationError

from wardround.core.checked import invalid
from wardround.core.errors import PeerError, unknown_name
from wardround.privacy.secagg.secret import Secret
from wardround.runtime.membership import (
    JoinRequest,
    read_join,
    read_leaving,
    read_rotation,
    same_spoken,
    spoken,
)
from wardround.runtime.roster import ROSTER, RosterDocument, RosterMember, check_times
from wardround.runtime.signed import sign_document
from wardround.runtime.small_files import value_bytes
from wardround.server.consortium.changes import changing, commit
from wardround.server.consortium.invitations import check_name_is_free
from wardround.server.consortium.operator_folder import (
    ROSTER_FILE,
    InvitationRecord,
    OperatorFolder,
    invitation_id,
)


@dataclass(frozen=True)
class Changed:
    """What a command made of the roster.

    Attributes:
        site: Whom it was about.
        roster: The present one.
        request: Digest of the site's request; empty where there was none.
        already: An earlier call had done it; nothing has changed.
    """

    site: str
    roster: RosterDocument
    request: str = ""
    already: bool = False


def admit(
    path: Path,
    request: bytes,
    now: datetime,
    *,
    said: str | None = None,
    days: int | None = None,
    passphrase: Secret | None = None,
) -> Changed:
    """Admit a site that answers an open invitation.

    The invitation is used and the site is a member in one step that a kill cannot divide; the same request
    once more finishes what was left undone.

    Args:
        path: The operator's folder.
        request: The site's file.
        now: The present moment.
        said: Digest of the request as the site's people read it out; without it, it is not compared.
        days: After which the membership ends; None: it does not.
        passphrase: Of the consortium key.

    Raises:
        PeerError: The request is malformed, altered, not signed by its keys, of another consortium, or its
            digest is not what was said; its invitation is unknown, another site's, used, withdrawn or
            expired; or a key in it is in use.
        ConfigError: The site's name is a member's, or the passphrase is wrong.
        StorageError: Something cannot be read or written.
    """
    asked = read_join(request)
    _require_said(asked.digest, said, "admit nobody: speak with the site")
    now = now.replace(microsecond=0)
    with changing(path) as folder:
        record, roster = _invited(folder, asked), folder.roster()
        repeated = record.state == "used" and record.request == asked.digest
        if repeated and roster.member(asked.site) is not None:
            return Changed(asked.site, roster, asked.digest, already=True)
        _check_open(record, asked, now)
        check_name_is_free(roster, asked.site)
        _check_keys(folder, roster, asked.identity, asked.transport)
        member = RosterMember(
            site=asked.site, identity=asked.identity, transport=asked.transport, admitted=now,
            expires=None if days is None else now + timedelta(days=days),
        )  # fmt: skip
        used = record.model_copy(update={"state": "used", "request": asked.digest})
        following = _publish(
            folder, (*roster.members, member), now, passphrase, "admitted", asked.site, [used]
        )
    return Changed(asked.site, following, asked.digest)


def revoke(
    path: Path, site: str, now: datetime, *, request: bytes | None = None, passphrase: Secret | None = None
) -> Changed:
    """Take a member off the roster, and withdraw what invitations are open for it.

    Args:
        path: The operator's folder.
        site: Name of the member.
        now: The present moment.
        request: The member's own word that it has left; without it the operator decides alone.
        passphrase: Of the consortium key.

    Raises:
        PeerError: The request is malformed, altered, of another site or consortium, or not signed by the
            member's identity.
        ConfigError: There is neither a member nor an open invitation of this name, or the passphrase is
            wrong.
        StorageError: Something cannot be read or written.
    """
    now = now.replace(microsecond=0)
    with changing(path) as folder:
        roster = folder.roster()
        if request is not None:
            _check_leaving(folder, roster, site, request)
        withdrawn = [
            record.model_copy(update={"state": "withdrawn"})
            for record in folder.invitations()
            if record.state == "open" and record.site == site
        ]
        if roster.member(site) is None:
            if not withdrawn:
                raise unknown_name("member", site, [member.site for member in roster.members])
            line = {"at": now.isoformat(), "event": "withdrawn", "site": site}
            commit(folder, {record.file: value_bytes(record) for record in withdrawn}, line)
            return Changed(site, roster)
        others = [member for member in roster.members if member.site != site]
        return Changed(site, _publish(folder, others, now, passphrase, "revoked", site, withdrawn))


def _check_leaving(folder: OperatorFolder, roster: RosterDocument, site: str, request: bytes) -> None:
    asked, member = read_leaving(request), roster.member(site)
    _check_consortium(folder, asked.consortium)
    if member is not None and (asked.site, asked.identity) != (site, member.identity):
        raise PeerError(
            f"the leaving request is not that of {site!r}", found=f"{asked.site}, {asked.identity[:16]}…",
            expected=f"{site}, {member.identity[:16]}…",
            remedy="speak with the site; to revoke it all the same, leave the request out",
        )  # fmt: skip


def rotate_site(
    path: Path,
    request: bytes,
    now: datetime,
    *,
    said: str | None = None,
    days: int | None = None,
    passphrase: Secret | None = None,
) -> Changed:
    """Give a member the new keys that it asks for with its present ones.

    Args:
        path: The operator's folder.
        request: The site's file, signed by its identity in the roster, the new one and the new transport key.
        now: The present moment.
        said: Digest of the request as the site's people read it out; without it, it is not compared.
        days: After which the membership ends from now on; None: that stays as it was.
        passphrase: Of the consortium key.

    Raises:
        PeerError: The request is malformed, altered, not signed by all three keys, of another consortium,
            not of the member's present identity, or its digest is not what was said; or a new key is in use.
        ConfigError: No such member, or the passphrase is wrong.
        StorageError: Something cannot be read or written.
    """
    asked = read_rotation(request)
    _require_said(asked.digest, said, "change nothing: speak with the site")
    now = now.replace(microsecond=0)
    with changing(path) as folder:
        _check_consortium(folder, asked.consortium)
        roster = folder.roster()
        member = roster.member(asked.site)
        if member is None:
            raise unknown_name("member", asked.site, [one.site for one in roster.members])
        if (member.identity, member.transport) == (asked.identity, asked.transport):
            return Changed(asked.site, roster, asked.digest, already=True)
        if member.identity != asked.former:
            raise PeerError(
                f"the request of {asked.site!r} is not signed by its present identity",
                found=f"{asked.former[:16]}…", expected=f"{member.identity[:16]}…",
                remedy="where the site has lost its keys: revoke it, and invite it again",
            )  # fmt: skip
        check_times("the request", asked.issued, None, now)
        _check_keys(folder, roster, asked.identity, asked.transport)
        changed = member.model_copy(
            update={
                "identity": asked.identity,
                "transport": asked.transport,
                "admitted": now,
                "expires": member.expires if days is None else now + timedelta(days=days),
            }
        )
        members = [changed if one.site == asked.site else one for one in roster.members]
        return Changed(
            asked.site, _publish(folder, members, now, passphrase, "rotated site", asked.site), asked.digest
        )


def _invited(folder: OperatorFolder, asked: JoinRequest) -> InvitationRecord:
    _check_consortium(folder, asked.consortium)
    wanted = invitation_id(asked.nonce)
    record = next((record for record in folder.invitations() if record.id == wanted), None)
    if record is None:
        raise PeerError("nobody was invited with this invitation", remedy="invite the site anew")
    return record


def _check_open(record: InvitationRecord, asked: JoinRequest, now: datetime) -> None:
    if record.site != asked.site:
        raise PeerError("the invitation is another site's", found=asked.site, expected=record.site)
    if record.state != "open":
        raise PeerError(
            f"the invitation of {record.site!r} was {record.state}", expected="an open one",
            remedy="somebody else may have it: speak with the site, then invite it anew",
        )  # fmt: skip
    check_times(f"the invitation of {record.site!r}", record.issued, record.expires, now)
    check_times("the request", asked.issued, None, now)


def _check_consortium(folder: OperatorFolder, key: str) -> None:
    if key != folder.about.key:
        raise PeerError(
            "the request is for another consortium", found=f"key {key[:16]}…",
            expected=f"key {folder.about.key[:16]}…", remedy="name the right folder with --folder",
        )  # fmt: skip


def _check_keys(folder: OperatorFolder, roster: RosterDocument, identity: str, transport: str) -> None:
    taken = {folder.about.key: "the consortium", folder.certificate().identity: "the server"}
    taken |= {member.identity: member.site for member in roster.members}
    taken |= {member.transport: member.site for member in roster.members}
    for key in (identity, transport):
        if key in taken:
            raise PeerError(
                "a key in the request is in use", found=f"the key of {taken[key]}",
                expected="keys of the site's own", remedy="the site makes new ones: wardround site join",
            )  # fmt: skip


def _publish(
    folder: OperatorFolder,
    members: Iterable[RosterMember],
    now: datetime,
    passphrase: Secret | None,
    event: str,
    site: str,
    records: Iterable[InvitationRecord] = (),
) -> RosterDocument:
    """Sign the next roster, and change what goes with it."""
    former = folder.roster()
    try:
        roster = RosterDocument(
            consortium=former.consortium, version=former.version + 1, issued=max(now, former.issued),
            members=tuple(sorted(members, key=lambda member: member.site)), previous=former.digest,
        )  # fmt: skip
    except ValidationError as error:
        raise invalid("roster", error) from error
    files = {ROSTER_FILE: sign_document(ROSTER, roster, folder.consortium_key(passphrase))}
    files |= folder.at_server(files)
    files |= {record.file: value_bytes(record) for record in records}
    line: dict[str, str | int] = {
        "at": now.isoformat(), "event": event, "site": site, "version": roster.version,
        "roster": roster.digest,
    }  # fmt: skip
    member = roster.member(site)
    if member is not None:
        line |= {"identity": member.identity, "transport": member.transport}
    commit(folder, files, line)
    return roster


def _require_said(digest: str, said: str | None, remedy: str) -> None:
    """Refuse another request than the one whose digest the site's people read out, where they did."""
    if said is not None and not same_spoken(said, digest):
        raise PeerError(
            "the request is not the one that was read out", found=spoken(digest),
            expected="the digest that the site reads out", remedy=remedy,
        )  # fmt: skip
